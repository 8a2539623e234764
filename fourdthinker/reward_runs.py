"""Calls of functions that may hang, in bounded time: plain ones in a thread, async ones in an event loop.

`Calls` makes those of one function. A call that does not come back in time is left to itself; nothing can end
a thread from outside. With `MOST_HANGING` of them, or while one blocks the event loop, that function is not
called, and no other one notices. `Patience` is what all functions together may cost without an answer. All
threads have the gradient mode and the CUDA device of the caller.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

import torch

MOST_HANGING = 8  # calls of a function that were given up and still run: one that loops slows all else
PATIENCE = 4  # time-outs that calls without an answer may take in an update
_GRACE = 1.0  # seconds that async calls may take to end once they are cancelled
_UNBLOCK = "do not block in async def: write it as a plain def, or use an async client"


class NoAnswerError(Exception):
    """A call did not come back in time, or was not made because others before it did not."""


class Patience:
    """The time that calls without an answer may take, of all functions together.

    Calls that are slow but answer cost none of it, and calls that are late at the same time count once.

    Args:
        seconds: until no further call is made; at most one more time-out passes then.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Begin anew, as for another update."""
        self._lost, self._until = 0.0, 0.0

    def lose(self, began: float) -> None:
        """Count the time until now of a call that was given up.

        Args:
            began: when, by `time.monotonic`.
        """
        now = time.monotonic()
        self._lost += now - max(began, self._until)
        self._until = now

    @property
    def over(self) -> bool:
        """Whether no further call may be made."""
        return self._lost > 0 and self._lost >= self.seconds


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


@dataclass(eq=False)
class _Call:
    """A call under way.

    Attributes:
        row: its place among the calls.
        make: the call.
        mode: of the caller.
        future: done once the call has come back, with what it returned or raised; cancelled: never made.
        began: when it was handed over, by `time.monotonic`.
        task: of an async one that has begun.
    """

    row: int
    make: Callable[[], Any]
    mode: _Mode = field(default_factory=_Mode)
    future: Future[Any] = field(default_factory=Future)
    began: float = field(default_factory=time.monotonic)
    task: asyncio.Task[Any] | None = None


class Calls:
    """The calls of one function.

    Args:
        awaited: whether the function is async. Its event loop lasts as long as this object, so that a client
            that belongs to a loop can be kept.
    """

    def __init__(self, *, awaited: bool) -> None:
        self._awaited = awaited
        self._left: list[_Call] = []  # given up
        self._runner: _Thread | _Loop | None = None

    @property
    def hanging(self) -> int:
        """Calls that were given up and have not come back yet."""
        self._left = [call for call in self._left if not call.future.done()]
        return len(self._left)

    def make(
        self,
        calls: Sequence[Callable[[], Any]],
        timeout: float | None,
        concurrency: int,
        patience: Patience,
    ) -> list[Any]:
        """Make calls: async ones together, others one after the other.

        Args:
            calls: what to call, and await. None is made twice.
            timeout: seconds that each may take; None: any time, and plain ones in the caller's thread.
            concurrency: how many async ones run at a time.
            patience: what this and other functions may still cost.

        Returns:
            Of each call what it returned, what it raised, or a `NoAnswerError`.
        """
        if timeout is None and not self._awaited:
            return [_attempt(call) for call in calls]
        together = concurrency if self._awaited else 1
        waiting, running = deque(enumerate(calls)), list[_Call]()
        found: dict[int, Any] = {}
        while waiting or running:
            reason = self._reason(patience)
            while waiting and not reason and len(running) < together:
                running.append(self._start(*waiting.popleft()))
            if not running:
                found |= {row: NoAnswerError(f"not called, for {reason}") for row, _ in waiting}
                break
            until = None if timeout is None else max(running[0].began + timeout - time.monotonic(), 0.0)
            wait([call.future for call in running], until, FIRST_COMPLETED)
            found |= {call.row: call.future.result() for call in running if call.future.done()}
            running = [call for call in running if call.row not in found]
            late = [] if timeout is None else [c for c in running if time.monotonic() - c.began >= timeout]
            if timeout is not None and late:
                found |= self._give_up(late, running, timeout)
                running = [call for call in running if call.row not in found]
                patience.lose(late[0].began)
        if isinstance(self._runner, _Thread):
            self._leave()
        return [found[row] for row in range(len(calls))]

    def _reason(self, patience: Patience) -> str | None:
        """Why the function is not called now."""
        if isinstance(self._runner, _Loop) and self._runner.blocked:
            return f"a call before blocks its event loop; {_UNBLOCK}"
        if (number := self.hanging) >= MOST_HANGING:
            return (
                f"{number} calls of it before do not come back; give the function a time-out of its own, or "
                "write it as async def that ends when it is cancelled"
            )
        if patience.over:
            return (
                f"rewards of this update gave no answer for {patience.seconds:g} seconds; make them faster, "
                "or raise reward_timeout"
            )
        return None

    def _start(self, row: int, make: Callable[[], Any]) -> _Call:
        if self._runner is None or not self._runner.thread.is_alive():  # as in a process that was forked
            self._runner = _Loop() if self._awaited else _Thread()
            if self._awaited:
                weakref.finalize(self, self._runner.end).atexit = False
        call = _Call(row, make)
        self._runner.start(call)
        return call

    def _leave(self) -> None:
        """Let the thread end once its call comes back."""
        assert self._runner is not None
        self._runner.end()
        self._runner = None

    def _give_up(self, late: list[_Call], running: list[_Call], timeout: float) -> dict[int, Any]:
        """By row, what is said of calls that are late, and of all where one of them blocks the others."""
        why = "make it faster, or raise reward_timeout"
        if isinstance(self._runner, _Loop):
            grace = min(_GRACE, timeout)
            self._runner.cancel(late, grace)
            if self._runner.blocked:
                late = running
                self._runner.cancel(late, 0.0)
            if self._runner.blocked or any(call.future.cancelled() for call in late):  # these did not begin
                why = f"it blocks its event loop: {_UNBLOCK}"
        else:
            self._leave()
        self._left += late
        return {call.row: NoAnswerError(f"no answer within {timeout:g} seconds; {why}") for call in late}


def _attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001  # a user's function may raise anything
        return error


class _Thread:
    """A thread that makes one call at a time, and holds nothing but that one."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=_serve, args=(self._jobs,), name="reward", daemon=True)
        self.thread.start()

    def start(self, call: _Call) -> None:
        self._jobs.put(call)

    def end(self) -> None:
        """Once its call comes back."""
        self._jobs.put(None)


def _serve(jobs: queue.SimpleQueue[_Call | None]) -> None:
    while (call := jobs.get()) is not None:
        call.mode.enter()
        try:
            result = _attempt(call.make)
        except (SystemExit, KeyboardInterrupt) as error:  # would end this thread without a word
            result = RuntimeError(repr(error))
        call.future.set_result(result)
        del call, result


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._alive = threading.Event()
        self._alive.set()
        self.thread = threading.Thread(target=_serve_loop, args=(self._loop,), name="rewards", daemon=True)
        self.thread.start()

    @property
    def blocked(self) -> bool:
        """Whether the loop did not answer when it was asked last, and has not since."""
        return not self._alive.is_set()

    def start(self, call: _Call) -> None:
        self._loop.call_soon_threadsafe(_begin, self._loop, call)

    def cancel(self, calls: Sequence[_Call], grace: float) -> None:
        """Keep calls that have not begun from it, end the others, and wait for these where it may help."""
        begun = [call for call in calls if not call.future.cancel()]
        for call in begun:
            self._loop.call_soon_threadsafe(_cancel, call)
        if self.blocked:
            return
        self._alive = threading.Event()
        self._loop.call_soon_threadsafe(self._alive.set)
        if self._alive.wait(grace):
            wait([call.future for call in begun], grace)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


def _serve_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=_GRACE))
    loop.close()


def _begin(loop: asyncio.AbstractEventLoop, call: _Call) -> None:
    call.mode.enter()
    call.task = loop.create_task(_answer(call))


def _cancel(call: _Call) -> None:
    if call.task is not None:
        call.task.cancel()


async def _answer(call: _Call) -> None:
    if not call.future.set_running_or_notify_cancel():  # given up before it began
        return
    try:
        result = await call.make()
    except Exception as error:  # noqa: BLE001  # a user's function may raise anything
        result = error
    except (asyncio.CancelledError, SystemExit, KeyboardInterrupt) as error:
        # One that cancels or exits would end the others or their loop.
        result = RuntimeError(repr(error))
    call.future.set_result(result)
