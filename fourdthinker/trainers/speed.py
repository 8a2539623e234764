"""What the time of an update goes to, and what is done in it: the metrics of speed."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from fourdthinker.objectives import Metrics
from fourdthinker.trainers.plan_time import known_device

SAVING, EVALUATION = "saving", "evaluation"  # phases that are no part of an update


def peak_rate(device: torch.device) -> float | None:
    """Dense bfloat16 operations a second of a GPU by its data sheet; None where that is not known."""
    if device.type != "cuda":
        return None
    known = known_device(torch.cuda.get_device_name(device))
    return None if known is None else known.rate * 1e12


class Speed:
    """Seconds by phase, and tokens, rollouts and operations since the last line of metrics, of this rank.

    Args:
        rate: operations a second that the device could do; None: not known.
    """

    def __init__(self, rate: float | None = None) -> None:
        self._rate = rate
        self._phase: str | None = None
        self._since = 0.0
        self._seconds: dict[str, float] = {}  # of every phase that there ever was: all ranks have the same
        self._tokens, self._operations = 0, 0.0
        self._rollouts: int | None = None

    def enter(self, phase: str) -> None:
        """Count the time to `phase` from now on.

        Kernels that were started count to the phase in which they are waited for.
        """
        self._stop()
        self._phase = phase
        self._seconds.setdefault(phase, 0.0)

    def _stop(self) -> None:
        now = time.perf_counter()
        if self._phase is not None:
            self._seconds[self._phase] += now - self._since
        self._since = now

    def add(self, *, tokens: int = 0, rollouts: int | None = None, operations: float = 0.0) -> None:
        """Count what was done.

        Args:
            tokens: that go through the passes with a loss, without padding.
            rollouts: that were sampled; None: this is no 4DRL.
            operations: of the model.
        """
        self._tokens += tokens
        self._operations += operations
        if rollouts is not None:
            self._rollouts = (self._rollouts or 0) + rollouts

    def take(self, world_size: int) -> Metrics:
        """The metrics since the last call, as (sum, weight); nothing where no time has passed.

        `time_...` are shares of the time by phase. What is given by the second, and `mfu`, is of the time
        without saving and evaluation; `mfu` has the weight 0 where the rate of the device is not known.

        Args:
            world_size: processes whose sums are added up.
        """
        self._stop()
        total = sum(self._seconds.values())
        if not total:
            return {}
        metrics = {f"time_{name}": _pair(seconds, total) for name, seconds in self._seconds.items()}
        busy = sum(s for name, s in self._seconds.items() if name not in (SAVING, EVALUATION))
        metrics["tokens_per_second"] = _pair(self._tokens, busy / world_size)
        if self._rollouts is not None:
            metrics["rollouts_per_second"] = _pair(self._rollouts, busy / world_size)
            self._rollouts = 0
        known = self._rate is not None  # not on every rank, and all have the same names
        metrics["mfu"] = _pair(self._operations * known, (self._rate or 0.0) * busy)
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        self._tokens, self._operations = 0, 0.0
        return metrics


def _pair(total: float, weight: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(total, dtype=torch.float64), torch.tensor(weight, dtype=torch.float64)
