"""Where the chroma samples of a stream lie, as its header declares.

Sources: ITU-T H.264 7.3.2.1.1 and E.1.1, H.265 7.3.2.2 and E.2.1, AV1 codec ISO media file format binding
2.3.3.
"""

from __future__ import annotations

from collections.abc import Iterator

from av.video.stream import VideoStream

from fourdthinker.frames.bits import Bits

_TYPES = ("left", "center", "topleft")  # chroma_sample_loc_type 0 to 2; others are hardly ever seen
_HIGH = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)


def siting_of(video: VideoStream) -> str:
    """ "left" (MPEG-2 and what came after, also where nothing is declared), "center" or "topleft"."""
    codec, head = video.codec_context.name, video.codec_context.extradata or b""
    if codec == "mjpeg":
        return "center"
    try:
        if codec == "h264" and len(head) > 6 and head[0] == 1:
            size = int.from_bytes(head[6:8], "big")
            return _h264(Bits(_unescaped(head[9 : 8 + size])))
        if codec in ("h264", "hevc") and head[:3] in (b"\0\0\0", b"\0\0\1"):
            for unit in head.split(b"\0\0\1")[1:]:
                if codec == "h264" and unit[0] & 31 == 7:
                    return _h264(Bits(_unescaped(unit[1:])))
                if codec == "hevc" and unit[0] >> 1 == 33:
                    return _h265(Bits(_unescaped(unit[2:])))
        if codec == "hevc" and len(head) > 22 and head[0] == 1:
            for unit in _hvcc_units(head):
                if unit[0] >> 1 == 33:
                    return _h265(Bits(_unescaped(unit[2:])))
        if codec in ("av1", "libdav1d", "libaom-av1") and len(head) > 3 and head[0] == 0x81:
            return "topleft" if head[2] & 3 == 2 else "left"
    except (ValueError, IndexError):
        return "left"  # a header that cannot be read declares nothing; the decoder judges it
    return "left"


def _hvcc_units(head: bytes) -> Iterator[bytes]:
    at = 23
    for _ in range(head[22]):
        count = int.from_bytes(head[at + 1 : at + 3], "big")
        at += 3
        for _ in range(count):
            size = int.from_bytes(head[at : at + 2], "big")
            yield head[at + 2 : at + 2 + size]
            at += 2 + size


def _unescaped(unit: bytes) -> bytes:
    return unit.replace(b"\0\0\3", b"\0\0")


def _h264(bits: Bits) -> str:
    profile = bits.take(8)
    bits.take(16)
    bits.ue()
    if profile in _HIGH:
        chroma = bits.ue()
        if chroma == 3:
            bits.take(1)
        bits.skip_ue(2)
        bits.take(1)
        if bits.take(1):
            for number in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    _scaling_list(bits, 16 if number < 6 else 64)
    bits.ue()
    order = bits.ue()
    if order == 0:
        bits.ue()
    elif order == 1:
        bits.take(1)
        bits.skip_ue(2)
        bits.skip_ue(bits.ue())
    bits.ue()
    bits.take(1)
    bits.skip_ue(2)
    if not bits.take(1):
        bits.take(1)
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


def _h265(bits: Bits) -> str:
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 96)
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for profile, level in present:
        bits.take(88 * profile + 8 * level)
    bits.ue()
    if bits.ue() == 3:
        bits.take(1)
    bits.skip_ue(2)
    if bits.take(1):
        bits.skip_ue(4)
    bits.skip_ue(2)
    order = bits.ue() + 4
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
    """The video usability information that ends a sequence parameter set, as far as the chroma's place."""
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
    return _TYPES[kind] if kind < len(_TYPES) else "left"
