"""Ray in this process: a call runs when it is made, on copies of its arguments, as an actor's queue would."""

from __future__ import annotations

import copy
import pickle
import signal
import sys
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class GetTimeoutError(RayError, TimeoutError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(f"Traceback\n{type(cause).__name__}: {cause}")
        self.cause = cause


class FakeRay:
    """What `RolloutWorkers` uses of Ray.

    Args:
        dying: the numbers, from 1 on, of the calls of `sample` in which the actor dies.
        cpus: of the cluster.
        silent: the numbers of the calls of `sample` from which nothing comes back.
    """

    exceptions = SimpleNamespace(
        RayError=RayError, RayTaskError=RayTaskError, GetTimeoutError=GetTimeoutError
    )

    def __init__(self, dying: Collection[int] = (), cpus: int = 8, silent: Collection[int] = ()) -> None:
        self.dying, self.cpus, self.silent = dying, cpus, silent
        self.waited = 0.0  # seconds for what did not come
        self.put_names: list[list[str]] = []  # of each object
        self.actors: list[Any] = []
        self.samples = 0
        self.killed = 0
        self.left = False

    def join(self, option: str) -> tuple[FakeRay, bool]:
        """As `join_cluster`: `ray.init` takes SIGTERM."""
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        return self, True

    def remote(self, **options: Any) -> Callable[[type], Any]:
        assert options == {"num_cpus": 1, "num_gpus": 0, "max_restarts": 0}
        return lambda cls: SimpleNamespace(remote=lambda *arguments: _Handle(self, cls, arguments))

    def put(self, value: dict[str, Any]) -> Any:
        self.put_names.append(list(value))
        return pickle.loads(pickle.dumps(value))

    def get(self, calls: list[Any], timeout: float) -> list[Any]:
        for call in calls:
            if isinstance(call, GetTimeoutError):
                self.waited += timeout
            if isinstance(call, RayError):
                raise call
        return copy.deepcopy(calls)

    def kill(self, handle: Any) -> None:
        self.killed += 1

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)}

    def shutdown(self) -> None:
        self.left = True


class _Handle:
    def __init__(self, ray: FakeRay, cls: type, arguments: tuple[Any, ...]) -> None:
        self.ray, self.dead = ray, False
        self.actor = cls(*pickle.loads(pickle.dumps(arguments)))
        ray.actors.append(self.actor)
        self.load, self.sample = (SimpleNamespace(remote=self._method(name)) for name in ("load", "sample"))

    def _method(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if name == "sample":
                self.ray.samples += 1
                self.dead |= self.ray.samples in self.ray.dying
                if self.ray.samples in self.ray.silent:
                    return GetTimeoutError("Get timed out: some object(s) not ready.")
            if self.dead:
                return RayError("The actor died unexpectedly before finishing this task.")
            try:
                return getattr(self.actor, name)(*copy.deepcopy(arguments))
            except Exception as error:  # noqa: BLE001  # as Ray does
                return RayTaskError(error)

        return call
