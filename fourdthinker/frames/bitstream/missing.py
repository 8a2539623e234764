"""Pictures that are missing from a stream, or there twice, told by how its pictures are counted.

A decoder puts copies of other pictures in their place, or takes no notice, and says nothing; what a picture
changes in the one before it is changed twice if it is there twice. Sources: ITU-T H.264 7.4.3 (frame_num);
ISO/IEC 13818-2 6.3.8 and 6.3.9 (group of pictures, temporal_reference); ISO/IEC 14496-2 6.3.4 and 6.3.5
(time_code, modulo_time_base, vop_time_increment).
"""

from __future__ import annotations

from contextlib import suppress

from fourdthinker.frames.bitstream.bits import Bits
from fourdthinker.frames.bitstream.mpeg import PICTURE, VOP, layer_of, ticks_size
from fourdthinker.frames.bitstream.pictures import Data

MISSING = "a picture before it, which it may refer to, is missing or there twice"
_GROUP = b"\0\0\1\xb8"  # start code of a group of pictures
_I, _B = 1, 3  # picture_coding_type
_CYCLE = 1024  # of temporal_reference
_GROUP_OF_VOPS = b"\0\0\1\xb3"
_B_VOP = 2  # vop_coding_type


class FrameNumbers:
    """H.264. before: frame_num of the last reference picture (PrevRefFrameNum); None: nothing is known."""

    def __init__(self) -> None:
        self.before: int | None = None

    def follows(self, number: int, size: int, *, anew: bool) -> bool:
        """Whether no reference picture is missing before one of this frame_num, of `size` bits.

        anew: counting begins with it, or numbers may be left out (gaps_in_frame_num_value_allowed_flag). Some
        encoders go back to 0 earlier than their headers say, behind 2^k - 1.
        """
        if anew or self.before is None:
            return True
        early = number == 0 and self.before >= 15 and not self.before & (self.before + 1)
        return early or (number - self.before) % (1 << size) <= 1

    def take(self, number: int, size: int, *, reference: bool, begins_anew: bool) -> None:
        """Go on behind a picture. begins_anew: it has operation 5, behind which its frame_num is 0."""
        if begins_anew:
            self.before = 0
        elif reference or number != self.before:  # some encoders count no non-reference pictures
            # Of pictures that are missing before another one, a decoder has taken note.
            self.before = number if reference else (number - 1) % (1 << size)


class TemporalReferences:
    """MPEG-1 and MPEG-2. In a group, pictures count on in the order of display, B-pictures too.

    low, high: of the last two pictures that are no B-pictures; low is None where a group begins, whose first
    B-pictures editors leave out. guessed: the last of them is missing, and high only follows from its
    B-pictures. packet: of the last one. waiting: no B-picture was met since.
    """

    def __init__(self) -> None:
        self.high: int | None = None
        self.low: int | None = None
        self.guessed = self.waiting = self.any_b = False
        self.packet = 0
        self.found: list[int] = []

    def take(self, packet: int, data: Data) -> bool:
        """Look at the first picture of a packet; packets are numbered from 0.

        Returns:
            Whether it is a B-picture, and the picture decoded before it and shown after it is missing.
        """
        whole = bytes(data)
        begin = whole.find(PICTURE)
        first = begin + len(PICTURE)
        if begin < 0 or first + 1 >= len(whole):
            return False
        kind, number = whole[first + 1] >> 3 & 7, whole[first] << 2 | whole[first + 1] >> 6
        begins_group = whole.find(_GROUP, 0, begin) >= 0
        if self.high is not None and not begins_group:
            number = self.high + (number - self.high + _CYCLE // 2) % _CYCLE - _CYCLE // 2
        if kind == _B:
            return self._b_picture(packet, number)
        self._other(packet, number, begins_group=begins_group, intra=kind == _I)
        return False

    def lost(self) -> list[int]:
        """Packets behind which decoding is wrong, for a picture before them is missing."""
        # At the end of the data B-pictures alone may be missing, unless there are none at all.
        last = [self.packet] if not self.any_b and self._lacks(self.high) else []
        return [*self.found, *last]

    def _lacks(self, following: int | None) -> bool:
        """Whether pictures are missing between `low` and this one, the first met after `high`."""
        if not self.waiting or self.low is None or following is None:
            return False
        return following > self.low + 1

    def _b_picture(self, packet: int, number: int) -> bool:
        self.any_b = True
        if self.high is None:
            return False
        above = self.low is None or number > self.low
        if self.guessed and above:
            self.high = max(self.high, number + 1)
        missing = not (above and number < self.high)
        if missing:  # the next one of the group, or (not above) the first one of a group
            self.low, self.high, self.guessed = self.high if above else None, number + 1, True
            self.found.append(packet)
        elif self._lacks(number):  # if a B-picture is missing, no harm is done, but nothing tells
            self.found.append(self.packet)
        self.waiting = False
        return missing

    def _other(self, packet: int, number: int, *, begins_group: bool, intra: bool) -> None:
        if number == self.high and not (begins_group or self.guessed):  # the second field
            return
        if self._lacks(self.high):
            self.found.append(self.packet)
        falls = self.high is not None and number < self.high
        if falls and not (begins_group or intra):  # the beginning of a group is missing
            self.found.append(packet)
        self.low = None if begins_group or falls else self.high
        self.high, self.packet = number, packet
        self.waiting, self.guessed = True, False


class VopTimes:
    """MPEG-4 part 2. A B-picture is shown between the last two pictures that are none.

    Pictures may be any time apart, so that no others tell. resolution: ticks a second; 0: not known. second:
    from which the next picture that is no B-picture counts. of_b: from which B-pictures do. low, high: times
    of the last two pictures that are no B-pictures, in ticks; None: not known.
    """

    def __init__(self, extradata: bytes) -> None:
        self.resolution = self.second = self.of_b = 0
        self.low: int | None = None
        self.high: int | None = None
        self.found: list[int] = []
        with suppress(ValueError):
            self._header(extradata)

    def take(self, packet: int, data: bytes) -> bool:
        """Look at the only picture of a packet; packets are numbered from 0.

        Returns:
            Whether it is a B-picture, and the picture decoded before it and shown after it is missing.
        """
        begin = data.find(VOP)
        try:
            self._header(data[:begin])
            bits = Bits(data[begin + len(VOP) : begin + 64])
            b_picture, seconds = bits.take(2) == _B_VOP, 0
            while bits.take(1):
                seconds += 1
            marked = bits.take(1)
            ticks = bits.take(ticks_size(self.resolution))
            if begin < 0 or not (self.resolution and marked and bits.take(1)):
                raise ValueError("no time stands there")
        except ValueError:
            self.forget()
            return False
        if b_picture:
            time = (self.of_b + seconds) * self.resolution + ticks
            late = self.high is not None and time >= self.high
            if late or (self.low is not None and time <= self.low):
                self.found.append(packet)
            if late:
                self.low, self.high = self.high, None
            return late
        self.of_b, self.second = self.second, self.second + seconds
        self.low, self.high = self.high, self.second * self.resolution + ticks
        return False

    def forget(self) -> None:
        """Nothing is known of the pictures before."""
        self.low = self.high = None

    def _header(self, head: bytes) -> None:
        layer = layer_of(head)
        if layer is not None:
            self.resolution = layer.resolution
        group = head.find(_GROUP_OF_VOPS)
        if group >= 0:
            bits = Bits(head[group + len(_GROUP_OF_VOPS) : group + 7])
            hours, minutes, _, seconds = bits.take(5), bits.take(6), bits.take(1), bits.take(6)
            self.second = (hours * 60 + minutes) * 60 + seconds
