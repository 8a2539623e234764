"""Edit lists of MP4 and MOV: the pictures that they show, when they show them; or a refusal by name."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, Frames, FrameSource, read_frames
from fourdthinker.frames.edits import EditSegment, edited, segments_of
from tests.clips import make_clip, numbers
from tests.oracle.access import RIGHT, judge, ways
from tests.oracle.files import DUPLICATED, EXCHANGED, JITTERED, STORAGE, TRUE, Recipe, make

RATE, COUNT = 25, 50
ONE = 1 << 16


def with_edits(path: Path, entries: Sequence[tuple[int, int, int]], codec: str = "libx264") -> Path:
    """A clip of pictures 0 to COUNT - 1 with an edit list of entries (pictures long, from picture, rate).

    From picture -1: nothing is shown.
    """
    options = {"bf": "2", "g": "12", "x264-params": "b-adapt=0:scenecut=0"}
    if codec != "libx264":
        del options["x264-params"]
    make_clip(path, range(COUNT), base=RATE, codec=codec, options=options)
    data = path.read_bytes()
    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base
    first, tick = segments_of(data, "clip", 1, base)[0].first, round(1 / (RATE * base))
    old = data.index(b"elst") - 4
    size = int.from_bytes(data[old : old + 4], "big")
    packed = b"".join(
        struct.pack(">IiI", length * 1000 // RATE, -1 if begin < 0 else first + begin * tick, rate)
        for length, begin, rate in entries
    )
    body = b"elst" + struct.pack(">II", 0, len(entries)) + packed
    grown = 4 + len(body) - size
    result = bytearray(data[:old] + struct.pack(">I", 4 + len(body)) + body + data[old + size :])
    for name in (b"edts", b"trak", b"moov"):  # which hold it; the media lie before them
        place = data.index(name) - 4
        struct.pack_into(">I", result, place, int.from_bytes(data[place : place + 4], "big") + grown)
    path.write_bytes(bytes(result))
    return path


def shown(frames: Frames) -> list[tuple[int, int]]:
    """(picture, when it is shown, in pictures)."""
    return [
        (number, round(time * RATE))
        for number, time in zip(numbers(frames.pixels), frames.shown, strict=True)
    ]


EDITS = {
    "the beginning left out": ([(43, 7, ONE)], [(k, k - 7) for k in range(7, 50)]),
    "the end left out": ([(20, 0, ONE)], [(k, k) for k in range(20)]),
    "later, the end left out": ([(5, -1, ONE), (20, 0, ONE)], [(k, k + 5) for k in range(20)]),
    "later, both left out": ([(5, -1, ONE), (20, 9, ONE)], [(k, k - 4) for k in range(9, 29)]),
    "to the end": ([(0, 30, ONE)], [(k, k - 30) for k in range(30, 50)]),
    "two parts": (
        [(10, 3, ONE), (10, 30, ONE)],
        [*((k, k - 3) for k in range(3, 13)), *((k, k - 20) for k in range(30, 40))],
    ),
    "three parts, nothing between them": (
        [(5, 0, ONE), (5, -1, ONE), (5, 5, ONE), (5, 20, ONE)],
        [
            *((k, k) for k in range(5)),
            *((k, k + 5) for k in range(5, 10)),
            *((k, k - 5) for k in range(20, 25)),
        ],
    ),
}


@pytest.mark.parametrize("codec", ["libx264", "mpeg1video", "mpeg4"])
@pytest.mark.parametrize("edits", EDITS)
def test_what_an_edit_list_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edits: str, codec: str
) -> None:
    monkeypatch.setenv("FOURDTHINKER_INDEX_CACHE", str(tmp_path / "index"))
    entries, right = EDITS[edits]
    path = with_edits(tmp_path / "c.mov", entries, codec)
    times = [(time + 0.5) / RATE for _, time in right]
    assert shown(read_frames(path, times=times)) == right
    policy = read_frames(path, FramePolicy(fps=RATE))
    assert policy.seconds[0] == pytest.approx(right[0][1] / RATE)
    assert policy.times_from == "container"
    for index in random.Random(1).sample(range(len(right)), 6):
        assert shown(read_frames(path, times=[times[index]])) == [right[index]]
    with pytest.raises(VideoError, match="no frame is shown at"):
        read_frames(path, times=[times[-1] + 0.1])
    whole = read_frames(
        FrameSource(path, fps=RATE), FramePolicy(fps=RATE)
    )  # times of the file are passed over
    assert shown(whole) == [(k, k) for k in range(COUNT)]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([(10, 0, ONE), (10, 0, ONE)], "its edit list of 2 segments repeats pictures"),
        ([(10, 20, ONE), (10, 0, ONE)], "its edit list of 2 segments repeats pictures"),
        ([(0, 0, ONE), (10, 30, ONE)], "its edit list of 2 segments repeats pictures"),
        ([(10, 0, ONE // 2)], "its edit list plays a part at 0.5 times its speed"),
        ([(10, 0, 0)], "its edit list plays a part at 0 times its speed"),
    ],
)
def test_other_edit_lists_are_refused(
    tmp_path: Path, entries: list[tuple[int, int, int]], words: str
) -> None:
    path = with_edits(tmp_path / "c.mov", entries)
    for source in (path, path.read_bytes()):
        with pytest.raises(VideoError, match=words):
            read_frames(source, FramePolicy(fps=5))


@pytest.mark.parametrize("stamps", [TRUE, STORAGE, JITTERED, DUPLICATED, EXCHANGED])
@pytest.mark.parametrize("encoder", ["h264-open", "hevc-b", "mpeg1-b", "mpeg2-b", "mpeg4-b"])
def test_each_kind_of_stamps_inside_an_edit_list(tmp_path: Path, encoder: str, stamps: str) -> None:
    clip = make(Recipe(encoder, "mov", stamps, hide=9, seed=5), tmp_path)
    judged = judge(clip, ways(clip, random.Random(5), singles=3))
    assert [str(verdict) for verdict in judged.verdicts if verdict.outcome != RIGHT] == []


def test_a_file_cut_off_within_its_edit_list_is_told(tmp_path: Path) -> None:
    path = with_edits(tmp_path / "c.mov", [(5, -1, ONE), (45, 0, ONE)])
    data = path.read_bytes()
    begin = data.index(b"mdat") + 4
    moov = data.index(b"moov") - 4
    cut = data[moov:] + data[begin - 8 : begin + (moov - begin) // 2]  # the header first, half of the media
    offsets = cut.index(b"stco") + 12
    count = int.from_bytes(cut[offsets - 4 : offsets], "big")
    moved = bytearray(cut)
    for k in range(count):
        place = offsets + 4 * k
        old = int.from_bytes(cut[place : place + 4], "big")
        struct.pack_into(">I", moved, place, old - begin + 8 + len(data) - moov)
    with pytest.raises(VideoError, match=r"at 0\.\d+ s the data end here"):
        read_frames(bytes(moved), FramePolicy(fps=5))


def test_segments() -> None:
    two = (EditSegment(0, 100, 200), EditSegment(100, 300, None))
    edit = edited(two, range(6), [90, 110, 150, 200, 300, 310])
    assert list(edit.shown) == [1, 2, 4, 5]
    assert edit.stamps is not None
    assert list(edit.stamps) == [0, 0, 40, 40, 90, 100]  # the first is shown when the first segment begins
    assert edit.seconds(310, Fraction(1, 10)) == 10.0
    one = edited(two[:1], [90, 110, 150, 200], None)
    assert (list(one.shown), one.origin) == ([110, 150], 110)
    assert one.seconds(None, Fraction(1)) == float("-inf")
    assert list(edited((), [3, 4], None).shown) == [3, 4]
    assert list(edited(two[:1], [90], None).shown) == []


def test_edit_lists_that_are_cut_off(tmp_path: Path) -> None:
    """Of sizes and counts that lie, only what is there is read."""
    path = with_edits(tmp_path / "c.mov", [(10, 0, ONE), (10, 20, ONE)])
    data, base = path.read_bytes(), Fraction(1, 12800)
    begin = data.index(b"elst") + 4
    count = data[:begin] + struct.pack(">II", 0, 1 << 31) + data[begin + 8 :]
    assert segments_of(count, "clip", 1, base) == segments_of(data, "clip", 1, base)
    for kept, left in ((0, 0), (8, 0), (19, 0), (20, 1), (31, 1), (32, 2)):
        assert len(segments_of(data[: begin + kept], "clip", 1, base)) == left
    short = data[: begin - 8] + struct.pack(">I", 8 + 20) + data[begin - 4 :]
    assert len(segments_of(short, "clip", 1, base)) == 1
    assert segments_of(b"", "clip", 1, base) == segments_of(data, "clip", 2, base) == ()
