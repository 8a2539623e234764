"""What others wrote, as JSON that can be shown: nothing in it ends a report."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from fourdthinker.evaluate.table import number
from fourdthinker.files import parse_json, read_regular

_LARGEST = 1e300  # of numbers that are shown; sums and differences of them are still finite


def parse(text: str) -> Any:
    """A JSON value; null for numbers that are not finite or above 1e300, U+FFFD for NUL, which HTML has not.

    Raises:
        ValueError: as `parse_json`.
    """
    return _shown(parse_json(text, finite=False))


def read_lines(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """The objects of a JSONL file, each with the number of its line from 0; and how many lines are none."""
    entries, bad = [], 0
    with io.StringIO(read_regular(path).decode("utf-8", "replace"), newline=None) as file:
        for index, line in enumerate(file):
            if not line.strip():
                continue
            try:
                entry = parse(line)
            except ValueError:
                entry = None
            if isinstance(entry, dict):
                entries.append((index, entry))
            else:
                bad += 1
    return entries, bad


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {_shown(key): _shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shown(inner) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        size = number(value)
        return None if size is None or abs(size) > _LARGEST else value
    return value
