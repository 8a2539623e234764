"""Patches against what the HF image processor made of the same frames (tests/data/patches/make.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

video = pytest.importorskip("fourdthinker._video", reason="built without the native extension")

STORED = Path(__file__).parents[2] / "data" / "patches" / "patches.npz"
FAMILIES = {
    "qwen2_5_vl": {
        "patch": 14,
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
    },
    "qwen3_vl": {"patch": 16, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}
SMALLEST = {"float16": 2.0**-14, "bfloat16": 2.0**-126}  # normal numbers; ulps below are those of this one


def stored(family: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames, and their patches as separate images: [3 frames, patches, 3, 2 halves, patch, patch]."""
    with np.load(STORED, allow_pickle=False) as file:
        frames, images = file[f"{family}.frames"], file[f"{family}.images"]
    patch = FAMILIES[family]["patch"]
    return frames, images.reshape(len(frames), -1, 3, 2, patch, patch)


def clip_of(images: np.ndarray) -> np.ndarray:
    """Patches of the clip: the first half of each group from one frame, the second from the next one."""
    groups = [
        np.stack([images[t][:, :, 0], images[min(t + 1, len(images) - 1)][:, :, 1]], axis=2)
        for t in range(0, len(images), 2)
    ]
    return np.concatenate(groups).reshape(-1, images[0][0].size)


def as_float32(patches: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        assert patches.dtype == np.uint16
        return torch.from_numpy(patches).view(torch.bfloat16).float().numpy()
    assert patches.dtype == np.dtype(dtype)
    return patches.astype(np.float32)


def check(patches: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    values = as_float32(patches, dtype)
    assert values.shape == expected.shape
    if dtype == "float32":
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)
        return
    digits = 10 if dtype == "float16" else 7
    ulp = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(expected), SMALLEST[dtype]))) - digits)
    rounded = torch.from_numpy(expected).to(getattr(torch, dtype)).float().numpy()
    assert (np.abs(values - rounded) <= ulp).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_patches_equal_the_processors(family: str, dtype: str) -> None:
    frames, images = stored(family)
    height, width = frames.shape[1:3]
    options = {**FAMILIES[family], "dtype": dtype}
    for image, expected in zip(frames, images, strict=True):
        check(
            video.resize_patches(image[None], height, width, **options),
            expected.reshape(len(expected), -1),
            dtype,
        )
    check(video.resize_patches(frames, height, width, **options), clip_of(images), dtype)
    # The same through the path that takes decoded frames.
    planes = [(frame.reshape(height, -1),) for frame in frames]
    out = video.convert(planes, height=height, width=width, chroma="rgb", out="patches", **options)
    check(out, clip_of(images), dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_short_floats_is_torchs(dtype: str) -> None:
    """Every level, with deviations that give large, tiny and subnormal values."""
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    for mean, std in [
        (0.48, 0.27),
        (0.0, 1e-3),
        (0.5, 700.0),
        (127 / 255 + 1e-9, 1.0),
        (-9.0, 0.002),
        (0.1, 0.001),
    ]:
        options = {"patch": 16, "merge": 1, "temporal": 1, "mean": (mean,) * 3, "std": (std,) * 3}
        wide = video.resize_patches(levels, 16, 16, **options)
        short = as_float32(video.resize_patches(levels, 16, 16, dtype=dtype, **options), dtype)
        expected = torch.from_numpy(wide).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(short, expected)


@pytest.mark.parametrize("shape", [(14, 2, 2), (16, 2, 2), (14, 1, 1), (4, 3, 3), (256, 1, 1)])
@pytest.mark.parametrize("rotation", [0, 90])
def test_patches_are_the_pixels_rearranged(shape: tuple[int, int, int], rotation: int) -> None:
    patch, merge, temporal = shape
    height, width = patch * merge, 3 * patch * merge
    rng = np.random.default_rng(0)
    frames = [
        tuple(rng.integers(0, 256, size, dtype=np.uint8) for size in ((70, 90), (35, 45), (35, 45)))
        for _ in range(4)
    ]
    same = {"height": height, "width": width, "chroma": "420", "rotation": rotation}
    pixels = video.convert(frames, **same)
    while len(pixels) % temporal:
        pixels = np.concatenate([pixels, pixels[-1:]])
    split = pixels.reshape(-1, temporal, 1, merge, patch, 3, merge, patch, 3)
    expected = split.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 3 * temporal * patch * patch)
    options = {"patch": patch, "merge": merge, "temporal": temporal, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    out = video.convert(frames, **same, out="patches", **options)
    np.testing.assert_array_equal(np.rint(out * 255).astype(np.uint8), expected)


def test_copied_size_longer_than_a_piece() -> None:
    """Patches straight from frames of their size, where a row does not divide into whole pieces."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28 * 41, 3), dtype=np.uint8)
    options = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    out = video.resize_patches(pixels, 28, 28 * 41, **options)
    split = pixels.reshape(1, 2, 1, 2, 14, 41, 2, 14, 3).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    np.testing.assert_array_equal(np.rint(out * 255).astype(np.uint8), split.reshape(-1, 1176))
