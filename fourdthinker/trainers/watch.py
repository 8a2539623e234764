"""Which process holds the others up: every rank says in the store of the process group what it does.

A collective that waits for a dead or silent rank says neither which one nor what it was doing. Here every
rank keeps its phase in the store, and a thread of each beats there. A rank that has waited in its phase for
longer than the time-out, while another is still in an earlier one, names that one and ends. One that a signal
ends before training has begun says so there too, and all end with it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from fourdthinker.trainers.stopping import EndBeforeTraining

logger = logging.getLogger(__name__)

_BEATS = 3  # that a rank may miss before it counts as dead
_numbers = itertools.count()  # runs of a process one after the other; every rank has as many


class RankLostError(RuntimeError):
    """Another process of the run has died or is silent."""


def grace(timeout: float) -> float:
    """Seconds that a collective waits beyond `timeout`, so that the rank is named before it gives up."""
    return max(2.0, timeout / 10)


class Watch:
    """The phases of the ranks of a run. Without a store it does nothing.

    Args:
        store: of the process group; None: this process is alone.
        rank: of this process.
        world_size: number of processes.
        timeout: seconds that a rank may hold the others up.
    """

    def __init__(
        self, store: Any = None, rank: int = 0, world_size: int = 1, timeout: float = 1800.0
    ) -> None:
        self._store, self._rank, self._world_size, self._timeout = store, rank, world_size, timeout
        self._interval = min(2.0, timeout / 20)
        self._order: list[int] = []
        self._phase, self._since = "", time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="watch", daemon=True)

    @classmethod
    def of_group(cls, timeout: float) -> Watch:
        """Of the default process group, if there is one of several processes."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        # torch has no public way to the store; one of our own would need an address of its own.
        # A client of its own: a collective that is being set up holds that of the group while it waits.
        group: Any = _get_default_store()  # torch's stubs have no `clone`
        store = dist.PrefixStore(f"watch{next(_numbers)}", group.clone())
        return cls(store, dist.get_rank(), dist.get_world_size(), timeout)

    def enter(self, phase: str, *order: int) -> None:
        """Say what this rank does from now on.

        Args:
            phase: in words.
            order: compares with that of other phases as the ranks run through them; all ranks give the same.
        """
        if self._store is None:
            return
        self._order, self._phase, self._since = list(order), phase, time.monotonic()
        with contextlib.suppress(RuntimeError):  # the store is gone; the next collective fails by itself
            self._store.set(f"phase{self._rank}", json.dumps([self._order, phase]))

    def __enter__(self) -> Self:
        if self._store is not None:
            self.enter("start")
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._store is None:
            return
        if isinstance(error, EndBeforeTraining):
            self._end_together()
            return
        lost = error if error is not None and is_of_communication(error) else None
        if lost is not None and self._is_ended():
            self._say_end("ended with the others")
            raise EndBeforeTraining from error
        if error is not None and lost is None:
            self._say_end(" ".join(f"{type(error).__name__}: {error}".split()))
        message = None if lost is None else self._lost(str(lost).partition("\n")[0])
        self._ended.set()
        self._thread.join()
        if message is not None:
            raise RankLostError(message) from error

    # ---- an end before training

    def _say_end(self, why: str) -> None:
        with contextlib.suppress(RuntimeError):  # as in `enter`
            self._store.set(f"end{self._rank}", why)

    def _is_ended(self) -> bool:
        """Whether a rank said that the run ends before training."""
        with contextlib.suppress(RuntimeError):
            return self._get("ended") is not None
        return False

    def _end_together(self) -> None:
        """Say that the run ends, and wait until the others have seen it: the store may go with this rank."""
        self._ended.set()
        self._say_end("ended by a signal")
        patience = time.monotonic() + _BEATS * self._interval
        with contextlib.suppress(RuntimeError):
            self._store.set("ended", str(self._rank))
            while time.monotonic() < patience and any(self._get(f"end{i}") is None for i in self._others()):
                time.sleep(self._interval / 20)

    def _end_with_others(self) -> None:
        logger.warning("rank %s got a signal: the run ends before its first update", self._get("ended"))
        self._say_end("ended with the others")
        os._exit(0)  # the main thread may wait in a collective for that rank; nothing is there to save

    # ---- who it is

    def _beat(self) -> None:
        with contextlib.suppress(RuntimeError):  # as in `enter`
            while not self._ended.wait(self._interval):
                self._beat_once()
                if self._is_ended():
                    self._end_with_others()
                waited = time.monotonic() - self._since
                if waited > self._timeout and (said := self._held_up()):
                    sys.stderr.write(
                        f"error (rank {self._rank}): {said}. Rank {self._rank} has been in {self._phase!r} "
                        f"for {waited:.0f} s (ddp_timeout). Look at what that one does, and go on with "
                        "resume_from_checkpoint=auto\n"
                    )
                    sys.stderr.flush()
                    os._exit(2)  # the main thread waits in a collective, from which nothing calls it back

    def _beat_once(self) -> None:
        self._store.set(f"beat{self._rank}", str(time.monotonic_ns()))

    def _get(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _others(self) -> list[int]:
        return [rank for rank in range(self._world_size) if rank != self._rank]

    def _phase_of(self, rank: int) -> tuple[list[int], str]:
        said = self._get(f"phase{rank}")
        order, phase = ([], "start") if said is None else json.loads(said)
        return order, phase

    def _behind(self) -> list[int]:
        return [rank for rank in self._others() if self._phase_of(rank)[0] < self._order]

    def _dead(self) -> list[int]:
        """The ranks that do not beat any more."""
        before = {rank: self._get(f"beat{rank}") for rank in self._others()}
        for _ in range(_BEATS):  # two ranks may ask this of each other
            time.sleep(self._interval)
            self._beat_once()
        return [rank for rank, beat in before.items() if self._get(f"beat{rank}") == beat]

    def _held_up(self) -> str | None:
        """Which ranks have no part any more in what this one does; it may wait for them or still work."""
        behind = self._behind()
        ranks = behind or self._dead()
        if not ranks:
            return None
        phases = ", ".join(f"rank {rank} in {self._phase_of(rank)[1]!r}" for rank in ranks)
        return f"{phases} {'does not answer' if behind else 'gives no sign of life'}"

    def _lost(self, reason: str) -> str:
        """What to say after a collective has failed for `reason`."""
        try:
            dead = self._dead()
            if not dead:
                phases = [f"rank {rank} in {self._phase_of(rank)[1]!r}" for rank in self._others()]
                return (
                    f"rank {self._rank} lost the others in {self._phase!r} ({reason}); {', '.join(phases)}. "
                    "Go on with resume_from_checkpoint=auto"
                )
            ends = {rank: self._get(f"end{rank}") for rank in dead}
            told = [
                f"rank {rank} ended in {self._phase_of(rank)[1]!r}" + (f" ({end})" if end else "")
                for rank, end in ends.items()
            ]
        except RuntimeError:
            return (
                f"rank {self._rank} lost the others in {self._phase!r}, and the process that holds their "
                f"store ({reason}); go on with resume_from_checkpoint=auto"
            )
        return f"{', '.join(told)}; go on with resume_from_checkpoint=auto once that is mended"


def is_of_communication(error: BaseException) -> bool:
    """Whether a collective failed; those of gloo are plain errors that name its source file."""
    return isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "/gloo/" in str(error))
