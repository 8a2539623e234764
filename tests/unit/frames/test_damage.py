"""Damaged files: an error, or right frames; on any number of threads the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from fourdthinker.errors import VideoError
from fourdthinker.frames import Frames, read_frames
from fourdthinker.frames import sink as sink_module
from fourdthinker.frames.bitstream.pictures import KEYFRAME, NON_REFERENCE
from fourdthinker.frames.matroska import walk
from fourdthinker.frames.sink import Damaged, Sink
from fourdthinker.frames.threads import set_threads
from fourdthinker.frames.timeline import Timeline
from tests.clips import make_clip, remux

COUNT, RATE = 40, 25
NOISE = b"\xa5\x3c\x77"
CODECS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "mp4", {"x264-params": "bframes=3:b-adapt=0:keyint=40:slices=1:scenecut=0"}),
    "h264 slices": ("libx264", "mp4", {"x264-params": "bframes=3:b-adapt=0:keyint=40:slices=4:scenecut=0"}),
    "h264 without cabac": ("libx264", "mp4", {"x264-params": "cabac=0:bframes=2:keyint=40:scenecut=0"}),
    "h264 ts": ("libx264", "ts", {"x264-params": "bframes=2:keyint=20:scenecut=0"}),
    "h264 open groups": (
        "libx264", "mp4", {"x264-params": "open-gop=1:bframes=2:b-adapt=0:keyint=20:scenecut=0"}
    ),
    "hevc": ("libx265", "mp4", {"x265-params": "log-level=none:bframes=3:b-adapt=0:keyint=40:pools=1"}),
    "hevc mkv": ("libx265", "mkv", {"x265-params": "log-level=none:bframes=3:keyint=20:pools=1"}),
    "vp9": ("libvpx-vp9", "mp4", {"g": "40", "lag-in-frames": "0", "deadline": "realtime", "cpu-used": "8"}),
    "mpeg4": ("mpeg4", "mp4", {"bf": "2", "g": "20", "qscale": "4"}),
    "mpeg2 mkv": ("mpeg2video", "mkv", {"bf": "2", "g": "12"}),
}  # fmt: skip


def rolling(number: int) -> np.ndarray:
    """uint8 [192, 256, 3]: a texture that moves, with grain, so that packets are large."""
    rng = np.random.default_rng(5)
    base = rng.integers(0, 256, (24, 32, 3)).repeat(8, 0).repeat(8, 1)
    grain = np.random.default_rng(number).integers(-12, 12, base.shape)
    return (np.roll(base, (3 * number, 5 * number), (0, 1)) + grain).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("damage")
    made = {}
    for name, (codec, suffix, options) in CODECS.items():
        path = folder / f"{name.replace(' ', '-')}.{suffix}"
        made[name] = make_clip(
            path, range(COUNT), codec=codec, base=RATE, options=options, size=(192, 256), draw=rolling
        )
    return made


def packets(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(container.streams.video[0]) if packet.size]


def overwritten(path: Path, place: int, value: bytes = b"\0", begin: float = 0.3, end: float = 0.7) -> bytes:
    """A file with part of a packet, by decoding order, overwritten."""
    packet = packets(path)[place]
    data = bytearray(path.read_bytes())
    first, last = packet.pos + int(packet.size * begin), packet.pos + int(packet.size * end)
    data[first:last] = (value * (last - first))[: last - first]
    return bytes(data)


def seconds(path: Path) -> list[float]:
    return sorted(float(packet.pts * packet.time_base) for packet in packets(path))


def outcome(
    monkeypatch: pytest.MonkeyPatch, data: bytes, times: Sequence[float], threads: int, partial: bool = False
) -> Frames | str:
    monkeypatch.setattr("fourdthinker.frames.read.threads", lambda: threads)
    try:
        return read_frames(data, times=times, partial=partial)
    except VideoError as error:
        return str(error)


@pytest.mark.parametrize("name", [name for name in CODECS if name != "vp9"])  # where short runs are not seen
@pytest.mark.parametrize("kind", ["zeroed", "removed"])
def test_no_damaged_frame_is_given(
    monkeypatch: pytest.MonkeyPatch, clips: dict[str, Path], name: str, kind: str
) -> None:
    path = clips[name]
    data, times = path.read_bytes(), seconds(path)
    truth = read_frames(data, times=times).pixels
    draw = random.Random(name)
    refused = 0
    for case in range(12):
        damaged = bytearray(data)
        at, size = draw.randrange(len(data) // 10, len(data) * 9 // 10), draw.choice((64, 400, 2000))
        damaged[at : at + size] = bytes(size) if kind == "zeroed" else b""
        near = COUNT * at // len(data)
        wanted = sorted({min(COUNT - 1, max(0, near + draw.randrange(-6, 12))) for _ in range(2)})
        results = {}
        for threads in (1, 2, 4):
            for partial in (False, True):
                got = outcome(monkeypatch, bytes(damaged), [times[k] for k in wanted], threads, partial)
                results[threads, partial] = got if isinstance(got, str) else list(got.shown)
                if isinstance(got, str):
                    refused += 1
                    continue
                assert partial or len(got.seconds) == len(wanted)
                for k, pixels in zip(wanted, got.pixels, strict=False):
                    assert torch.equal(pixels, truth[k]), f"case {case}, frame {k}, {threads} threads"
        for partial in (False, True):
            assert results[1, partial] == results[2, partial] == results[4, partial]
    assert refused >= 12


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("name", ["h264", "h264 without cabac", "hevc", "mpeg4"])
def test_damage_is_told_however_few_packets_follow_it(
    monkeypatch: pytest.MonkeyPatch, clips: dict[str, Path], name: str, threads: int
) -> None:
    path = clips[name]
    coded = [float(packet.pts * packet.time_base) for packet in packets(path)]
    for place in (0, 1, 5, 9, 13):
        data = overwritten(path, place)
        for follower in (place, place + 1, place + 3):
            found = outcome(monkeypatch, data, [coded[follower]], threads)
            refers = follower == place or coded[follower] > coded[place]
            assert isinstance(found, str) or not refers, f"packet {place}, frame of packet {follower}"


@pytest.mark.parametrize("threads", [1, 3])
def test_references_shown_later_count(
    monkeypatch: pytest.MonkeyPatch, clips: dict[str, Path], threads: int
) -> None:
    """A B-picture whose second reference, shown after it, is damaged where no zeros tell."""
    path = clips["h264"]
    coded = [float(packet.pts * packet.time_base) for packet in packets(path)]
    later = next(k for k in range(5, COUNT - 1) if coded[k + 1] < coded[k])
    data = overwritten(path, later, NOISE, 0.2, 0.9)
    found = outcome(monkeypatch, data, [coded[later + 1]], threads)
    assert isinstance(found, str), "the B-picture was given"
    assert f"{coded[later]:.3f} s" in found
    partial = outcome(monkeypatch, data, [coded[0], coded[later + 1]], threads, True)
    assert not isinstance(partial, str)
    assert partial.shown == [coded[0]]
    assert f"{coded[later]:.3f} s" in (partial.fault or "")
    before = [t for t in coded if t < min(coded[later:])]
    assert not isinstance(outcome(monkeypatch, data, [max(before)], threads), str), "damage not needed"


def test_what_was_decoded_before_the_damage_is_given(
    monkeypatch: pytest.MonkeyPatch, clips: dict[str, Path]
) -> None:
    for name in ("h264", "hevc", "mpeg4"):
        path = clips[name]
        coded = [float(packet.pts * packet.time_base) for packet in packets(path)]
        place = next(k for k in range(12, COUNT) if coded[k] > max(coded[:k]))
        whole = sorted(t for t in coded[:place] if t < min(coded[place:]))
        got = outcome(monkeypatch, overwritten(path, place), sorted(coded), 2, True)
        assert not isinstance(got, str)
        assert got.shown == whole, name
        assert torch.equal(got.pixels, read_frames(path, times=whole).pixels)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("part", [(0.2, 0.9), (0.6, 0.62)], ids=["fails", "is marked"])
def test_damage_that_no_wanted_frame_needs_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, clips: dict[str, Path], threads: int, part: tuple[float, float]
) -> None:
    """Decoding goes on over it to a keyframe of an open group."""
    path = clips["h264 open groups"]
    pictures = packets(path)
    coded = [float(packet.pts * packet.time_base) for packet in pictures]
    key = [k for k, packet in enumerate(pictures) if packet.is_keyframe][1]
    later = max(k for k in range(1, key) if coded[k] > max(coded[:k]))
    data = overwritten(path, later, NOISE, *part)
    wanted = sorted([coded[later - 3], coded[key]])
    got = outcome(monkeypatch, data, wanted, threads)
    assert not isinstance(got, str), got
    assert torch.equal(got.pixels, read_frames(path, times=wanted).pixels)
    assert isinstance(outcome(monkeypatch, data, sorted([coded[later - 3], coded[later]]), threads), str)


@pytest.mark.parametrize("name", ["h264", "hevc", "mpeg4", "vp9"])
def test_threads_tell_what_one_tells(
    monkeypatch: pytest.MonkeyPatch, clips: dict[str, Path], name: str
) -> None:
    """Damage of any picture, wanted itself or not, right before the end of the data or long before."""
    path = clips[name]
    coded = [float(packet.pts * packet.time_base) for packet in packets(path)]
    told = 0
    for place in range(1, COUNT - 8):
        # What no decoder takes for the head of a VP9 picture: nothing else of it is noticed.
        data = overwritten(path, place, *((b"\0\1", 0.0, 0.1) if name == "vp9" else (NOISE, 0.2, 0.9)))
        for wanted in ([coded[place], coded[COUNT - 1]], [coded[place + 1]]):
            one, more = (outcome(monkeypatch, data, sorted(wanted), threads) for threads in (1, 4))
            told += isinstance(one, str)
            assert isinstance(one, str) == isinstance(more, str), f"packet {place}, {wanted}"
            assert not isinstance(one, str) or one == more
    assert told > 10


def test_pictures_are_chosen_when_their_thread_is_free(clips: dict[str, Path]) -> None:
    """Else a mark may come too late, which happens too seldom for a test to rely on."""
    with av.open(str(clips["h264"])) as container:
        video = container.streams.video[0]
        for threads, count in ((1, 1), (2, 4), (8, 10), (64, 16)):
            set_threads(video, threads)
            assert video.codec_context.thread_count == count
            delay = video.codec_context.options.get("has_b_frames")
            assert delay == (None if threads == 1 else str(count))


@dataclass
class Picture:
    pts: int
    is_corrupt: bool = False
    key_frame: bool = False


@pytest.mark.parametrize("several", [False, True])
def test_on_several_threads_a_picture_that_did_not_come_out_is_damaged(
    several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg drops errors of threads that are still at work when the data end."""
    monkeypatch.setattr(sink_module, "matrix_of", lambda _: None)
    flags = bytes([KEYFRAME, 0, 0, NON_REFERENCE, 0, 0])
    timeline = Timeline(Fraction(1), list(range(6)), 6.0, list(range(6)), flags)
    sink = Sink(timeline, [1, 4], several)
    frames = list(sink.take([Picture(0), Picture(1)]))
    if several:
        with pytest.raises(Damaged) as damage:
            list(sink.take([Picture(4)]))
        assert damage.value.stamp == 2
    else:
        frames += sink.take([Picture(4)])
    assert [frame.pts for frame in frames] == ([1] if several else [1, 4])


# -- Matroska


def quiet() -> None:
    """Instead of a check of the deadline."""


@pytest.fixture(scope="module")
def mkv(clips: dict[str, Path]) -> bytes:
    return clips["mpeg2 mkv"].read_bytes()


def test_whole_files_have_no_gap(clips: dict[str, Path], mkv: bytes) -> None:
    assert walk(mkv, "", quiet).suspect_from is None
    assert walk(clips["hevc mkv"], str(clips["hevc mkv"]), quiet).suspect_from is None
    assert walk(clips["h264"], str(clips["h264"]), quiet).suspect_from is None
    assert walk(mkv + b"more than the segment", "", quiet).suspect_from is None
    unknown, begin = b"\x01" + bytes([255]) * 7, mkv.index(b"\x1f\x43\xb6\x75") + 4
    size = 9 - mkv[begin].bit_length()
    live = mkv[:begin] + unknown + mkv[begin + size :]
    segment = live.index(b"\x18\x53\x80\x67") + 4
    live = live[:segment] + unknown + live[segment + 9 - live[segment].bit_length() :]
    assert walk(live, "", quiet).suspect_from is None
    assert walk(live[:-5], "", quiet).suspect_from is not None


def test_the_deadline_is_checked_on_the_way() -> None:
    """A file of nothing but small elements, which takes long."""
    seen: list[int] = []
    head = b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + bytes([255]) * 7
    assert walk(head + b"\xec\x81\0" * 5000, "", lambda: seen.append(1)).suspect_from is None
    assert len(seen) >= 4


def test_gaps_begin_at_an_element_before_the_damage(clips: dict[str, Path], mkv: bytes) -> None:
    blocks = packets(clips["mpeg2 mkv"])
    for place in (3, 10, 25):
        block = blocks[place]
        removed = mkv[: block.pos + 20] + mkv[block.pos + 45 :]
        gap = walk(removed, "", quiet).suspect_from
        assert gap is not None
        assert gap == mkv.rindex(b"\x1f\x43\xb6\x75", 0, block.pos), "the cluster"
    cut = walk(mkv[: blocks[20].pos + 30], "", quiet).suspect_from
    assert cut is not None
    assert blocks[19].pos < cut <= blocks[20].pos


def test_lost_blocks_are_an_error(tmp_path: Path, clips: dict[str, Path], mkv: bytes) -> None:
    """FFmpeg goes on after them, with frames missing."""
    path = clips["mpeg2 mkv"]
    blocks, times = packets(path), seconds(path)
    lost = tmp_path / "lost.mkv"
    data = bytearray(mkv)
    data[blocks[20].pos - 7 : blocks[22].pos + 10] = b"\0" * (blocks[22].pos - blocks[20].pos + 17)
    lost.write_bytes(data)
    for _ in range(2):  # the second time from the kept index
        with pytest.raises(VideoError, match=r"lost\.mkv: at 0\.\d+ s the data end here or are damaged"):
            read_frames(lost, times=[times[30]])
        got = read_frames(lost, times=[*times[:12], times[30]], partial=True)
        assert got.shown == pytest.approx(times[: len(got.shown)])
        assert got.fault is not None


def test_lost_packets_of_ts_are_an_error_also_when_frames_are_counted(clips: dict[str, Path]) -> None:
    path = clips["h264 ts"]
    data, times = bytearray(path.read_bytes()), seconds(path)
    at = len(data) // 2 // 188 * 188
    del data[at : at + 188 * 10]
    with pytest.raises(VideoError, match="the data end here or are damaged"):
        read_frames(bytes(data), times=[times[COUNT * 3 // 4]])
    assert len(read_frames(bytes(data), times=times[:5]).seconds) == 5


def test_remuxed_without_damage_nothing_is_found(tmp_path: Path, clips: dict[str, Path]) -> None:
    for name, path in clips.items():
        target = path if path.suffix == ".mkv" else remux(path, tmp_path / f"{path.stem}.mkv")
        assert len(read_frames(target, times=seconds(target)).seconds) == COUNT, name


def test_pieces_of_ts_whose_counters_begin_anew_are_refused_from_the_join_on(clips: dict[str, Path]) -> None:
    """Where the end of a picture is lost, the counters break in the same place."""
    path = clips["h264 ts"]
    data, times = bytearray(path.read_bytes()), seconds(path)
    own = [at for at in range(0, len(data), 188) if (data[at + 1] & 31) << 8 | data[at + 2] == 256]
    begin = [at for at in own if data[at + 1] & 64][20]
    for at in own[own.index(begin) :]:
        data[at + 3] = data[at + 3] & 0xF0 | data[at + 3] + 5 & 15
    with pytest.raises(VideoError, match="the data end here or are damaged"):
        read_frames(bytes(data), times=[times[30]])
    assert len(read_frames(bytes(data), times=times[:10]).seconds) == 10
