"""NAL units of H.264 and H.265: how they stand in the packets of a stream.

Sources: ITU-T H.264 annex B, H.265 annex B (start codes); ISO/IEC 14496-15 5.3.3 and 8.3.3 (sizes, whose
length the stream's header tells).
"""

from __future__ import annotations

START = b"\0\0\1"


def length_size(codec: str, extradata: bytes | None) -> int:
    """Bytes of the size before each unit, by the stream's header; 0 where units stand behind start codes."""
    head = extradata or b""
    place, least = (4, 7) if codec == "h264" else (21, 23)
    return head[place] % 4 + 1 if len(head) >= least and head[0] == 1 else 0


def kind_of(codec: str, first: int) -> int:
    """nal_unit_type, from the first byte of a unit."""
    return first & 31 if codec == "h264" else first >> 1 & 63
