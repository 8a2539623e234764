"""The lines of data that a run left out before its first step, as each of its checkpoints holds them.

A run that goes on leaves out these and no others: the order of its data depends on which records there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fourdthinker.errors import CheckpointError
from fourdthinker.files import append_lines, parse_json

LEFT_OUT = "left_out.jsonl"  # of a checkpoint; there is none where nothing was left out
DataSetting = Literal["data", "eval_data"]


@dataclass(frozen=True)
class LeftOut:
    """A line that is no record of the run.

    Attributes:
        where: file and number of the line, as the run named them.
        reason: why.
        line: its text.
        setting: which one names the file.
        file: the place of its file in that setting. Another may hold the same line, of a clip that is whole.
    """

    where: str
    reason: str
    line: str
    setting: DataSetting
    file: int

    def rejected(self) -> dict[str, str]:
        """As a line of rejected.jsonl."""
        return {"where": self.where, "reason": self.reason, "line": self.line}


_TYPES = {"where": str, "reason": str, "line": str, "setting": str, "file": int}


def write_left_out(checkpoint: Path, lines: Sequence[LeftOut]) -> None:
    """Write what a run left out into the folder of a checkpoint, in place of what is there."""
    (checkpoint / LEFT_OUT).unlink(missing_ok=True)
    if lines:
        append_lines(checkpoint / LEFT_OUT, map(dataclasses.asdict, lines))


def read_left_out(checkpoint: Path) -> list[LeftOut]:
    """What the run of a checkpoint left out.

    Raises:
        CheckpointError: the file cannot be read, or holds other lines.
    """
    path = checkpoint / LEFT_OUT
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")  # no other line ends: texts hold U+2028
        return [_parsed(line) for line in lines if line]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the lines that were left out cannot be read ({error}); go on from another checkpoint"
        ) from error


def _parsed(line: bytes) -> LeftOut:
    entry = parse_json(line)
    if not isinstance(entry, dict) or {name: type(value) for name, value in entry.items()} != _TYPES:
        raise ValueError(f"{line[:60]!r} has not the keys {', '.join(_TYPES)}, or not their types")
    return LeftOut(**entry)
