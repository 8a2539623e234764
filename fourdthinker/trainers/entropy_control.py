"""The weight of the entropy bonus, moved so that the entropy of the policy stays at a target."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from fourdthinker.errors import CheckpointError
from fourdthinker.files import read_json_object, write_json

_FILE = "entropy_control.json"  # in a checkpoint


@dataclass
class EntropyControl:
    """The controller of Skywork-OR1 (arXiv 2505.22312), as in TRL.

    Attributes:
        coef: the weight, when it is in force.
        target: nats; there is a bonus after an update whose mean entropy was at most this.
        step: by which `coef` rises after such an update and falls after another.
        highest: of `coef`; its least value is 0.
        last: mean entropy of the last update; None: there was none.
    """

    coef: float
    target: float
    step: float
    highest: float
    last: float | None = None

    @property
    def applied(self) -> float:
        """The weight in the next update."""
        return self.coef if self.last is not None and self.last <= self.target else 0.0

    def update(self, entropy: float) -> None:
        """Move the weight after an update. An entropy that is not finite changes nothing."""
        if not math.isfinite(entropy):
            return
        change = self.step if entropy <= self.target else -self.step
        self.coef, self.last = min(max(self.coef + change, 0.0), self.highest), entropy

    def save(self, folder: Path) -> None:
        """Into a checkpoint."""
        write_json(folder / _FILE, asdict(self))

    def load(self, folder: Path) -> None:
        """Go on as in a checkpoint; one of a run without a target says nothing, and the control begins.

        Raises:
            CheckpointError: it cannot be read.
        """
        if (folder / _FILE).is_file():
            found = read_json_object(
                folder / _FILE, "resume from an earlier checkpoint", error=CheckpointError
            )
            coef, last = found.get("coef"), found.get("last")
            if not _is_number(coef) or not (last is None or _is_number(last)):
                raise CheckpointError(
                    f"{folder / _FILE}: coef is {coef!r} and last {last!r}; resume from an earlier checkpoint"
                )
            self.coef, self.last = min(max(float(coef), 0.0), self.highest), last


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
