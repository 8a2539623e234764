"""Runs of zero bytes where no encoder writes them: what a lost block of a disk, a transfer or a sparse file
leaves.

A decoder makes pictures of them as of any other bits, and mostly without a complaint. Sources: ITU-T H.264
7.4.1 and H.265 7.4.2 (three zero bytes do not occur within a NAL unit, only after it). For the arithmetic
coders of VP8 and VP9 a run is only improbable, so that it has to be longer: 1,024 zero bits are as many
decisions for the branch 0 as cost 1,024 bits, with none for the branch 1 between.
"""

from __future__ import annotations

from collections.abc import Callable

from fourdthinker.frames.nal import START, kind_of, length_size

CAUSE = "a run of zero bytes, as a lost block leaves"
_WITHIN_UNIT = bytes(8)
_WITHIN_CODER = bytes(128)
# Units of pictures. What begins with zeros, as H.264's unspecified kind does, may have been one.
_SLICES = {"h264": range(6), "hevc": range(32)}


def hole_finder(codec: str, extradata: bytes | None) -> Callable[[bytes], bool] | None:
    """For a codec (FFmpeg's name of it) and its header: whether a coded picture has a hole. None for codecs
    whose data do not tell."""
    if codec in _SLICES:
        size = length_size(codec, extradata)
        return lambda data: _in_sized_units(data, size, codec) if size else _between_start_codes(data, codec)
    if codec in ("vp8", "vp9"):
        return lambda data: _WITHIN_CODER in data.rstrip(b"\0")  # zeros may fill up the end
    return None


def _in_sized_units(data: bytes, length: int, codec: str) -> bool:
    if _WITHIN_UNIT not in data:
        return False
    at = 0
    while at + length < len(data):
        size = int.from_bytes(data[at : at + length], "big")
        at += length
        unit = data[at : at + size].rstrip(b"\0")  # zeros may follow the unit
        if unit and kind_of(codec, unit[0]) in _SLICES[codec] and _WITHIN_UNIT in unit:
            return True
        at += size
    return False


def _between_start_codes(data: bytes, codec: str) -> bool:
    at = data.find(_WITHIN_UNIT)
    while at >= 0:
        rest = data[at:].lstrip(b"\0")
        head = data.rfind(START, 0, at) + len(START)  # of the unit that holds the zeros
        # 1: zeros before a start code
        if rest and rest[0] != 1 and kind_of(codec, data[head]) in _SLICES[codec]:
            return True
        at = data.find(_WITHIN_UNIT, len(data) - len(rest)) if rest else -1
    return False
