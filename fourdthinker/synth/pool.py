"""A pool of processes that are ended one by one: an item that takes too long costs only itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

_JOIN, _START = 5.0, 300.0  # seconds: to end, and to start before the first item


@dataclass(frozen=True)
class Begin:
    """Sent when a stage of an item begins; the time-out of an item counts from its first one."""

    item: str
    stage: str


@dataclass(frozen=True)
class Lost:
    """What the caller is told of a job whose process died or was ended.

    Attributes:
        item: that it was working on; "" before the first one.
        stage: of the item.
        reason: why.
    """

    item: str
    stage: str
    reason: str


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: Any = None
    item: str = ""
    stage: str = ""
    since: float = field(default_factory=time.monotonic)

    def deadline(self, timeout: float) -> float:
        """When what it does has taken too long."""
        return self.since + timeout + (0 if self.item else _START)


Target = Callable[[Any, Callable[[Any], None]], None]


def run_jobs(
    jobs: Iterator[Any],
    target: Target,
    *,
    workers: int,
    timeout: float,
    handle: Callable[[Any, Any], None],
    more: Callable[[], Any],
) -> None:
    """Give jobs to processes and their messages to `handle`, until there are no more.

    Args:
        jobs: what `target` is called with, taken when a process is free.
        target: a function of a module, called as target(job, send) in another process; what it sends is
            handled here, in order. An exception that leaves it ends the process.
        workers: processes.
        timeout: seconds that one item may take, from its `Begin` to the next one, or to the job's end.
        handle: called as handle(job, message); message is what was sent, or `Lost`, after which the job has
            ended.
        more: asked for a job before `jobs` is; None: has none.
    """
    context = multiprocessing.get_context("spawn")
    pool: list[_Worker] = []
    try:
        while True:
            while any(worker.job is None for worker in pool) or len(pool) < workers:
                job = more() or next(jobs, None)
                if job is None:
                    break
                idle = next((worker for worker in pool if worker.job is None), None)
                if idle is None:
                    idle = _start(context, target)
                    pool.append(idle)
                _give(idle, job)
            busy = [worker for worker in pool if worker.job is not None]
            if not busy:
                return
            _serve(busy, pool, timeout, handle)
    finally:
        _end(pool)


def _start(context: Any, target: Target) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, target, os.getpid()), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, job: Any) -> None:
    worker.job, worker.item, worker.stage, worker.since = job, "", "", time.monotonic()
    worker.pipe.send(job)


def _serve(
    busy: list[_Worker], pool: list[_Worker], timeout: float, handle: Callable[[Any, Any], None]
) -> None:
    """Handle what has arrived, and end who is late."""
    now = time.monotonic()
    first = min(worker.deadline(timeout) for worker in busy)
    ready = wait([worker.pipe for worker in busy], max(0.0, first - now))
    for worker in busy:
        if worker.pipe in ready:
            _receive(worker, pool, handle)
        elif time.monotonic() > worker.deadline(timeout):
            _lose(worker, pool, handle, f"took longer than {timeout:g} s")


def _receive(worker: _Worker, pool: list[_Worker], handle: Callable[[Any, Any], None]) -> None:
    try:
        message = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join(_JOIN)
        code = worker.process.exitcode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with status {code}"
        _lose(worker, pool, handle, f"its process ended {how}")
        return
    if message is None:
        worker.job = None
        return
    if isinstance(message, Begin):
        if message.item != worker.item:
            worker.since = time.monotonic()
        worker.item, worker.stage = message.item, message.stage
        return
    handle(worker.job, message)


def _lose(worker: _Worker, pool: list[_Worker], handle: Callable[[Any, Any], None], reason: str) -> None:
    worker.process.kill()
    worker.process.join(_JOIN)
    worker.pipe.close()
    pool.remove(worker)
    handle(worker.job, Lost(worker.item, worker.stage, reason))


def _end(pool: list[_Worker]) -> None:
    for worker in pool:
        if worker.job is not None:
            worker.process.kill()
        worker.pipe.close()  # an idle one reads the end of its pipe, and returns
    for worker in pool:
        worker.process.join(_JOIN)


def _work(pipe: Connection, target: Target, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if "torch" in sys.modules:  # by the module of the target; processes share the cores
        sys.modules["torch"].set_num_threads(1)
    while True:
        try:
            job = pipe.recv()
            target(job, pipe.send)
            pipe.send(None)
        except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent has ended, or needs no more
            return
        if os.getppid() != parent:
            return
