"""Decoded frames to RGB and to resized RGB: against a float64 oracle, swscale and Pillow."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.shared import needs, shared
from tests.unit.frames import convert_oracle as oracle

video = pytest.importorskip("fourdthinker._video", reason="built without the native extension")


Planes = tuple[np.ndarray, ...]
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


def chroma_size(chroma: str, height: int, width: int) -> tuple[int, int]:
    return (height + 1) // 2 if chroma == "420" else height, width if chroma == "444" else (width + 1) // 2


def random_planes(chroma: str, height: int, width: int, depth: int = 8, seed: int = 0) -> Planes:
    """Any code value the depth has: also those outside the limited range and outside RGB."""
    rng = np.random.default_rng(seed)
    dtype = np.uint8 if depth == 8 else np.uint16
    sizes = (
        [(height, width)]
        if chroma == "gray"
        else [(height, width), *[chroma_size(chroma, height, width)] * 2]
    )
    return tuple(rng.integers(0, 2**depth, size, dtype=dtype) for size in sizes)


def natural_planes(chroma: str, height: int, width: int) -> Planes:
    """Smooth ramps and edges inside the limited range."""
    y, x = np.mgrid[:height, :width]
    luma = (16 + 219 * (0.5 + 0.5 * np.sin(x / 9 + y / 23) * np.cos(y / 7))).astype(np.uint8)
    h, w = chroma_size(chroma, height, width)
    y, x = np.mgrid[:h, :w]
    return (
        luma,
        (128 + 90 * np.sin(x / 17)).astype(np.uint8),
        (128 + 90 * np.cos(y / 13 + x / 31)).astype(np.uint8),
    )


def padded(plane: np.ndarray, extra: int) -> np.ndarray:
    """The same samples in longer rows."""
    wide = np.full((plane.shape[0], plane.shape[1] + extra), 99, plane.dtype)
    wide[:, : plane.shape[1]] = plane
    return wide[:, : plane.shape[1]]


def interleave(planes: Planes) -> Planes:
    return planes[0], np.stack(planes[1:], axis=-1).reshape(planes[1].shape[0], -1)


def same_size(planes: Planes, chroma: str, **options: object) -> np.ndarray:
    height, width = planes[0].shape
    return video.convert([planes], height=height, width=width, chroma=chroma, **options)[0]


def pillow(picture: np.ndarray, height: int, width: int, resample: str = "lanczos") -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((width, height), FILTERS[resample]))


# ---------------------------------------------------------------------------------------------- colour


@pytest.mark.parametrize("depth", [8, 10, 12])
@pytest.mark.parametrize("chroma", ["420", "422", "444", "gray"])
def test_colour_against_the_oracle(chroma: str, depth: int) -> None:
    """A 50th of a level beside correct rounding, for every matrix, range, siting and parity of size."""
    for matrix, full_range, siting, size in itertools.product(
        oracle.WEIGHTS,
        (False, True),
        ("left", "center", "topleft"),
        ((36, 50), (37, 51), (1, 1), (2, 2), (5, 1)),
    ):
        planes = random_planes(chroma, *size, depth)
        out = same_size(planes, chroma, depth=depth, matrix=matrix, full_range=full_range, siting=siting)
        exact = oracle.to_rgb(planes, depth=depth, matrix=matrix, full_range=full_range, siting=siting)
        assert np.abs(out - np.clip(exact, 0, 255)).max() < 0.52, (matrix, full_range, siting, size)


def test_white_black_and_primaries() -> None:
    """Corner values of the standards, so that oracle and code cannot be wrong together."""
    for matrix, (y, u, v), rgb in [
        ("bt601", (235, 128, 128), (255, 255, 255)),
        ("bt709", (16, 128, 128), (0, 0, 0)),
        ("bt601", (81, 90, 240), (254, 0, 0)),
        ("bt601", (145, 54, 34), (0, 255, 1)),
        ("bt709", (63, 102, 240), (255, 1, 0)),
        ("bt709", (32, 240, 118), (1, 0, 255)),
        ("bt2020", (126, 128, 128), (128, 128, 128)),
    ]:
        planes = tuple(np.full((4, 4), value, np.uint8) for value in (y, u, v))
        assert tuple(same_size(planes, "444", matrix=matrix)[1, 2]) == pytest.approx(rgb, abs=1), (
            matrix,
            y,
            u,
            v,
        )


@pytest.mark.parametrize("chroma", ["420", "422", "444"])
@pytest.mark.parametrize(("depth", "shift"), [(8, 0), (10, 0), (10, 6), (12, 4)])
def test_interleaved_chroma_padded_rows_and_shifted_samples(chroma: str, depth: int, shift: int) -> None:
    planes = random_planes(chroma, 21, 603, depth)
    expected = same_size(planes, chroma, depth=depth)
    shifted = tuple(plane << shift for plane in planes)
    np.testing.assert_array_equal(same_size(shifted, chroma, depth=depth, shift=shift), expected)
    np.testing.assert_array_equal(
        same_size(interleave(shifted), chroma, depth=depth, shift=shift, interleaved=True), expected
    )
    long = tuple(padded(plane, 13) for plane in shifted)
    np.testing.assert_array_equal(same_size(long, chroma, depth=depth, shift=shift), expected)


def test_bits_above_the_depth_do_not_count() -> None:
    planes = random_planes("420", 16, 16, 10)
    dirty = tuple(plane | np.uint16(0xFC00) for plane in planes)
    np.testing.assert_array_equal(same_size(dirty, "420", depth=10), same_size(planes, "420", depth=10))


def swscale(planes: Planes, chroma: str) -> np.ndarray:
    av = pytest.importorskip("av")
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], f"yuv{chroma}p")
    for plane, values in zip(frame.planes, planes, strict=True):
        plane.update(padded_bytes(values, plane.line_size))
    return reformatted(frame)


def padded_bytes(values: np.ndarray, line: int) -> bytes:
    rows = np.zeros((values.shape[0], line), np.uint8)
    rows[:, : values.shape[1]] = values
    return rows.tobytes()


def reformatted(frame: object) -> np.ndarray:
    from av.video.reformatter import Interpolation, VideoReformatter

    flags = Interpolation.BICUBIC | 0x40000 | 0x2000 | 0x4000  # accurate rounding, full chroma in and out
    rgb = VideoReformatter().reformat(frame, format="rgb24", interpolation=flags)
    return rgb.to_ndarray()


def test_full_chroma_is_within_a_level_of_swscale() -> None:
    """Any code values, but for those whose colour lies so far outside RGB that swscale's sums overflow."""
    for planes in (natural_planes("444", 90, 128), random_planes("444", 90, 128)):
        held = np.abs(oracle.to_rgb(planes) - 128) < 380
        difference = np.abs(same_size(planes, "444") - swscale(planes, "444").astype(int))
        assert held.mean() > 0.99
        assert difference[held].max() <= 1


def test_halved_chroma_is_near_swscale() -> None:
    planes = natural_planes("420", 90, 128)
    assert np.abs(same_size(planes, "420").astype(int) - swscale(planes, "420")).mean() <= 1.5


@needs("videos")
@pytest.mark.parametrize("name", ["demo1.mp4", "nasa_13013.mp4", "flipping_a_pancake.mkv", "video_90.mov"])
def test_natural_clips_are_near_swscale_and_resized_as_pillow_does(name: str) -> None:
    av = pytest.importorskip("av")
    with av.open(str(Path(str(shared("videos"))) / name)) as container:
        *_, frame = itertools.islice(container.decode(video=0), 20)
    assert frame.format.name in ("yuv420p", "yuvj420p"), frame.format.name
    planes = tuple(
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        for plane in frame.planes
    )
    # swscale takes BT.601 unless told; both are told the same here.
    full_range = frame.color_range == 2
    picture = same_size(planes, "420", full_range=full_range)
    assert np.abs(picture - reformatted(frame).astype(int)).mean() <= 1.5
    for size in [(168, 308), (28, 28), (700, 1001)]:
        out = video.convert([planes], height=size[0], width=size[1], chroma="420", full_range=full_range)[0]
        np.testing.assert_array_equal(out, pillow(picture, *size))


# -------------------------------------------------------------------------------------------- resizing


def upright(picture: np.ndarray, rotation: int, mirrored: bool) -> np.ndarray:
    turned = np.rot90(picture, rotation // 90)
    return np.ascontiguousarray(np.fliplr(turned) if mirrored else turned)


@pytest.mark.parametrize("resample", sorted(FILTERS))
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("chroma", ["420", "422", "444", "gray", "rgb"])
def test_resized_and_turned_as_pillow_does(chroma: str, mirrored: bool, rotation: int, resample: str) -> None:
    """The converted picture, turned and mirrored, resized by Pillow: equal, whatever pass goes first."""
    for height, width, new_height, new_width in [
        (78, 131, 28, 56),
        (331, 40, 28, 33),
        (40, 331, 28, 33),
        (13, 17, 40, 60),
    ]:
        if chroma == "rgb":
            picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
            planes: Planes = (picture.reshape(height, -1),)
        else:
            planes = random_planes(chroma, height, width)
            picture = same_size(planes, chroma)
        out = video.convert(
            [planes],
            height=new_height,
            width=new_width,
            chroma=chroma,
            rotation=rotation,
            mirrored=mirrored,
            resample=resample,
        )[0]
        turned = upright(picture, rotation, mirrored)
        np.testing.assert_array_equal(out, pillow(turned, new_height, new_width, resample))


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_own_size_is_not_resampled(mirrored: bool, rotation: int) -> None:
    planes = random_planes("420", 531, 603)
    picture = upright(same_size(planes, "420"), rotation, mirrored)
    height, width = picture.shape[:2]
    out = video.convert(
        [planes], height=height, width=width, chroma="420", rotation=rotation, mirrored=mirrored
    )[0]
    np.testing.assert_array_equal(out, picture)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), chroma=st.sampled_from(["420", "422", "444", "gray"]), seed=st.integers(0, 99))
def test_any_window_size_and_rotation(data: st.DataObject, chroma: str, seed: int) -> None:
    """A window shows what the whole frame shows there: its chroma also comes from outside of it."""
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 300))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    depth, siting = (
        data.draw(st.sampled_from([8, 10])),
        data.draw(st.sampled_from(["left", "center", "topleft"])),
    )
    rotation, threads = data.draw(st.sampled_from([0, 90, 180, 270])), data.draw(st.integers(0, 3))
    mirrored = data.draw(st.booleans())
    new_height, new_width = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50))
    planes = random_planes(chroma, height, width, depth, seed)
    picture = same_size(planes, chroma, depth=depth, siting=siting)[top : top + rows, left : left + columns]
    turned = upright(picture, rotation, mirrored)
    out = video.convert(
        [planes],
        height=new_height,
        width=new_width,
        chroma=chroma,
        depth=depth,
        siting=siting,
        crop=(top, left, rows, columns),
        rotation=rotation,
        mirrored=mirrored,
        threads=threads,
    )[0]
    np.testing.assert_array_equal(out, pillow(turned, new_height, new_width))


@pytest.mark.parametrize("instructions", ["generic", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_bits(instructions: str) -> None:
    cases = [
        (random_planes("420", 171, 613), {"chroma": "420"}),
        (random_planes("420", 171, 613, 10), {"chroma": "420", "depth": 10, "rotation": 90}),
        (interleave(random_planes("422", 171, 614)), {"chroma": "422", "interleaved": True, "rotation": 180}),
        (random_planes("444", 171, 613, 12), {"chroma": "444", "depth": 12, "siting": "center"}),
        (random_planes("420", 700, 61), {"chroma": "420", "siting": "center"}),
    ]
    outs = [{"out": "uint8"}, *[{"out": "patches", "dtype": d} for d in ("float32", "float16", "bfloat16")]]

    def results() -> list[np.ndarray]:
        return [
            video.convert([planes], height=56, width=112, **options, **out)
            for planes, options in cases
            for out in outs
        ]

    expected = results()
    try:
        video.use_instructions(instructions)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        for out, right in zip(results(), expected, strict=True):
            np.testing.assert_array_equal(out, right)
    finally:
        video.use_instructions("best")


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("rotation", [0, 90])
def test_threads_do_not_change_the_result(frames: int, rotation: int) -> None:
    clip = [random_planes("420", 171, 231, seed=i) for i in range(frames)]
    for out in ("uint8", "patches"):
        results = [
            video.convert(
                clip, height=112, width=84, chroma="420", rotation=rotation, out=out, threads=threads
            )
            for threads in (1, 2, 3, 7, 0)
        ]
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


# ---------------------------------------------------------------------------------------------- safety

Y, U, V = random_planes("420", 30, 40)
WIDE = tuple(plane.astype(np.uint16) for plane in (Y, U, V))
BAD = {
    "no frames": ([], {}, "there are 0 frames"),
    "frame is an array": ([5], {}, "frame 0 is no tuple of planes"),
    "plane is a list": ([(Y, U, [1, 2])], {}, "plane 2 of frame 0 is no array"),
    "plane of floats": ([(Y.astype(np.float32), U, V)], {}, "plane 0 of frame 0 is neither uint8 nor uint16"),
    "plane of three dimensions": ([(Y[None], U, V)], {}, r"plane 0 of frame 0 has shape \[1, 30, 40\]"),
    "two planes": ([(Y, U)], {}, "frame 0 has 2 planes: chroma '420' has 3"),
    "no planes": ([()], {}, "0x0"),
    "three planes for NV12": ([(Y, U, V)], {"interleaved": True}, "has 3 planes.*interleaved planes has 2"),
    "chroma too small": ([(Y, U, V[:-1])], {}, r"plane 2 of frame 0 is 14x20 .*expected 15x20"),
    "second frame smaller": ([(Y, U, V), (Y[:-1], U, V)], {}, r"plane 0 of frame 1 is 29x40 .*one size"),
    "chroma of another layout": (
        [(Y, U, V)],
        {"chroma": "444"},
        "plane 1 of frame 0 is 15x20.*expected 30x40",
    ),
    "uint8 for 10 bits": ([(Y, U, V)], {"depth": 10}, "1 byte.*depth 10 needs uint16"),
    "uint16 for 8 bits": ([WIDE], {}, "2 byte.*depth 8 needs uint8"),
    "columns apart": ([(Y, U, np.repeat(V, 2, 1)[:, ::2])], {}, "plane 2 of frame 0 has samples 2 apart"),
    "rows backwards": ([(Y[::-1], U, V)], {}, "plane 0 of frame 0 has rows -40 samples apart"),
    "rows at one place": ([(np.broadcast_to(Y[:1], Y.shape), U, V)], {}, "rows 0 samples apart"),
    "rgb of 40 bytes": ([(Y,)], {"chroma": "rgb"}, "rows of 40 bytes: packed rgb needs 3"),
    "chroma": ([(Y, U, V)], {"chroma": "411"}, "unknown chroma '411'.*'420'"),
    "depth": ([(Y, U, V)], {"depth": 9}, "depth is 9: 8, 10 and 12"),
    "depth of rgb": ([(Y,)], {"chroma": "rgb", "depth": 10}, "depth is 10|40 bytes"),
    "shift": ([WIDE], {"depth": 10, "shift": 7}, r"shift is 7: expected 0\.\.6"),
    "shift of bytes": ([(Y, U, V)], {"shift": 1}, r"shift is 1: expected 0\.\.0"),
    "interleaved gray": (
        [(Y,)],
        {"chroma": "gray", "interleaved": True},
        "interleaved chroma with chroma='gray'",
    ),
    "matrix": ([(Y, U, V)], {"matrix": "bt470"}, "unknown matrix 'bt470'"),
    "siting": ([(Y, U, V)], {"siting": "top"}, "unknown siting 'top'"),
    "rotation": ([(Y, U, V)], {"rotation": 45}, "rotation is 45"),
    "crop outside": (
        [(Y, U, V)],
        {"crop": (0, 0, 31, 40)},
        r"crop .*height 31.* is not inside the frame of 30x40",
    ),
    "crop negative": ([(Y, U, V)], {"crop": (-1, 0, 10, 10)}, "crop .*top -1"),
    "crop empty": ([(Y, U, V)], {"crop": (0, 0, 0, 10)}, "crop .*height 0"),
    "crop overflow": ([(Y, U, V)], {"crop": (1, 0, 2**63 - 1, 10)}, "crop"),
    "height": ([(Y, U, V)], {"height": 0}, r"height is 0: expected 1\.\.65536"),
    "width": ([(Y, U, V)], {"width": 65537}, "width is 65537"),
    "resample": ([(Y, U, V)], {"resample": "box"}, "unknown resample 'box'"),
    "out": ([(Y, U, V)], {"out": "float"}, "unknown out 'float'"),
    "dtype": ([(Y, U, V)], {"out": "patches", "dtype": "int8"}, "unknown dtype 'int8'"),
    "patches of a size": ([(Y, U, V)], {"out": "patches", "width": 42}, r"28x42 .*patch \* merge = 28"),
    "patch": ([(Y, U, V)], {"out": "patches", "patch": 0}, "patch is 0"),
    "std": ([(Y, U, V)], {"out": "patches", "std": (0.5, 0.0, 0.5)}, r"std\[1\] is 0"),
    "mean": ([(Y, U, V)], {"out": "patches", "mean": (0.5, 0.5, float("nan"))}, r"mean\[2\] is nan"),
    "threads": ([(Y, U, V)], {"threads": -1}, "threads is -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_its_remedy(case: str) -> None:
    frames, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        video.convert(frames, **{"height": 28, "width": 28, "chroma": "420", **options})


def test_unknown_instructions() -> None:
    with pytest.raises(ValueError, match=r"'sse9'.*'generic'.*or 'best'"):
        video.use_instructions("sse9")
