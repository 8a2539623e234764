"""Where a video is cut, found by content while it is read."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

_ROWS, _COLUMNS, _BINS = 36, 64, 4
_PAST = 8  # changes that a new one is compared with
_RATIO = 3.0  # a cut stands out from them by this factor
_LEAST = 0.01  # mean change of a pixel that they count as, at least


class CutFinder:
    """Says of each frame, one frame late, whether a new shot begins with it.

    A cut changes the colours of the whole picture at once (histogram) and stands out from the changes before
    it and from the one after it, so that neither a fast pan nor a flash is one. Fades and dissolves are not
    found.
    """

    def __init__(self, histogram: float, difference: float) -> None:
        """Set the thresholds.

        Args:
            histogram: share of the colours that a cut replaces at least, 0 to 1.
            difference: mean change of a pixel at a cut at least, 0 to 1.
        """
        self.histogram, self.difference = histogram, difference
        self._before: tuple[NDArray[np.float32], NDArray[np.float64]] | None = None
        self._past: deque[float] = deque(maxlen=_PAST)
        self._candidate: float | None = None
        self._last = 0.0

    def add(self, pixels: NDArray[np.uint8]) -> bool:
        """Take the next frame, uint8 [H, W, 3]. True: a shot began with the frame before this one."""
        small = thumbnail(pixels)
        bins = (small * (_BINS / 256)).astype(np.int64)
        index = (bins[..., 0] * _BINS + bins[..., 1]) * _BINS + bins[..., 2]
        colours = np.bincount(index.ravel(), minlength=_BINS**3) / index.size
        before, self._before = self._before, (small, colours)
        if before is None:
            return False
        change = float(np.abs(small - before[0]).mean()) / 255
        replaced = 1 - float(np.minimum(colours, before[1]).sum())
        cut = self._candidate is not None and change < self._candidate / 2
        usual = max(_LEAST, float(np.median(self._past))) if self._past else _LEAST
        stands_out = change > self.difference and change > _RATIO * max(usual, self._last / 2)
        stands_out = stands_out and replaced > self.histogram
        self._last = change
        if self._candidate is None or not cut:
            self._past.append(change)
        self._candidate = change if stands_out else None
        if cut:
            self._past.clear()
        return cut

    def pending(self) -> bool:
        """Whether the last frame looks like the first one of a new shot; asked when there are no more."""
        return self._candidate is not None


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Means of blocks of a picture.

    Args:
        pixels: uint8 [H, W, 3].

    Returns:
        float32 [at most 36 .. 71, at most 64 .. 127, 3], 0 to 255.
    """
    height, width = pixels.shape[:2]
    down, across = max(1, height // _ROWS), max(1, width // _COLUMNS)
    rows, columns = height // down, width // across
    blocks = pixels[: rows * down, : columns * across].reshape(rows, down, columns, across, 3)
    return blocks.mean((1, 3), dtype=np.float32)
