"""A pool of processes that are ended one by one: an item that takes too long costs only itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

_START = 300.0  # seconds to start, before the first item

Target = Callable[[Any, Callable[[Any], None]], None]


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


class EndedError(Exception):
    """A process is no more; the message says how it ended."""


class Processes(Protocol):
    """Where jobs run: processes of this machine (`synth.processes`), or actors (`synth.actors`)."""

    def start(self) -> Any:
        """Start a process, and return what stands for it in the other calls."""

    def give(self, process: Any, job: Any) -> None:
        """Let it do a job."""

    def wait(self, processes: Sequence[Any], seconds: float) -> list[Any]:
        """Those that have sent something or ended; none when `seconds` have passed."""

    def receive(self, process: Any) -> Any:
        """The next message of a process that `wait` returned, None at the end of a job; or EndedError."""

    def kill(self, process: Any) -> None:
        """End it, whatever it does."""

    def close(self, idle: Sequence[Any]) -> None:
        """End those that have nothing to do."""


@dataclass
class _Worker:
    process: Any
    job: Any = None
    item: str = ""
    stage: str = ""
    since: float = field(default_factory=time.monotonic)

    def deadline(self, timeout: float) -> float:
        """When what it does has taken too long."""
        return self.since + timeout + (0 if self.item else _START)


def run_jobs(
    jobs: Iterator[Any],
    processes: Processes,
    *,
    workers: int,
    timeout: float,
    handle: Callable[[Any, Any], None],
    more: Callable[[], Any],
) -> None:
    """Give jobs to processes and their messages to `handle`, until there are no more.

    Args:
        jobs: what processes do, taken when one is free.
        processes: where they run. What they send is handled here, in order. An exception that leaves a job
            ends its process.
        workers: how many of them.
        timeout: seconds that one item may take, from its `Begin` to the next one, or to the job's end.
        handle: called as handle(job, message); message is what was sent, or `Lost`, after which the job has
            ended.
        more: asked for a job before `jobs` is; None: has none.
    """
    pool: list[_Worker] = []
    try:
        while True:
            while any(worker.job is None for worker in pool) or len(pool) < workers:
                job = more() or next(jobs, None)
                if job is None:
                    break
                idle = next((worker for worker in pool if worker.job is None), None)
                if idle is None:
                    idle = _Worker(processes.start())
                    pool.append(idle)
                try:
                    processes.give(idle.process, job)
                except OSError:  # it has died while it had nothing to do
                    processes.kill(idle.process)
                    idle.process = processes.start()
                    processes.give(idle.process, job)
                idle.job, idle.item, idle.stage, idle.since = job, "", "", time.monotonic()
            busy = [worker for worker in pool if worker.job is not None]
            if not busy:
                return
            _serve(busy, pool, processes, timeout, handle)
    finally:
        try:
            for worker in pool:
                if worker.job is not None:
                    processes.kill(worker.process)
        finally:
            processes.close([worker.process for worker in pool if worker.job is None])


def _serve(
    busy: list[_Worker],
    pool: list[_Worker],
    processes: Processes,
    timeout: float,
    handle: Callable[[Any, Any], None],
) -> None:
    """Handle what has arrived, and end who is late."""
    first = min(worker.deadline(timeout) for worker in busy)
    ready = processes.wait([worker.process for worker in busy], max(0.0, first - time.monotonic()))
    for worker in busy:
        reason = None
        if worker.process in ready:
            try:
                _take(worker, processes.receive(worker.process), handle)
            except EndedError as ended:
                reason = str(ended)
        elif time.monotonic() > worker.deadline(timeout):
            reason = f"took longer than {timeout:g} s"
        if reason is not None:
            processes.kill(worker.process)
            pool.remove(worker)
            handle(worker.job, Lost(worker.item, worker.stage, reason))


def _take(worker: _Worker, message: Any, handle: Callable[[Any, Any], None]) -> None:
    if message is None:
        worker.job = None
    elif isinstance(message, Begin):
        if message.item != worker.item:
            worker.since = time.monotonic()
        worker.item, worker.stage = message.item, message.stage
    else:
        handle(worker.job, message)
