"""Cuts by content: a cut, a pan, a flash, noise."""

from __future__ import annotations

import numpy as np
import pytest

from fourdthinker.synth.shots import CutFinder, thumbnail

RNG = np.random.default_rng(5)
WIDE = RNG.integers(0, 256, (9, 64, 3)).astype(np.float32)


def scene(seed: int, frames: int, *, pan: int = 2, size: tuple[int, int] = (90, 160)) -> list[np.ndarray]:
    """A wide picture of coloured blocks, seen through a window that moves by `pan` pixels a frame."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, 3)
    blocks = np.clip(base + rng.normal(0, 30, (6, 120, 3)), 0, 255)
    wide = np.repeat(np.repeat(blocks, 15, 0), 15, 1)
    return [wide[: size[0], k * pan : k * pan + size[1]].astype(np.uint8) for k in range(frames)]


def cuts(frames: list[np.ndarray]) -> list[int]:
    finder = CutFinder(0.25, 0.06)
    found = [index - 1 for index, frame in enumerate(frames) if finder.add(frame)]
    return found + ([len(frames) - 1] if finder.pending() else [])


def test_cuts_are_where_the_shots_meet() -> None:
    assert cuts(scene(1, 30) + scene(2, 25) + scene(3, 20)) == [30, 55]


def test_a_cut_at_the_very_end() -> None:
    assert cuts(scene(1, 30) + scene(2, 1)) == [30]


@pytest.mark.parametrize("pan", [0, 4, 12, 25])
def test_a_pan_is_no_cut(pan: int) -> None:
    assert cuts(scene(4, 40, pan=pan)) == []


def test_a_flash_is_no_cut() -> None:
    frames = scene(6, 40)
    frames[20] = np.full_like(frames[20], 255)
    assert cuts(frames) == []


def test_noise_is_no_cut() -> None:
    rng = np.random.default_rng(0)
    frames = [np.clip(f + rng.normal(0, 25, f.shape), 0, 255).astype(np.uint8) for f in scene(7, 40)]
    assert cuts(frames) == []


def test_thumbnails_are_means_of_blocks() -> None:
    picture = np.arange(72 * 128, dtype=np.int64).reshape(72, 128, 1) % 251
    pixels = np.repeat(picture, 3, 2).astype(np.uint8)
    small = thumbnail(pixels)
    assert small.shape == (36, 64, 3)
    assert small[3, 5, 1] == pixels[6:8, 10:12, 1].mean()
    assert thumbnail(np.full((5, 7, 3), 9, np.uint8)).shape == (5, 7, 3)
