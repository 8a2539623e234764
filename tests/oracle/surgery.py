"""Changes to files and packets that no muxer of FFmpeg makes."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av

from fourdthinker.frames.bitstream.nal import units

if TYPE_CHECKING:
    from tests.oracle.coded import Coded

# (a, b, c, d) of the matrix by which a viewer places a point (x, y): (a x + c y, b x + d y).
MATRICES = {
    1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip
# (flip, turns of 90 degrees against the clock after it) of the display orientation message.
MESSAGES = {2: ("horizontal", 0), 3: ("", 180), 4: ("vertical", 0), 5: ("horizontal", 90), 6: ("", 270),
            7: ("horizontal", 270), 8: ("", 90)}  # fmt: skip
_MESSAGE = 6  # the unit of H.264 that holds supplemental information
_PES = b"\x00\x00\x01\xe0"


def listed(path: Path) -> list[float | None]:
    """Presentation time of each packet of a file, in the order of storage."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        return [
            None if packet.pts is None else float(packet.pts * packet.time_base)
            for packet in container.demux(video)
            if packet.size
        ]


def write_matrix(path: Path, orientation: int, height: int, width: int) -> None:
    """Set the display matrix of the track of an MP4 or MOV file."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = MATRICES[orientation]
    shift = (
        -min(0, a * width, c * height, a * width + c * height),
        -min(0, b * width, d * height, b * width + d * height),
    )
    one = 1 << 16
    struct.pack_into(
        ">9i", data, place, a * one, b * one, 0, c * one, d * one, 0, shift[0] * one, shift[1] * one, 1 << 30
    )
    path.write_bytes(data)


def orientation_message(packets: Sequence[Coded], stream: Any, orientation: int) -> list[Coded]:
    """The packets of H.264 with a message that says how to show them."""
    flip, turns = MESSAGES[orientation]
    settings = "h264_metadata=display_orientation=insert" + (f":flip={flip}" if flip else "")
    settings += f":rotate={turns}" if turns else ""
    bitstream = av.BitStreamFilterContext(settings, stream)
    result = []
    for coded in packets:
        (filtered,) = bitstream.filter(coded.packet)
        packet = av.Packet(_messages_first(bytes(filtered)))
        packet.pts, packet.dts, packet.duration = filtered.pts, filtered.dts, filtered.duration
        packet.time_base, packet.is_keyframe, packet.stream = filtered.time_base, filtered.is_keyframe, stream
        result.append(replace(coded, packet=packet))
    return result


def _messages_first(data: bytes) -> bytes:
    """H.264 with start codes, the messages before the slices, which the filter may put behind them."""
    parts = [bytes(unit) for unit in units(data, 0)]
    slices = (1, 2, 3, 4, 5)
    first = next(k for k, part in enumerate(parts) if part[0] & 31 in slices)
    behind = [part for part in parts[first:] if part[0] & 31 == _MESSAGE]
    rest = [part for part in parts[first:] if part[0] & 31 != _MESSAGE]
    return b"".join(b"\0\0\0\1" + part for part in (*parts[:first], *behind, *rest))


def hidden_references(packets: Sequence[Coded], every: int) -> list[Coded]:
    """VP8's packets, some of which say that their picture is not to be shown, as alternate references do."""
    result = []
    for place, coded in enumerate(packets):
        if coded.key or place % every != every - 1:
            result.append(coded)
            continue
        data = bytearray(bytes(coded.packet))
        data[0] &= ~16
        packet = av.Packet(bytes(data))
        packet.stream = coded.packet.stream
        result.append(replace(coded, packet=packet, hidden=True))
    return result


def drop_stamps(path: Path, draw: random.Random, keep: float = 0.4) -> None:
    """Take the stamps from most PES packets of a transport or program stream, so that nothing else moves."""
    data = bytearray(path.read_bytes())
    place = data.find(_PES)
    while place >= 0:
        flags = data[place + 7] >> 6
        if flags & 2 and draw.random() > keep:
            size = 10 if flags == 3 else 5
            data[place + 7] &= 0x3F
            data[place + 9 : place + 9 + size] = b"\xff" * size
        place = data.find(_PES, place + 4)
    path.write_bytes(data)
