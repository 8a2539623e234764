"""Processes of this machine, one pipe each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from fourdthinker.synth.pool import EndedError, Target

_JOIN = 5.0  # seconds to end
_THREADS = "OMP_NUM_THREADS"


@dataclass(eq=False)
class _Process:
    process: Any
    pipe: Connection


class LocalProcesses:
    """See `synth.pool.Processes`.

    Args:
        target: a function of a module, called as target(job, send) in a process.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._context = multiprocessing.get_context("spawn")

    def start(self) -> _Process:
        """Start a process."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._target, os.getpid()), daemon=True)
        with _one_thread():
            process.start()
        theirs.close()
        return _Process(process, ours)

    def give(self, process: _Process, job: Any) -> None:
        """Send it a job."""
        process.pipe.send(job)

    def wait(self, processes: Sequence[_Process], seconds: float) -> list[_Process]:
        """Those whose pipe can be read, or is closed."""
        ready = wait([process.pipe for process in processes], seconds)
        return [process for process in processes if process.pipe in ready]

    def receive(self, process: _Process) -> Any:
        """Read the pipe; EndedError says by which signal or with which status a process ended."""
        try:
            return process.pipe.recv()
        except (EOFError, OSError) as error:  # OSError: in the middle of a message
            process.process.join(_JOIN)
            code = process.process.exitcode
            how = f"by signal {-code}" if code is not None and code < 0 else f"with status {code}"
            raise EndedError(f"its process ended {how}") from error

    def kill(self, process: _Process) -> None:
        """Kill it."""
        process.process.kill()
        process.process.join(_JOIN)
        process.pipe.close()

    def close(self, idle: Sequence[_Process]) -> None:
        """Close the pipes: an idle process reads the end of its pipe, and returns."""
        for process in idle:
            process.pipe.close()
        for process in idle:
            process.process.join(_JOIN)


@contextmanager
def _one_thread() -> Iterator[None]:
    """NumPy's algebra in processes begun meanwhile has one thread: they share the cores.

    It reads the variable as it is imported, before the process comes to any line of ours.
    """
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before


def _work(pipe: Connection, target: Target, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if "torch" in sys.modules:  # by the module of the target
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
