"""Masks as COCO run lengths: column by column, zeros first, in COCO's compressed text."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


class Rle(TypedDict):
    """A mask: `size` is [height, width], `counts` COCO's compressed text."""

    size: list[int]
    counts: str


def encode(mask: NDArray[np.bool_]) -> Rle:
    """Run lengths of a mask.

    Args:
        mask: bool [H, W].

    Returns:
        What pycocotools' `mask.encode` returns, but that the counts are text.
    """
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], edges, [mask.size]]))
    if mask.size and edges.size and edges[-1] == mask.size:
        runs = runs[:-1]  # the mask ends with ones
    return {"size": [int(n) for n in mask.shape], "counts": _text([int(run) for run in runs])}


def decode(rle: Rle) -> NDArray[np.bool_]:
    """The mask of run lengths, bool [H, W].

    Raises:
        ValueError: the counts do not make a mask of this size.
    """
    height, width = rle["size"]
    runs = _numbers(rle["counts"])
    if sum(runs) != height * width or any(run < 0 for run in runs):
        raise ValueError(f"run lengths of {sum(runs)} pixels for a mask of {height}x{width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def box(mask: NDArray[np.bool_]) -> list[float] | None:
    """The bounding box of a mask in fractions of width and height.

    Args:
        mask: bool [H, W].

    Returns:
        [left, top, right, bottom]; None for an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    height, width = mask.shape
    return [
        float(columns[0]) / width,
        float(rows[0]) / height,
        float(columns[-1] + 1) / width,
        float(rows[-1] + 1) / height,
    ]


def _text(runs: list[int]) -> str:
    """From the third run on the difference to the run before the last, 5 bits a character, lowest first."""
    out = bytearray()
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            part = value & 0x1F
            value >>= 5
            more = value != -1 if part & 0x10 else value != 0
            out.append((part | (0x20 if more else 0)) + 48)
    return out.decode("ascii")


def _numbers(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text.encode("ascii", "replace"):
        part = character - 48
        if not 0 <= part < 64 or shift > 60:
            raise ValueError("run lengths that are not COCO's compressed text")
        value |= (part & 0x1F) << shift
        shift += 5
        if part & 0x20:
            continue
        if part & 0x10:
            value |= -1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs
