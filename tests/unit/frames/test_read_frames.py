"""Frames of real video files, chosen by presentation time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.frames import FramePolicy, read_frames
from fourdthinker.frames import decode as decode_module
from fourdthinker.frames import reading as reading_module
from fourdthinker.frames.bitstream.pictures import NON_REFERENCE
from tests.clips import make_clip, numbers, remux
from tests.shared import needs, shared

UNEVEN = [0, 40, 100, 350, 360, 900, 1300, 1340]
TEN = FramePolicy(fps=10)
NO_CUTS = "keyint=10:min-keyint=10:scenecut=0"  # a keyframe every ten frames


def shown_at(stamps: list[int], time: float) -> int:
    return max(k for k, stamp in enumerate(stamps) if stamp / 1000 <= time + 1e-6)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 frames at 25 a second, B-frames, a keyframe at least every 20."""
    path = tmp_path_factory.mktemp("clips") / "even.mp4"
    return make_clip(path, [40 * k for k in range(100)], options={"bf": "3", "g": "20"})


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("start", [0, 5000])
@pytest.mark.parametrize("b_frames", ["0", "3"])
def test_variable_rate_by_presentation_time(tmp_path: Path, suffix: str, start: int, b_frames: str) -> None:
    stamps = [start + s for s in UNEVEN]
    path = make_clip(tmp_path / f"clip.{suffix}", stamps, options={"bf": b_frames})
    times = [start / 1000 + t for t in (0.0, 0.039, 0.04, 0.099, 0.1, 0.349, 0.355, 0.36, 0.8999, 0.9, 1.3)]
    frames = read_frames(path, times=times)
    assert numbers(frames.pixels) == [shown_at(stamps, t) for t in times]
    assert frames.seconds == times
    assert frames.shown == pytest.approx([stamps[shown_at(stamps, t)] / 1000 for t in times])
    sampled = read_frames(path, TEN)
    assert sampled.seconds[:14] == pytest.approx([start / 1000 + k / 10 for k in range(14)])
    assert numbers(sampled.pixels) == [shown_at(stamps, t) for t in sampled.seconds]


def test_any_order_repeats_and_bytes(even: Path) -> None:
    wanted = [99, 3, 50, 3, 0, 51, 20, 19, 21]
    frames = read_frames(even, times=[k * 0.04 for k in wanted])
    assert numbers(frames.pixels) == wanted
    assert frames.pixels is not None
    assert frames.pixels.shape == (9, 48, 64, 3)
    again = read_frames(even.read_bytes(), times=[k * 0.04 for k in wanted])
    assert torch.equal(again.pixels, frames.pixels)
    assert again.source == "<bytes>"


def test_policy_start_and_end(even: Path) -> None:
    frames = read_frames(even, TEN, start=1.0, end=1.5)
    assert frames.seconds == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.4])
    assert numbers(frames.pixels) == [25, 27, 30, 32, 35]
    assert frames.fps == pytest.approx(10)
    assert frames.seconds_per_grid == pytest.approx(0.2)
    capped = read_frames(even, FramePolicy(fps=10, max_frames=8), out="patches")
    assert capped.seconds == pytest.approx([k * 0.5 for k in range(8)])
    assert capped.seconds_per_grid == pytest.approx(1.0)
    assert capped.grid_thw.tolist() == [[4, 4, 4]]
    assert capped.pixels is None
    single = read_frames(even, FramePolicy(fps=2), end=0.2)
    assert len(single.seconds) == 1
    assert single.seconds_per_grid == 1.0


def test_odd_number_repeats_the_last_frame(even: Path) -> None:
    odd = read_frames(even, TEN, end=0.3, out="patches")
    doubled = read_frames(even, TEN, times=[0.0, 0.1, 0.2, 0.2], out="patches")
    assert odd.grid_thw.tolist() == [[2, 4, 4]]
    assert torch.equal(odd.patches, doubled.patches)


def test_resized_unless_only_times_are_given(even: Path) -> None:
    policy = FramePolicy(min_pixels=100 * 100)
    assert read_frames(even, policy).pixels.shape == (4, 112, 140, 3)
    assert read_frames(even, policy, times=[0.0]).pixels.shape == (1, 112, 140, 3)
    assert read_frames(even).pixels.shape == (4, 56, 56, 3)


@pytest.mark.parametrize(
    "options", [{"bf": "3", "g": "8"}, {"x264-params": "open-gop=1:bframes=3:keyint=10:scenecut=0"}]
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_leaving_packets_out_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], suffix: str
) -> None:
    path = make_clip(tmp_path / f"clip.{suffix}", [40 * k for k in range(100)], options=options)
    start = read_frames(path, TEN).seconds[0]
    whole = read_frames(path, times=[start + k * 0.04 for k in range(100)])
    assert numbers(whole.pixels) == list(range(100))
    for room in (reading_module.ROOM, 0):  # packets at hand, or read from the file again
        monkeypatch.setattr(reading_module, "ROOM", room)
        for seek in (decode_module.SEEK, 5):
            monkeypatch.setattr(decode_module, "SEEK", seek)
            for each in range(0, 96, 7):
                wanted = [each, each + 3, 99]
                sparse = read_frames(path, times=[start + k * 0.04 for k in wanted])
                assert torch.equal(sparse.pixels, whole.pixels[wanted])


def test_only_needed_packets_are_decoded(even: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    original = decode_module.plan

    def spying(timeline, wanted, codec, **how):
        runs.append((timeline, original(timeline, wanted, codec, **how)))
        return runs[-1][1]

    monkeypatch.setattr(decode_module, "plan", spying)
    assert numbers(read_frames(even, times=[0.04, 3.96]).pixels) == [1, 99]
    (timeline, ((first, last), (again, end))) = runs.pop()
    assert first == 0
    assert last < 8
    assert again >= 80
    assert end < 100
    left_out = sum(bool(flag & NON_REFERENCE) for flag in timeline.flags)
    assert left_out > 30  # of a hundred, with three B-frames in a row


@pytest.fixture
def keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("keep_threads")
def test_number_of_threads_changes_nothing(even: Path) -> None:
    torch.set_num_threads(1)
    one = read_frames(even, TEN)
    torch.set_num_threads(2)
    two = read_frames(even, TEN)
    assert torch.equal(one.pixels, two.pixels)


def test_start_without_a_keyframe(tmp_path: Path, even: Path) -> None:
    with av.open(str(even)) as container:
        keys = [
            i for i, p in enumerate(container.demux(container.streams.video[0])) if p.size and p.is_keyframe
        ]
    cut = remux(even, tmp_path / "cut.mkv", keep=lambda index, _: index >= 3)
    frames = read_frames(cut, TEN)
    assert frames.seconds[0] == pytest.approx(keys[1] * 0.04)
    assert numbers(frames.pixels) == [int(t / 0.04 + 1e-6) for t in frames.seconds]
    with pytest.raises(VideoError, match=r"no frame is shown at 0\.1 s"):
        read_frames(cut, times=[0.1])


def test_edit_list_hides_frames(tmp_path: Path) -> None:
    whole = make_clip(
        tmp_path / "whole.mp4", [40 * k for k in range(60)], options={"bf": "2", "x264-params": NO_CUTS}
    )
    cut = remux(whole, tmp_path / "cut.mp4", shift=-0.52)
    with av.open(str(cut)) as container:
        assert any(packet.is_discard for packet in container.demux(video=0))
    frames = read_frames(cut, TEN)
    assert frames.seconds[0] == 0.0
    assert numbers(frames.pixels)[:4] == [13, 15, 18, 20]


def test_start_with_an_open_group(tmp_path: Path) -> None:
    """The first keyframe is followed by frames shown before it, which need what was cut away."""
    options = {"x264-params": f"{NO_CUTS}:open-gop=1:bframes=3:b-adapt=0"}
    whole = make_clip(tmp_path / "whole.mp4", [40 * k for k in range(40)], options=options)
    with av.open(str(whole)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        key = [k for k, packet in enumerate(packets) if packet.is_keyframe][1]
    assert packets[key + 1].pts < packets[key].pts
    cut = remux(whole, tmp_path / "cut.mkv", keep=lambda index, _: index >= key)
    frames = read_frames(cut, TEN)
    first = round(float(packets[key].pts * packets[key].time_base) / 0.04)
    assert frames.seconds[0] == pytest.approx(first * 0.04)
    assert numbers(frames.pixels)[0] == first


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(tmp_path: Path, rotation: int) -> None:
    plain = read_frames(make_clip(tmp_path / "a.mp4", [0, 100]), times=[0.1]).pixels
    turned = read_frames(make_clip(tmp_path / "b.mp4", [0, 100], rotation=rotation), times=[0.1]).pixels
    turns = {90: 1, 180: 2, 270: 3}[rotation]
    assert torch.equal(turned, torch.rot90(plain, turns, (1, 2)))


def test_pixel_aspect_is_applied(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "wide.mp4", [0, 100], size=(56, 56), aspect=Fraction(2, 1))
    assert read_frames(path).pixels.shape == (1, 56, 112, 3)
    assert read_frames(path, times=[0.0]).pixels.shape == (1, 56, 56, 3)


def test_audio_beside_video_and_times_without_stamps(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "sound.mp4", [100 * k for k in range(8)], audio=True)
    assert numbers(read_frames(path, TEN).pixels) == list(range(8))
    old = make_clip(
        tmp_path / "old.avi", [40 * k for k in range(20)], codec="mpeg4", options={"bf": "2"}, base=1000
    )
    assert numbers(read_frames(old, times=[0.0, 0.04, 0.4, 0.6]).pixels) == [0, 1, 10, 15]


def hide(source: Path, target: Path, number: int) -> Path:
    """Replace MPEG-4 packets, from the 40th on, by "not coded" pictures, which show nothing."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size == 0:
                continue
            if 40 <= round(packet.pts * packet.time_base * 25) < 40 + number:
                filler = av.Packet(b"\x00\x00\x01\xb6\x50\x02\x7f")
                filler.pts, filler.dts, filler.time_base = packet.pts, packet.dts, packet.time_base
                filler.duration, packet = packet.duration, filler
            packet.stream = stream
            new.mux(packet)
    return target


def test_pictures_out_of_order_in_avi(tmp_path: Path) -> None:
    """Its packets have times of decoding alone: pictures are shown at these, in the order of display."""
    stamps = list(range(0, 1000, 40))
    plain = make_clip(tmp_path / "plain.avi", stamps, options={"bf": "0"})
    early, late = numbers(read_frames(plain, times=[0.2, 0.6]).pixels)
    assert late - early == 10
    path = make_clip(tmp_path / "mixed.avi", stamps, options={"bf": "3"})
    for times in ([0.16], [0.16, 0.4]):
        frames = read_frames(path, times=times)
        assert frames.times_from == "sorted"
        assert numbers(frames.pixels) == numbers(read_frames(plain, times=times).pixels)


def test_packets_that_show_nothing(tmp_path: Path) -> None:
    stamps = [40 * k for k in range(60)]
    every_frame_a_key = make_clip(tmp_path / "keys.mp4", stamps, codec="mpeg4", options={"g": "1"})
    path = hide(every_frame_a_key, tmp_path / "hidden.mp4", 2)
    assert numbers(read_frames(path, times=[39 * 0.04, 40 * 0.04, 41 * 0.04, 42 * 0.04]).pixels) == [
        39,
        39,
        39,
        42,
    ]
    path = hide(every_frame_a_key, tmp_path / "lost.mp4", 10)
    with pytest.raises(VideoError, match=r"the frame at 1\.600 s cannot be decoded"):
        read_frames(path, times=[1.8])


def test_cut_off_files_say_so(tmp_path: Path, even: Path) -> None:
    data = remux(even, tmp_path / "whole.mkv").read_bytes()
    for tenth in range(1, 10):
        part = tmp_path / f"part{tenth}.mkv"
        part.write_bytes(data[: len(data) * tenth // 10])
        with pytest.raises(VideoError, match=rf"part{tenth}\.mkv"):
            read_frames(part, TEN)
    assert numbers(read_frames(part, TEN, end=2.0).pixels)[-1] == 47  # what lies before the cut can be had
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(even.read_bytes()[:-300])
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        read_frames(broken)


@pytest.mark.usefixtures("keep_threads")
def test_damaged_data_names_the_time(tmp_path: Path, even: Path) -> None:
    with av.open(str(even)) as container:
        places = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
    data = bytearray(even.read_bytes())
    position, size = places[50]
    data[position : position + size] = b"\xff" * size
    path = tmp_path / "damaged.mp4"
    path.write_bytes(bytes(data))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with pytest.raises(
            VideoError, match=r"damaged\.mp4: the data at (1\.[89]|2\.[012])\d* s cannot be decoded"
        ):
            read_frames(path, TEN)
    assert numbers(read_frames(path, TEN, end=1.0).pixels)[-1] == 22


def make_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 8000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    empty, text, sound = tmp_path / "empty.mp4", tmp_path / "text.mp4", make_sound(tmp_path / "sound.m4a")
    empty.touch()
    text.write_text("not a video at all\n" * 50)
    playlist = tmp_path / "list.ffconcat"
    make_clip(tmp_path / "part.mp4", [0, 40, 80])
    playlist.write_text("ffconcat version 1.0\nfile part.mp4\n")  # would open another file
    for path, words in [
        (empty, "is empty"),
        (text, "not a video that can be opened"),
        (playlist, "not a video that can be opened"),
        (sound, "no video stream .*audio"),
        (tmp_path / "none.mp4", "no such file"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(VideoError, match=words) as caught:
            read_frames(path)
        assert str(path) in str(caught.value)
    with pytest.raises(VideoError, match="<bytes>: the file is empty"):
        read_frames(b"")


def test_titles_that_are_not_utf8(tmp_path: Path, even: Path) -> None:
    whole = even.read_bytes()
    assert b"isomiso2" in whole
    path = tmp_path / "latin.mp4"
    path.write_bytes(whole.replace(b"isomiso2", b"isom\xe9so2", 1))
    assert numbers(read_frames(path, times=[0.0, 1.0]).pixels) == numbers(
        read_frames(even, times=[0.0, 1.0]).pixels
    )


def test_zero_frames(tmp_path: Path, even: Path) -> None:
    whole = remux(even, tmp_path / "whole.mkv").read_bytes()
    with av.open(str(tmp_path / "whole.mkv")) as container:
        first = next(container.demux(video=0)).pos
    nothing = tmp_path / "nothing.mkv"
    nothing.write_bytes(whole[:first])
    with pytest.raises(VideoError, match=r"nothing\.mkv: zero frames: stream 0 holds no data"):
        read_frames(nothing)
    no_key = remux(even, tmp_path / "nokey.mkv", keep=lambda index, _: 0 < index < 4)
    with pytest.raises(VideoError, match=r"nokey\.mkv"):
        read_frames(no_key)


def test_requests_that_cannot_be_met(even: Path) -> None:
    for times in ([-0.1], [4.1], [0.0, 99.0]):
        with pytest.raises(
            VideoError, match=rf"no frame is shown at {times[-1]:g} s; the clip is shown from 0 to 4 s"
        ):
            read_frames(even, times=times)
    with pytest.raises(VideoError, match=r"between start 4[.]5 and end None"):
        read_frames(even, start=4.5)
    with pytest.raises(VideoError, match="stream 3 is no video stream; video streams are 0"):
        read_frames(even, stream=3)
    with pytest.raises(ConfigError, match="not both"):
        read_frames(even, times=[0.0], start=1.0)
    for bound in ("start", "end"):
        with pytest.raises(ConfigError, match=f"{bound} is nan; give seconds"):
            read_frames(even, **{bound: float("nan")})
    with pytest.raises(ConfigError, match="times is empty"):
        read_frames(even, times=[])
    with pytest.raises(ConfigError, match="out is 'rgb'"):
        read_frames(even, out="rgb")


# -- real clips
real = needs("videos")


@real
def test_stored_frames_of_a_real_clip() -> None:
    folder = Path(str(shared("videos")))
    stored = json.loads((folder / "nasa_13013.stream3.pts.json").read_text())
    times = [float(entry["pts_time"]) for entry in stored]
    frames = read_frames(folder / "nasa_13013.mp4", times=times, stream=3)
    assert frames.shown == pytest.approx(times, abs=1e-6)
    names = sorted(folder.glob("nasa_13013.stream3.frame*.pt"))
    assert names
    for name in names:
        expected = torch.load(name, weights_only=True)
        actual = frames.pixels[int(name.stem[-6:])]
        assert ((actual.int() - expected.int()).abs() <= 3).float().mean() >= 0.99


@real
def test_other_real_clips() -> None:
    folder = Path(str(shared("videos")))
    with pytest.raises(VideoError, match=r"corrupted\.mp4: the data at \d\.\d+ s"):
        read_frames(folder / "corrupted.mp4")
    assert len(read_frames(folder / "corrupted.mp4", end=2.0).seconds) == 2
    turned = read_frames(folder / "video_90.mov", times=[0.0]).pixels
    assert turned.shape[1:] == (568, 320, 3)
