"""Leaving out frames that nothing refers to: the same frames as decoding all, for every codec."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from fourdthinker.frames import FramePolicy, decode, read_frames, reading
from fourdthinker.frames.bitstream.pictures import DUPLICATE, KEYFRAME, NON_REFERENCE, RANDOM_ACCESS
from fourdthinker.frames.codecs import codec_of
from fourdthinker.frames.timeline import Timeline
from tests.clips import make_clip

COUNT = 60
STAMPS = list(range(COUNT))  # at 25 a second
X265 = "log-level=none:frame-threads=1:pools=1"
STREAMS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "mp4", {"bf": "3", "g": "30"}),
    "h264 pyramid, several references": (
        "libx264",
        "mkv",
        {"x264-params": "bframes=7:b-adapt=0:b-pyramid=normal:ref=6:keyint=30"},
    ),
    "h264 strict pyramid, open groups, slices": (
        "libx264",
        "ts",
        {"x264-params": "bframes=5:b-adapt=0:b-pyramid=strict:open-gop=1:keyint=20:slices=3"},
    ),
    "h264 fields": ("libx264", "mp4", {"x264-params": "tff=1:bframes=3:b-adapt=0:keyint=30"}),
    "h264 without keyframes but the first": (
        "libx264",
        "mp4",
        {"x264-params": "intra-refresh=1:keyint=20:bframes=2:b-adapt=0"},
    ),
    "hevc": ("libx265", "mp4", {"x265-params": f"{X265}:bframes=4:b-adapt=0:keyint=30:open-gop=0"}),
    "hevc open groups": (
        "libx265",
        "mkv",
        {"x265-params": f"{X265}:bframes=4:b-adapt=0:keyint=20:open-gop=1"},
    ),
    "hevc temporal layers": (
        "libx265",
        "mp4",
        {"x265-params": f"{X265}:bframes=4:b-adapt=0:keyint=30:temporal-layers=3"},
    ),
    "av1": ("libsvtav1", "mp4", {"preset": "10", "g": "30", "svtav1-params": "lp=1"}),
    "av1 in matroska": (
        "libsvtav1",
        "mkv",
        {"preset": "10", "g": "20", "svtav1-params": "lp=1:hierarchical-levels=3"},
    ),
    "vp9": (
        "libvpx-vp9",
        "webm",
        {"g": "30", "lag-in-frames": "16", "cpu-used": "8", "deadline": "realtime"},
    ),
    "vp9 with hidden frames": (
        "libvpx-vp9",
        "webm",
        {"g": "30", "lag-in-frames": "16", "auto-alt-ref": "6", "cpu-used": "5"},
    ),
    "vp8 with hidden frames": (
        "libvpx",
        "webm",
        {"g": "30", "lag-in-frames": "10", "auto-alt-ref": "1", "cpu-used": "5"},
    ),
    "mpeg4": ("mpeg4", "mp4", {"bf": "2", "g": "12"}),
    "mpeg4 without reordering": ("mpeg4", "mkv", {"g": "12"}),
    "mpeg4 fields": ("mpeg4", "mp4", {"bf": "2", "g": "12", "flags": "+ilme+ildct", "qscale": "3"}),
    "mpeg2": ("mpeg2video", "ts", {"bf": "2", "g": "12"}),
    "mpeg2 fields": ("mpeg2video", "mkv", {"bf": "2", "g": "12", "flags": "+ilme+ildct"}),
    "mpeg2 long groups": ("mpeg2video", "mp4", {"bf": "2", "g": "300"}),
    "mpeg1": ("mpeg1video", "mpg", {"bf": "2", "g": "12"}),
    "mjpeg": ("mjpeg", "mkv", {}),
    "ffv1": ("ffv1", "mkv", {}),
    "wmv1": ("wmv1", "wmv", {"g": "12"}),
    "wmv2": ("wmv2", "wmv", {"g": "12"}),
    "msmpeg4": ("msmpeg4", "avi", {"g": "12"}),
    "flv1": ("flv", "flv", {"g": "12"}),
    "h263": ("h263", "avi", {"g": "12"}),
    "gif": ("gif", "gif", {}),
    "apng": ("apng", "apng", {"pred": "none"}),
}
PIXELS = {"mjpeg": "yuvj420p", "gif": "rgb8", "apng": "rgb24"}  # fmt: skip


def textured(number: int) -> np.ndarray:
    """uint8 [96, 128, 3]: a moving texture, so that every frame needs what it refers to."""
    base = np.random.default_rng(5).integers(0, 256, (24, 32, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return np.roll(base, (3 * number, 5 * number), (0, 1))[:96, :128]


@pytest.mark.parametrize("name", STREAMS)
def test_sparse_frames_are_those_of_decoding_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    codec, suffix, options = STREAMS[name]
    fmt = PIXELS.get(codec, "yuv420p")
    path = make_clip(
        tmp_path / f"clip.{suffix}", STAMPS, codec=codec, options=options, size=(96, 128), pixel_format=fmt,
        draw=textured, base=25,
    )  # fmt: skip
    retried = []
    again = reading.next_attempt
    monkeypatch.setattr(reading, "next_attempt", lambda *a, **k: (retried.append(a[1]), again(*a, **k))[1])
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        frames = list(container.decode(video=0))
    assert len(frames) == COUNT
    shown = [float(frame.pts * frame.time_base) for frame in frames]
    every = read_frames(path, times=shown).pixels
    assert len({frame.numpy().tobytes() for frame in every}) == COUNT
    dice = random.Random(name)
    wanted = [[k] for k in dice.sample(range(COUNT), 12)]
    wanted += [sorted(dice.sample(range(COUNT), n)) for n in (2, 3, 5, 8, 13)]
    tries = [(room, seek) for room in (reading.ROOM, 0) for seek in (decode.SEEK, 4)]
    for number, chosen in enumerate(wanted):
        room, seek = tries[number % len(tries)]
        monkeypatch.setattr(reading, "ROOM", room)
        monkeypatch.setattr(decode, "SEEK", seek)
        sparse = read_frames(path, times=[shown[k] for k in chosen])
        assert torch.equal(sparse.pixels, every[chosen]), chosen
    # Where files say of pictures that they are keyframes and they are not, all packets are decoded in order;
    # seeks in transport and program streams are inexact.
    assert all(isinstance(error, decode.SeekFailed) for error in retried) or "without" in name
    assert not retried or suffix in ("ts", "mpg") or "without" in name
    if name.startswith(("h264", "hevc", "av1")):
        assert left_out_share(path) > (0.05 if "av1" in name or "without" in name else 0.15)
    elif name.startswith(("mpeg1", "mpeg2")):
        assert left_out_share(path) > 0.5
    elif name.startswith(("vp9", "mpeg4", "ffv1")):
        assert left_out_share(path) == 0


def left_out_share(path: Path) -> float:
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        codec = codec_of(video.codec_context.name)
        flags_of = codec.flags(video.codec_context.extradata or b"")
        flags = codec.settle(bytearray(flags_of(bytes(p)) for p in container.demux(video) if p.size))
    return sum(bool(flag & NON_REFERENCE) for flag in flags) / len(flags)


def test_full_decoding_agrees_with_the_converter(tmp_path: Path) -> None:
    """`every` above comes through the same code: here against PyAV alone."""
    path = make_clip(tmp_path / "c.mp4", STAMPS, size=(96, 128), options={"bf": "3"}, base=25, draw=textured)
    ours = read_frames(path, times=[k * 0.04 for k in range(0, COUNT, 7)]).pixels
    with av.open(str(path)) as container:
        plain = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)][::7]
    assert np.abs(ours.numpy().astype(int) - np.stack(plain)).max() <= 4


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("libx264", "mp4", {"g": "20"}),
        ("libx265", "mp4", {"x265-params": f"{X265}:keyint=20:bframes=3"}),
        ("mpeg4", "mp4", {"g": "20", "bf": "2"}),
        ("mpeg2video", "mp4", {"g": "20", "bf": "2"}),
        ("libvpx-vp9", "mp4", {"g": "20", "deadline": "realtime", "cpu-used": "8"}),
        ("h263p", "avi", {"g": "20"}),
    ],
)
def test_containers_that_call_all_pictures_keyframes(
    tmp_path: Path, codec: str, suffix: str, options: dict[str, str]
) -> None:
    size, names = (96, 128), (tmp_path / f"told.{suffix}", tmp_path / f"lied.{suffix}")
    make_clip(names[0], STAMPS, codec=codec, options=options, size=size, draw=textured, base=25)
    with av.open(str(names[0])) as old, av.open(str(names[1]), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.is_keyframe, packet.stream = True, stream
                new.mux(packet)
    times = [k / 25 for k in (7, 33, 58)]
    expected = read_frames(names[0], times=[k / 25 for k in range(COUNT)]).pixels[[7, 33, 58]]
    for time, right in zip(times, expected, strict=True):  # each alone, so that each begins at a keyframe
        assert torch.equal(read_frames(names[1], times=[time]).pixels[0], right)


def test_policy_reads_few_packets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame a second of groups of 25: a keyframe each, and nothing else."""
    options = {"x264-params": "keyint=25:min-keyint=25:scenecut=0:bframes=2"}
    path = make_clip(tmp_path / "c.mp4", list(range(250)), options=options, base=25)
    fed = []
    original = decode.packets_for

    def counting(*args, **options):
        for packet in original(*args, **options):
            fed.extend([packet] if isinstance(packet, av.Packet) else [])
            yield packet

    monkeypatch.setattr(decode, "packets_for", counting)
    assert len(read_frames(path, FramePolicy()).seconds) == 10
    assert len(fed) == 10
    assert all(packet.is_keyframe for packet in fed)


@pytest.mark.parametrize("name", ["h264", "h264 pyramid, several references", "hevc", "av1", "vp9"])
@pytest.mark.parametrize("room", [reading.ROOM, 0])
def test_several_decoders_give_the_frames_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, room: int
) -> None:
    codec, suffix, options = STREAMS[name]
    path = make_clip(
        tmp_path / f"clip.{suffix}",
        STAMPS,
        codec=codec,
        options=options,
        size=(96, 128),
        base=25,
        draw=textured,
    )
    monkeypatch.setattr(reading, "ROOM", room)
    times = [float(k) / 25 for k in range(0, COUNT, 3)]
    one = {out: read_frames(path, FramePolicy(), times=times, out=out) for out in ("uint8", "patches")}
    parts = []
    original = decode.shares
    monkeypatch.setattr(reading, "shares", lambda *args: parts.append(original(*args)) or parts[-1])
    monkeypatch.setattr(decode, "WORTH", 1)
    monkeypatch.setattr("fourdthinker.frames.read.threads", lambda: 2)
    two = {out: read_frames(path, FramePolicy(), times=times, out=out) for out in ("uint8", "patches")}
    assert torch.equal(one["uint8"].pixels, two["uint8"].pixels)
    assert torch.equal(one["patches"].patches, two["patches"].patches)
    assert [len(part) for part, _ in parts] == [2, 2]
    assert sorted(parts[0][0][0] + parts[0][0][1]) == parts[0][0][0] + parts[0][0][1]


def test_threads_are_not_used_for_a_single_packet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "c.mp4", STAMPS, size=(96, 128), options={"g": "30"}, base=25, draw=textured)
    monkeypatch.setattr("fourdthinker.frames.read.threads", lambda: 3)
    every = read_frames(path, times=[k / 25 for k in STAMPS]).pixels
    used = []
    original = decode.decoded_frames
    monkeypatch.setattr(
        reading,
        "decoded_frames",
        lambda *a, **o: used.append(a[1].codec_context.thread_count) or original(*a, **o),
    )
    for chosen, threads in (([30], 1), ([31], 5), ([0, 30], 5), ([0], 1)):  # two more than asked for
        assert torch.equal(read_frames(path, times=[k / 25 for k in chosen]).pixels, every[chosen])
        assert used.pop() == threads


def test_uneven_or_short_work_is_not_divided() -> None:
    flags = bytes([KEYFRAME | RANDOM_ACCESS] + [0] * 249 + [KEYFRAME | RANDOM_ACCESS] + [0] * 49)
    timeline = Timeline(Fraction(1, 25), list(range(300)), 12.0, list(range(300)), flags)
    assert decode.shares(timeline, [240, 290], "h264", 2) == ([], [240, 290])
    assert decode.shares(timeline, [45, 290], "h264", 2) == ([[45], [290]], [])
    assert decode.shares(timeline, [45, 290], "h264", 1) == ([], [45, 290])
    assert decode.shares(timeline, [45, 290], "mpeg4", 2) == ([[45], [290]], [])
    assert decode.shares(timeline, [45, 290], "rv40", 2) == ([], [45, 290])
    timeline.flags = timeline.flags[:-1] + bytes([DUPLICATE])
    assert decode.shares(timeline, [45, 290], "mpeg4", 2) == ([], [45, 290])
    assert decode.shares(timeline, [3, 252], "h264", 2) == ([], [3, 252])


def test_runs_that_would_leave_decoders_idle_are_left_to_all_threads() -> None:
    flags = bytes(([KEYFRAME | RANDOM_ACCESS] + [0] * 99) * 3)
    timeline = Timeline(Fraction(1, 25), list(range(300)), 12.0, list(range(300)), flags)
    assert decode.shares(timeline, [90, 190, 240], "h264", 2) == ([[90], [190]], [240])
    assert decode.shares(timeline, [90, 190, 290], "h264", 2) == ([[90], [190]], [290])
    assert decode.shares(timeline, [90, 110, 290], "h264", 2) == ([[90, 110], [290]], [])
    assert decode.shares(timeline, [90, 190, 290], "h264", 3) == ([[90], [190], [290]], [])
