"""Frame folders, lists of frame files and single pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.files import PICTURE_SUFFIXES, PathLike
from fourdthinker.frames.checks import above_zero, device_of, numbers, out_of, path_of, policy_of
from fourdthinker.frames.convert import CLIP_MEAN, CLIP_STD, Frames, Normal, patchify, resize
from fourdthinker.frames.policy import FramePolicy
from fourdthinker.frames.sampling import hold, rate

# Plain raster formats only: some others that Pillow knows start external programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def read_images(
    paths: PathLike | Sequence[PathLike],
    policy: FramePolicy | None = None,
    *,
    out: Literal["uint8", "patches"] = "uint8",
    stills: bool = False,
    fps: float | None = None,
    seconds: Sequence[float] | None = None,
    device: str | torch.device = "cpu",
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Frames:
    """Read a folder or a list of pictures as a clip, or (stills=True) as separate pictures.

    A clip is sampled by the policy like a video whose frame k is shown from seconds[k], or else from k/fps,
    or else from k/policy.fps (so that every frame counts unless there are more than max_frames). Stills are
    all taken. Pictures are turned upright, made RGB and resized by the policy (default: FramePolicy()). A
    clip has the size of its first picture; stills may differ in size when patches are asked for. mean, std:
    what patches are normalised with.

    Raises VideoError naming the file and the cause, ConfigError for arguments that are wrong whatever the
    files.
    """
    policy, device = policy_of(policy), device_of(device)
    out_of(out)
    if fps is not None:
        fps = above_zero("fps", fps, "give a finite number above 0")
    if seconds is not None:
        seconds = numbers("seconds", seconds, "give one finite time for each picture")
    normal = Normal(policy.factor // 2, mean, std)
    files = _files(paths)
    if stills:
        times = shown = [0.0] * len(files)
        fps_used, per_grid = policy.fps, 0.0
        arrays = [_load(file) for file in files]
        sized = [resize(a[None], policy.size(*a.shape[:2]), policy.resample) for a in arrays]
    else:
        begin, end = _clock(files, policy, fps, seconds)
        times = policy.times(end - begin[0], begin[0])
        chosen = [hold(begin, t) for t in times]
        shown = [begin[i] for i in chosen]
        fps_used, per_grid = rate(times, policy)
        cache = {i: _load(files[i]) for i in sorted(set(chosen))}
        first = cache[chosen[0]]
        for i, array in cache.items():
            if array.shape != first.shape:
                raise VideoError(
                    f"{files[i]}: {array.shape[1]}x{array.shape[0]} pixels, in a clip whose first frame has "
                    f"{first.shape[1]}x{first.shape[0]}; make all frames of a clip the same size"
                )
        size = policy.size(*first.shape[:2])
        unique = {i: resize(array[None], size, policy.resample) for i, array in cache.items()}
        sized = [unique[i] for i in chosen]
    source = str(paths) if isinstance(paths, (str, os.PathLike)) else f"{files[0]} and {len(files) - 1} more"
    kind = "image" if stills else "video"
    frames = Frames(
        seconds=times, shown=shown, fps=fps_used, source=source, seconds_per_grid=per_grid, kind=kind
    )
    if out == "uint8":
        if len({s.shape for s in sized}) > 1:
            sizes = sorted({f"{s.shape[2]}x{s.shape[1]}" for s in sized})
            raise VideoError(
                f"{source}: pictures of sizes {', '.join(sizes)} do not stack; ask for out='patches'"
            )
        frames.pixels = torch.cat(sized).to(device)
        return frames
    look = asdict(normal)
    parts = (
        [patchify(s, stills=True, **look) for s in sized] if stills else [patchify(torch.cat(sized), **look)]
    )
    frames.patches = torch.cat([p for p, _ in parts]).to(device)
    frames.grid_thw = torch.cat([g for _, g in parts])
    return frames


def _clock(
    files: Sequence[str], policy: FramePolicy, fps: float | None, seconds: Sequence[float] | None
) -> tuple[list[float], float]:
    step = 1.0 / (policy.fps if fps is None else fps)
    if seconds is None:
        return [k * step for k in range(len(files))], len(files) * step
    if len(seconds) != len(files) or any(b <= a for a, b in pairwise(seconds)):
        raise VideoError(
            f"{files[0]}: {len(seconds)} times for {len(files)} frames; give one time a frame, increasing"
        )
    last = seconds[-1] - seconds[-2] if len(seconds) > 1 else step
    return list(seconds), seconds[-1] + last


def _files(paths: PathLike | Sequence[PathLike]) -> list[str]:
    if not isinstance(paths, (str, os.PathLike)):
        remedy = "give a folder, a picture, or a list of pictures"
        if not isinstance(paths, Iterable):
            raise ConfigError(f"paths is of type {type(paths).__name__}; {remedy}")
        files = [path_of(f"paths[{place}]", path, remedy) for place, path in enumerate(paths)]
        if not files:
            raise VideoError("a clip of no frames: the list of frame files is empty")
        return files
    path = Path(paths)
    if not path.is_dir():
        return [str(path)]
    files = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
    if not files:
        raise VideoError(f"{path}: the folder holds no pictures ({' '.join(PICTURE_SUFFIXES)})")
    return files


def _load(file: str) -> np.ndarray:
    try:
        with Image.open(file, formats=FORMATS) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError as error:
        raise VideoError(f"{file}: no such file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        size = os.path.getsize(file) if os.path.isfile(file) else None
        cause = "the file is empty (0 bytes)" if size == 0 else f"not a readable picture ({error})"
        raise VideoError(f"{file}: {cause}; replace the file, or drop the record that names it") from error
