"""In which order the pictures of a stream are shown, by their own headers and without decoding.

A function of a stream's header gives one of the data of each packet, called in decoding order: a number that
increases in the order of display, or None where the data do not tell; OF_SECOND_FIELD for a packet that holds
the second field of the picture before it alone (H.264), NEVER_SHOWN for a picture that is only referred to,
or that refers to what lies before a cut (H.265). It serves to check presentation times, and to order pictures
where these are missing or follow the order of storage. It also tells before which packets pictures are
missing, and which are there twice, as far as their headers count them (H.264, MPEG-1 and MPEG-2), say what
they belong to (H.265), or between which they are shown (MPEG-4).

Sources: ITU-T H.264 7.3.3 (slice header), 8.2.1 (picture order count); H.265 7.3.6.1 (slice segment header),
8.3.1 (picture order count), 8.1.3 (random access, leading pictures that are not output); ISO/IEC 13818-2
6.1.1.11 and ISO/IEC 14496-2 6.1.3 (a B-picture is shown when it is decoded, another one after the B-pictures
that follow it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

from fourdthinker.frames.bitstream.bits import Bits
from fourdthinker.frames.bitstream.marking import HEAD, Picture264, begins_anew, picture_set
from fourdthinker.frames.bitstream.missing import FrameNumbers, TemporalReferences, VopTimes
from fourdthinker.frames.bitstream.mpeg import PICTURE, VOP, field, mpeg4_flags
from fourdthinker.frames.bitstream.nal import H264, H265, content, header_units, units
from fourdthinker.frames.bitstream.parameter_sets import (
    Sequence264,
    Sequence265,
    sequence_h264,
    sequence_h265,
)
from fourdthinker.frames.bitstream.pictures import Data

OF_SECOND_FIELD, NEVER_SHOWN = -1, -2
_EPOCH = 1 << 40  # from the numbers of one coded video sequence to those of the next
_GROUP = 1 << 20  # from one picture of the MPEG family that is no B-picture to the next
_P = 2  # picture_coding_type of MPEG-1 and MPEG-2
_P_IN_THIS_SECOND = 0b010  # vop_coding_type and the first bit of modulo_time_base of MPEG-4
_HEAD = 24  # bytes of a slice that hold the fields read here
_PICTURE_SETS_264, _PICTURE_SETS_265 = 8, 34
_WITHOUT_SKIPPED = (17, 18, 19, 20)  # keyframes of H.265 without leading pictures that refer to before them


class Order(Protocol):
    """What a stream's header gives."""

    def __call__(self, data: Data) -> int | None:
        """The number of a packet's picture."""

    def lost(self) -> Sequence[int]:
        """Of the packets given so far, counted from 0, those before which a picture is missing.

        So do those count that repeat the one before them.
        """


def h264(extradata: bytes) -> Order:
    """H.264, by picture order count; `extradata` is avcC, or parameter sets with start codes."""
    return _H264(extradata)


def h265(extradata: bytes) -> Order:
    """H.265, by picture order count; `extradata` is hvcC, or parameter sets with start codes."""
    return _H265(extradata)


def mpeg2(extradata: bytes) -> Order:
    """MPEG-1 and MPEG-2."""
    return _Mpeg2(lambda data: field(data, PICTURE, 1, 3, 7), b_picture=3)


def mpeg4(extradata: bytes) -> Order:
    """MPEG-4 part 2. None for a packet that holds several pictures."""
    return _Mpeg4(extradata)


class _Delayed:
    """B-pictures are shown at once, others when the next one of them is decoded."""

    def __init__(self, kind: Callable[[bytes], int | None], b_picture: int) -> None:
        self.kind, self.b_picture = kind, b_picture
        self.others = self.b_pictures = 0

    def lost(self) -> Sequence[int]:
        return ()

    def __call__(self, data: Data) -> int | None:
        kind = self.kind(bytes(data))
        if kind is None:
            return None
        if kind == self.b_picture:
            self.b_pictures += 1
            return (self.others - 1) * _GROUP + self.b_pictures
        self.others, self.b_pictures = self.others + 1, 0
        return self.others * _GROUP


class _Mpeg2(_Delayed):
    def __init__(self, kind: Callable[[bytes], int | None], b_picture: int) -> None:
        super().__init__(kind, b_picture)
        self.references, self.packets = TemporalReferences(), 0
        self.before: Data = b""  # the packet before
        self.twice: list[int] = []

    def lost(self) -> Sequence[int]:
        return sorted({*self.references.lost(), *self.twice})

    def __call__(self, data: Data) -> int | None:
        if data == self.before and self.kind(bytes(data)) == _P:
            self.twice.append(self.packets)
            self.others -= 1  # it is no picture of its own
        self.before = data
        if self.references.take(self.packets, data):  # which that one is shown after
            self.others, self.b_pictures = self.others + 1, 0
        self.packets += 1
        return super().__call__(data)


class _Mpeg4(_Delayed):
    def __init__(self, extradata: bytes) -> None:
        super().__init__(lambda data: field(data, VOP, 0, 6, 3), b_picture=2)
        self.times, self.flags, self.packets = VopTimes(extradata), mpeg4_flags(extradata), 0
        self.before, self.twice = b"", list[int]()  # the packet before; packets that repeat it

    def lost(self) -> Sequence[int]:
        return sorted({*self.times.found, *self.twice})

    def __call__(self, data: Data) -> int | None:
        whole = bytes(data)
        self.packets += 1
        if whole.find(VOP, whole.find(VOP) + 1) > 0:
            self.times.forget()
            return None
        if self.flags(whole):  # perhaps "not coded": nothing refers to it, and fillers are all alike
            self.times.forget()
        elif whole == self.before and field(whole, VOP, 0, 5, 7) == _P_IN_THIS_SECOND:
            self.twice.append(self.packets - 1)
            self.others -= 1
        elif self.times.take(self.packets - 1, whole):  # which that one is shown after
            self.others, self.b_pictures = self.others + 1, 0
        self.before = whole
        return super().__call__(whole)


class _Count:
    """Picture order count: what a slice gives of it, made whole by the pictures before."""

    def __init__(self) -> None:
        # From the first epoch on, for counts below 0 would be taken for OF_SECOND_FIELD and NEVER_SHOWN.
        self.epoch, self.high, self.low = _EPOCH, 0, 0

    def begin(self) -> None:
        self.epoch, self.high, self.low = self.epoch + _EPOCH, 0, 0

    def whole(self, low: int, size: int, kept: bool) -> int:
        """low: of `size` bits. kept: what follows counts from this picture."""
        high, half = self.high, 1 << (size - 1)
        if low < self.low and self.low - low >= half:
            high += 1 << size
        elif low > self.low and low - self.low > half:
            high -= 1 << size
        if kept:
            self.high, self.low = high, low
        return self.epoch + high + low


class _Field(NamedTuple):
    """A field of H.264, as its slices name it."""

    bottom: int
    frame_number: int
    reference: bool

    def completes(self, first: _Field | None) -> bool:
        """Whether it and the field before it are one picture (H.264 3.30, as FFmpeg's decoder has it)."""
        return first == (1 - self.bottom, self.frame_number, self.reference)


class _Slice(NamedTuple):
    """The first fields of a slice's header (H.264). kind: slice_type."""

    kind: int
    sequence: Sequence264
    picture: Picture264
    frame_number: int
    field: _Field | None
    idr: bool
    reference: bool


class _H264:
    def __init__(self, extradata: bytes) -> None:
        self.length = H264.length_size(extradata)
        self.sequences: dict[int, Sequence264] = {}
        self.pictures: dict[int, Picture264] = {}  # picture parameter sets
        self.count, self.decoded = _Count(), 0
        self.numbers, self.packets, self.missing = FrameNumbers(), 0, list[int]()
        self.unpaired: _Field | None = None  # the field before, while its picture lacks the other one
        self.before: Data = b""  # the packet before
        with suppress(ValueError, IndexError):  # then the stream holds them, or nothing is told
            for unit in header_units(H264, extradata):
                self._set(unit)

    def lost(self) -> Sequence[int]:
        return self.missing

    def __call__(self, data: Data) -> int | None:
        key, fields = None, list[_Field]()
        self.packets += 1
        try:
            for unit in units(data, self.length):
                if not len(unit):
                    break
                if unit[0] & 31 not in (1, 2, 5):
                    self._set(unit)
                    continue
                idr, reference = unit[0] & 31 == 5, bool(unit[0] & 0x60)
                bits = Bits(content(unit, HEAD if reference and not (idr or fields) else _HEAD))
                head = self._head(bits, idr, reference)
                field = head.field
                if not fields:
                    counted = self.numbers.before == head.frame_number and reference and not idr
                    if counted and data == self.before:
                        self.missing.append(self.packets - 1)
                    key = self._key(bits, head, field is not None and field.completes(self.unpaired))
                if field is None:
                    break
                if field not in fields[-1:]:
                    fields.append(field)
        except (ValueError, KeyError):
            self.unpaired = self.numbers.before = None
            return None
        self.before = data
        alone = len(fields) == 1 and fields[0].completes(self.unpaired)
        for field in fields or (None,):
            self.unpaired = None if field is None or field.completes(self.unpaired) else field
        return OF_SECOND_FIELD if alone else key

    def _set(self, unit: Data) -> None:
        kind = unit[0] & 31 if len(unit) else 0
        if kind == H264.parameter_set:
            sequence = sequence_h264(Bits(content(unit)[1:]))
            self.sequences[sequence.number] = sequence
        elif kind == _PICTURE_SETS_264:
            number, picture = picture_set(Bits(content(unit)[1:]))
            self.pictures[number] = picture

    def _head(self, bits: Bits, idr: bool, reference: bool) -> _Slice:
        bits.take(8)
        bits.ue()
        kind, picture, field = bits.ue(), self.pictures[bits.ue()], None
        sequence = self.sequences[picture.sequence]
        if sequence.separate_planes:
            bits.take(2)
        number = bits.take(sequence.frame_number_size)
        if not sequence.frames_only and bits.take(1):
            field = _Field(bits.take(1), number, reference)
        return _Slice(kind, sequence, picture, number, field, idr, reference)

    def _last_number(self, data: Data) -> int | None:
        """frame_num of the last of several reference pictures of a packet; None: it has no other numbers."""
        found = list[int]()
        with suppress(ValueError, KeyError):
            for unit in units(data, self.length):
                if len(unit) and unit[0] & 31 in (1, 2, 5) and unit[0] & 0x60:
                    head = self._head(Bits(content(unit, _HEAD)), unit[0] & 31 == 5, True)
                    found.append(head.frame_number)
        return found[-1] if len(set(found)) > 1 else None

    def _key(self, bits: Bits, head: _Slice, second: bool) -> int | None:
        """The number of a picture. bits: behind the fields that `_head` takes. second: a second field's."""
        self.decoded += 1
        sequence, low, below = head.sequence, 0, 0
        number, size = head.frame_number, sequence.frame_number_size
        if not self.numbers.follows(number, size, anew=head.idr or bool(sequence.gaps)):
            # Of several pictures in the packet before, the first alone has been looked at.
            last = self._last_number(self.before)
            if last is None or (number - last) % (1 << size) > 1:
                self.missing.append(self.packets - 1)
        if head.idr:
            bits.ue()
            if not second:
                self.count.begin()
        of_bottom = head.picture.order_of_bottom and head.field is None
        if sequence.order_kind == 0:
            low = bits.take(sequence.order_size)
            if of_bottom:
                below = bits.ue()  # odd where the bottom field comes later; else half of it, how much earlier
        elif sequence.order_deltas:
            bits.skip_ue(2 if of_bottom else 1)
        chroma = bool(sequence.chroma) and not sequence.separate_planes
        anew = head.reference and not head.idr and begins_anew(bits, head.kind, head.picture, chroma)
        self.numbers.take(number, size, reference=head.reference or head.idr, begins_anew=anew)
        if sequence.order_kind == 1:
            return None
        if anew:
            self.count.begin()
            low = 0 if below % 2 else below // 2  # as of the top field, when the earlier of both becomes 0
        if sequence.order_kind == 2:  # shown as decoded
            return self.count.epoch + self.decoded
        return self.count.whole(low, sequence.order_size, head.reference)


class _H265:
    def __init__(self, extradata: bytes) -> None:
        self.length = H265.length_size(extradata)
        self.sequences: dict[int, Sequence265] = {}
        self.of_picture: dict[int, tuple[int, int, int]] = {}  # (sequence, output flag, extra bits)
        self.count, self.begins = _Count(), True
        self.skips = False  # leading pictures that refer to what lies before the last keyframe
        self.keyframe = self.trailing = 0  # kind of the last keyframe, pictures since that do not lead it
        self.packets, self.missing = 0, list[int]()
        with suppress(ValueError, IndexError):  # then the stream holds them, or nothing is told
            for unit in header_units(H265, extradata):
                self._set(unit)

    def lost(self) -> Sequence[int]:
        # Of other pictures the decoder says so, for each names all that it may refer to.
        return self.missing

    def __call__(self, data: Data) -> int | None:
        self.packets += 1
        key, slices = None, 0
        try:
            for unit in units(data, self.length):
                if len(unit) < 2:
                    break
                kind, layer = unit[0] >> 1 & 63, (unit[0] & 1) << 5 | unit[1] >> 3
                if layer:  # of another view, or of alpha
                    continue
                if kind < 32:
                    slices += 1
                    key = self._slice(Bits(content(unit, _HEAD)), kind, unit[1] & 7) if slices == 1 else key
                    continue
                self._set(unit)
                self.begins = self.begins or kind in (36, 37)  # end of a sequence, of a bitstream
        except (ValueError, KeyError):
            return None
        return key

    def _misplaced(self) -> bool:
        """Whether a leading picture that may not be shown cannot belong to the last keyframe.

        Its own is missing then (7.4.2.2): the last keyframe has no such leading pictures, or others stand
        between (of fields, one may).
        """
        return self.trailing > 1 or self.keyframe in _WITHOUT_SKIPPED

    def _set(self, unit: Data) -> None:
        kind = unit[0] >> 1 & 63 if len(unit) > 2 else 0
        if kind == H265.parameter_set:
            sequence = sequence_h265(Bits(content(unit)[2:]))
            self.sequences[sequence.number] = sequence
        elif kind == _PICTURE_SETS_265:
            bits = Bits(content(unit, _HEAD)[2:])
            number, sequence_number = bits.ue(), bits.ue()
            bits.take(1)
            self.of_picture[number] = sequence_number, bits.take(1), bits.take(3)

    def _slice(self, bits: Bits, kind: int, layer: int) -> int | None:
        bits.take(16)
        if not bits.take(1):  # not the first slice of its picture
            return None
        if 16 <= kind < 24:
            bits.take(1)
            self.keyframe, self.trailing = kind, 0
            self.skips = kind != 21 or self.begins
            if self.skips:  # after a CRA picture counting goes on, unless it is the first
                self.count.begin()
            self.begins = False
        elif kind in (8, 9) and self.skips:
            if not self._misplaced():
                return NEVER_SHOWN
            self.missing.append(self.packets - 1)
        self.trailing += kind < 6
        number, output_flag, extra = self.of_picture[bits.ue()]
        sequence = self.sequences[number]
        bits.take(extra)
        bits.ue()
        shown = not output_flag or bits.take(1)
        bits.take(2 * sequence.separate_planes)
        if kind in (19, 20):
            return self.count.epoch if shown else NEVER_SHOWN
        # Not from leading pictures, nor those that nothing of their layer refers to, nor higher layers.
        kept = layer == 1 and not 6 <= kind <= 9 and not (kind < 16 and kind % 2 == 0)
        number = self.count.whole(bits.take(sequence.order_size), sequence.order_size, kept)
        return number if shown else NEVER_SHOWN
