"""What is told of data that are no pictures."""

from __future__ import annotations

import numpy as np
import pytest

from fourdthinker.frames.bitstream.pictures import NON_REFERENCE, RANDOM_ACCESS
from fourdthinker.frames.codecs import codec_of


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "vp9", "vp8"])
def test_noise_is_never_non_reference(codec: str) -> None:
    """Data that are no pictures, or are cut off, are left to the decoder to judge."""
    head = {"h264": b"\1\x64\0\x1f\xff\xe1\0\0", "hevc": b"\1" + bytes(20) + b"\3\0\0"}.get(codec)
    classify = codec_of(codec).flags(head or b"")
    dice = np.random.default_rng(3)
    for size in (0, 1, 2, 3, 5, 40):
        for _ in range(300):
            assert not classify(dice.integers(0, 256, size, dtype=np.uint8).tobytes()) & NON_REFERENCE
    assert classify(bytes(50)) & (NON_REFERENCE | RANDOM_ACCESS) in (0, RANDOM_ACCESS)
