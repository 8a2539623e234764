"""COCO run lengths: values that pycocotools gives, and back."""

from __future__ import annotations

import numpy as np
import pytest

from fourdthinker.synth import rle


def test_known_texts() -> None:
    # pycocotools.mask.encode of the same masks
    square = np.zeros((4, 4), bool)
    square[1:3, 1:3] = True
    assert rle.encode(square) == {"size": [4, 4], "counts": "52203"}
    assert rle.encode(np.ones((2, 3), bool)) == {"size": [2, 3], "counts": "06"}
    assert rle.encode(np.zeros((2, 3), bool)) == {"size": [2, 3], "counts": "6"}


@pytest.mark.parametrize("seed", range(20))
def test_back_and_forth(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 90, 2))
    mask = rng.random(shape) < rng.choice([0.01, 0.5, 0.99])
    coded = rle.encode(mask)
    assert (rle.decode(coded) == mask).all()


def test_long_runs() -> None:
    mask = np.zeros((2000, 3000), bool)
    mask[:, 1500:] = True
    assert (rle.decode(rle.encode(mask)) == mask).all()


@pytest.mark.parametrize("text", ["6", "52204", "é", " ", "ooooooooooooooooooooo"])
def test_what_makes_no_mask_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        rle.decode({"size": [4, 4], "counts": text})


def test_boxes_are_fractions() -> None:
    mask = np.zeros((10, 20), bool)
    mask[2:5, 4:10] = True
    assert rle.box(mask) == [0.2, 0.2, 0.5, 0.5]
    assert rle.box(np.zeros((3, 3), bool)) is None
