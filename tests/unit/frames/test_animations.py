"""GIF and animated PNG: composed as the standards and browsers do it, which FFmpeg does not always.

`python -m tests.fuzz.animations --cases N` draws more of the same.
"""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, FrameSource, read_frames
from fourdthinker.frames.image_file import load_image
from fourdthinker.frames.probing import probe
from tests.clips import make_clip
from tests.fuzz.animations import faults
from tests.oracle.animations import chunk, coded, random_gif, random_png

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.mark.parametrize("make", [random_gif, random_png])
def test_random_animations(make) -> None:
    animations = [make(seed) for seed in range(25)]
    assert [(a.kind, words) for a in animations if (words := faults(a))] == []


def gif(
    *parts: tuple[int, int, tuple[int, int, int, int]], colours=(RED, GREEN), before: bytes = b""
) -> bytes:
    """4x4 pictures of (colour, disposal, box), 0.1 s each; before: each picture."""
    data = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 1, 0) + bytes(sum(colours, ()))
    for colour, disposal, box in parts:
        data += b"!\xf9\4" + struct.pack("<BHBB", disposal << 2, 10, 0, 0) + before
        data += b"," + struct.pack("<4HB", *box, 0) + coded(np.full((box[3], box[2]), colour))
    return data + b";"


def test_what_a_gif_clears_is_white() -> None:
    """FFmpeg makes it the background colour (here green); browsers and Pillow's RGBA, transparent."""
    data = gif((0, 2, (0, 0, 4, 4)), (0, 0, (0, 0, 2, 2)))
    second = read_frames(data, times=[0.15]).pixels[0]
    assert second[0, 0].tolist() == list(RED)
    assert second[3, 3].tolist() == [255] * 3
    small = gif((0, 0, (1, 1, 2, 2)))
    for picture in (load_image(small), read_frames(small, times=[0.0]).pixels[0].numpy()):
        assert picture[2, 2].tolist() == list(RED)
        assert picture[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (gif((0, 4, (0, 0, 4, 4))), "its disposal is 4, which GIF does not define"),
        (gif((0, 0, (1, 0, 4, 4))), "a part of 4x4 at 1, 0 does not lie on the canvas"),
        (gif((0, 0, (0, 0, 4, 4)), before=b"!\x01\x01x\0"), "the GIF has text that a viewer must draw"),
        (gif((0, 0, (0, 0, 4, 4)), colours=()).replace(b"\x80\1", b"\0\1"), "it has no colours"),
        (gif((0, 0, (0, 0, 4, 4)))[:-6] + b"\0;", "cannot be decoded"),
    ],
)
def test_gifs_that_say_nothing_defined(data: bytes, cause: str) -> None:
    with pytest.raises(VideoError, match=cause):
        read_frames(data, times=[0.0])


def test_a_second_gif_behind_the_first_is_not_shown() -> None:
    data = gif((0, 0, (0, 0, 4, 4)))
    assert len(read_frames(data + gif((1, 0, (0, 0, 4, 4)))).seconds) == 1


def test_an_animated_png_that_is_damaged_turned_or_left_to_decord() -> None:
    pictures = [Image.new("RGB", (6, 4), colour) for colour in (RED, GREEN, RED)]
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures[0].save(
        file, "PNG", save_all=True, append_images=pictures[1:], duration=100, exif=exif, default_image=False
    )
    data = file.getvalue()
    assert read_frames(data, times=[0.15]).pixels.shape == (1, 6, 4, 3)
    assert load_image(data).shape == (6, 4, 3)
    begin = data.rindex(b"fdAT") + 12
    broken = data[:begin] + bytes([data[begin] ^ 1]) + data[begin + 1 :]
    with pytest.raises(VideoError, match="the checksum of its fdAT chunk is wrong"):
        read_frames(broken, times=[0.25])
    assert read_frames(broken, times=[0.15]).pixels[0, 0, 0].tolist() == list(GREEN)
    controls = [k - 4 for k in range(len(data)) if data.startswith(b"fcTL", k)]
    without = data[: controls[1]] + data[controls[2] :]
    assert read_frames(without, times=[0.05]).pixels[0, 0, 0].tolist() == list(RED)
    with pytest.raises(VideoError, match="a picture before it is missing"):
        read_frames(without, times=[0.15])
    second = data.index(b"fdAT") - 4
    length = int.from_bytes(data[second : second + 4], "big")
    lost = data[:second] + chunk(b"fdAT", struct.pack(">I", 7) + data[second + 12 : second + 8 + length])
    with pytest.raises(VideoError, match="chunks of a picture are missing"):
        read_frames(lost + data[second + 12 + length :], times=[0.15])
    for source in (data, gif((0, 0, (0, 0, 4, 4)))):
        with pytest.raises(VideoError, match="reader='decord' composes pictures of"):
            read_frames(FrameSource(source, reader="decord"), times=[0.0])


# --- what breaks off -------------------------------------------------


def check_breaks_off(data: bytes, whole: int) -> None:
    """Pictures of 0.1 s: so many are read, what comes after is an error."""
    policy = FramePolicy(fps=10)
    with pytest.raises(VideoError, match="the data end here or are damaged"):
        read_frames(data, policy)
    assert len(read_frames(data, policy, end=0.1 * whole).seconds) == whole
    found = read_frames(data, policy, partial=True)
    assert len(found.seconds) == whole
    assert "the data end here or are damaged" in (found.fault or "")
    assert "the data end here or are damaged" in (probe(data).fault or "")


FULL = (0, 0, 4, 4)
TWO = gif((0, 0, FULL), (1, 0, FULL))


@pytest.mark.parametrize("broken", [b"\x99", b"\0", b"!\xfe\5w"])
def test_a_gif_whose_chain_of_blocks_breaks(broken: bytes) -> None:
    """What is no block, and an extension that is cut off; a third picture behind it is not found."""
    data = TWO[:-1] + broken
    check_breaks_off(data, 2)
    if broken[:1] != b"!":
        check_breaks_off(data + gif((0, 0, FULL))[19:], 2)


def test_a_gif_without_its_trailer_is_whole() -> None:
    """As in all viewers: one that ends behind a picture is not told from one that was cut off there."""
    assert len(read_frames(TWO[:-1], FramePolicy(fps=10)).seconds) == 2


def apng(*delays: tuple[int, int], announced: int | None = None) -> bytes:
    """2x1 pictures in gray levels 10, 20, ..."""
    count = len(delays) if announced is None else announced
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 0))]
    parts.append(chunk(b"acTL", struct.pack(">II", count, 0)))
    for number, delay in enumerate(delays):
        sequence = 2 * number - (number > 0)
        parts.append(chunk(b"fcTL", struct.pack(">5I2H2B", sequence, 2, 1, 0, 0, *delay, 0, 0)))
        level = zlib.compress(bytes([0, *[10 * number + 10] * 2]))
        parts.append(
            chunk(b"fdAT", struct.pack(">I", sequence + 1) + level) if number else chunk(b"IDAT", level)
        )
    return b"".join([*parts, chunk(b"IEND", b"")])


TENTH = (1, 10)


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (apng(TENTH, TENTH)[:-12], 2),  # cut before its last chunk
        (apng(TENTH, TENTH)[:-3], 2),
        (apng(TENTH, TENTH, announced=3), 2),
        (apng(TENTH, TENTH, TENTH, announced=3)[:-12], 3),
    ],
)
def test_an_animated_png_that_was_cut_between_chunks(data: bytes, whole: int) -> None:
    check_breaks_off(data, whole)


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [((0, 100), 0.1), ((1, 1000), 0.1), ((1, 0), 0.1), ((10, 1000), 0.1), ((20, 1000), 0.02)],
)
def test_delays_of_animated_png_as_in_browsers(delay: tuple[int, int], seconds: float) -> None:
    data = apng(delay, TENTH, delay)
    assert probe(data).end == pytest.approx(0.1 + 2 * seconds)
    middles = [seconds / 2, seconds + 0.05, seconds * 1.5 + 0.1]
    assert read_frames(data, times=middles).pixels[:, 0, 0, 0].tolist() == [10, 20, 30]


def test_an_animation_announced_behind_the_pixels_is_none() -> None:
    still = apng(TENTH)
    begin, end = still.index(b"acTL") - 4, still.index(b"acTL") + 16
    control, rest = still[begin:end], still[:begin] + still[end:]
    begin = rest.index(b"fcTL") - 4
    data = rest[:begin] + rest[begin + 38 : -12] + control + rest[-12:]
    found = read_frames(data, times=[0.0])
    assert found.decoder == "Pillow"
    assert found.pixels[0, 0, 0].tolist() == [10] * 3


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_a_canvas_of_too_many_pixels_is_refused_before_it_is_made(tmp_path: Path, suffix: str) -> None:
    """Some 700 bytes say 12,000 x 12,000: 2.6 GB and a minute in a report."""
    path = tmp_path / f"big.{suffix}"
    first, second = Image.new("P", (2, 1), 0), Image.new("P", (2, 1), 1)
    first.save(path, save_all=True, append_images=[second], duration=100)
    data = bytearray(path.read_bytes())
    if suffix == "gif":
        data[6:10] = struct.pack("<HH", 12_000, 12_000)
    else:
        data[16:24] = struct.pack(">II", 12_000, 12_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    for source in (path, bytes(data)):
        for read in (read_frames, probe):
            with pytest.raises(
                VideoError, match="12000x12000 are 144000000 pixels, more than max_source_pix"
            ):
                read(source)


def test_any_video_is_bounded_and_the_bound_can_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "a.mp4", range(0, 300, 100))
    with av.open(str(path)) as container:
        pixels = container.streams.video[0].width * container.streams.video[0].height
    monkeypatch.setenv("FOURDTHINKER_MAX_SOURCE_PIXELS", str(pixels))
    assert read_frames(path).pixels is not None
    monkeypatch.setenv("FOURDTHINKER_MAX_SOURCE_PIXELS", str(pixels - 1))
    with pytest.raises(VideoError, match=f"more than max_source_pixels, {pixels - 1}"):
        read_frames(path)


@pytest.mark.parametrize(
    ("read", "most"),
    [(load_image, 8), (lambda path: read_frames(path, times=[0.0]), 18)],
    ids=["still", "video"],
)
def test_the_bound_on_pixels_bounds_memory_as_documented(
    read: Callable[[Path], object], most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/video.md: bytes a pixel; what numpy and Python hold, so without one more of Pillow's own."""
    side, path = 1024, tmp_path / "a.gif"
    monkeypatch.setenv("FOURDTHINKER_MAX_SOURCE_PIXELS", str(side * side))
    indices = np.arange(side * side, dtype=np.uint32).reshape(side, side).astype(np.uint8)
    first, second = Image.fromarray(indices).convert("P"), Image.fromarray(indices.T.copy()).convert("P")
    first.save(path, save_all=True, append_images=[second], duration=100, transparency=7, disposal=3)
    read(path)  # what is imported and kept for all files
    tracemalloc.start()
    try:
        read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most * side * side + (1 << 20)
