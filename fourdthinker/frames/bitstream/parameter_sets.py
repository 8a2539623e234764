"""Sequence parameter sets of H.264 and H.265: what the order of pictures needs, and where chroma lies.

Sources: ITU-T H.264 7.3.2.1.1 (sequence parameter set) and E.1.1 (video usability information); H.265 7.3.2.2
and E.2.1.
"""

from __future__ import annotations

from typing import NamedTuple

from fourdthinker.frames.bitstream.bits import Bits
from fourdthinker.frames.bitstream.nal import H264, H265, Syntax, content, header_units

_SITINGS = ("left", "center", "topleft")  # chroma_sample_loc_type 0 to 2; others are hardly ever seen
_HIGH = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # profiles with chroma_format_idc


def h264_siting(extradata: bytes) -> str:
    """Where the chroma samples lie: "left" (also where nothing is declared), "center" or "topleft"."""
    return _siting(H264, extradata)


def h265_siting(extradata: bytes) -> str:
    """Where the chroma samples lie, as `h264_siting` says."""
    return _siting(H265, extradata)


def _siting(syntax: Syntax, extradata: bytes) -> str:
    try:
        for unit in header_units(syntax, extradata):
            if len(unit) and syntax.kind(unit) == syntax.parameter_set:
                bits = Bits(content(unit)[syntax.head :])
                return _h264_siting(bits) if syntax is H264 else _h265_siting(bits)
    except (ValueError, IndexError):
        return "left"  # a header that cannot be read declares nothing; the decoder judges it
    return "left"


class Sequence264(NamedTuple):
    """Of a sequence parameter set of H.264, what the order of pictures needs. Sizes are in bits."""

    number: int
    separate_planes: int
    frame_number_size: int
    order_kind: int
    order_size: int
    order_deltas: int  # 1: of kind 1, and slices correct what it foretells
    gaps: int  # 1: numbers of frames may be left out
    frames_only: int
    chroma: int  # 0: there is none


class Sequence265(NamedTuple):
    """The same of H.265. layers: sub-layers less one."""

    number: int
    separate_planes: int
    order_size: int
    layers: int


def sequence_h264(bits: Bits) -> Sequence264:
    """From the first bit behind the unit's head up to direct_8x8_inference_flag."""
    profile = bits.take(8)
    bits.take(16)
    number, separate, chroma = bits.ue(), 0, 1
    if profile in _HIGH:
        chroma = bits.ue()
        if chroma == 3:
            separate = bits.take(1)
        bits.skip_ue(2)
        bits.take(1)
        if bits.take(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    _scaling_list(bits, 16 if index < 6 else 64)
    frame_number_size = bits.ue() + 4
    order_kind, order_size, deltas = bits.ue(), 0, 0
    if order_kind == 0:
        order_size = bits.ue() + 4
    elif order_kind == 1:
        deltas = 1 - bits.take(1)
        bits.skip_ue(2)
        bits.skip_ue(bits.ue())
    bits.ue()
    gaps = bits.take(1)
    bits.skip_ue(2)
    frames_only = bits.take(1)
    if not frames_only:
        bits.take(1)
    return Sequence264(
        number, separate, frame_number_size, order_kind, order_size, deltas, gaps, frames_only, chroma
    )


def _h264_siting(bits: Bits) -> str:
    sequence_h264(bits)
    bits.take(1)
    if bits.take(1):
        bits.skip_ue(4)
    return _usability(bits)


def _scaling_list(bits: Bits, size: int) -> None:
    last, following = 8, 8
    for _ in range(size):
        if following:
            code = bits.ue()
            following = (last + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
        last = following or last


def sequence_h265(bits: Bits) -> Sequence265:
    """From the first bit behind the unit's head up to log2_max_pic_order_cnt_lsb_minus4."""
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 96)
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for profile, level in present:
        bits.take(88 * profile + 8 * level)
    number, separate = bits.ue(), 0
    if bits.ue() == 3:
        separate = bits.take(1)
    bits.skip_ue(2)
    if bits.take(1):
        bits.skip_ue(4)
    bits.skip_ue(2)
    return Sequence265(number, separate, bits.ue() + 4, layers)


def _h265_siting(bits: Bits) -> str:
    _, _, order, layers = sequence_h265(bits)
    bits.skip_ue(3 * (layers + 1 if bits.take(1) else 1))
    bits.skip_ue(6)
    if bits.take(1) and bits.take(1):
        for size in range(4):
            for _ in range(0, 6, 3 if size == 3 else 1):
                if bits.take(1):
                    bits.skip_ue(min(64, 1 << (4 + 2 * size)) + (size > 1))
                else:
                    bits.ue()
    bits.take(2)
    if bits.take(1):
        bits.take(8)
        bits.skip_ue(2)
        bits.take(1)
    _reference_sets(bits)
    if bits.take(1):
        bits.take((order + 1) * bits.ue())
    bits.take(2)
    return _usability(bits)


def _reference_sets(bits: Bits) -> None:
    pictures = 0
    for number in range(bits.ue()):
        if number and bits.take(1):
            bits.take(1)
            bits.ue()
            pictures = sum(1 if bits.take(1) else bits.take(1) for _ in range(pictures + 1))
        else:
            pictures = bits.ue() + bits.ue()
            for _ in range(pictures):
                bits.ue()
                bits.take(1)


def _usability(bits: Bits) -> str:
    """The video usability information at the end of a sequence parameter set, up to the siting."""
    if not bits.take(1):
        return "left"
    if bits.take(1) and bits.take(8) == 255:
        bits.take(32)
    if bits.take(1):
        bits.take(1)
    if bits.take(1):
        bits.take(4)
        if bits.take(1):
            bits.take(24)
    kind = bits.ue() if bits.take(1) else 0
    return _SITINGS[kind] if kind < len(_SITINGS) else "left"
