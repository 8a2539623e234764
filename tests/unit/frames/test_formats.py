"""Pixel formats, colour tags, sizes and turns of decoded frames, against a plain float64 conversion."""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, patchify, read_frames
from fourdthinker.frames import convert as convert_module
from fourdthinker.frames.colour import planes_of
from tests.clips import make_clip, number_of, numbers, picture

_video = pytest.importorskip("fourdthinker._video", reason="built without the native extension")

KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
SPACES = {1: "bt709", 2: "bt601", 5: "bt601", 6: "bt601", 9: "bt2020"}


def smooth(height: int = 66, width: int = 90) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [120 + 90 * np.sin(x / 9 + k) * np.cos(y / 13 - k) for k in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def encode(path: Path, pix_fmt: str, codec: str = "ffv1", *, space: int = 2, full: int = 0) -> av.VideoFrame:
    """A file of two frames; returns the first as decoded."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 66, 90, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = space, full
        for pts in range(2):
            frame = av.VideoFrame.from_ndarray(smooth(), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.colorspace, frame.color_range = pts, space, full
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def oracle(frame: av.VideoFrame, chroma: str, depth: int, matrix: str, full: bool) -> np.ndarray:
    """float64 [H, W, 3] of planar frames, chroma repeated."""
    kind = np.uint8 if depth == 8 else np.uint16
    planes = []
    for plane in frame.planes[:3]:
        rows = np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width].astype(float)
        down, across = (chroma == "420", chroma in ("420", "422")) if planes else (False, False)
        rows = rows.repeat(2, 0) if down else rows
        planes.append(
            (rows.repeat(2, 1) if across else rows)[: frame.height, : frame.width] / 2 ** (depth - 8)
        )
    y, u, v = planes[0], planes[1] - 128, planes[2] - 128
    y, u, v = (y, u, v) if full else ((y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224)
    if full and depth > 8:  # full range ends at 2^depth - 1
        top = 255 * 2 ** (depth - 8) / (2**depth - 1)
        y, u, v = y * top, u * top, v * top
    kr, kb = KR_KB[matrix]
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.stack([red, green, blue], -1), 0, 255)


PLANAR = [
    (f"yuv{c}p{d}", c, n) for c in ("420", "422", "444") for d, n in (("", 8), ("10le", 10), ("12le", 12))
]


@pytest.mark.parametrize(("pix_fmt", "chroma", "depth"), PLANAR)
@pytest.mark.parametrize("space", [1, 2, 6, 9])
@pytest.mark.parametrize("full", [1, 2])
def test_planar_formats(tmp_path: Path, pix_fmt: str, chroma: str, depth: int, space: int, full: int) -> None:
    frame = encode(tmp_path / "clip.mkv", pix_fmt, space=space, full=full)
    assert (frame.format.name, frame.colorspace, frame.color_range) == (pix_fmt, space, full)
    got = read_frames(tmp_path / "clip.mkv", times=[0.0])
    assert got.decoder == "libavcodec ffv1"
    expected = oracle(frame, chroma, depth, SPACES[space], full == 2)
    assert np.abs(got.pixels[0].numpy() - expected).max() <= 1.01


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "suffix", "how"),
    [
        ("nv12", "rawvideo", "nut", ""),
        ("yuvj420p", "mjpeg", "mkv", ""),
        ("gray", "ffv1", "mkv", ""),
        ("gray10le", "ffv1", "mkv", ""),
        ("rgb24", "rawvideo", "nut", ""),
        ("bgr24", "rawvideo", "nut", "bgr24"),
        ("bgra", "ffv1", "mkv", "bgra"),
        ("gbrp", "libx264rgb", "mkv", "gbrp"),
        ("yuv411p", "ffv1", "mkv", "yuv411p"),
        ("yuv410p", "ffv1", "mkv", "yuv410p"),
        ("yuv440p", "rawvideo", "nut", "yuv440p"),
        ("yuv444p16le", "ffv1", "mkv", "yuv444p16le"),
        ("gbrp10le", "ffv1", "mkv", "gbrp10le"),
    ],
)
def test_other_formats(tmp_path: Path, pix_fmt: str, codec: str, suffix: str, how: str) -> None:
    """Within rounding of swscale where chroma has the size of luma, and near it elsewhere."""
    path = tmp_path / f"clip.{suffix}"
    wanted = "rgb24" if codec == "libx264rgb" else pix_fmt
    frame = encode(path, wanted, codec)
    got = read_frames(path, times=[0.0])
    assert got.decoder == f"libavcodec {frame_codec(path)}" + (f", {how} by swscale" if how else "")
    plain = frame.to_ndarray(format="rgb24").astype(int)
    limit = 2 if pix_fmt.startswith(("gray", "rgb", "bgr", "gbr", "yuv444")) else 10
    assert np.abs(got.pixels[0].numpy() - plain).max() <= limit


def frame_codec(path: Path) -> str:
    with av.open(str(path)) as container:
        return container.streams.video[0].codec_context.name


def test_without_the_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "c.mp4", [40 * k for k in range(20)], rotation=90, size=(48, 96))
    here = read_frames(path, FramePolicy(fps=10))
    monkeypatch.setattr(convert_module, "native", lambda: None)
    monkeypatch.setattr("fourdthinker.frames.converter.native", lambda: None)
    there = read_frames(path, FramePolicy(fps=10))
    assert there.decoder == "libavcodec h264, RGB by swscale and Pillow"
    assert there.pixels.shape == here.pixels.shape
    assert numbers(torch.rot90(there.pixels, -1, (1, 2))) == numbers(torch.rot90(here.pixels, -1, (1, 2)))
    assert (there.pixels.int() - here.pixels.int()).abs().float().mean() < 2
    patches = read_frames(path, FramePolicy(fps=10), out="patches")
    assert patches.grid_thw.tolist() == [[4, *[side // 14 for side in there.pixels.shape[1:3]]]]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("out", ["uint8", "patches"])
def test_turned_pictures_with_oblong_pixels(tmp_path: Path, rotation: int, out: str) -> None:
    path = make_clip(tmp_path / "c.mp4", [0, 100], rotation=rotation, size=(56, 84), aspect=Fraction(2, 1))
    frames = read_frames(path, FramePolicy(fps=10), out=out)
    height, width = (84, 28) if rotation in (90, 270) else (56, 168)
    if out == "patches":
        assert frames.grid_thw.tolist() == [[1, height // 14, width // 14]]
        return
    assert frames.pixels.shape[1:3] == (height, width)
    upright = torch.rot90(frames.pixels, -{0: 0, 90: 1, 180: 2, 270: 3}[rotation], (1, 2))
    assert [number_of(frame) for frame in upright] == [0, 1]


def test_size_that_changes_within_a_stream(tmp_path: Path) -> None:
    """Transport streams carry parameter sets in the stream, so that another encoder may go on."""
    joined = tmp_path / "joined.ts"
    with av.open(str(joined), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        for first, size in ((0, (48, 64)), (11, (96, 160))):
            encoder = stream.codec_context if first == 0 else av.CodecContext.create("libx264", "w")
            encoder.height, encoder.width, encoder.pix_fmt = *size, "yuv420p"
            encoder.time_base, encoder.framerate, encoder.options = Fraction(1, 25), Fraction(25), {"bf": "0"}
            frames = []
            for k in range(first, first + 11):
                frames.append(av.VideoFrame.from_ndarray(picture(k, *size), format="rgb24"))
                frames[-1].pts, frames[-1].time_base = k, Fraction(1, 25)
            for frame in [*frames, None]:
                for packet in encoder.encode(frame):
                    packet.stream, packet.time_base = stream, Fraction(1, 25)
                    container.mux(packet)
    found = read_frames(joined, FramePolicy(fps=25))
    assert found.pixels.shape == (22, 56, 56, 3)
    assert numbers(found.pixels) == list(range(22))
    patches = read_frames(joined, FramePolicy(fps=25), out="patches")  # the first size ends within a pair
    assert torch.equal(patches.patches, patchify(found.pixels)[0])
    with pytest.raises(VideoError, match="picture size changes within the clip"):
        read_frames(joined, times=found.seconds)


def test_semi_planar_frames() -> None:
    """What hardware gives: NV12, NV16, P010, P012."""
    for name, planar in (
        ("nv12", "yuv420p"),
        ("nv16", "yuv422p"),
        ("p010le", "yuv420p10le"),
        ("p012le", "yuv420p12le"),
    ):
        frame = av.VideoFrame.from_ndarray(smooth(), format="rgb24").reformat(format=planar)
        both = []
        for each in (frame, frame.reformat(format=name)):
            planes, layout, remade = planes_of(each)
            assert remade is None
            both.append(_video.convert([planes], height=40, width=60, **asdict(layout)))
        assert np.array_equal(*both), name


def test_the_best_video_stream_or_the_one_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for size in ((48, 64), (96, 128)):
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            stream.disposition = Disposition(len(streams))  # the second is the default
            streams.append(stream)
        for k in range(10):
            for stream in streams:
                pixels = np.full((stream.height, stream.width, 3), 20 * k, np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = k, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    assert read_frames(path, times=[0.2]).pixels.shape == (1, 96, 128, 3)
    for index, shape in enumerate(((48, 64), (96, 128))):
        frames = read_frames(path, times=[0.2], stream=index)
        assert frames.pixels.shape == (1, *shape, 3)
        assert abs(float(frames.pixels.float().mean()) - 100) < 3


def test_still_pictures_and_single_frames(tmp_path: Path) -> None:
    from PIL import Image

    for suffix in ("png", "jpg", "gif"):
        path = tmp_path / f"still.{suffix}"
        Image.fromarray(smooth()).save(path)
        frames = read_frames(path)
        assert len(frames.seconds) == 1
        assert frames.pixels.shape == (1, 56, 84, 3)
    Image.fromarray(smooth()).quantize(16).save(tmp_path / "few.png")
    two = read_frames((tmp_path / "few.png").read_bytes() * 2, FramePolicy(fps=25))
    assert (len(two.seconds), two.decoder) == (2, "libavcodec png, pal8 by swscale")
    single = make_clip(tmp_path / "single.mp4", [0])
    assert numbers(read_frames(single).pixels) == [0]
    assert read_frames(single, out="patches").grid_thw.tolist() == [[1, 4, 4]]
