"""The edit list of a track of MP4 or MOV: which of its pictures are shown, and when.

FFmpeg's own reading of it marks hidden pictures by packets, of which some parsers move the mark to a
neighbour, and gives stamps that are late where there are several segments; it is switched off
(`container.opened`). Sources: ISO/IEC 14496-12 8.6.5 and 8.6.6 (edit boxes), QuickTime File Format.
"""

from __future__ import annotations

import io
import math
import os
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from operator import attrgetter
from typing import BinaryIO

from fourdthinker.errors import VideoError

LARGEST = 1 << 20  # bytes of an edit list
_REMEDY = "write it anew as it is played (ffmpeg -i FILE out.mp4)"
_UNITY = 1 << 16  # the rate of a segment that is played as it is


@dataclass(frozen=True)
class EditSegment:
    """Which pictures one edit of an edit list shows.

    Those whose stamps are in [first, end), the one with `first` at `begin`, in units of stamps. end None: all
    that follow.
    """

    begin: int
    first: int
    end: int | None


def segments_of(
    media: str | os.PathLike[str] | bytes, name: str, track: int, base: Fraction
) -> tuple[EditSegment, ...]:
    """The segments of the edit list of a track of an MP4 or MOV file, in the order of the presentation.

    Args:
        media: the file, or its bytes.
        name: of the file.
        track: its number in the file.
        base: seconds to a unit of its stamps.

    Returns:
        None of them where there is no edit list: then all is shown at its stamp.

    Raises:
        VideoError: the list repeats pictures, or shows them in another order or at another speed.
    """
    with io.BytesIO(media) if isinstance(media, bytes) else open(name, "rb") as file:
        scale, entries = _edit_list(file, track)
    units = Fraction(1, scale) / base if scale else Fraction(0)
    segments: list[EditSegment] = []
    begin = 0
    for duration, first, rate in entries:
        length = round(duration * units)
        if first >= 0:
            if rate != _UNITY:
                raise VideoError(
                    f"{name}: its edit list plays a part at {rate / _UNITY:g} times its speed; {_REMEDY}"
                )
            segments.append(EditSegment(begin, first, first + length if duration else None))
        begin += length
    for index, (before, after) in enumerate(pairwise(segments)):
        if before.end is None or before.end - after.first > units + 1:  # lengths are rounded
            raise VideoError(
                f"{name}: its edit list of {len(segments)} segments repeats pictures or shows them in "
                f"another order than they are stored in; {_REMEDY}"
            )
        segments[index] = EditSegment(before.begin, before.first, min(before.end, after.first))
    return tuple(segments)


@dataclass(frozen=True)
class Edited:
    """Pictures by an edit list.

    segments: of the list, none where there is no list. shown: numbers of the pictures that it shows, in the
    order of display. stamps, origin: as in `Timeline`. late: the stamps in a segment before its first
    picture.
    """

    segments: Sequence[EditSegment]
    shown: Sequence[int]
    stamps: Sequence[int] | None
    origin: int = 0
    late: int = 0

    def seconds(self, stamp: int | None, base: Fraction) -> float:
        """When a stamp is shown, or would be; of None, which stands before all others, minus infinity."""
        if stamp is None:
            return -math.inf
        if self.segments:
            segment = _segment(self.segments, stamp)
            stamp += segment.begin - segment.first - self.late
        return float(stamp * base)


def edited(segments: Sequence[EditSegment], display: Sequence[int], stamps: Sequence[int] | None) -> Edited:
    """Apply the segments of an edit list to pictures, given by their numbers in the order of display.

    stamps: by number; None where numbers are stamps, for which there must be one segment at most. The first
    picture is shown when its segment begins, as other readers have it, though it may come later in it.
    """
    if not segments:
        return Edited((), display, stamps)
    times: dict[int, int] = {}
    for number in display:
        stamp = number if stamps is None else stamps[number]
        segment = segments[0] if len(segments) == 1 else _segment(segments, stamp)
        if segment.first <= stamp and (segment.end is None or stamp < segment.end):
            times[number] = segment.begin + stamp - segment.first
    shown = list(times)
    late = times[shown[0]] - segments[0].begin if shown else 0
    if stamps is None:
        return Edited(segments, shown, None, segments[0].first - segments[0].begin + late, late)
    moved = array("q")
    for number in range(len(stamps)):  # hidden pictures get the time of the one before them
        before = moved[-1] if moved else segments[0].begin
        moved.append(times[number] - late if number in times else before)
    return Edited(segments, shown, moved, 0, late)


def _segment(segments: Sequence[EditSegment], stamp: int) -> EditSegment:
    """The last one that begins before a stamp, or the first."""
    return segments[max(bisect_right(segments, stamp, key=attrgetter("first")) - 1, 0)]


def _edit_list(file: BinaryIO, track: int) -> tuple[int, list[tuple[int, int, int]]]:
    """(units a second of durations, [(duration, first stamp or -1 for nothing, rate in 1/65536)])."""
    scale, found = 0, []
    end = file.seek(0, os.SEEK_END)
    moov = next((span for kind, span in _boxes(file, 0, end) if kind == b"moov"), None)
    for kind, span in _boxes(file, *moov) if moov else ():
        if kind == b"mvhd":
            scale = _numbers(file, span, 20, 12)
        elif kind == b"trak":
            parts = dict(_boxes(file, *span))
            if b"tkhd" in parts and b"edts" in parts and _numbers(file, parts[b"tkhd"], 20, 12) == track:
                edits = dict(_boxes(file, *parts[b"edts"]))
                found = _entries(file, edits[b"elst"]) if b"elst" in edits else []
    return scale, found


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Kind and content [begin, end) of each box in a part of a file. Ends where there is no box."""
    while begin + 8 <= end:
        file.seek(begin)
        head = file.read(16)
        size, kind, length = int.from_bytes(head[:4], "big"), head[4:8], 8
        if size == 1:
            size, length = int.from_bytes(head[8:16], "big"), 16
        elif size == 0:
            size = end - begin
        if size < length:
            return
        yield kind, (begin + length, min(begin + size, end))
        begin += size


def _numbers(file: BinaryIO, span: tuple[int, int], long: int, short: int) -> int:
    """The 32-bit number of a box at one of two offsets, by its version (1: long)."""
    file.seek(span[0])
    data = file.read(min(span[1] - span[0], 32))
    offset = long if data[:1] == b"\1" else short
    return int.from_bytes(data[offset : offset + 4], "big")


def _entries(file: BinaryIO, span: tuple[int, int]) -> list[tuple[int, int, int]]:
    file.seek(span[0])
    data = file.read(min(span[1] - span[0], LARGEST))
    form = struct.Struct(">QqI" if data[:1] == b"\1" else ">IiI")
    count = min(int.from_bytes(data[4:8], "big"), (len(data) - 8) // form.size)
    return [form.unpack_from(data, 8 + k * form.size) for k in range(max(count, 0))]
