"""Pictures in memory: resized, and cut into the patches that the vision tower reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fourdthinker.frames.checks import DTYPES, normalisation_of, resample_of, size_of, whole
from fourdthinker.frames.colour import Layout, Planes
from fourdthinker.frames.display_times import TimesFrom
from fourdthinker.frames.gpu import convert as gpu
from fourdthinker.frames.native import native
from fourdthinker.frames.orientation import Orientation

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


@dataclass
class Frames:
    """Frames of one clip, or separate images, and their times. Times are seconds of the source.

    Attributes:
        pixels: uint8 [T, H, W, 3] RGB; None where patches were asked for.
        patches: [P, 3 * 2 * patch * patch] in the dtype asked for, normalised, in the order in which the
            vision tower takes them; None where pixels were asked for.
        grid_thw: int64 [n, 3], (temporal, vertical, horizontal) patches: one row for a clip, one for each
            separate image.
        seconds: the T times that were asked for.
        shown: when the presentation of each frame begins.
        fps: frames a second of `seconds`.
        source: the file or files, for messages.
        seconds_per_grid: seconds between two temporal patches.
        kind: "video" for a clip, "image" for separate images, which have no times.
        decoder: what decoded and converted the frames.
        times_from: how the times of a clip were learnt (`display_times.times_of`).
        fault: with partial=True, why the frames after these are missing.
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
    times_from: TimesFrom = "container"
    fault: str | None = None


def resize(pixels: Tensor | np.ndarray, size: tuple[int, int], resample: str = "lanczos") -> Tensor:
    """Resize pictures with antialiasing, as Pillow's filters do.

    Runs on the host, on as many threads as torch is set to use (one in the workers of a DataLoader).

    Args:
        pixels: uint8 [T, H, W, 3].
        size: (height, width) of the result.
        resample: "lanczos" or "bicubic".

    Returns:
        uint8 [T, height, width, 3] on the CPU.

    Raises:
        ConfigError: a size or filter that does not exist.
        ValueError: pixels of another type or shape.
    """
    size, resample = size_of(size), resample_of(resample)
    array = _host(pixels)
    if array.shape[1:3] == size:
        return torch.from_numpy(array)
    module = native()
    if module is not None:
        return torch.from_numpy(module.resize(array, *size, resample, torch.get_num_threads()))
    images = (Image.fromarray(frame).resize(size[::-1], _FILTERS[resample]) for frame in array)
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


@dataclass(frozen=True)
class Normal:
    """How patches are cut and normalised.

    Attributes:
        patch: side of a patch in pixels.
        mean: of each channel; a value becomes (value / 255 - mean) / std.
        std: of each channel.
        dtype: of the patches.
    """

    patch: int = 14
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        whole("patch", self.patch, 1, "give the side of a patch in pixels")
        mean, std = normalisation_of(self.mean, self.std, self.dtype)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)


def convert(
    frames: Sequence[Planes],
    layout: Layout,
    size: tuple[int, int],
    *,
    resample: str,
    orientation: Orientation,
    normal: Normal | None,
    threads: int,
    device: torch.device,
) -> Tensor:
    """Turn decoded planes into pixels or patches, on the device where it and the extension can.

    Args:
        frames: the planes of each frame.
        layout: how they are read.
        size: (height, width) of an upright frame of the result.
        resample: "lanczos" or "bicubic".
        orientation: what makes the frames upright.
        normal: how patches are made; None: pixels are wanted.
        threads: threads to use on the CPU.
        device: where the result is wanted.

    Returns:
        uint8 [T, height, width, 3], or the patches that `patchify` makes of that.
    """
    module = native()
    if module is None:
        packed = np.stack([planes[0].reshape(planes[0].shape[0], -1, 3) for planes in frames])
        pixels = resize(orientation.apply(packed), size, resample)
        return (pixels if normal is None else patchify(pixels, **asdict(normal))[0]).to(device)
    options = asdict(layout) | conversion(size, resample=resample, orientation=orientation, normal=normal)
    if device.type == "cuda" and module.build_info()["cuda"]:
        return gpu.convert(frames, device=device, **options)
    tensor = _tensor(module.convert(frames, **options, threads=threads), normal.dtype if normal else None)
    return tensor.to(device)


def conversion(
    size: tuple[int, int], *, resample: str, orientation: Orientation, normal: Normal | None
) -> dict[str, Any]:
    """The keywords of `_video.convert` that describe its output.

    Args:
        size: (height, width) of the pictures.
        resample: the filter, one of RESAMPLES.
        orientation: what makes pictures upright.
        normal: how patches are normalised; None: uint8 pictures.
    """
    options = {
        "height": size[0],
        "width": size[1],
        "resample": resample,
        "rotation": 90 * orientation.quarter_turns,
        "mirrored": orientation.mirrored,
    }
    if normal is None:
        return options
    values = {"mean": normal.mean, "std": normal.std, "dtype": DTYPES[normal.dtype], "patch": normal.patch}
    return options | values | {"out": "patches"}


def _tensor(array: np.ndarray, dtype: torch.dtype | None) -> Tensor:
    """The extension's array as a tensor; bfloat16, which numpy lacks, comes as its bits in uint16."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor


def patchify(
    pixels: Tensor | np.ndarray,
    *,
    separate: bool = False,
    patch: int = 14,
    merge: int = 2,
    temporal: int = 2,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Cut pictures into normalised patches, in the order in which the vision tower takes them.

    Rows run over time, then over blocks of merge x merge patches in raster order. Values are computed in
    float32 and rounded to `dtype`.

    Args:
        pixels: uint8 [T, h, w, 3]; h and w are multiples of patch * merge.
        separate: False: the pictures are the frames of one clip; where the last group of `temporal` frames
            is incomplete, the last frame fills it. True: they are separate images, each repeated to fill a
            group of its own.
        patch: side of a patch in pixels.
        merge: side, in patches, of a block that the tower merges into one feature.
        temporal: frames that a patch spans.
        mean: of each channel; a value becomes (value / 255 - mean) / std.
        std: of each channel.
        dtype: float32, float16 or bfloat16.

    Returns:
        patches [P, 3 * temporal * patch * patch] of `dtype`, and grid_thw, int64 [1, 3] for a clip, [T, 3]
        for separate images.

    Raises:
        ConfigError: numbers out of range.
        ValueError: pixels of another type, shape or size.
    """
    normal = Normal(patch, mean, std, dtype)
    whole("merge", merge, 1, "give the side of a block in patches")
    whole("temporal", temporal, 1, "give the number of frames that a patch spans")
    _check_kind(pixels)
    on_host = not isinstance(pixels, Tensor) or pixels.device.type == "cpu"
    clip = torch.from_numpy(_host(pixels)) if on_host else torch.as_tensor(pixels)
    t, h, w, _ = clip.shape
    if h % (patch * merge) or w % (patch * merge):
        raise ValueError(
            f"pictures of {h}x{w} pixels cannot be cut into patches of {patch} merged {merge}x{merge}; "
            f"resize them to multiples of {patch * merge} (FramePolicy.size)"
        )
    groups = t if separate else -(-t // temporal)
    grid = torch.tensor([[groups, h // patch, w // patch]])
    if separate:
        grid = torch.tensor([[1, h // patch, w // patch]]).repeat(t, 1)
        clip = clip.repeat_interleave(temporal, 0)
    module = native()
    if module is not None and on_host:
        threads = torch.get_num_threads()
        options: dict[str, Any] = {"mean": normal.mean, "std": normal.std, "dtype": DTYPES[dtype]}
        options |= {"patch": patch, "merge": merge, "temporal": temporal}
        made = module.resize_patches(clip.numpy(), h, w, threads=threads, **options)
        return _tensor(made, dtype), grid
    if clip.shape[0] < groups * temporal:
        clip = torch.cat([clip, clip[-1:].expand(groups * temporal - clip.shape[0], -1, -1, -1)])
    centre, scale = (torch.tensor(part, device=clip.device) for part in (normal.mean, normal.std))
    values = clip.float().div_(255).sub_(centre).div_(scale).to(dtype)
    split = values.view(
        groups, temporal, h // patch // merge, merge, patch, w // patch // merge, merge, patch, 3
    )
    # (group, block row, block column, row in block, column in block, channel, frame, row, column)
    return split.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 3 * temporal * patch * patch), grid


def _host(pixels: Tensor | np.ndarray) -> np.ndarray:
    _check_kind(pixels)
    return np.ascontiguousarray(pixels.detach().cpu().numpy() if isinstance(pixels, Tensor) else pixels)


def _check_kind(pixels: Any) -> None:
    if not isinstance(pixels, (Tensor, np.ndarray)):
        raise ValueError(f"pictures are of type {type(pixels).__name__}; give a tensor or an array")
    kind = str(pixels.dtype).removeprefix("torch.")
    if kind != "uint8" or pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise ValueError(
            f"pictures are {kind} {list(pixels.shape)}; uint8 [frames, height, width, 3] is needed"
        )
