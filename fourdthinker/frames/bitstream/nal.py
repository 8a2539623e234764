"""H.264 and H.265: the NAL units of a packet and of a header, what pictures they hold, and holes in them.

Sources: ITU-T H.264 annex B and H.265 annex B (start codes); ISO/IEC 14496-15 5.3.3 and 8.3.3 (sizes, whose
length the stream's header tells); H.264 7.3.1 and 7.4.1 (nal_ref_idc, nal_unit_type, no three zero bytes in
a unit), 7.3.2.3.1 and D.1.8 (recovery point message), 7.3.2.4 (access unit delimiter); H.265 7.4.2 and
7.4.2.2 (nal_unit_type, intra random access points, sub-layer non-reference pictures), 7.3.2.5 (access unit
delimiter), C.5.2.2 (pictures that are dropped).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fourdthinker.frames.bitstream.bits import Bits
from fourdthinker.frames.bitstream.pictures import (
    LAYER_SHIFT,
    LAYERS,
    NON_REFERENCE,
    RANDOM_ACCESS,
    ZEROS,
    Damage,
    Data,
    Flags,
    Test,
)

START = b"\0\0\1"
_RECOVERY_POINT = 6  # payloadType
H265_ENDS = (36, 37)  # nal_unit_type of the end of a sequence, of a bitstream
HOLE = bytes(8)  # no encoder writes it within a unit


@dataclass(frozen=True)
class Syntax:
    """Where H.264 and H.265 differ in how units stand in a stream."""

    shift: int  # nal_unit_type in the first byte of a unit
    mask: int
    size_byte: int  # of the header (avcC, hvcC) that tells the length of the sizes
    shortest: int  # such header
    slices: range  # nal_unit_type of pictures, and 0: what begins with zeros may have been one
    head: int  # bytes before the content of a unit
    parameter_set: int  # nal_unit_type of a sequence parameter set
    delimiter: bytes  # an access unit delimiter, which shows nothing

    def kind(self, unit: Data) -> int:
        """nal_unit_type."""
        return unit[0] >> self.shift & self.mask

    def length_size(self, extradata: bytes) -> int:
        """Bytes of the size before each unit; 0 where units stand behind start codes."""
        if len(extradata) < self.shortest or extradata[0] != 1:
            return 0
        return extradata[self.size_byte] % 4 + 1

    def parameter_sets(self, extradata: bytes) -> bytes:
        """Those of a header, behind start codes: they go before packets that decoding begins at.

        Sets inside the stream come later and replace them.
        """
        if extradata[:3] in (b"\0\0\0", START):
            return extradata
        return b"".join(b"\0" + START + unit for unit in header_units(self, extradata))

    def with_start_codes(self, extradata: bytes) -> Callable[[Data], bytes]:
        """Makes of a packet with sized units one with start codes (annex B).

        ValueError for a packet that ends within a unit, which parsers would take without a word. FFmpeg's
        bitstream filters do the same, but (8.0) h264_mp4toannexb puts parameter sets before IDR pictures
        only, and decoding begins at other keyframes too, and hevc_mp4toannexb takes no notice of a header
        that changes within the stream.
        """
        length = self.length_size(extradata)
        if not length:
            return bytes

        def convert(data: Data) -> bytes:
            parts: list[Data] = []
            for unit in units(data, length):
                if not len(unit):
                    raise ValueError("a packet ends within a NAL unit")
                parts += (b"\0" + START, unit)
            return b"".join(parts)

        return convert

    def packet_without_picture(self, extradata: bytes) -> bytes:
        """A delimiter as it stands in the stream's packets: behind its size, or behind a start code."""
        length = self.length_size(extradata)
        return (len(self.delimiter).to_bytes(length, "big") if length else b"\0" + START) + self.delimiter

    def damage(self, extradata: bytes) -> Damage:
        """The cause, where a unit of a picture has a run of zero bytes.

        A lost block of a disk, a transfer or a sparse file leaves it. A decoder makes pictures of them as of
        any other bits, and mostly without an error.
        """
        length = self.length_size(extradata)

        def test(data: Data) -> str | None:
            data = bytes(data)
            if HOLE not in data:
                return None
            begin = -1 if length else data.find(START)
            # What stands before the first start code may have lost its own in the hole.
            lead = b"" if length else data[:begin] if begin >= 0 else data
            for unit in (lead, *units(data, length)):
                content = bytes(unit).rstrip(b"\0")  # zeros may follow a unit
                if content and self.kind(content) in self.slices and HOLE in content:
                    return ZEROS
            return None

        return test


H264 = Syntax(0, 31, 4, 7, range(6), 1, 7, b"\x09\xf0")
H265 = Syntax(1, 63, 21, 23, range(32), 2, 33, b"\x46\x01\x50")


def units(data: Data, length: int) -> Iterator[Data]:
    """The NAL units of a packet, not copied, by sizes of `length` bytes or (0) by start codes.

    One empty unit comes last where sized units do not end with the packet.
    """
    if length:
        view, begin, end = memoryview(data), 0, len(data)
        while begin + length < end:
            size = int.from_bytes(view[begin : begin + length], "big")
            begin += length
            if size:
                yield view[begin : begin + size]
            begin += size
        if begin != end:
            yield b""
        return
    whole = bytes(data)
    view, begin = memoryview(whole), whole.find(START)
    while begin >= 0:
        begin += len(START)
        following = whole.find(START, begin)
        yield view[begin:following] if following >= 0 else view[begin:]
        begin = following


def h264_flags(extradata: bytes) -> Flags:
    """The flags of H.264: by nal_ref_idc (NON_REFERENCE) and IDR slices (RANDOM_ACCESS)."""
    length = H264.length_size(extradata)

    def flags(data: Data) -> int:
        pictures, non_reference, random_access = 0, True, False
        for unit in units(data, length):
            if not unit:
                return 0
            kind = unit[0] & 31
            if kind in (1, 2, 3, 4, 5, 20):
                pictures += 1
                non_reference = non_reference and not unit[0] & 0x60
                random_access = random_access or kind == 5
        return (NON_REFERENCE if pictures and non_reference else 0) | (RANDOM_ACCESS if random_access else 0)

    return flags


def h264_begins(extradata: bytes) -> Test:
    """Whether all pictures from this one on are right when decoding begins at it.

    Not where a message says that they are only some pictures later (a refresh by degrees).
    """
    length = H264.length_size(extradata)

    def begins(data: Data) -> bool:
        later = False
        for unit in units(data, length):
            kind = unit[0] & 31 if len(unit) else 0
            if kind == 5:
                return True
            later = later or (kind == 6 and _recovers_later(unit))
        return not later

    return begins


def _recovers_later(unit: Data) -> bool:
    """Whether supplemental enhancement information of H.264 has a recovery point that is still to come."""
    message, begin = content(unit), 1
    while begin + 2 < len(message):  # two bytes, and those that end the unit
        kind, begin = _code(message, begin)
        size, begin = _code(message, begin)
        if kind == _RECOVERY_POINT:
            try:
                return Bits(message[begin : begin + size]).ue() > 0
            except ValueError:
                return True  # cut off: nothing vouches for the picture
        begin += size
    return False


def _code(message: bytes, begin: int) -> tuple[int, int]:
    """(a number in bytes of 255 and one that is less, where it ends)."""
    value = 0
    while begin < len(message) and message[begin] == 255:
        value, begin = value + 255, begin + 1
    return value + (message[begin] if begin < len(message) else 0), begin + 1


def h265_flags(extradata: bytes) -> Flags:
    """The flags of H.265, by NAL unit types (7.4.2.2), and the temporal layer for `settle_layers`."""
    length = H265.length_size(extradata)

    def flags(data: Data) -> int:
        pictures, non_reference, random_access, layer = 0, True, True, 0
        for unit in units(data, length):
            if len(unit) < 2:
                return 0
            kind = unit[0] >> 1 & 63
            if kind in H265_ENDS:  # which the decoder has to see
                non_reference = False
            elif kind < 32:
                pictures += 1
                non_reference = non_reference and kind < 16 and kind % 2 == 0
                random_access = random_access and kind in (19, 20)
                layer = max(layer, unit[1] & 7)
        if not pictures:
            return 0
        found = (NON_REFERENCE if non_reference else 0) | (RANDOM_ACCESS if random_access else 0)
        return found | layer << LAYER_SHIFT

    return flags


def h265_empties(extradata: bytes) -> Test:
    """Whether the decoder has to be emptied before a packet, at which it drops pictures still to come out.

    It does so at a CRA picture behind the end of a sequence, and where no_output_of_prior_pics_flag is set.
    """
    length, ended = H265.length_size(extradata), False

    def empties(data: Data) -> bool:
        nonlocal ended
        found = False
        for unit in units(data, length):
            kind = unit[0] >> 1 & 63 if len(unit) > 2 else 0
            if len(unit) > 1 and unit[0] >> 1 & 63 in H265_ENDS:
                ended = True
            elif len(unit) > 2 and kind < 32:
                found = found or (16 <= kind < 24 and (ended if kind == 21 else bool(unit[2] & 64)))
                ended = False
        return found

    return empties


def settle_layers(flags: bytearray) -> bytes:
    """Flags of a whole stream of H.265, its temporal layers resolved.

    Pictures of the highest layer that occurs alone are non-reference, for layers above may refer to those of
    others.
    """
    top = max((flag >> LAYER_SHIFT & LAYERS for flag in flags), default=0)
    if top == 0:
        return bytes(flags)
    return bytes(flag & (15 if flag >> LAYER_SHIFT == top else 15 - NON_REFERENCE) for flag in flags)


def h265_begins(extradata: bytes) -> Test:
    """Whether decoding can begin at a picture: an intra random access point, or data that do not tell."""
    length = H265.length_size(extradata)

    def begins(data: Data) -> bool:
        kinds = [H265.kind(unit) for unit in units(data, length) if len(unit) > 1]
        pictures = [kind for kind in kinds if kind < 32]
        return not pictures or any(16 <= kind < 24 for kind in pictures)

    return begins


def header_units(syntax: Syntax, extradata: bytes) -> Iterator[Data]:
    """The NAL units of a header, as far as it goes: avcC, hvcC, or behind start codes."""
    if extradata[:3] in (b"\0\0\0", START):
        yield from units(extradata, 0)
        return
    if not syntax.length_size(extradata):
        return

    def number(begin: int, size: int) -> int:
        return int.from_bytes(extradata[begin : begin + size], "big")

    # avcC has two lists, each behind its length in a byte, in the first with 3 reserved bits; hvcC as many as
    # it says, each behind a byte that tells their kind and its length in two.
    begin, lists = (5, 2) if syntax is H264 else (23, extradata[22])
    for index in range(lists):
        if syntax is H264:
            count, begin = number(begin, 1) & (255 if index else 31), begin + 1
        else:
            count, begin = number(begin + 1, 2), begin + 3
        for _ in range(count):
            size = number(begin, 2)
            if size:
                yield extradata[begin + 2 : begin + 2 + size]
            begin += 2 + size


def content(unit: Data, size: int | None = None) -> bytes:
    """A unit, or its first bytes, without the bytes that keep start codes from occurring in it."""
    return bytes(unit[:size]).replace(b"\0\0\3", b"\0\0")
