"""A picture left out of a sound container: no other picture is given in its stead, nor for those after it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

from fourdthinker.errors import VideoError
from fourdthinker.frames import read_frames
from fourdthinker.frames.bitstream.display_order import h264, h265, mpeg2, mpeg4
from fourdthinker.frames.probing import probe
from fourdthinker.frames.timeline_from_decoding import decoded_timeline
from tests.h264 import coded, field_pictures, parameter_sets
from tests.oracle import stamps
from tests.oracle.access import REFUSED, RIGHT, Way, judge, middles
from tests.oracle.coded import ENCODERS, Coded, add_stream, encoded
from tests.oracle.files import Recipe, make
from tests.oracle.marks import Mark, mark_of
from tests.oracle.stamps import BASE

MISSING = "a picture before it, which it may refer to, is missing or there twice"
# (recipe, numbers of the pictures that need the one left out): those from it up to the next keyframe in the
# order of decoding, but none shown before it that was decoded before it.
CASES = [
    (Recipe("h264", "mp4", without=5, count=26), range(6, 12)),
    (Recipe("h264", "mkv", without=16, count=26), range(17, 24)),
    (Recipe("h264-pyramid", "mp4", without=9, count=24), {*range(9, 20)} - {16}),
    (Recipe("h264-open", "mp4", without=5, count=20), {5, 6, 7, 9}),  # 9 is shown before 10, a keyframe
    (Recipe("h264-b", "ts", without=4, count=20), range(4, 12)),
    (Recipe("mpeg2", "ts", without=5, count=26), range(6, 12)),
    (Recipe("mpeg2-b", "mkv", without=4, count=20), range(4, 12)),
    (Recipe("mpeg1-b", "mp4", without=4, count=20), range(4, 12)),
    (Recipe("mpeg4-b", "mp4", without=4, count=20), {*range(4, 12)} - {6}),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "harmed"), CASES, ids=lambda value: str(value)[:60])
def test_what_needs_a_missing_picture_is_refused_and_nothing_else(
    tmp_path: Path, recipe: Recipe, harmed: range
) -> None:
    clip = make(recipe, tmp_path)
    times = middles(clip.truth)
    read = [Way(str(k), lambda t=t: [read_frames(clip.path, times=[t])]) for k, t in enumerate(times)]
    verdicts = judge(clip, read).verdicts
    numbers = [number for _, number in clip.truth.frames]
    refused = {number for verdict, number in zip(verdicts, numbers) if verdict.outcome == REFUSED}
    assert [v.words for v in verdicts if v.outcome not in (RIGHT, REFUSED)] == []
    assert refused == set(numbers) & set(harmed)
    assert all(MISSING in v.words for v in verdicts if v.outcome == REFUSED)
    assert MISSING in (probe(clip.path).fault or "")
    with pytest.raises(VideoError, match=MISSING):
        read_frames(clip.path, times=times)
    part = read_frames(clip.path, times=times, partial=True)
    assert MISSING in (part.fault or "")
    before = [number for number in numbers if number < min(harmed)]
    assert [mark.number for mark in map(mark_of, part.pixels) if mark is not None] == before


@pytest.mark.parametrize("cut", [0, 1])
def test_the_keyframe_of_pictures_shown_before_it(tmp_path: Path, cut: int) -> None:
    """Of H.265. The picture shown before the keyframe left out seems to belong to the keyframe before, behind
    which such pictures are not shown."""
    clip = make(Recipe("hevc-open", "mp4", without=9 + cut, count=24 + 6 * cut, cut=cut), tmp_path)
    times = middles(clip.truth)
    read = [Way(str(k), lambda t=t: [read_frames(clip.path, times=[t])]) for k, t in enumerate(times)]
    verdicts = judge(clip, read).verdicts
    assert [v.words for v in verdicts if v.outcome not in (RIGHT, REFUSED)] == []
    refused = [number for v, (_, number) in zip(verdicts, clip.truth.frames) if v.outcome == REFUSED]
    assert refused == [n for _, n in clip.truth.frames if 10 * cut + 9 <= n < 10 * cut + 20]


def test_pictures_that_their_keyframe_cannot_have(tmp_path: Path) -> None:
    """The tenth packet of H.265 is a keyframe, the next one a picture shown before it."""
    clip = make(Recipe("hevc-open", "mp4", count=12), tmp_path)
    with av.open(str(clip.path)) as container:
        video = container.streams.video[0]
        packets = [packet for packet in container.demux(video) if packet.size]
        for chosen, lost in (((0, 9, 10), []), ((0, 10), [1]), ((9, 10), []), ((9, 1, 2, 10), [3])):
            order = h265(video.codec_context.extradata or b"")
            for position in chosen:
                order(memoryview(packets[position]))
            assert list(order.lost()) == lost


def test_a_picture_that_is_there_twice(tmp_path: Path) -> None:
    path, step = tmp_path / "twice.mp4", BASE // 25
    encoder = ENCODERS["h264"]
    with av.open(str(path), "w") as output:
        stream = add_stream(output, encoder, Fraction(25))
        packets = encoded(stream, encoder, 20)
        again = av.Packet(bytes(packets[5].packet))
        again.stream = stream
        packets.insert(6, Coded(again, 5, False))
        pts = [step * k for k in range(21)]
        stamps.write(packets, pts, pts, [step] * 21)
        for coded_picture in packets:
            output.mux(coded_picture.packet)
    for k in (*range(6), *range(13, 21)):
        (picture,) = read_frames(path, times=[(k + 0.5) / 25]).pixels
        assert mark_of(picture) == Mark(k - (k > 5))
    for k in range(6, 13):
        with pytest.raises(VideoError, match=MISSING):
            read_frames(path, times=[(k + 0.5) / 25])


def test_they_are_told_where_the_order_is_learnt_by_decoding(tmp_path: Path) -> None:
    clip = make(Recipe("h264", "mp4", without=5, count=20), tmp_path)
    with av.open(str(clip.path)) as container:
        video = container.streams.video[0]
        timeline = decoded_timeline(container, video, "c", None, False, None, lambda: None)
    assert timeline.lost == [5]


# --- counts of H.264 ---------------------------------------------------


def lost_h264(pictures: list[tuple[int, str]], *, leaves_out: bool = False) -> list[int]:
    """Of pictures (frame_num, kind): I an IDR picture, i one that nothing refers to, A one with operation 5,
    P another one that others refer to, b one that none does."""
    order = h264(parameter_sets(leaves_out=leaves_out))
    for position, (number, kind) in enumerate(pictures):
        idr, anew, reference = kind in "Ii", kind == "A", kind not in "bi"
        order(coded(position, 2 * position, number, idr=idr, reference=reference, bottom=None, anew=anew))
    return list(order.lost())


@pytest.mark.parametrize(
    ("numbers", "kinds", "lost"),
    [
        ((0, 1, 2, 3), "IPPP", []),
        ((0, 1, 3, 4), "IPPP", [2]),
        ((0, 1, 2, 2, 2, 3), "IPbbPP", []),
        ((0, 1, 2, 3, 4), "IPbPP", [3]),  # FFmpeg takes the b-picture's number for the one before
        ((0, 1, 3, 3, 4), "IPbPP", [2]),  # noticed once
        ((0, 2, 0, 1), "IPIP", [1]),
        ((0, 1, 0, 1), "IPIP", []),
        ((0, 1, 2, 1, 2), "IPAPP", []),
        ((0, 1, 2, 2), "IPAP", [3]),
        ((254, 255, 0, 1), "PPPP", []),
        ((254, 255, 1), "PPP", [2]),
        ((7, 8, 9), "PPP", []),  # a stream that begins anywhere
        # Streams that are not by the standard, and decode.
        ((14, 15, 0, 1), "PPPP", []),  # 4 bits are counted, and the headers say 8
        ((13, 14, 0, 1), "PPPP", [2]),
        ((6, 7, 0, 1), "PPPP", [2]),
        ((0, 1, 1, 2), "IPbP", []),  # a b-picture is not counted
        ((0, 1, 2), "iPP", []),  # nothing refers to the IDR picture, says its header
    ],
)
def test_frame_numbers(numbers: tuple[int, ...], kinds: str, lost: list[int]) -> None:
    assert lost_h264(list(zip(numbers, kinds, strict=True))) == lost


def test_frame_numbers_of_two_pictures_in_a_packet() -> None:
    for missing, lost in ((None, []), (3, [2])):
        order = h264(parameter_sets())
        for numbers in ((0, 1), (2, 3), (4, 5)):
            some = [k for k in numbers if k != missing]
            order(b"".join(coded(k, 2 * k, k, idr=not k, reference=True, bottom=None) for k in some))
        assert list(order.lost()) == lost


def test_frame_numbers_that_may_be_left_out() -> None:
    assert lost_h264([(0, "I"), (1, "P"), (5, "P")], leaves_out=True) == []


@pytest.mark.parametrize("mixed", [False, True])
def test_frame_numbers_of_fields(mixed: bool) -> None:
    pictures = field_pictures(24, mixed=mixed)
    for missing, lost in ((None, 0), (3, 1)):
        order = h264(parameter_sets())
        for packets, number, _ in pictures:
            for packet in packets if number != missing else ():
                order(packet)
        assert len(order.lost()) == lost


@pytest.mark.parametrize(("kind", "lost"), [("I", []), ("P", [2]), ("b", [])])
def test_packets_of_h264_that_repeat_the_one_before(kind: str, lost: list[int]) -> None:
    order = h264(parameter_sets())
    idr, reference = kind == "I", kind != "b"
    first = coded(0, 0, 0, idr=True, reference=True, bottom=None)
    same = coded(1, 2, 0 if idr else 1, idr=idr, reference=reference, bottom=None)
    for data in (first, same, same):
        order(memoryview(data))
    assert list(order.lost()) == lost


# --- counts of MPEG-1 and MPEG-2 ------------------------------------------


def lost_mpeg2(pictures: str) -> tuple[list[int], list[int]]:
    """(packets, pictures in the order of display) of pictures such as GI2: one that begins a group, of this
    kind and with this temporal reference."""
    order, keys = mpeg2(b""), []
    for picture in pictures.split():
        kind, number = " IPB".index(picture.lstrip("G")[0]), int(picture.strip("G'")[1:])
        data = b"\0\0\1\0" + (number << 6 | kind << 3).to_bytes(2, "big") + b"\xff\xff"
        data += b"\xff" * picture.count("'")
        keys.append(order((b"\0\0\1\xb8\0\0\0\x40" if picture[0] == "G" else b"") + data))
    assert None not in keys
    return list(order.lost()), sorted(range(len(keys)), key=lambda k: keys[k] or 0)


@pytest.mark.parametrize(
    ("pictures", "lost"),
    [
        ("GI0 P1 P2 P3", []),
        ("GI0 P1 P3", [2]),
        ("GI0 P1 P3 GI0", [2]),
        ("GI0 P3 B1 B2 P6 B4 B5 GI2 B0 B1 P5 B3 B4", []),
        ("GI0 P3 B1 B2 B4 B5 P9 B7 B8", [4]),  # P6
        ("GI0 P3 B1 B2 B0 B1 P5 B3 B4", [4]),  # the picture that begins a group
        ("GI0 P3 B1 B2 P9 B7 B8", [4]),  # P6 and its B-pictures
        ("GI0 P3 B1 B2 P6 B5 GI0", [4]),  # a B-picture, or one that is none
        ("GI0 P3 B1 B2 P6 B4 GI0", []),  # a B-picture, which nothing refers to
        ("GI2 P5 B3 B4 GI2 B1 P5 B3 B4", []),  # B-pictures that an editor left out
        ("GI0 P3 B1 B2 P6", []),  # the file ends
        ("GI0 P3 P3' B1 B1' B2 B2' P6 P6'", []),  # fields
        ("GI0 P1 P0 P1", [2]),  # a group's first picture
        ("I0 P1 P2 I0 P1", []),  # no group is marked
        ("GI1022 P1023 P0 P1", []),
        ("GI1022 P1023 P1", [2]),
    ],
)
def test_temporal_references(pictures: str, lost: list[int]) -> None:
    assert lost_mpeg2(pictures)[0] == lost


@pytest.mark.parametrize(
    ("pictures", "lost"), [("GI0 P1 P1 P2", [2]), ("GI0 I0 P1", []), ("GI0 P3 B1 B1 B2", [])]
)
def test_packets_of_mpeg2_that_repeat_the_one_before(pictures: str, lost: list[int]) -> None:
    assert lost_mpeg2(pictures)[0] == lost


def test_b_pictures_before_one_that_is_there_twice_are_shown_before_both() -> None:
    assert lost_mpeg2("GI0 P3 P3 B1 B2")[1] == [0, 3, 4, 1, 2]
    order = mpeg4(b"")
    p_picture = vop("P", 0, 3)
    keys = [order(data) for data in (vop("I", 0, 0, layer=True), p_picture, p_picture, vop("B", 0, 1))]
    assert sorted(range(4), key=lambda k: keys[k] or 0) == [0, 3, 1, 2]


def test_b_pictures_before_a_missing_picture_follow_the_one_before_it() -> None:
    assert lost_mpeg2("GI0 P3 B1 B2 B4 B5 P9 B7 B8")[1] == [0, 2, 3, 1, 4, 5, 7, 8, 6]


# --- times of MPEG-4 ------------------------------------------------------


def vop(kind: str, seconds: int, ticks: int, *, group: int | None = None, layer: bool = False) -> bytes:
    """A picture of a layer of 25 ticks a second. group: it begins one, at this second."""
    settings = "0" * 17 + f"1{25:016b}1" + "0" * 37
    head = b"\0\0\1\x20" + int(settings, 2).to_bytes(9, "big")
    data = head if layer else b""
    if group is not None:
        data += b"\0\0\1\xb3" + int(f"{0:011b}1{group:06b}" + "0" * 6, 2).to_bytes(3, "big")
    bits = f"{'IPB'.index(kind):02b}" + "1" * seconds + "01" + f"{ticks:05b}" + "11"
    return data + b"\0\0\1\xb6" + int(bits.ljust(32, "0"), 2).to_bytes(4, "big") + b"\xaa" * 20


@pytest.mark.parametrize(
    ("pictures", "lost"),
    [
        ("I0 P3 B1 B2 P6 B4 B5", []),
        ("I0 B1 B2 P6 B4 B5", [1]),
        ("I0 P3 B1 B2 B4 B5 P9 B7 B8", [4]),
        ("I0 P3 B1 B2 P9 B7 B8", []),  # B-pictures may be left out, and pictures any time apart
        ("I2 B0 B1 P5 B3 B4", []),
        ("I22 P25 B23 B24 P28 B26 B27", []),
        ("I22 P28 B25 B24 P31 B29 B30", []),
        ("I22 P31 B29 B30", []),
        ("I22 B23 P31 B29 B30", [1]),
        ("I0 P3 P6 B1 B4 B5", [3]),
        ("I0 P3 P3 B1 B2 P6 B4", [2]),
        ("I0 P25 P50 P75", []),  # the same data, a second later
    ],
)
def test_times_of_b_pictures(pictures: str, lost: list[int]) -> None:
    order, second, of_b = mpeg4(b""), 0, 0
    for k, picture in enumerate(pictures.split()):
        kind, time = picture[0], int(picture[1:])
        if kind != "B":
            of_b, second, from_ = second, time // 25, second
        order(vop(kind, time // 25 - (of_b if kind == "B" else from_), time % 25, layer=k == 0))
    assert list(order.lost()) == lost


def test_a_group_says_from_which_second_its_pictures_count() -> None:
    order = mpeg4(b"")
    for data in (
        vop("I", 0, 0, group=7, layer=True),
        vop("P", 0, 3),
        vop("B", 0, 1),
        vop("I", 0, 5, group=7),
    ):
        order(data)
    order(vop("B", 0, 4))
    assert list(order.lost()) == []
    order(vop("I", 0, 5, group=9))
    order(vop("B", 0, 4))  # counts from the second of the group
    assert list(order.lost()) == []
    order(vop("B", 0, 6))
    assert list(order.lost()) == [7]
