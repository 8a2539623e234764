"""Which pictures of H.263 are coded without reference to others, by their own headers."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from fourdthinker.frames.bitstream import h263


@pytest.mark.parametrize("encoder", ["h263", "h263p"])
def test_pictures_without_reference_are_told(encoder: str) -> None:
    context = av.CodecContext.create(encoder, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = 352, 288, "yuv420p"
    context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
    context.gop_size = 7
    packets = []
    for k in range(21):
        picture = np.full((288, 352, 3), 40, np.uint8)
        picture[100:150, 10 * k : 10 * k + 50] = 200
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = k
        packets += context.encode(frame)
    packets += context.encode(None)
    begins = h263.begins(b"")
    assert [begins(bytes(packet)) for packet in packets] == [k % 7 == 0 for k in range(21)]


@pytest.mark.parametrize(
    ("head", "intra"),
    [
        ("000080021ce80100", True),  # a long header, its first part there
        ("0000807e1ce80104", False),
        ("000080021c000000", True),  # only the second part
        ("000080021c100000", False),
        ("000080020c000000", True),  # a short one
        ("000080020e000000", False),
        ("000080021ce801", False),  # cut off
        ("000000021ce80100", False),  # no picture
        ("1234000080021ce80100", True),  # something before it
        ("1234000080021ce80104", False),
    ],
)
def test_headers(head: str, intra: bool) -> None:
    assert h263.begins(b"")(bytes.fromhex(head)) is intra
