"""Files joined of several pieces: the right picture, or a refusal by name."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, FrameSource, read_frames
from fourdthinker.frames import container as container_module
from fourdthinker.frames.probing import probe
from tests.clips import numbers, picture

RATE = 25


def encoded(codec: str, first: int, count: int, bf: int) -> list[av.Packet]:
    """Pictures from number `first` on, with bf B-pictures between two others; stamps count pictures."""
    context = av.CodecContext.create(codec, "w")
    context.height, context.width, context.pix_fmt = 48, 64, "yuv420p"
    context.time_base, context.framerate, context.gop_size = Fraction(1, RATE), Fraction(RATE), 12
    context.max_b_frames = bf
    if codec == "libx264":
        context.options = {"x264-params": f"log=-1:bframes={bf}:b-adapt=0:scenecut=0:repeat-headers=1"}
    packets = []
    for number in range(first, first + count):
        frame = av.VideoFrame.from_ndarray(picture(number % 256), format="rgb24")
        frame.pts, frame.time_base = number, context.time_base
        packets += context.encode(frame)
    return packets + context.encode(None)


def joined(path: Path, codec: str, first: int, second: int) -> Path:
    """`first` pictures without B-pictures, then `second` with them; the stamps go on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for place, packet in enumerate(encoded(codec, 0, first, 0) + encoded(codec, first, second, 2)):
            copy = av.Packet(bytes(packet))
            copy.stream, copy.time_base, copy.duration = stream, Fraction(1, RATE), 1
            copy.pts, copy.dts, copy.is_keyframe = packet.pts, place - 4, packet.is_keyframe
            container.mux(copy)
    return path


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "ts"), ("libx264", "flv"), ("mpeg4", "ts")])
def test_a_probe_before_single_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, suffix: str
) -> None:
    """FFmpeg looks at the first 16 s at most, and holds the file for one without B-pictures."""
    monkeypatch.setenv("FOURDTHINKER_INDEX_CACHE", str(tmp_path / "index"))
    path = joined(tmp_path / f"c.{suffix}", codec, 400, 36)
    with av.open(str(path)) as container:
        assert not container.streams.video[0].codec_context.has_b_frames
    known = probe(path)
    assert (known.frames, known.times_from) == (436, "container")
    for number in range(401, 436, 3):
        time = known.begin + (number + 0.5) / RATE
        assert numbers(read_frames(path, times=[time]).pixels) == [number % 256]


@pytest.mark.parametrize("suffix", ["ts", "m4v"])
def test_a_picture_that_leaves_the_decoder_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """FFmpeg's MPEG-4 gives the last picture before the first B-picture once more."""
    monkeypatch.setenv("FOURDTHINKER_INDEX_CACHE", str(tmp_path / "index"))
    path = tmp_path / f"c.{suffix}"
    if suffix == "m4v":
        path.write_bytes(b"".join(map(bytes, encoded("mpeg4", 0, 60, 0) + encoded("mpeg4", 60, 36, 2))))
    else:
        joined(path, "mpeg4", 60, 36)
    known = probe(path)
    assert known.frames == 96
    times = [known.begin + (number + 0.5) / RATE for number in range(96)]
    for source_times in (times, times[50:], times[-1:]):
        expected = [times.index(time) for time in source_times]
        assert numbers(read_frames(path, times=source_times).pixels) == expected


@pytest.mark.parametrize("count", [2, 10, 37])
@pytest.mark.parametrize("suffix", ["mpg", "ts", "mkv"])
def test_files_put_one_behind_the_other_are_refused(tmp_path: Path, suffix: str, count: int) -> None:
    """Their stamps begin anew, and would be sorted into each other; the rate tells when they are shown."""
    data = b""
    for first in (0, 100):
        part = tmp_path / f"{first}.{suffix}"
        with av.open(str(part), "w") as container:
            stream = container.add_stream("mpeg2video", rate=RATE)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            stream.codec_context.max_b_frames = 2
            for number in range(first, first + (37 if first else count)):
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
                frame.pts, frame.time_base = number - first, Fraction(1, RATE)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        data += part.read_bytes()
    path = tmp_path / f"c.{suffix}"
    path.write_bytes(data)
    for partial in (False, True):
        with pytest.raises(VideoError, match=r"stamps fall back from \d\.\d+ s to 0\.\d+ s.*with a muxer"):
            read_frames(path, partial=partial)
    if suffix == "mpg":
        times = [k / RATE for k in range(count + 37)]
        frames = read_frames(FrameSource(path, fps=RATE), times=times)
        assert numbers(frames.pixels) == [*range(count), *range(100, 137)]


@pytest.mark.parametrize(("suffix", "size"), [("nut", 16), ("mxf", 16), ("nut", 1 << 20)])
def test_a_second_file_that_ffmpeg_mixes_into_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, size: int
) -> None:
    monkeypatch.setattr(container_module, "_BLOCK", size)  # so that beginnings lie across blocks
    paths = [tmp_path / f"{first}.{suffix}" for first in (0, 100)]
    for path, first in zip(paths, (0, 100)):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg2video", rate=RATE)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            stream.codec_context.max_b_frames = 2
            for number in range(first, first + 37):
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
                frame.pts, frame.time_base = number - first, Fraction(1, RATE)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    assert numbers(read_frames(paths[0], FramePolicy(fps=RATE)).pixels) == list(range(37))
    path = tmp_path / f"c.{suffix}"
    path.write_bytes(paths[0].read_bytes() + paths[1].read_bytes())
    for source in (path, path.read_bytes()):
        with pytest.raises(VideoError, match=rf"a second {suffix.upper()} file begins behind the first"):
            read_frames(source, times=[0.1])
