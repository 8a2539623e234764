"""One image file to upright 8-bit RGB, whichever call reads it."""

from __future__ import annotations

import base64
import io
import struct
import weakref
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.frames import FramePolicy, images, load_image, read_frames, read_images
from fourdthinker.frames.image_file import MAX_SOURCE_PIXELS, VARIABLE, is_image
from fourdthinker.report.media import Album, Clip
from tests.unit.frames.test_orientation import MATRICES, check, corners, shown, unpatched

EXIF = ("upright", "mirrored", "180", "flipped", "transposed", "270", "transversed", "90")  # 1 to 8
SAVED = {"jpg": {"quality": 95}, "png": {}, "webp": {"quality": 95}, "tif": {}}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(height: int, width: int) -> bytes:
    """A PNG that says it is so large, and has no data."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


def every_way(path: Path) -> list[np.ndarray]:
    """The picture at its own size through all calls that give it so."""
    ways = [
        load_image(path),
        load_image(path.read_bytes()),
        read_frames(path, times=[0.0]).pixels.numpy()[0],
        read_frames(path.read_bytes(), times=[0.0]).pixels.numpy()[0],
    ]
    for way in ways:
        assert way.dtype == np.uint8
        np.testing.assert_array_equal(way, ways[0])
    return ways


def level(path: Path) -> list[int]:
    """RGB of the first pixel."""
    return every_way(path)[0][0, 0].tolist()


@pytest.mark.parametrize("suffix", SAVED)
@pytest.mark.parametrize("value", range(1, 9))
def test_exif_on_every_path(tmp_path: Path, value: int, suffix: str) -> None:
    exif, path = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[0x0112] = value
    Image.fromarray(corners()).save(path, exif=exif, **SAVED[suffix])
    matrix = MATRICES[EXIF[value - 1]]
    for pixels in every_way(path):
        check(torch.from_numpy(pixels[None]), matrix)
    check(read_frames(path).pixels, matrix)
    check(unpatched(read_frames(path, out="patches")), matrix)
    check(read_images(path, separate=True).pixels, matrix)
    check(read_images([path]).pixels, matrix)
    check(unpatched(read_images([path], out="patches", separate=True)), matrix)
    album = Album(tmp_path)
    ((thumbnail,),) = album.pictures(Clip((("image", str(path)),)))
    data = base64.b64decode(album.urls[thumbnail.id].partition(",")[2])
    check(torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))[None]), matrix)


@pytest.mark.parametrize("value", range(1, 9))
def test_exif_of_large_jpegs_decoded_at_a_part_of_their_size(tmp_path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    large = np.repeat(np.repeat(corners(), 16, 0), 16, 1)
    Image.fromarray(large).save(tmp_path / "a.jpg", exif=exif)
    pixels = load_image(tmp_path / "a.jpg", at_least=100)
    assert min(pixels.shape[:2]) == 112
    expected = shown(np.repeat(np.repeat(corners(), 2, 0), 2, 1), MATRICES[EXIF[value - 1]])
    assert np.abs(pixels.astype(int) - expected).mean() < 8


def test_exif_that_cannot_be_read_or_says_nothing(tmp_path: Path) -> None:
    for number, exif in enumerate((b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0")):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(corners()).save(path, exif=exif, quality=95)
        check(torch.from_numpy(load_image(path)[None]), MATRICES["upright"])


DEPTH = np.array([[0, 128, 129, 256, 32768, 65534, 65535, 51]], np.uint16).repeat(4, 0)
SCALED = np.array([0, 0, 1, 1, 128, 255, 255, 0], np.uint8)  # divided by 257 and rounded


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm"])
def test_sixteen_bits_of_gray_are_scaled(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"depth.{suffix}"
    if suffix == "ppm":
        path.write_bytes(b"P5\n8 4\n65535\n" + DEPTH.astype(">u2").tobytes())
    else:
        Image.fromarray(DEPTH).save(path)
    (pixels, *_) = every_way(path)
    assert pixels.shape == (4, 8, 3)
    assert (pixels == SCALED[None, :, None]).all()


def tiff(levels: np.ndarray, bits: int, sample: int = 1, white_is_zero: bool = False) -> bytes:
    """An uncompressed little-endian TIFF of one strip."""
    height, width = levels.shape
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 0 if white_is_zero else 1),
        (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, levels.nbytes), (339, 3, sample),
    ]  # fmt: skip
    data = levels.tobytes()
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    return header + data + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def test_tiff_where_white_is_zero(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(DEPTH, 16, white_is_zero=True))
    assert (load_image(tmp_path / "a.tif") == 255 - SCALED[None, :, None]).all()


@pytest.mark.parametrize(
    ("levels", "bits", "sample", "words"),
    [
        (np.ones((4, 8), np.float32), 32, 3, "floating point"),
        (np.ones((4, 8), np.int32), 32, 2, "32-bit integers"),
        (np.ones((4, 8), np.int16), 16, 2, "signed"),
    ],
)
def test_levels_without_a_scale_are_refused(
    tmp_path: Path, levels: np.ndarray, bits: int, sample: int, words: str
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(levels, bits, sample))
    for call in (load_image, read_images, read_frames):
        with pytest.raises(VideoError, match=rf"a\.tif: its levels are .*{words}.*no scale"):
            call(path)


def test_sixteen_bits_of_colour(tmp_path: Path) -> None:
    levels = np.zeros((16, 16, 3), np.uint16) + np.array([65535, 32768, 255], np.uint16)
    path = tmp_path / "a.png"
    context = av.CodecContext.create("png", "w")
    context.width = context.height = 16
    context.pix_fmt = "rgb48be"
    context.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(levels, format="rgb48be")
    path.write_bytes(b"".join(bytes(packet) for packet in (*context.encode(frame), *context.encode(None))))
    assert level(path) in ([255, 128, 0], [255, 128, 1])


def saved(folder: Path, image: Image.Image, suffix: str = "png", **options: Any) -> Path:
    path = folder / f"picture.{suffix}"
    image.save(path, **options)
    return path


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (9, 9), (200, 0, 100, 128))
    for suffix in ("png", "tif"):
        assert level(saved(tmp_path, half, suffix)) == [227, 127, 177]
    assert level(saved(tmp_path, half, "webp", lossless=True, exact=True)) == [227, 127, 177]
    assert level(saved(tmp_path, Image.new("RGBA", (9, 9), (0, 0, 0, 0)))) == [255] * 3
    assert level(saved(tmp_path, Image.new("RGBA", (9, 9), (1, 2, 3, 255)))) == [1, 2, 3]
    assert level(saved(tmp_path, Image.new("LA", (9, 9), (0, 128)))) == [127] * 3
    assert level(saved(tmp_path, Image.new("RGB", (9, 9), (1, 2, 3)), transparency=(1, 2, 3))) == [255] * 3
    assert level(saved(tmp_path, Image.new("RGB", (9, 9), (1, 2, 3)), transparency=(3, 2, 1))) == [1, 2, 3]
    assert level(saved(tmp_path, Image.new("L", (9, 9), 7), transparency=7)) == [255] * 3
    assert level(saved(tmp_path, Image.new("1", (9, 9), 0), transparency=0)) == [255] * 3
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 200, 0, 100])
    assert level(saved(tmp_path, palette)) == [200, 0, 100]
    assert level(saved(tmp_path, palette, transparency=1)) == [255] * 3
    assert level(saved(tmp_path, palette, transparency=bytes([255, 128]))) == [227, 127, 177]
    deep = Image.fromarray(np.full((9, 9), 600, np.uint16))
    assert level(saved(tmp_path, deep)) == [2] * 3
    data = (tmp_path / "picture.png").read_bytes()
    end = data.index(b"IDAT") - 4
    path = tmp_path / "keyed.png"
    path.write_bytes(data[:end] + chunk(b"tRNS", struct.pack(">H", 600)) + data[end:])
    assert level(path) == [255] * 3


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_level_of_gray_has_the_bits_of_its_file(tmp_path: Path, bits: int) -> None:
    top = (1 << bits) - 1
    packed = [sum(level << bits * k for k in range(8 // bits)) for level in (0, 1, top)]
    rows = b"".join(b"\0" + bytes([byte]) for byte in packed)
    header = struct.pack(">IIBBBBB", 8 // bits, 3, bits, 0, 0, 0, 0)
    for key in {0, 1, top}:
        path = tmp_path / f"{key}.png"
        parts = (chunk(b"IHDR", header), chunk(b"tRNS", struct.pack(">H", key)))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IDAT", zlib.compress(rows)))
        expected = [255 if level == key else level * 255 // top for level in (0, 1, top)]
        assert load_image(path)[:, 0, 0].tolist() == expected, key


def test_gray_palettes_and_cmyk(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "bmp", "tif", "ppm"):
        assert level(saved(tmp_path, Image.new("L", (16, 16), 100), suffix)) == [100] * 3
    assert level(saved(tmp_path, Image.new("1", (9, 9), 1))) == [255] * 3
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    for suffix in ("jpg", "tif"):
        assert np.abs(np.array(level(saved(tmp_path, cyan, suffix))) - [0, 255, 255]).max() < 4


def test_transparency_of_videos_lies_over_white_too(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (16, 16), (200, 0, 100, 128)), Image.new("RGBA", (16, 16), (0, 0, 0, 0))]
    path = tmp_path / "a.gif"
    dark = Image.new("RGBA", (16, 16), (9, 9, 9, 255))
    frames[1].save(path, save_all=True, append_images=[dark], duration=40)
    assert load_image(path)[0, 0].tolist() == [255] * 3
    assert read_frames(path, times=[0.0]).pixels[0, 0, 0].tolist() == [255] * 3
    for number, pixel_format in enumerate(("bgra", "yuva444p", "yuva444p12le")):
        clip = tmp_path / f"{number}.mkv"
        with av.open(str(clip), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 16, 16, pixel_format
            for image in frames:
                frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgba")
                container.mux(stream.encode(frame.reformat(format=pixel_format)))
            container.mux(stream.encode())
        got = read_frames(clip, times=[0.0, 0.04]).pixels[:, 3, 3].numpy().astype(int)
        assert np.abs(got - [[227, 127, 177], [255, 255, 255]]).max() <= 2


# -- bounds and damage


@pytest.mark.parametrize("size", [(12000, 12000), (60000, 60000), (1 << 30, 1)])
def test_too_many_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_header(*size))
    for call in (load_image, read_images, read_frames):
        words = rf"large\.png: .* {size[0] * size[1]} pixels, more than max_source_pixels"
        with pytest.raises(VideoError, match=words) as caught:
            call(path)
        assert str(MAX_SOURCE_PIXELS) in str(caught.value)
        assert VARIABLE in str(caught.value)
    with pytest.raises(VideoError, match="more than max_source_pixels"):
        Album(tmp_path).pictures(Clip((("frame", str(path)),)))


def test_the_bound_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, Image.new("RGB", (30, 20)))
    assert read_images(path, max_source_pixels=600).pixels is not None
    with pytest.raises(VideoError, match="30x20 are 600 pixels, more than max_source_pixels, 599"):
        read_images(path, max_source_pixels=599)
    monkeypatch.setenv(VARIABLE, "599")
    for call in (read_images, read_frames):
        with pytest.raises(VideoError, match="more than max_source_pixels, 599"):
            call(path)
    assert read_images(path, max_source_pixels=600).pixels is not None
    for wrong in ("many", "0", "-1", "1.5", ""):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(ConfigError, match=rf"{VARIABLE} is "):
            read_images(path)
    with pytest.raises(ConfigError, match=r"max_source_pixels is 0"):
        read_images(path, max_source_pixels=0)
    monkeypatch.setenv(VARIABLE, str(1 << 40))  # above Pillow's own bound, which does not count
    (tmp_path / "large.png").write_bytes(png_header(20000, 20000))
    with pytest.raises(VideoError, match="not a readable picture") as caught:
        load_image(tmp_path / "large.png")
    assert "bomb" not in str(caught.value)


def test_one_picture_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(np.roll(corners(), number, 0)).save(paths[-1])
    alive: list[weakref.ref[np.ndarray]] = []

    def counted(*args: Any, **options: Any) -> np.ndarray:
        assert sum(array() is not None for array in alive) <= 1
        pixels = load_image(*args, **options)
        alive.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(images, "load_image", counted)
    small = FramePolicy(max_pixels=28 * 28)
    assert read_images(paths, small, separate=True).pixels.shape[0] == 6
    assert read_images(paths, small).pixels.shape[0] == 6
    assert len(alive) == 12


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif", "ppm"])
def test_cut_pictures(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = saved(tmp_path, image, suffix)
    data = path.read_bytes()
    for length in (1, 3, 12, 20, 40, len(data) // 2, len(data) - 200):
        path.write_bytes(data[:length])
        for call in (load_image, read_images, read_frames):
            with pytest.raises(VideoError, match=rf"picture\.{suffix}"):
                call(path)


def test_what_is_no_picture(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    for name, words in (("pipe.png", "no regular file"), (".", "a folder"), ("none.png", "no such file")):
        with pytest.raises(VideoError, match=words):
            load_image(tmp_path / name)
    with pytest.raises(VideoError, match="empty"):
        load_image(b"")


# -- images and videos


def test_an_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(corners()))
    frames = read_frames(path)
    assert (frames.seconds, frames.shown, frames.decoder, frames.kind) == ([0.0], [0.0], "Pillow", "video")
    assert read_frames(path, times=[0, 0]).pixels.shape == (2, *corners().shape)
    assert read_frames(path, start=0, end=5, out="patches").grid_thw.tolist() == [[1, 4, 6]]
    assert read_frames(path, FramePolicy(min_frames=4)).pixels.shape[0] == 4
    with pytest.raises(VideoError, match=r"no frame is shown at 0\.5 s"):
        read_frames(path, times=[0.5])
    with pytest.raises(VideoError, match="no stream 1; it is a picture"):
        read_frames(path, times=[0.0], stream=1)


def test_which_files_are_images(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.roll(corners(), 9 * k, 1)) for k in range(3)]
    rest: dict[str, Any] = {"save_all": True, "append_images": pictures[1:]}
    for suffix in ("jpg", "png", "webp", "bmp", "tif", "ppm"):
        path = saved(tmp_path, pictures[0], suffix)
        assert is_image(path)
        assert is_image(path.read_bytes())
    for suffix in ("png", "webp", "gif"):
        path = saved(tmp_path, pictures[0], suffix, duration=40, **rest)
        assert not is_image(path)
        expected = np.asarray(pictures[0]).astype(int)
        assert np.abs(load_image(path) - expected).mean() < 4  # the first
    path = saved(tmp_path, pictures[0], "mpo", **rest)
    assert is_image(path)  # the others belong to the first
    assert np.abs(load_image(path) - np.asarray(pictures[0]).astype(int)).mean() < 4
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, corners().shape, dtype=np.uint8))
    for suffix in ("jpg", "png"):
        one = saved(tmp_path, noise, suffix, **({"progressive": True} if suffix == "jpg" else {}))
        assert is_image(one)
        assert not is_image(one.read_bytes() * 3)
        assert len(read_frames(one.read_bytes() * 3, FramePolicy(fps=25)).seconds) == 3
    for other in (b"", b"P", b"RIFF", b"\0\0\0\x20ftypisom", tmp_path / "none", tmp_path):
        assert not is_image(other) or other == b"P"


def test_avif_is_read_by_pillow(tmp_path: Path) -> None:
    """FFmpeg leaves its alpha out, and shows one tile of several."""
    clear = np.full((16, 16, 4), 0, np.uint8)
    clear[:, 8:] = 100, 100, 100, 255
    pixels = every_way(saved(tmp_path, Image.fromarray(clear), "avif", quality=100))[0]
    assert pixels[:, :6].min() > 250
    assert abs(pixels[:, 10:].astype(int) - 100).max() < 4


def test_heic_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "c.heic"
    path.write_bytes(struct.pack(">I4s4sI4s", 20, b"ftyp", b"heic", 0, b"mif1"))
    for read in (load_image, read_frames):
        with pytest.raises(VideoError, match="HEIC is not read here"):
            read(path)


def test_big_tiff(tmp_path: Path) -> None:
    assert level(saved(tmp_path, Image.new("RGB", (8, 8), (9, 80, 200)), "tif", big_tiff=True)) == [
        9,
        80,
        200,
    ]


@pytest.mark.parametrize(
    ("suffix", "cause"), [("webp", "an animated WebP"), ("avif", "its alpha is coded apart")]
)
def test_animations_that_are_no_videos(tmp_path: Path, suffix: str, cause: str) -> None:
    pictures = [Image.new("RGBA", (32, 32), (9 * k, 0, 0, 128)) for k in range(3)]
    path = saved(tmp_path, pictures[0], suffix, save_all=True, append_images=pictures[1:], duration=100)
    with pytest.raises(VideoError, match=cause):
        read_frames(path)
    assert load_image(path).shape == (32, 32, 3)


def test_an_animated_avif_is_a_video(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (32, 32), (90 * k, 0, 0)) for k in range(3)]
    path = saved(tmp_path, pictures[0], "avif", save_all=True, append_images=pictures[1:], duration=100)
    red = read_frames(path, times=[0.05, 0.15, 0.25]).pixels[:, 16, 16, 0]
    assert [round(int(value) / 90) for value in red] == [0, 1, 2]


def test_refusals_are_not_wrapped(tmp_path: Path) -> None:
    levels = saved(tmp_path, Image.fromarray(np.zeros((4, 4), np.float32)), "tif")
    with pytest.raises(VideoError) as caught:
        load_image(levels)
    assert "not a readable picture" not in str(caught.value)
    with pytest.raises(VideoError) as caught:
        load_image(saved(tmp_path, Image.new("RGB", (64, 64)), "png"), limit=100)
    assert "not a readable picture" not in str(caught.value)
