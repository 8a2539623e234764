"""Actors of a Ray cluster in the place of processes: `--engine ray`.

The journal, the order of jobs and the time-outs stay with the run (`synth.pool`). An actor does one job
after the other, keeps the models that it has loaded, and sends each outcome as it comes. Clips, pictures and
records are files of the output folder, which all machines must see under one path.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fourdthinker.errors import ConfigError
from fourdthinker.ray_cluster import join_cluster
from fourdthinker.synth.pool import EndedError, Target

_FETCH = 60.0  # seconds to bring a message that has been sent
_AHEAD = 8  # messages in an actor's queue and in its stream; then it waits until the run takes one


@dataclass(eq=False)
class _Actor:
    handle: Any
    messages: Any = None


class RayActors:
    """See `synth.pool.Processes`.

    Joins the cluster of RAY_ADDRESS, or begins one on this machine.

    Args:
        target: a function of a module, called as target(job, send) in an actor.
        workers: how many actors there will be; None: one for each core of the cluster.
        gpus: whether jobs use a model on a GPU; the actors then share those of the cluster.

    Raises:
        ConfigError: Ray is not installed or does not start, or has not so many free cores.
    """

    def __init__(self, target: Target, workers: int | None, *, gpus: bool) -> None:
        ray, self._began = join_cluster("--engine ray")
        self._ray = ray
        free = ray.available_resources()
        cores = int(free.get("CPU", 0))
        self.workers = workers or cores
        if not 1 <= self.workers <= cores:
            raise ConfigError(
                f"{self.workers} workers, and {cores} cores of the Ray cluster are free; give --workers so "
                "many"
            )
        share = _share(int(free.get("GPU", 0)), self.workers) if gpus else 0.0
        self._class = ray.remote(num_cpus=1, num_gpus=share, max_restarts=0)(_Worker)
        self._target = target

    def start(self) -> _Actor:
        """Start an actor."""
        return _Actor(self._class.remote(self._target))

    def give(self, process: _Actor, job: Any) -> None:
        """Call it; what it sends comes as a stream, of which at most `_AHEAD` messages are made ahead."""
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": _AHEAD}
        process.messages = process.handle.run.options(**options).remote(job)

    def wait(self, processes: Sequence[_Actor], seconds: float) -> list[_Actor]:
        """Those whose stream has something, or has ended."""
        streams = [process.messages for process in processes]
        self._ray.wait(streams, num_returns=1, timeout=seconds)
        ready, _ = self._ray.wait(streams, num_returns=len(streams), timeout=0)
        return [process for process in processes if process.messages in ready]

    def receive(self, process: _Actor) -> Any:
        """Take the next of its stream; EndedError where the actor, its machine or its job has failed."""
        try:
            return self._ray.get(next(process.messages), timeout=_FETCH)
        except StopIteration:
            return None
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise EndedError(
                f"its actor ended: {type(error).__name__}: {lines[-1] if lines else ''}"
            ) from error

    def kill(self, process: _Actor) -> None:
        """Kill it."""
        self._ray.kill(process.handle)

    def close(self, idle: Sequence[_Actor]) -> None:
        """Kill them, and leave the cluster, if it was joined here."""
        try:
            for process in idle:
                self._ray.kill(process.handle)
        finally:
            if self._began:
                self._ray.shutdown()


def _share(gpus: int, workers: int) -> float:
    """Of a GPU for each actor, so that all find room: an actor is on one GPU, in ten-thousandths of it."""
    if not gpus:
        return 0.0
    return math.floor(10_000 / math.ceil(workers / gpus)) / 10_000


class _Worker:
    """What an actor is."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def run(self, job: Any) -> Iterator[Any]:
        messages: queue.Queue[Any] = queue.Queue(_AHEAD)
        end = object()
        raised: list[BaseException] = []

        def work() -> None:
            try:
                self._target(job, messages.put)
            except BaseException as error:  # noqa: BLE001  # raised below, where Ray sees it
                raised.append(error)
            messages.put(end)

        threading.Thread(target=work, daemon=True).start()
        while (message := messages.get()) is not end:
            yield message
        if raised:
            raise raised[0]
