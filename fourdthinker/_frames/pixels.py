"""Pictures in memory: resized, and cut into the patches that the vision tower reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fourdthinker._frames.colour import Layout, Planes

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
logger = logging.getLogger(__name__)


@dataclass
class Frames:
    """What was read.

    pixels: uint8 [T, H, W, 3] RGB, or None when patches were asked for. patches: float32 [P, 3*2*14*14] in
    the tower's order, normalised; grid_thw: [n, 3] long, one row for a clip and one for each still.
    seconds: the time that each frame was asked for; shown: the time at which that frame's presentation
    begins; both on the clock of the source. fps: frames a second of `seconds`. seconds_per_grid: seconds
    between two temporal patches. kind: "video" for a clip, "image" for stills, which have no clock. decoder:
    what decoded and converted them. fault: with partial=True, why the frames after these are not here.
    """

    pixels: Tensor | None = None
    patches: Tensor | None = None
    grid_thw: Tensor | None = None
    seconds: list[float] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)
    fps: float = 1.0
    source: str = ""
    seconds_per_grid: float = 2.0
    kind: str = "video"
    decoder: str = ""
    fault: str | None = None


@cache
def native() -> ModuleType | None:
    """The compiled extension, or None (said once, in the log) where it was not built."""
    try:
        from fourdthinker import _video
    except ImportError as error:
        logger.warning(
            "fourdthinker._video is not built (%s): resizing with Pillow, several times slower", error
        )
        return None
    return _video


def resize(pixels: Tensor | np.ndarray, size: tuple[int, int], resample: str = "lanczos") -> Tensor:
    """Antialiased resize of uint8 [T, H, W, 3] to uint8 [T, h, w, 3], size = (h, w); equal to Pillow's
    filters.

    Runs on the host, on as many threads as torch is set to use (one in the workers of a DataLoader).
    """
    array = _host(pixels)
    if array.shape[1:3] == tuple(size):
        return torch.from_numpy(array)
    module = native()
    if module is not None:
        return torch.from_numpy(module.resize(array, *size, resample, torch.get_num_threads()))
    images = (Image.fromarray(frame).resize(size[::-1], _FILTERS[resample]) for frame in array)
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


@dataclass(frozen=True)
class Normal:
    """How patches are cut and normalised: side of a patch, (value / 255 - mean) / std, and their dtype."""

    patch: int = 14
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    dtype: torch.dtype = torch.float32


def convert(
    frames: Sequence[Planes],
    layout: Layout,
    size: tuple[int, int],
    *,
    resample: str,
    turns: int,
    normal: Normal | None,
    threads: int,
) -> Tensor:
    """Decoded planes to uint8 [T, h, w, 3], size = (h, w) after `turns` quarter turns counter-clockwise; or
    to patches, as `patchify` makes them of that."""
    module = native()
    if module is None:
        packed = np.stack([planes[0].reshape(planes[0].shape[0], -1, 3) for planes in frames])
        pixels = resize(np.rot90(packed, turns, (1, 2)), size, resample)
        return pixels if normal is None else patchify(pixels, **asdict(normal))[0]
    keywords: dict[str, Any] = {}
    if normal is not None:
        keywords = {"out": "patches", "dtype": _DTYPES[normal.dtype], "patch": normal.patch}
        keywords |= {"mean": normal.mean, "std": normal.std}
    array = module.convert(
        frames,
        height=size[0],
        width=size[1],
        **asdict(layout),
        resample=resample,
        rotation=90 * turns,
        threads=threads,
        **keywords,
    )
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if normal is not None and normal.dtype == torch.bfloat16 else tensor


def patchify(
    pixels: Tensor | np.ndarray,
    *,
    stills: bool = False,
    patch: int = 14,
    merge: int = 2,
    temporal: int = 2,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """uint8 [T, h, w, 3] to (patches [P, 3*temporal*patch*patch] of dtype, grid_thw).

    h and w must be multiples of patch * merge. A clip is one row of grid_thw; an incomplete last group of
    `temporal` frames is filled up by repeating the last frame. Stills are a row each, each repeated to fill
    its group. Normalised per channel: (value / 255 - mean) / std, computed in float32, rounded to dtype
    (float32, float16 or bfloat16); rows run over time, then merge x merge blocks in raster order.
    """
    array = _host(pixels)
    t, h, w, _ = array.shape
    if h % (patch * merge) or w % (patch * merge):
        raise ValueError(
            f"pictures of {h}x{w} pixels cannot be cut into patches of {patch} merged {merge}x{merge}; "
            f"resize them to multiples of {patch * merge} (FramePolicy.size)"
        )
    groups = t if stills else -(-t // temporal)
    grid = torch.tensor([[groups, h // patch, w // patch]])
    if stills:
        grid = torch.tensor([[1, h // patch, w // patch]]).repeat(t, 1)
        array = array.repeat(temporal, 0)
    module = native()
    if module is not None and (tuple(mean), tuple(std), dtype) == (CLIP_MEAN, CLIP_STD, torch.float32):
        threads = torch.get_num_threads()
        return torch.from_numpy(
            module.resize_patches(array, h, w, "lanczos", patch, merge, temporal, threads)
        ), grid
    if array.shape[0] < groups * temporal:
        array = np.concatenate([array, array[-1:].repeat(groups * temporal - array.shape[0], 0)])
    values = (
        torch.from_numpy(array).float().div_(255).sub_(torch.tensor(mean)).div_(torch.tensor(std)).to(dtype)
    )
    split = values.view(
        groups, temporal, h // patch // merge, merge, patch, w // patch // merge, merge, patch, 3
    )
    # (group, block row, block column, row in block, column in block, channel, frame, row, column)
    return split.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 3 * temporal * patch * patch), grid


def _host(pixels: Tensor | np.ndarray) -> np.ndarray:
    array = pixels.detach().cpu().numpy() if isinstance(pixels, Tensor) else pixels
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(
            f"pictures are {array.dtype} {list(array.shape)}; uint8 [frames, height, width, 3] is needed"
        )
    return np.ascontiguousarray(array)
