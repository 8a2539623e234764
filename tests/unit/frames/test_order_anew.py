"""Streams whose order of display begins anew where no IDR picture is: operation 5 (H.264), cuts (H.265)."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest

from fourdthinker.errors import VideoError
from fourdthinker.frames import read_frames
from fourdthinker.frames.bitstream.bits import Bits
from fourdthinker.frames.bitstream.display_order import NEVER_SHOWN, h265
from fourdthinker.frames.bitstream.marking import begins_anew, picture_set
from fourdthinker.frames.bitstream.nal import units
from fourdthinker.frames.probing import probe
from tests.h264 import _Writer, coded, parameter_sets
from tests.oracle import stamps
from tests.oracle.coded import ENCODERS, add_stream, encoded
from tests.oracle.files import Recipe, make
from tests.oracle.marks import mark_of

RATE = 25
STEP = stamps.BASE // RATE
END_OF_SEQUENCE = b"\0\0\0\1\x48\x01"
BROKEN_LINK, CRA, LEADING = 16, 21, {8, 9}  # nal_unit_type: BLA_W_LP, which is made of CRA, and RASL

# Of each group of pictures in decoding order: (order as coded, order within the group). The first of a later
# group has operation 5 and counts as 0 from then on, whatever its own order.
SHORT = [[(0, 0), (2, 2)], [(20, 0), (4, 4), (6, 6), (8, 8), (10, 10)]]
WITH_B = [[(0, 0), (6, 6), (2, 2), (4, 4)], [(30, 0), (6, 6), (2, 2), (4, 4)], [(12, 0), (4, 4), (2, 2)]]


def read_numbers(path: Path, begin: float, places: Sequence[int]) -> list[int | None]:
    pixels = read_frames(path, times=[begin + (place + 0.5) / RATE for place in places]).pixels
    return [getattr(mark_of(picture), "number", None) for picture in pixels]


def check(path: Path, shown: Sequence[int]) -> None:
    """shown: number of the picture in each step of the clip."""
    begin, places = probe(path).begin, range(len(shown))
    assert read_numbers(path, begin, places) == list(shown)
    for place in places:
        assert read_numbers(path, begin, [place]) == [shown[place]], place


# --- H.264 ------------------------------------------------------------


def written(path: Path, groups: Sequence[Sequence[tuple[int, int]]], storage: bool) -> int:
    """A file of pictures in groups; how many."""
    pictures, frame_number = list[tuple[bytes, int]](), 0
    for index, group in enumerate(groups):
        ranks = sorted(order for _, order in group)
        first = len(pictures)
        for place, (order, within) in enumerate(group):
            begins = place == 0
            idr = begins and index == 0
            number = first + ranks.index(within)
            data = coded(
                number, order, frame_number, idr=idr, reference=True, bottom=None, anew=begins and not idr
            )
            pictures.append(((parameter_sets() if idr else b"") + data, number))
            frame_number = 1 if begins else frame_number + 1
    raw = b"".join(data for data, _ in pictures)
    if path.suffix == ".h264":
        path.write_bytes(raw)
        return len(pictures)
    with av.open(io.BytesIO(raw), format="h264") as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        stream.time_base = Fraction(1, RATE)
        for place, (data, number) in enumerate(pictures):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, RATE), not place
            packet.pts, packet.dts, packet.duration = (place if storage else number) + 3, place, 1
            container.mux(packet)
    return len(pictures)


@pytest.mark.parametrize("groups", [SHORT, WITH_B], ids=["short", "with B"])
@pytest.mark.parametrize(("suffix", "storage"), [("mp4", False), ("mkv", True), ("h264", False)])
def test_order_counts_that_begin_anew(
    tmp_path: Path, suffix: str, storage: bool, groups: Sequence[Sequence[tuple[int, int]]]
) -> None:
    path = tmp_path / f"c.{suffix}"
    check(path, range(written(path, groups, storage)))
    told = "sorted" if storage and groups is WITH_B else "rate" if suffix == "h264" else "container"
    assert probe(path).times_from == told


def test_marking_behind_weights_and_modified_lists() -> None:
    """Parts of a slice's header that stand before it, of each kind of slice."""
    sets = _Writer().put((3, 0), (0, 0), (1, 1), (1, 1), (0, 0), (1, 0), (0, 0), (1, 1), (1, 2))
    sets.put((0, 0), (0, 0), (0, 0), (0, 2), (0, 1))
    number, picture = picture_set(Bits(sets.data(stop=True)))
    assert (number, picture.references, picture.weighted, picture.biweighted) == (3, (2, 1), 1, 1)
    luma, both = [(1, 1), (4, 0), (2, 0), (0, 1)], [(1, 1), (4, 0), (2, 0), (1, 1), *[(3, 0)] * 4]
    lists = {
        0: [(0, 1), (1, 1), (0, 0), (5, 0), (3, 0), (6, 0), (6, 0), *luma, *both],
        1: [(1, 1), (1, 1), (0, 0), (1, 0), (0, 1), (0, 1), (6, 0), (6, 0), *both, *luma, *luma],
        2: [],
    }
    for kind, fields in lists.items():
        for marking, anew in (
            ([(1, 1), (1, 0), (7, 0), (3, 0), (1, 0), (2, 0), (5, 0), (0, 0)], True),
            ([(1, 1), (1, 0), (5, 0), (0, 0)], False),
            ([(0, 1), (5, 0)], False),
        ):
            bits = Bits(_Writer().put(*fields, *marking).data(stop=True))
            assert begins_anew(bits, kind + 5, picture, chroma=True) == anew, (kind, marking)


# --- H.265 ------------------------------------------------------------


def kinds(data: bytes) -> list[int]:
    return [unit[0] >> 1 & 63 for unit in units(data, 0)]


def cut(path: Path, how: str, count: int = 40) -> set[int]:
    """Open groups of which every second begins behind a cut; the pictures that need what lies before it."""
    lost = set()
    with av.open(str(path), "w") as output:
        stream = add_stream(output, ENCODERS["hevc-open"], Fraction(RATE))
        stream.time_base = Fraction(1, stamps.BASE)
        packets = encoded(stream, ENCODERS["hevc-open"], count)
        pts = stamps.in_order_of_display(packets, stamps.even(count, STEP))
        stamps.write(packets, pts, stamps.decoding_times(pts, STEP), [STEP] * count)
        contents = [bytes(coded.packet) for coded in packets]
        keys, behind_cut = 0, False
        for place, data in enumerate(contents):
            if CRA in kinds(data):
                keys += 1
                behind_cut = keys % 2 == 1
                if behind_cut and how == "end of sequence":
                    contents[place - 1] += END_OF_SEQUENCE
                elif behind_cut and how == "broken link":
                    contents[place] = data.replace(b"\0\0\1\x2a\1", bytes([0, 0, 1, BROKEN_LINK << 1, 1]))
            elif behind_cut and LEADING & set(kinds(data)):
                lost.add(packets[place].number)
        for coded, data in zip(packets, contents):
            packet = av.Packet(data)
            packet.pts, packet.dts, packet.time_base = (
                coded.packet.pts,
                coded.packet.dts,
                coded.packet.time_base,
            )
            packet.duration, packet.is_keyframe, packet.stream = STEP, coded.key, stream
            output.mux(packet)
    return lost


@pytest.mark.parametrize("how", ["end of sequence", "broken link"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "hevc"])
def test_pictures_that_need_what_lies_before_a_cut_are_not_shown(
    tmp_path: Path, suffix: str, how: str
) -> None:
    path = tmp_path / f"c.{suffix}"
    lost = cut(path, how)
    assert len(lost) == 2
    left = [number for number in range(40) if number not in lost]
    with av.open(str(path)) as container:
        decoded = [mark_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    # FFmpeg's decoder drops more, which are there and have their times.
    assert lost.isdisjoint(mark.number for mark in decoded if mark is not None)
    if suffix == "hevc":
        check(path, left)
    else:
        check(path, [max(number for number in left if number <= k) for k in range(40)])
    assert probe(path).times_from == ("rate" if suffix == "hevc" else "container")


@pytest.mark.parametrize("suffix", ["ts", "mp4"])
def test_an_end_of_sequence_within_a_group_is_refused(tmp_path: Path, suffix: str) -> None:
    """H.265 forbids it; FFmpeg then shows what follows after what was decoded before, in another order."""
    path, place = tmp_path / f"c.{suffix}", 14
    with av.open(str(path), "w") as output:
        stream = add_stream(output, ENCODERS["hevc-b"], Fraction(RATE))
        stream.time_base = Fraction(1, stamps.BASE)
        packets = encoded(stream, ENCODERS["hevc-b"], 20)
        pts = stamps.in_order_of_display(packets, stamps.even(20, STEP))
        stamps.write(packets, pts, stamps.decoding_times(pts, STEP), [STEP] * 20)
        for index, coded in enumerate(packets):
            lead = END_OF_SEQUENCE + b"\0\0\0\1\x46\1\x50" if index == place else b""  # and a delimiter
            packet = av.Packet(lead + bytes(coded.packet))
            packet.pts, packet.dts = coded.packet.pts, coded.packet.dts
            packet.time_base, packet.duration = coded.packet.time_base, STEP
            packet.is_keyframe, packet.stream = coded.key, stream
            output.mux(packet)
    begin = probe(path).begin
    for places in (range(20), range(10, 18)):
        with pytest.raises(VideoError, match="pictures leave the decoder in another order"):
            read_numbers(path, begin, places)
    assert read_numbers(path, begin, [0, 4]) == [0, 4]


def test_counts_below_zero_are_pictures_too(tmp_path: Path) -> None:
    """A stream that begins in the middle counts from a picture that is no IDR: -1 and -2 are counts too."""
    clip = make(Recipe("h264-open", "flv", count=40, cut=2, seed=1), tmp_path)
    check(clip.path, [number for _, number in clip.truth.frames])


def test_other_layers_say_nothing_of_the_order() -> None:
    """Parameter sets and slices of a second view have the numbers of those of the first."""
    draw = random.Random(1)
    other = b"\0\0\0\1" + bytes([33 << 1 | 0, 1 << 3 | 1]) + draw.randbytes(40)
    slices = b"\0\0\0\1" + bytes([0, 1 << 3 | 1]) + draw.randbytes(40)
    order = h265(b"")
    with av.open(io.BytesIO(), "w", format="hevc") as output:
        stream = add_stream(output, ENCODERS["hevc-b"], Fraction(RATE))
        packets = encoded(stream, ENCODERS["hevc-b"], 20)
    keys = [order(other + bytes(coded.packet) + other + slices) for coded in packets]
    assert NEVER_SHOWN not in keys
    numbers = [coded.number for coded in packets]
    assert [numbers[k] for k in sorted(range(20), key=lambda k: keys[k])] == list(range(20))
