"""All eight orientations of a display matrix, on every path that makes pictures of a video."""

from __future__ import annotations

import gc
import struct
import sys
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, FrameSource, iterate_frames, read_frames, reading
from fourdthinker.frames import convert as convert_module
from fourdthinker.frames.attempts import Attempt
from fourdthinker.frames.colour import planes_of
from fourdthinker.frames.gpu import convert as gpu_convert
from fourdthinker.frames.gpu import nvdec
from fourdthinker.frames.orientation import Orientation, matrix_of
from tests.clips import make_clip

# a, b, c, d: the stored point (p, q), q downwards, is shown at (a p + c q, b p + d q).
MATRICES = {
    "upright": (1, 0, 0, 1),
    "90": (0, -1, 1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, 1, -1, 0),
    "mirrored": (-1, 0, 0, 1),
    "flipped": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transversed": (0, -1, -1, 0),
}
SIZE = (56, 84)
CORNERS = ((250, 20, 20), (20, 250, 20), (20, 20, 250), (240, 240, 20))
eight = pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)


def corners(_: int = 0) -> np.ndarray:
    """A picture with another colour in each quarter: clockwise from the top left red, green, blue, yellow."""
    height, width = SIZE
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = CORNERS[0], CORNERS[1]
    pixels[height // 2 :, width // 2 :], pixels[height // 2 :, : width // 2] = CORNERS[2], CORNERS[3]
    return pixels


def shown(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """What a matrix makes of a picture, pixel by pixel."""
    a, b, c, d = matrix
    q, p = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    x, y = a * p + c * q, b * p + d * q
    x, y = x - x.min(), y - y.min()
    result = np.zeros((y.max() + 1, x.max() + 1, 3), np.uint8)
    result[y, x] = pixels
    return result


def with_matrix(path: Path, matrix: tuple[float, float, float, float]) -> Path:
    """Write a display matrix into the track header (version 0) of an MP4."""
    a, b, c, d = (round(65536 * value) for value in matrix)
    data = bytearray(path.read_bytes())
    begin = data.index(b"tkhd") + 44
    data[begin : begin + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def clip_of(folder: Path, matrix: tuple[float, float, float, float], **options: Any) -> Path:
    clip = make_clip(folder / "clip.mp4", [0, 100, 200], size=SIZE, draw=corners, **options)
    return with_matrix(clip, matrix)


def check(pixels: torch.Tensor, matrix: tuple[int, int, int, int]) -> None:
    expected = shown(corners(), matrix)
    for picture in pixels.numpy():
        assert picture.shape == expected.shape
        assert (
            np.abs(picture.astype(int) - expected).mean() < 8
        )  # of the codec; 80 and more if turned wrongly


def unpatched(frames: Any) -> torch.Tensor:
    """The pixels that patches of 14 were cut from."""
    mean, std = (
        torch.tensor(v).view(3, 1, 1, 1) for v in (convert_module.CLIP_MEAN, convert_module.CLIP_STD)
    )
    (groups, rows, columns), side = frames.grid_thw[0].tolist(), 14
    values = (frames.patches.view(-1, 3, 2, side, side) * std + mean) * 255
    blocks = values.view(groups, rows // 2, columns // 2, 2, 2, 3, 2, side, side)
    pixels = blocks.permute(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(groups * 2, rows * side, columns * side, 3)
    return pixels.round().to(torch.uint8)


def read_everywhere(path: Path, matrix: tuple[int, int, int, int]) -> None:
    policy = FramePolicy(fps=10, factor=28)
    check(read_frames(path, times=[0, 0.1]).pixels, matrix)
    check(read_frames(path, policy).pixels, matrix)
    check(unpatched(read_frames(path, policy, out="patches")), matrix)
    check(torch.cat([part.pixels for part in iterate_frames(path, policy, batch=2)]), matrix)


@eight
def test_on_the_host(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    read_everywhere(clip_of(tmp_path, matrix), matrix)


@eight
def test_without_the_extension(
    tmp_path: Path, matrix: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_module, "native", lambda: None)
    monkeypatch.setattr("fourdthinker.frames.converter.native", lambda: None)
    read_everywhere(clip_of(tmp_path, matrix), matrix)


@eight
def test_on_the_gpu(
    tmp_path: Path, matrix: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for NVDEC, and the conversion that runs there emulated."""
    if convert_module.native() is None:
        pytest.skip("fourdthinker._video is not built here")

    def decode(packets: Any, video: Any, wanted: Any, *, device: Any, **conversion: Any) -> torch.Tensor:
        frames: dict[int, av.VideoFrame] = {}
        for item in (*packets, None):
            if isinstance(item, av.Packet):
                frames |= {frame.pts: frame for frame in video.codec_context.decode(item)}
        frames |= {frame.pts: frame for frame in video.codec_context.decode(None)}
        layout = asdict(planes_of(frames[wanted[0]])[1])
        planes = [planes_of(frames[pts])[0] for pts in wanted]
        return gpu_convert.convert(planes, device=torch.device("cpu"), **(layout | conversion))

    monkeypatch.setattr(nvdec, "decode", decode)
    monkeypatch.setattr(nvdec, "available", lambda *_: None)
    monkeypatch.setattr(reading, "Attempt", lambda *a, **named: Attempt(*a, **(named | {"on_gpu": True})))
    path = clip_of(tmp_path, matrix)
    assert read_frames(path).decoder == "nvdec"
    read_everywhere(path, matrix)


class Decord:
    """As decord's VideoReader reads a file: turned by the angle of the container's matrix, never mirrored."""

    def __init__(self, path: str, num_threads: int) -> None:
        self.following = 0
        with av.open(path) as container:
            decoded = list(container.decode(video=0))
        self.times = np.array([[frame.time, frame.time] for frame in decoded])
        self.pictures = np.stack(
            [np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)) for frame in decoded]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def get_frame_timestamp(self, indices: list[int]) -> np.ndarray:
        return self.times[indices]

    def next(self) -> Any:
        picture = self.pictures[self.following]
        self.following += 1
        return SimpleNamespace(asnumpy=lambda: picture)


@eight
def test_by_decord(
    tmp_path: Path, matrix: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(VideoReader=Decord, DECORDError=RuntimeError)
    monkeypatch.setitem(sys.modules, "decord", module)
    path = clip_of(tmp_path, matrix)
    check(read_frames(FrameSource(path, reader="decord"), times=[0, 0.1]).pixels, matrix)
    patches = read_frames(FrameSource(path, reader="decord"), FramePolicy(fps=10), out="patches")
    check(unpatched(patches), matrix)
    oblong = clip_of(tmp_path, matrix, aspect=Fraction(2))
    pixels = read_frames(FrameSource(oblong, reader="decord"), FramePolicy(fps=10)).pixels
    assert pixels.shape[1:3] == ((84, 28) if matrix[0] == 0 else (56, 168))


@eight
def test_aspect_of_pixels_follows_the_upright_picture(
    tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    path = clip_of(tmp_path, matrix, aspect=Fraction(2))
    pixels = read_frames(path, FramePolicy(fps=10)).pixels
    assert pixels.shape[1:3] == ((84, 28) if matrix[0] == 0 else (56, 168))


def test_of_matrix_and_of_exif_agree() -> None:
    order = ("upright", "mirrored", "180", "flipped", "transposed", "270", "transversed", "90")  # EXIF 1 to 8
    for value, name in enumerate(order, 1):
        a, b, c, d = MATRICES[name]
        matrix = struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        assert Orientation.of_matrix(matrix) == Orientation.of_exif(value)
        np.testing.assert_array_equal(
            Orientation.of_exif(value).apply(corners()), shown(corners(), MATRICES[name])
        )
    for value in (0, 9, -1, None, "6", 2.5):
        assert Orientation.of_exif(value) == Orientation()


@pytest.mark.parametrize(
    "matrix",
    [
        (0.7071, 0.7071, -0.7071, 0.7071),
        (0.9998, 0.05, -0.05, 0.9998),
        (1, 0, 0.5, 1),
        (1, 0, 1, 0),
        (1, 0, 0, 0),
    ],
    ids=["45", "3", "sheared", "flat", "line"],
)
def test_other_matrices_are_refused(tmp_path: Path, matrix: tuple[float, float, float, float]) -> None:
    path = clip_of(tmp_path, matrix)
    with pytest.raises(VideoError, match=r"clip\.mp4: its display matrix .* turns the picture by other than"):
        read_frames(path)


def test_nearly_straight_scaled_and_empty_matrices(tmp_path: Path) -> None:
    def of(*matrix: float) -> Orientation:
        a, b, c, d = (round(65536 * value) for value in matrix)
        return Orientation.of_matrix(struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))

    assert of(0.01, 1, -1, 0.01) == Orientation(3)
    assert of(-2, 0, 0, 0.5) == Orientation(0, True)
    assert of(0, 0, 0, 0) == Orientation()
    check(read_frames(clip_of(tmp_path, (0, 0, 0, 0))).pixels, MATRICES["upright"])


def test_a_frame_whose_matrix_was_read_is_freed_at_once(tmp_path: Path) -> None:
    """Not when the garbage collector runs, which does not know how large pictures are."""
    path = make_clip(tmp_path / "clip.mp4", [0, 40])
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        gc.collect()
        matrix_of(frame)
        del frame
        assert gc.collect() == 0


def test_frames_with_side_data_that_pyav_does_not_know(tmp_path: Path) -> None:
    """FFmpeg 8 hands EXIF over as side data, which makes PyAV 18 refuse all of a frame's."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 5
    Image.fromarray(corners()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuvj420p"
        for number in range(3):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 10), stream, True
            container.mux(packet)
    check(read_frames(tmp_path / "clip.mkv").pixels, MATRICES["transposed"])


def test_the_container_s_matrix_comes_before_the_stream_s_own(tmp_path: Path) -> None:
    """FFmpeg gives both with the first picture, and the container's alone with the others."""
    source = clip_of(tmp_path, MATRICES["upright"])
    path = tmp_path / "both.mp4"
    with av.open(str(source)) as plain, av.open(str(path), "w") as container:
        stream = plain.streams.video[0]
        turned = av.BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=180", stream)
        copy = container.add_stream_from_template(stream)
        for packet in plain.demux(stream):
            for filtered in turned.filter(packet) if packet.size else ():
                filtered.stream = copy
                container.mux(filtered)
    read_everywhere(path, MATRICES["180"])
    read_everywhere(with_matrix(path, MATRICES["mirrored"]), MATRICES["mirrored"])
