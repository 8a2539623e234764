"""What the first bytes of a coded picture tell about it, without decoding: which pictures nothing refers to.

Sources: ITU-T H.264 7.3.1 and 7.4.1 (nal_ref_idc), H.265 7.4.2.2 (sub-layer non-reference pictures), AV1
bitstream specification 5.5 and 5.9 (refresh_frame_flags), RFC 6386 9.1 (VP8 frame tag), ISO/IEC 14496-2 6.2.5
(vop_coded), VP9 bitstream specification 6.2. VP9 has no such pictures: one that refreshes nothing still
leaves its motion vectors and probabilities to the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from fourdthinker.frames.bits import Bits
from fourdthinker.frames.nal import START, kind_of, length_size

# What a picture is, bits of one byte. SPARE: nothing refers to it. CLEAN: decoding can begin at it while the
# decoder still holds pictures from before. HIDDEN: it is decoded and never shown. ECHO: it may show a picture
# of another packet under its own stamp.
KEY, CLEAN, SPARE, HIDDEN, ECHO = 1, 2, 4, 8, 128
# H.265 only: the temporal layer of a picture that nothing of its own layer refers to; resolved by `settle`.
LAYER_SHIFT, LAYERS = 4, 7
VOP = b"\0\0\1\xb6"  # start code of a picture of MPEG-4
UNCODED = 20  # bytes that one which is "not coded" hardly has, but for 0xff, which count seconds in its head

Classify = Callable[[bytes | memoryview], int]
_INTRA_ONLY = ("mjpeg", "prores", "dnxhd", "ffv1", "rawvideo", "huffyuv", "utvideo", "png", "v210", "cfhd")


def classifier(codec: str, extradata: bytes | None) -> Classify:
    """For a codec (FFmpeg's name of it) and its header: coded picture -> bits. No bit is set where the data
    do not tell."""
    if codec in ("h264", "hevc"):
        size, look = length_size(codec, extradata), _h264 if codec == "h264" else _h265
        return lambda data: look(data, size)
    if codec in ("av1", "libdav1d", "libaom-av1"):
        return _Av1(extradata or b"").classify
    if codec in ("vp9", "libvpx-vp9"):
        return lambda data: CLEAN if len(data) and _vp9_key(data[0]) else 0
    if codec in ("vp8", "libvpx"):
        return lambda data: (
            (0 if not len(data) or data[0] & 1 else CLEAN) | (HIDDEN if len(data) and not data[0] & 16 else 0)
        )
    if codec == "mpeg4":
        return _mpeg4
    return lambda data: CLEAN if codec in _INTRA_ONLY else 0


# Codecs whose keyframes are known by their data, here or to FFmpeg's parsers and decoders.
TOLD = (
    "h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "vp8", "libvpx", "vp9", "libvpx-vp9", "av1",
    "libdav1d",
)  # fmt: skip


def beginner(codec: str, extradata: bytes | None) -> Callable[[bytes | memoryview], bool]:
    """For a codec and its header: whether decoding can begin at a picture that the container calls a
    keyframe, for codecs whose decoders do not notice when it cannot. True where the data do not tell.

    Sources: H.265 7.4.2.2 (intra random access points), ISO/IEC 14496-2 6.2.3 (video object layer) and 6.3.5
    (vop_coding_type), ISO/IEC 13818-2 6.3.9 (picture_coding_type).
    """
    if codec == "hevc":
        size = length_size(codec, extradata)
        return lambda data: _h265_begins(data, size)
    if codec == "mpeg4":
        return _Mpeg4Beginner(extradata or b"").begins
    if codec in ("mpeg1video", "mpeg2video"):
        return lambda data: _coded_as(bytes(data), b"\0\0\1\0", 1, 3, 7) in (1, None)
    return lambda data: True


def _h265_begins(data: bytes | memoryview, length: int) -> bool:
    kinds = [kind_of("hevc", unit[0]) for unit in _units(data, length) if len(unit) > 1]
    pictures = [kind for kind in kinds if kind < 32]
    return not pictures or any(16 <= kind < 24 for kind in pictures)


def _coded_as(data: bytes, start: bytes, offset: int, shift: int, mask: int) -> int | None:
    """A field of the byte `offset` bytes behind the first start code of a picture."""
    at = data.find(start)
    place = at + len(start) + offset
    return data[place] >> shift & mask if at >= 0 and place < len(data) else None


def settle(flags: bytearray) -> bytes:
    """Flags of a whole stream, with H.265's temporal layers resolved: only pictures of the highest layer that
    occurs are spare, for those of others may be referred to by layers above them."""
    top = max((flag >> LAYER_SHIFT & LAYERS for flag in flags), default=0)
    if top == 0:
        return bytes(flags)
    return bytes(flag & (15 if flag >> LAYER_SHIFT == top else 15 - SPARE) for flag in flags)


def _mpeg4(data: bytes | memoryview) -> int:
    """ECHO, or nothing: of a "not coded" picture the decoder shows none, or at the end of the data the last
    one again; it stands alone or follows a packet with several. B-pictures are not spare, for the decoder
    takes the scale of interlaced ones from the first that it sees."""
    whole = bytes(data)
    at = whole.find(VOP)
    start = whole[at : at + 1024].replace(b"\xff", b"")
    return ECHO if at < 0 or whole.find(VOP, at + 1) >= 0 or len(start) < UNCODED else 0


class _Mpeg4Beginner:
    """Interlaced MPEG-4 can only be decoded from its first picture on, for FFmpeg takes the unit of distances
    between fields from the first B-picture that it meets after the header."""

    def __init__(self, extradata: bytes) -> None:
        self.interlaced, self.begun = _interlaced(extradata), False

    def begins(self, data: bytes | memoryview) -> bool:
        whole = bytes(data)
        kind = _coded_as(whole, VOP, 0, 6, 3)
        self.interlaced = self.interlaced or _interlaced(whole.partition(VOP)[0])
        if kind not in (0, None) or (self.interlaced and self.begun):
            return False
        self.begun = self.begun or kind == 0
        return True


def _interlaced(head: bytes) -> bool:
    """Whether the header of a layer of MPEG-4 says so, or cannot be read."""
    found = re.search(rb"\x00\x00\x01[\x20-\x2f]", head)
    if found is None:
        return False
    bits = Bits(head[found.end() : found.end() + 64])
    try:
        bits.take(9)
        if bits.take(1):
            bits.take(7)
        if bits.take(4) == 15:  # an aspect ratio of its own
            bits.take(16)
        if bits.take(1):  # control parameters
            bits.take(3)
            if bits.take(1):
                bits.take(79)
        if bits.take(2):  # no rectangle
            return True
        resolution = bits.take(17) & 0xFFFF
        bits.take(1)
        if bits.take(1):  # a fixed rate
            bits.take(max(1, (resolution - 1).bit_length()))
        bits.take(29)
        return bool(bits.take(1))
    except ValueError:
        return True


def _units(data: bytes | memoryview, length: int) -> Iterator[bytes]:
    """First two bytes of each NAL unit; one empty unit at the end when the units do not tile the data."""
    if length:
        at, end = 0, len(data)
        while at + length < end:
            size = int.from_bytes(data[at : at + length], "big")
            at += length
            if size:
                yield bytes(data[at : at + 2])
            at += size
        if at != end:
            yield b""
        return
    whole = bytes(data)
    at = whole.find(START)
    while at >= 0:
        yield whole[at + 3 : at + 5]
        at = whole.find(START, at + 3)


def _h264(data: bytes | memoryview, length: int) -> int:
    pictures, spare, clean = 0, True, False
    for unit in _units(data, length):
        if not unit:
            return 0
        kind = kind_of("h264", unit[0])
        if kind in (1, 2, 3, 4, 5, 20):
            pictures += 1
            spare = spare and not unit[0] & 0x60
            clean = clean or kind == 5
    return (SPARE if pictures and spare else 0) | (CLEAN if clean else 0)


def _h265(data: bytes | memoryview, length: int) -> int:
    pictures, spare, clean, layer = 0, True, True, 0
    for unit in _units(data, length):
        if len(unit) < 2:
            return 0
        kind = kind_of("hevc", unit[0])
        if kind < 32:
            pictures += 1
            spare = spare and kind < 16 and kind % 2 == 0
            clean = clean and kind in (19, 20)
            layer = max(layer, unit[1] & 7)
    if not pictures:
        return 0
    return (SPARE if spare else 0) | (CLEAN if clean else 0) | layer << LAYER_SHIFT


def _vp9_key(first: int) -> bool:
    profile = (first >> 5 & 1) | (first >> 4 & 1) << 1
    rest = first << 1 if profile == 3 else first
    return first >> 6 == 2 and rest & 0b1100 == 0  # neither show_existing_frame nor an inter frame


class _Av1:
    """AV1: a temporal unit is spare when no frame in it refreshes a reference."""

    def __init__(self, extradata: bytes) -> None:
        # Bits of frame ids, screen content tools, integer motion, bits of order hints.
        self.header: tuple[int, int, int, int] | None = None
        if len(extradata) > 4 and extradata[0] == 0x81:
            self.classify(extradata[4:])

    def classify(self, data: bytes | memoryview) -> int:
        frames, spare, clean = 0, True, False
        try:
            for kind, payload in _obus(data):
                if kind == 1:
                    self.header = _sequence_header(Bits(payload))
                elif kind in (3, 6):
                    frames += 1
                    refreshes, key = _frame_header(Bits(payload), self.header)
                    spare, clean = spare and not refreshes, clean or key
        except ValueError:
            return 0
        return (SPARE if frames and spare else 0) | (CLEAN if clean else 0)


def _obus(data: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        head = data[at]
        at += 1 + (head >> 2 & 1)
        size = len(data) - at
        if head & 2:
            size = shift = 0
            while True:
                if at >= len(data) or shift > 28:
                    raise ValueError("the size of an OBU ends early")
                size |= (data[at] & 127) << shift
                shift, at = shift + 7, at + 1
                if not data[at - 1] & 128:
                    break
        if size > len(data) - at:
            raise ValueError("an OBU is longer than its packet")
        yield head >> 3 & 15, bytes(data[at : at + min(size, 64)])
        at += size


def _sequence_header(bits: Bits) -> tuple[int, int, int, int] | None:
    bits.take(3)
    if bits.take(2) & 1:
        return None  # reduced header of a still picture
    if bits.take(1):
        bits.take(64)
        if bits.take(1):  # equal intervals: a number in Exp-Golomb-like code
            zeros = 0
            while not bits.take(1):
                zeros += 1
            bits.take(zeros)
        if bits.take(1):
            return None  # decoder model: frame headers hold more than is read here
    delays = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delays and bits.take(1):
            bits.take(4)
    width, height = bits.take(4) + 1, bits.take(4) + 1
    bits.take(width + height)
    identified = 0
    if bits.take(1):
        identified = bits.take(4) + 2
        identified += bits.take(3) + 1
    bits.take(7)
    ordered = bits.take(1)
    if ordered:
        bits.take(2)
    screen = 2 if bits.take(1) else bits.take(1)
    integer = 2
    if screen:
        integer = 2 if bits.take(1) else bits.take(1)
    return identified, screen, integer, bits.take(3) + 1 if ordered else 0


def _frame_header(bits: Bits, header: tuple[int, int, int, int] | None) -> tuple[bool, bool]:
    """(some reference is refreshed, or that is not known; a shown key frame, at which all begins anew)."""
    if header is None:
        return True, False
    identified, screen, integer, order = header
    if bits.take(1):
        return True, False  # shows an earlier frame, which may be a key frame and refresh all
    kind, shown = bits.take(2), bits.take(1)
    if kind == 3 or (kind == 0 and shown):
        return True, kind == 0
    if not shown:
        bits.take(1)
    resilient = bits.take(1)
    bits.take(1)
    if (bits.take(1) if screen == 2 else screen) and integer == 2:
        bits.take(1)
    bits.take(identified + 1 + order)
    if kind == 1 and not resilient:
        bits.take(3)
    return bits.take(8) != 0, False
