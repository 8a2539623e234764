"""Pictures that carry a number and tell which way is up, through any codec, resize and orientation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

ROWS, COLUMNS = 4, 6  # blocks; upright pictures are wider than high
BITS = 10
DARK, MIDDLE, BRIGHT = 30, 128, 225
CORNERS = ((0, 0, BRIGHT), (0, COLUMNS - 1, MIDDLE), (ROWS - 1, 0, DARK), (ROWS - 1, COLUMNS - 1, DARK))
_AT_CORNERS = {(row, column) for row, column, _ in CORNERS}
INNER = [
    (row, column) for row in range(ROWS) for column in range(COLUMNS) if (row, column) not in _AT_CORNERS
]
UPRIGHT = 1

# What a viewer does to a stored picture, by the value of EXIF's orientation.
VIEWER: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}
_BACK = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


@dataclass(frozen=True)
class Mark:
    """What a picture says. orientation: what a viewer would still have to do, UPRIGHT if nothing."""

    number: int
    orientation: int = UPRIGHT

    def __str__(self) -> str:
        return f"{self.number}" if self.orientation == UPRIGHT else f"{self.number} (EXIF {self.orientation})"


def marked(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 [height, width, 3]: three levels at the corners; within, the bits of the number and the opposite
    of each; over all of it a faint wave that moves, as encoders expect of pictures."""
    if not 0 <= number < 1 << BITS:
        raise ValueError(f"number is {number}; it must lie in 0..{(1 << BITS) - 1}")
    bits = [number >> k & 1 for k in range(BITS)]
    grid = np.empty((ROWS, COLUMNS), np.uint8)
    for row, column, level in CORNERS:
        grid[row, column] = level
    for place, bit in zip(INNER, bits + [1 - bit for bit in bits], strict=True):
        grid[place] = BRIGHT if bit else DARK
    rows, columns = np.arange(height) * ROWS // height, np.arange(width) * COLUMNS // width
    moving = np.arange(width) * 0.4 + np.arange(height)[:, None] * 0.3 + number * 0.9
    plain = grid[rows][:, columns] + 14 * np.sin(moving)
    return np.ascontiguousarray(np.broadcast_to(plain.astype(np.uint8)[:, :, None], (height, width, 3)))


def stored_as(picture: np.ndarray, orientation: int) -> np.ndarray:
    """What has to be stored for a viewer that obeys `orientation` to show the picture."""
    return np.ascontiguousarray(VIEWER[_BACK[orientation]](picture))


def mark_of(pixels: Any) -> Mark | None:
    """What a picture [H, W, 3] says; None where it says nothing certain, as a mixture of two pictures."""
    array = np.asarray(pixels, dtype=np.float32).mean(2)
    for shape, orientations in (((ROWS, COLUMNS), (1, 2, 3, 4)), ((COLUMNS, ROWS), (5, 6, 7, 8))):
        levels = _levels(array, *shape)
        for orientation in orientations:
            number = _number(VIEWER[orientation](levels))
            if number is not None:
                return Mark(number, orientation)
    return None


def _levels(array: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Mean of the middle of each block."""
    height, width = array.shape
    result = np.empty((rows, columns), np.float32)
    for row in range(rows):
        top, bottom = round((row + 0.3) * height / rows), round((row + 0.7) * height / rows)
        for column in range(columns):
            left, right = round((column + 0.3) * width / columns), round((column + 0.7) * width / columns)
            result[row, column] = array[top : bottom + 1, left : right + 1].mean()
    return result


def _number(grid: np.ndarray) -> int | None:
    if any(abs(grid[row, column] - level) > 40 for row, column, level in CORNERS):
        return None
    levels = [float(grid[place]) for place in INNER]
    if any(70 < level < 185 for level in levels):
        return None
    bits = [level > 128 for level in levels]
    if any(bit == opposite for bit, opposite in zip(bits[:BITS], bits[BITS:], strict=True)):
        return None
    return sum(bit << k for k, bit in enumerate(bits[:BITS]))
