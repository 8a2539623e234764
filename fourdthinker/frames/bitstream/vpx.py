"""VP8 and VP9: where decoding can begin, which frames are not shown, and holes.

Sources: RFC 6386 9.1 (VP8 frame tag), VP9 bitstream specification 6.2 (uncompressed header). VP9 has no
non-reference pictures: one that refreshes nothing still leaves its motion vectors and probabilities to the
next.
"""

from __future__ import annotations

from fourdthinker.frames.bitstream.pictures import NOT_SHOWN, RANDOM_ACCESS, ZEROS, Damage, Data, Flags

# For their arithmetic coders a run of zero bytes is only improbable, so that it has to be long: 1,024 zero
# bits are as many decisions for the branch 0 as cost 1,024 bits, with none for the branch 1 between.
HOLE = bytes(128)


def vp8_flags(extradata: bytes) -> Flags:
    """The flags of VP8, by its frame tag: key frames (RANDOM_ACCESS), and NOT_SHOWN."""

    def flags(data: Data) -> int:
        if not len(data):
            return 0
        return (0 if data[0] & 1 else RANDOM_ACCESS) | (0 if data[0] & 16 else NOT_SHOWN)

    return flags


def vp9_flags(extradata: bytes) -> Flags:
    """The flags of VP9: RANDOM_ACCESS for key frames."""
    return lambda data: RANDOM_ACCESS if len(data) and _vp9_key(data[0]) else 0


def damage(extradata: bytes) -> Damage:
    """The cause, where a frame has a run of zero bytes, as a lost block leaves it."""
    return lambda data: ZEROS if HOLE in bytes(data).rstrip(b"\0") else None  # zeros may fill up the end


def _vp9_key(first: int) -> bool:
    profile = (first >> 5 & 1) | (first >> 4 & 1) << 1
    rest = first << 1 if profile == 3 else first
    return first >> 6 == 2 and rest & 0b1100 == 0  # neither show_existing_frame nor an inter frame
