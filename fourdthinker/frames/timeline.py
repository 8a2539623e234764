"""When each picture of a stream is shown, and what has to be decoded for it."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

from fourdthinker.frames.bitstream.pictures import KEYFRAME, LOST
from fourdthinker.frames.display_times import TimesFrom

if TYPE_CHECKING:
    import av


@dataclass
class Timeline:
    """The pictures of one stream, each known by a number that increases in the order of display.

    Where presentation times can be believed, the numbers are the stamps of the packets, which their pictures
    leave the decoder with. Else they count pictures in display order, packets get them for stamps before they
    are decoded, and `stamps` tells when each is shown.

    base: seconds to one unit of stamps. origin: the stamp that is shown at 0 s. pts: the numbers of the
    pictures shown, increasing. end: when the last one ends, in seconds. coded: numbers of the packets in
    decoding order, beginning at the first keyframe; empty where pictures can only be counted as they leave
    the decoder. flags: for each packet, bits of `bitstream.pictures`. fault: (seconds, cause) of damage that
    the container shows; from that time on frames may be missing or wrong. stamps: by number, the one at which
    it is shown, never decreasing; None where the numbers are stamps themselves. times_from: how the times
    were learnt. skipped: packets before the first one of `coded`, or before the first one to be decoded where
    that is empty.
    """

    base: Fraction
    pts: Sequence[int]
    end: float
    coded: Sequence[int] = ()
    flags: bytes = b""
    fault: tuple[float, str] | None = None
    stamps: Sequence[int] | None = None
    times_from: TimesFrom = "container"
    skipped: int = 0
    origin: int = 0
    begin: Sequence[float] = field(init=False)

    def __post_init__(self) -> None:
        self.begin = array("d", [self.seconds(pts) for pts in self.pts])

    def seconds(self, number: int) -> float:
        """When the picture of a number is shown, or a stamp."""
        stamp = number if self.stamps is None else self.stamps[min(number, len(self.stamps) - 1)]
        return (stamp - self.origin) * self.base.numerator / self.base.denominator

    def shows(self, number: int) -> bool:
        """Whether the picture of this number is shown."""
        index = bisect_left(self.pts, number)
        return index < len(self.pts) and self.pts[index] == number

    @cached_property
    def order(self) -> dict[int, int]:
        """Number to position in decoding order."""
        return {pts: position for position, pts in enumerate(self.coded)}

    @cached_property
    def _keys(self) -> list[tuple[int, int]]:
        return sorted(
            (pts, position) for position, pts in enumerate(self.coded) if self.flags[position] & KEYFRAME
        )

    @cached_property
    def lost(self) -> list[int]:
        """Positions of the packets before which pictures are missing."""
        return [position for position, flag in enumerate(self.flags) if flag & LOST]

    def lacking(self, number: int) -> int | None:
        """The first position in decoding for a picture before which another one is missing, or None."""
        if not self.lost or number not in self.order:
            return None
        after = bisect_right(self.lost, self.key_before(number) or 0)
        found = self.lost[after] if after < len(self.lost) else len(self.coded)
        return found if found <= self.order[number] else None

    def key_before(self, pts: int) -> int | None:
        """Position of the last keyframe shown at or before a picture: where decoding for it may begin."""
        found = bisect_right(self._keys, (pts, len(self.coded)))
        return self._keys[found - 1][1] if found else None


@dataclass
class Held:
    """Packets of a stream from its first keyframe on, kept while they fit into `room` bytes."""

    room: int
    packets: list[av.Packet] | None = field(default_factory=list)

    def keep(self, packet: av.Packet) -> None:
        """Add a packet; when there is no more room, all are dropped for good."""
        if self.packets is None:
            return
        self.room -= packet.size
        if self.room < 0:
            self.packets = None
        else:
            self.packets.append(packet)
