"""Any arrays and arguments given to the extension: a result of the promised shape, or a refusal."""

from __future__ import annotations

import random

import numpy as np
import pytest

_video = pytest.importorskip("fourdthinker._video", reason="the extension is not built")
CASES = 1500


def spoilt(array: np.ndarray, draw: random.Random) -> np.ndarray:
    """The array, now and then with another layout, type, size or number of dimensions."""
    kind = draw.randrange(40)
    if kind == 0:
        return array[..., ::-1]
    if kind == 1:
        return np.asfortranarray(array)
    if kind == 2:
        return array.astype(draw.choice((np.int8, np.float32, np.uint16, np.uint8, bool)))
    if kind == 3:
        return array[None]
    if kind == 4:
        return array[: draw.randrange(array.shape[0])]
    if kind == 5:
        return array[::-1]
    if kind == 6:
        return np.lib.stride_tricks.as_strided(array, array.shape, (0, *array.strides[1:]))
    if kind == 7:
        array = array.copy()
        array.flags.writeable = False
    return array


def plane(
    draw: random.Random, numbers: np.random.Generator, rows: int, samples: int, kind: type
) -> np.ndarray:
    padding = draw.choice((0, 0, 1, 30))
    return spoilt(numbers.integers(0, 256, (rows, samples + padding)).astype(kind)[:, :samples], draw)


def number(draw: random.Random, sensible: list[object]) -> object:
    return (
        draw.choice([-1, 0, 1 << 16, 1 << 31, 1 << 63, 1.5, None, "8"])
        if draw.random() < 0.02
        else draw.choice(sensible)
    )


def run_convert(draw: random.Random, numbers: np.random.Generator) -> tuple[np.ndarray, int, object, object]:
    chroma = draw.choice(("420", "422", "444", "gray", "rgb"))
    depth = draw.choice((8, 10, 12)) if chroma != "rgb" else 8
    height, width, count = draw.randrange(1, 70), draw.randrange(1, 70), draw.randrange(1, 4)
    rows = (height + 1) // 2 if chroma == "420" else height
    columns = (width + 1) // 2 if chroma in ("420", "422") else width
    interleaved = chroma[0] == "4" and draw.random() < 0.4
    frames = []
    for _ in range(count):
        kind = np.uint8 if depth == 8 else np.uint16
        planes = [plane(draw, numbers, height, 3 * width if chroma == "rgb" else width, kind)]
        if interleaved:
            planes.append(plane(draw, numbers, rows, 2 * columns, kind))
        elif chroma[0] == "4":
            planes += [plane(draw, numbers, rows, columns, kind) for _ in range(2)]
        if draw.random() < 0.02:
            planes = planes[1:] or [None]
        frames.append(tuple(planes) if draw.random() < 0.99 else planes[0])
    new = number(draw, [8, 16, 24, 32]), number(draw, [8, 16, 24, 32])
    crop = None
    if draw.random() < 0.2:
        top, left = draw.randrange(-1, height), draw.randrange(-1, width)
        crop = (top, left, draw.randrange(height - top + 1), draw.randrange(width - left + 1))
    result = _video.convert(
        frames,
        height=new[0],
        width=new[1],
        chroma=chroma,
        crop=crop,
        depth=number(draw, [depth]),
        shift=number(draw, [0] if depth == 8 else [0, 4]),
        interleaved=interleaved,
        rotation=number(draw, [0, 90, 180, 270]),
        mirrored=draw.choice((False, True)),
        out=draw.choice(("uint8", "patches")),
        patch=number(draw, [4, 8]),
        merge=number(draw, [1]),
        temporal=number(draw, [1, 2]),
        threads=number(draw, [0, 1, 2]),
        dtype=draw.choice(("float32", "float16", "bfloat16")),
        siting=draw.choice(("left", "center", "topleft")),
        std=draw.choice((*[(0.5, 0.5, 0.5)] * 8, (0.0, 0.5, 0.5), (float("nan"), 1.0, 1.0))),
    )
    return result, count, *new


def run_resize(draw: random.Random, numbers: np.random.Generator) -> tuple[np.ndarray, int, object, object]:
    shape = draw.randrange(1, 4), draw.randrange(1, 60), draw.randrange(1, 60), 3
    pixels = spoilt(numbers.integers(0, 256, shape).astype(np.uint8), draw)
    height, width = number(draw, [*range(1, 60)]), number(draw, [*range(1, 60)])
    resample = draw.choice(("lanczos", "bicubic", "bicubic", "none"))
    result = _video.resize(pixels, height, width, resample, number(draw, [0, 1, 2]))
    return result, pixels.shape[0], height, width


@pytest.mark.parametrize("run", [run_convert, run_resize])
def test_results_or_refusals(run) -> None:
    done = refused = 0
    for case in range(CASES):
        draw, numbers = random.Random(case), np.random.default_rng(case)
        try:
            result, count, height, width = run(draw, numbers)
        except (ValueError, TypeError):
            refused += 1
            continue
        done += 1
        if result.dtype == np.uint8:
            assert result.shape == (count, height, width, 3), case
        else:
            assert result.size >= count * height * width * 3, case
    assert done > CASES / 4
    assert refused > CASES / 20
