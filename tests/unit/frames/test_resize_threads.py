"""Bands of one picture on several threads are what one thread makes."""

from __future__ import annotations

import numpy as np
import pytest

_video = pytest.importorskip("fourdthinker._video", reason="the extension is not built")


@pytest.mark.parametrize("resample", ["lanczos", "bicubic"])
def test_any_number_of_threads_gives_the_same(resample: str) -> None:
    """Where an output falls on a whole sample, its filter has one weight, and its neighbours' have more."""
    numbers = np.random.default_rng(0)
    for height in (9, 13, 27, 40):
        pixels = numbers.integers(0, 256, (2, height, 64, 3), dtype=np.uint8)
        for new in (height, 3 * height, 89, 10 * height - 1):
            expected = _video.resize(pixels, new, 1999, resample, 1)  # wide, so that each thread gets a part
            for threads in (2, 2, 2, 2, 3, 5):
                assert np.array_equal(_video.resize(pixels, new, 1999, resample, threads), expected), (
                    height,
                    new,
                )
