"""Metrics of several forwards, as sums with weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fourdthinker.objectives import Metrics


class MetricSums:
    """(sum, weight) by name; what is shown is sum / weight over ranks and everything added since `take`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._marked: dict[str, Tensor] = {}

    def add(self, metrics: Metrics) -> None:
        """Add (sum, weight) pairs."""
        self.become(self.with_added(metrics))

    def with_added(self, metrics: Metrics) -> dict[str, Tensor]:
        """The sums as `add` would make them, for `become`: allocates all of it, changes nothing."""
        sums = dict(self._sums)
        for name, (total, weight) in metrics.items():
            pair = torch.stack([total.detach().double(), weight.double()])
            sums[name] = sums[name] + pair if name in sums else pair
        return sums

    def become(self, sums: dict[str, Tensor]) -> None:
        """Take what `with_added` has made. Allocates nothing."""
        self._sums = sums

    def mark(self) -> None:
        """Remember what was added so far, for `rewind`."""
        self._marked = dict(self._sums)

    def since_mark(self, name: str) -> Tensor:
        """[2] float64: sum and weight of a metric that were added since `mark`."""
        now, before = (
            sums.get(name, torch.zeros(2, dtype=torch.float64)) for sums in (self._sums, self._marked)
        )
        return now - before.to(now.device)

    def rewind(self) -> None:
        """Forget what was added since `mark`."""
        self._sums = dict(self._marked)

    def take(self, over_ranks: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """The means since the last call, without names of weight 0.

        Args:
            over_ranks: adds up a tensor [n, 2] over all ranks, which have the same names.
            device: of that tensor.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        values = over_ranks(torch.stack([self._sums[name].to(device) for name in names]))
        self._sums = {}
        return {
            name: total / weight
            for name, (total, weight) in zip(names, values.tolist(), strict=True)
            if weight
        }
