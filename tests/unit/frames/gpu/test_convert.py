"""The CUDA kernels' threads, run one by one on the host, against the CPU path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdthinker.frames.gpu import convert
from fourdthinker.frames.native import native

HOST = torch.device("cpu")
video = native()
needs_module = pytest.mark.skipif(video is None, reason="fourdthinker._video is not built")
LAYOUTS = [
    {"chroma": chroma, "depth": depth, "shift": shift, "interleaved": interleaved}
    for chroma in ("420", "422", "444", "gray", "rgb")
    for depth, shift in ((8, 0), (10, 0), (10, 6), (12, 4))
    for interleaved in (False, True)
    if not (interleaved and chroma in ("gray", "rgb")) and not (chroma == "rgb" and depth != 8)
]


def planes(random, height, width, *, chroma, depth=8, shift=0, interleaved=False, padding=5):
    """One frame of noise, its rows `padding` samples apart."""

    def plane(rows, columns):
        kind = np.uint8 if depth == 8 else np.uint16
        noise = random.integers(0, 1 << depth, (rows, columns + padding)).astype(kind) << shift
        return noise[:, :columns]

    if chroma in ("gray", "rgb"):
        return (plane(height, width * (3 if chroma == "rgb" else 1)),)
    rows = (height + 1) // 2 if chroma == "420" else height
    columns = width if chroma == "444" else (width + 1) // 2
    if interleaved:
        return plane(height, width), plane(rows, 2 * columns)
    return plane(height, width), plane(rows, columns), plane(rows, columns)


def bits(values):
    return (
        values.view(torch.uint8)
        if isinstance(values, torch.Tensor)
        else torch.from_numpy(values.view(np.uint8))
    )


def check(frames, **options):
    """Bit for bit the same."""
    expected = bits(video.convert(frames, **options))
    got = bits(convert.convert(frames, device=HOST, **options))
    assert got.flatten().equal(expected.flatten()), options


@needs_module
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(map(str, layout.values())))
def test_layouts_and_rotations(layout):
    random = np.random.default_rng(0)
    frames = [planes(random, 37, 53, **layout) for _ in range(2)]
    for rotation in (0, 90, 180, 270):
        for mirrored in (False, True):
            check(frames, height=28, width=56, rotation=rotation, mirrored=mirrored, **layout)


@needs_module
@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 400),
    to=st.tuples(st.integers(1, 90), st.integers(1, 150)),
    siting=st.sampled_from(["left", "center", "topleft", "repeat"]),
    matrix=st.sampled_from(["bt601", "bt709", "bt2020"]),
    full_range=st.booleans(),
    resample=st.sampled_from(["lanczos", "bicubic"]),
    rotation=st.sampled_from([0, 90, 180, 270]),
    mirrored=st.booleans(),
    keep=st.sampled_from(["", "height", "width", "both"]),
    window=st.tuples(*[st.floats(0, 1)] * 4),
    frames=st.integers(1, 2),
)
def test_sizes_and_windows(
    height, width, to, siting, matrix, full_range, resample, rotation, mirrored, keep, window, frames
):
    top, left = int(window[0] * (height - 1)), int(window[1] * (width - 1))
    rows, columns = max(1, int(window[2] * (height - top))), max(1, int(window[3] * (width - left)))
    upright = (columns, rows) if rotation in (90, 270) else (rows, columns)
    to = (
        upright[0] if keep in ("height", "both") else to[0],
        upright[1] if keep in ("width", "both") else to[1],
    )
    random = np.random.default_rng(0)
    check(
        [planes(random, height, width, chroma="420") for _ in range(frames)],
        height=to[0],
        width=to[1],
        chroma="420",
        siting=siting,
        matrix=matrix,
        full_range=full_range,
        resample=resample,
        rotation=rotation,
        mirrored=mirrored,
        crop=(top, left, rows, columns),
    )


@needs_module
@pytest.mark.parametrize("layout", [x for x in LAYOUTS if x["chroma"] in ("420", "422")], ids=str)
def test_repeated_chroma(layout):
    """The same as planes that hold each sample as often as it counts."""
    random = np.random.default_rng(4)
    frame = planes(random, 37, 53, **layout)
    chroma = (frame[1][:, 0::2], frame[1][:, 1::2]) if layout["interleaved"] else frame[1:]
    down = 2 if layout["chroma"] == "420" else 1
    large = [plane.repeat(2, 1).repeat(down, 0)[:37, :53] for plane in chroma]
    for options in ({"height": 37, "width": 53}, {"height": 31, "width": 46, "crop": (3, 5, 31, 46)}):
        check([frame], siting="repeat", **layout, **options)
        got = video.convert([frame], siting="repeat", **layout, **options)
        full = layout | {"chroma": "444", "interleaved": False}
        assert np.array_equal(got, video.convert([(frame[0], *large)], **full, **options))


@needs_module
@pytest.mark.parametrize("size", [(300, 40), (40, 1500), (700, 9)])
def test_strong_shrinking_and_both_orders_of_the_passes(size):
    random = np.random.default_rng(1)
    for to in ((28, 28), (10, 40), (56, 7)):
        frame = planes(random, *size, chroma="420", interleaved=True)
        check([frame], height=to[0], width=to[1], chroma="420", interleaved=True)


@needs_module
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("patch", "merge", "temporal"), [(14, 2, 2), (16, 2, 2), (4, 3, 3)])
def test_patches(dtype, patch, merge, temporal):
    random = np.random.default_rng(2)
    height, width = 2 * patch * merge, 3 * patch * merge
    for count in (1, 2, 5, 18):  # more than one launch holds
        frames = [planes(random, 40, 50, chroma="420") for _ in range(count)]
        check(frames, height=height, width=width, chroma="420", out="patches", patch=patch, merge=merge,
              temporal=temporal, dtype=dtype, mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.3))  # fmt: skip
    # nothing to resample: one pass writes the patches
    frames = [planes(random, height, width, chroma="444") for _ in range(3)]
    check(frames, height=height, width=width, chroma="444", out="patches", patch=patch, merge=merge,
          temporal=temporal, dtype=dtype)  # fmt: skip


@needs_module
def test_frames_go_where_they_are_told():
    random = np.random.default_rng(3)
    frames = [planes(random, 20, 30, chroma="gray") for _ in range(3)]
    options = {"height": 10, "width": 20, "chroma": "gray"}
    want = video.convert([frames[2], frames[0], frames[0], frames[1]], **options)
    out = np.full_like(want, 7)
    parts = [[(f[0].ctypes.data, f[0].strides[0])] for f in (frames[0], frames[0], frames[2])]
    video.cuda_convert(parts, out.ctypes.data, [1, 2, 0], 4, (20, 30), -1, 0, **options)
    assert np.array_equal(out[:3], want[:3])
    assert (out[3] == 7).all()


@needs_module
def test_wrong_arguments_are_named():
    frame = planes(np.random.default_rng(0), 20, 30, chroma="gray")
    good = {"height": 10, "width": 20, "chroma": "gray"}
    other = planes(np.random.default_rng(0), 20, 32, chroma="gray")
    for frames, options, message in (
        ([], good, "no frames"),
        ([frame, other], good, "frame 1 has planes of other sizes"),
        ([frame], {**good, "out": "jpeg"}, "jpeg"),
        ([frame], {**good, "out": "patches"}, "multiple of 28"),
        ([frame], {**good, "rotation": 45}, "rotation is 45"),
        ([frame], {**good, "colour": 1}, "unknown argument 'colour'"),
        ([frame], {**good, "matrix": 709}, "matrix is 709"),
    ):
        with pytest.raises(ValueError, match=message):
            convert.convert(frames, device=HOST, **options)
    parts = [[(frame[0].ctypes.data, frame[0].strides[0])]]
    for frames, place, message in (
        (parts, [1], "place 1 of frame 0"),
        (parts, [], "1 frames and 0 places"),
        ([[]], [0], "has 0 planes: 1 are needed"),
    ):
        with pytest.raises(ValueError, match=message):
            video.cuda_convert(frames, 0, place, 1, (20, 30), -1, 0, **good)
    ten = {**good, "depth": 10}
    with pytest.raises(ValueError, match="not aligned to 2 bytes"):
        video.cuda_convert([[(frame[0].ctypes.data + 1, 60)]], 0, [0], 1, (10, 20), -1, 0, **ten)
