"""Calls of functions that may hang, in bounded time: plain ones in a thread, async ones in an event loop.

A call that does not come back is left to itself, in a thread that ends with it or with the process; nothing
else can end a thread. `hanging` counts these, and async calls that go on though they were cancelled. With
`MOST_HANGING` of them no call is made until one comes back. All threads have the gradient mode and the CUDA
device of the caller.
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

MOST_HANGING = 8  # calls of a process that were given up and still run: one that loops slows all else
_MOST_LATE = 2  # rounds of async calls of one run that may be late; so that it ends before the ranks' limit
_GRACE = 1.0  # seconds that an async call may take to end once it is cancelled
_SLOW = "make it faster, or raise reward_timeout"
_left: list[Callable[[], bool]] = []  # of each call that was given up: whether it goes on


class NoAnswerError(Exception):
    """A call did not come back in time, or was not made because others before it did not."""


def hanging() -> int:
    """Calls of this process that were given up and have not come back yet.

    Returns:
        Their number.
    """
    _left[:] = [goes_on for goes_on in _left if goes_on()]
    return len(_left)


def run_in_thread(calls: Sequence[Callable[[], Any]], timeout: float | None) -> list[Any]:
    """Make calls one after the other; where one hangs, a new thread goes on behind it.

    Args:
        calls: what to call.
        timeout: seconds that each may take; None: any time, and then all are made in the caller's thread.

    Returns:
        Of each call what it returned, what it raised, or a `NoAnswerError`.
    """
    if timeout is None:
        return [_attempt(call) for call in calls]
    results: list[Any] = []
    worker, hung = _Worker(), 0
    for call in calls:
        if max(hung, hanging()) >= MOST_HANGING:
            results.append(_not_made(timeout))
            continue
        try:
            results.append(worker.run(call, timeout))
        except queue.Empty:
            results.append(_hung(timeout))
            hung += 1
            _left.append(worker.thread.is_alive)
            worker.end()
            worker = _Worker()
    worker.end()
    return results


def run_in_loop(
    calls: Sequence[Callable[[], Awaitable[Any]]], timeout: float | None, concurrency: int
) -> list[Any]:
    """Make async calls together, all of a process in one event loop, so that they can keep connections.

    A loop that is blocked is replaced by a new one, where what was not finished is called once more.

    Args:
        calls: what to call and await.
        timeout: seconds that each may take; None: any time.
        concurrency: how many run at a time.

    Returns:
        Of each call what it returned, what it raised, or a `NoAnswerError`.
    """
    found: dict[int, Any] = {}
    blocked = 0
    while missing := [index for index in range(len(calls)) if index not in found]:
        if timeout is not None and max(blocked, hanging()) >= MOST_HANGING:
            found |= {index: _not_made(timeout) for index in missing}
            break
        run = _LoopRun(calls, missing, timeout, concurrency)
        guilty = run.wait()
        _left.extend(functools.partial(_goes_on, task) for task in list(run.not_ended))
        found |= {index: result for index, result in dict(run.found).items() if index in missing}
        if timeout is not None:
            found |= {index: _hung(timeout) for index in guilty}
        blocked += bool(guilty)
    return [found[index] for index in range(len(calls))]


def _hung(timeout: float) -> NoAnswerError:
    return NoAnswerError(f"no answer within {timeout:g} seconds; {_SLOW}")


def _not_made(timeout: float) -> NoAnswerError:
    if (number := hanging()) >= MOST_HANGING:
        return NoAnswerError(
            f"not called, for {number} calls of rewards before do not come back; give that function a "
            "time-out of its own, write it as async def, or raise reward_timeout"
        )
    return NoAnswerError(f"not called, for others before gave no answer within {timeout:g} seconds; {_SLOW}")


def _attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001  # a user's function may raise anything
        return error


# ---- threads


@dataclass(frozen=True)
class _Mode:
    """What torch keeps for each thread."""

    gradients: bool = field(default_factory=torch.is_grad_enabled)
    device: int | None = field(
        default_factory=lambda: torch.cuda.current_device() if torch.cuda.is_initialized() else None
    )

    def enter(self) -> None:
        torch.set_grad_enabled(self.gradients)
        if self.device is not None:
            torch.cuda.set_device(self.device)


class _Worker:
    """A thread that makes one call at a time, and holds nothing but that one."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        arguments = (self._jobs, self._results, _Mode())
        self.thread = threading.Thread(target=_serve, args=arguments, name="reward", daemon=True)
        self.thread.start()

    def run(self, call: Callable[[], Any], timeout: float) -> Any:
        """What the call returned or raised; queue.Empty: nothing within `timeout` seconds."""
        self._jobs.put(call)
        return self._results.get(timeout=timeout)

    def end(self) -> None:
        """Once its call comes back."""
        self._jobs.put(None)


def _serve(jobs: queue.SimpleQueue[Any], results: queue.SimpleQueue[Any], mode: _Mode) -> None:
    mode.enter()
    while (job := jobs.get()) is not None:
        try:
            results.put(_attempt(job))
        except (SystemExit, KeyboardInterrupt) as error:  # would end this thread without a word
            results.put(RuntimeError(repr(error)))


# ---- the event loop


def _goes_on(task: asyncio.Task[Any]) -> bool:
    return not task.done() and not task.get_loop().is_closed()


_shared: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None


def _shared_loop() -> asyncio.AbstractEventLoop:
    global _shared
    if _shared is None or not _shared[1].is_alive():  # not alive: in a process that was forked
        loop = asyncio.new_event_loop()
        _shared = loop, threading.Thread(target=_serve_loop, args=(loop,), name="rewards", daemon=True)
        _shared[1].start()
    return _shared[0]


def _serve_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=1.0))
    loop.close()


def _leave_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Let the next run have a new one; this one ends when whatever blocks it comes back."""
    global _shared
    if _shared is not None:
        _left.append(_shared[1].is_alive)
    _shared = None
    loop.call_soon_threadsafe(loop.stop)


class _LoopRun:
    """Some of the calls in the shared loop.

    Attributes:
        found: index of a call -> what it returned, raised, or that it did not answer.
        not_ended: calls that were cancelled, and went on.
    """

    def __init__(
        self,
        calls: Sequence[Callable[[], Awaitable[Any]]],
        chosen: Sequence[int],
        timeout: float | None,
        concurrency: int,
    ) -> None:
        self.found: dict[int, Any] = {}
        self.not_ended: list[asyncio.Task[Any]] = []
        self._calls, self._chosen, self._timeout, self._concurrency = calls, chosen, timeout, concurrency
        self._running: dict[int, asyncio.Task[Any]] = {}
        self._hung = 0
        self._mode = _Mode()
        self._loop = _shared_loop()
        self._done = asyncio.run_coroutine_threadsafe(self._every(), self._loop)

    async def _every(self) -> None:
        self._mode.enter()
        turns = asyncio.Semaphore(self._concurrency)
        await asyncio.gather(*(self._one(index, turns) for index in self._chosen))

    async def _one(self, index: int, turns: asyncio.Semaphore) -> None:
        async with turns:
            if self._timeout is not None and self._hung >= _MOST_LATE * self._concurrency:
                self.found[index] = _not_made(self._timeout)
                return
            task = asyncio.create_task(_attempt_async(self._calls[index]))
            self._running[index] = task
            # Not wait_for, which waits for a task that swallows its cancellation.
            done, _ = await asyncio.wait({task}, timeout=self._timeout)
            if done:
                self.found[index] = task.result()
            elif self._timeout is not None:
                self.found[index] = _hung(self._timeout)
                self._hung += 1
                task.cancel()
                if not (await asyncio.wait({task}, timeout=min(_GRACE, self._timeout)))[0]:
                    self.not_ended.append(task)
            del self._running[index]

    def wait(self) -> list[int]:
        """Until all are done ([]), or the loop is blocked: by these calls, where that can be told."""
        if self._timeout is None:
            self._done.result()
            return []
        while True:
            alive = threading.Event()
            self._loop.call_soon_threadsafe(alive.set)
            if not alive.wait(self._timeout):
                running = dict(self._running)
                current = asyncio.current_task(self._loop)
                guilty = [index for index, task in running.items() if task is current]
                _leave_loop(self._loop)
                return guilty or list(running) or list(self._chosen)
            try:
                self._done.result(self._timeout / 4)
            except TimeoutError:
                continue
            return []


async def _attempt_async(call: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await call()
    except Exception as error:  # noqa: BLE001  # a user's function may raise anything
        return error
    except (asyncio.CancelledError, SystemExit, KeyboardInterrupt) as error:
        # One that cancels or exits would end the others or their loop.
        return RuntimeError(repr(error))
