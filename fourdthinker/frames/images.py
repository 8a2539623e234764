"""Frame folders, lists of frame files and single pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.files import PICTURE_SUFFIXES, PathLike
from fourdthinker.frames.checks import device_of, frame_rate, numbers, out_of, path_of, policy_of
from fourdthinker.frames.convert import CLIP_MEAN, CLIP_STD, Frames, Normal, patchify, resize
from fourdthinker.frames.image_file import load_image, source_limit
from fourdthinker.frames.policy import FASTEST, FramePolicy, hold, rate
from fourdthinker.frames.request import Request, times_wanted
from fourdthinker.frames.timeline import Timeline


def read_images(
    paths: PathLike | Sequence[PathLike],
    policy: FramePolicy | None = None,
    *,
    out: Literal["uint8", "patches"] = "uint8",
    separate: bool = False,
    fps: float | None = None,
    seconds: Sequence[float] | None = None,
    device: str | torch.device = "cpu",
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    max_source_pixels: int | None = None,
) -> Frames:
    """Read a folder or a list of picture files, as the frames of a clip or as separate images.

    Pictures become upright 8-bit RGB (see `load_image`) and are resized by the policy. Of a file that holds
    several, such as a GIF, the first is taken.

    Args:
        paths: a folder, whose pictures are taken in the order of their names, one file, or a list of files.
        policy: which frames, of what size; None: `FramePolicy()`.
        out: "uint8" or "patches".
        separate: False: a clip, sampled by the policy like a video; all frames must have the size of the
            first. True: separate images, which are all taken; they may differ in size if `out` is "patches".
        fps: frame k of a clip is shown from k / fps seconds; None: from k / policy.fps, so that every frame
            is taken unless there are more than max_frames.
        seconds: when each frame of a clip is shown, increasing; used instead of `fps`.
        device: where the result is put.
        mean: of each channel; a value of a patch becomes (value / 255 - mean) / std.
        std: of each channel.
        max_source_pixels: bound on height * width of a picture in its file; None: the environment variable
            FOURDTHINKER_MAX_SOURCE_PIXELS, else 2**26. One picture at a time is in memory.

    Returns:
        The pictures, in the order of `paths` or of their names; `shown` says when each is shown, and
        `seconds` for which time it was chosen.

    Raises:
        VideoError: a file that cannot be read, or times or sizes that do not fit; names the file.
        ConfigError: an argument that is wrong whatever the files.
    """
    policy, device = policy_of(policy), device_of(device)
    out_of(out)
    if fps is not None:
        fps = frame_rate(fps, f"give pictures a second above 0, and at most {FASTEST:g}")
    if seconds is not None:
        seconds = numbers("seconds", seconds, "give one finite time for each picture")
    normal = Normal(policy.factor // 2, mean, std)
    files, limit = _files(paths), source_limit(max_source_pixels)
    if separate:
        times = shown = [0.0] * len(files)
        fps_used, per_grid = policy.fps, 0.0
        sized = [_sized(file, policy, limit) for file in files]
    else:
        begin, end = _presentation_times(files, policy, fps, seconds)
        times = policy.times(end - begin[0], begin[0])
        chosen = [hold(begin, t) for t in times]
        shown = [begin[i] for i in chosen]
        fps_used, per_grid = rate(times, policy)
        unique = _alike(files, sorted(set(chosen)), policy, limit)
        sized = [unique[i] for i in chosen]
    source = str(paths) if isinstance(paths, (str, os.PathLike)) else f"{files[0]} and {len(files) - 1} more"
    kind = "image" if separate else "video"
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
    options = asdict(normal)
    parts = (
        [patchify(s, separate=True, **options) for s in sized]
        if separate
        else [patchify(torch.cat(sized), **options)]
    )
    frames.patches = torch.cat([p for p, _ in parts]).to(device)
    frames.grid_thw = torch.cat([g for _, g in parts])
    return frames


def _sized(file: str, policy: FramePolicy, limit: int) -> Tensor:
    pixels = load_image(file, limit=limit)
    return resize(pixels[None], policy.size(*pixels.shape[:2]), policy.resample)


def _alike(files: Sequence[str], chosen: Sequence[int], policy: FramePolicy, limit: int) -> dict[int, Tensor]:
    """The pictures of these indices, resized, which must have the size of the first."""
    made: dict[int, Tensor] = {}
    first: tuple[int, ...] = ()
    for index in chosen:
        pixels = load_image(files[index], limit=limit)
        first = first or pixels.shape
        if pixels.shape != first:
            raise VideoError(
                f"{files[index]}: {pixels.shape[1]}x{pixels.shape[0]} pixels, in a clip whose first frame "
                f"has {first[1]}x{first[0]}; make all frames of a clip the same size"
            )
        made[index] = resize(pixels[None], policy.size(*first[:2]), policy.resample)
    return made


def image_as_video(request: Request, batch: int | None) -> Iterator[Frames]:
    """An image that was asked for as a video: a clip of one frame, shown at 0 s and for no time.

    Args:
        request: its source is a file for which `is_image` holds.
        batch: frames that are yielded together; None: all.

    Raises:
        VideoError: as `load_image`; a time other than 0, or another stream.
    """
    source, policy = request.source, request.policy
    if source.stream:
        raise VideoError(f"{request.name}: no stream {source.stream}; it is a picture")
    times = times_wanted(request, Timeline(Fraction(1), [0], 0.0))
    pixels = load_image(source.media)
    size = pixels.shape[:2] if request.keep_size else policy.size(*pixels.shape[:2])
    picture = resize(pixels[None], (size[0], size[1]), policy.resample)
    fps, per_grid = rate(times, policy)
    step = batch or len(times)
    for begin in range(0, len(times), step):
        part = times[begin : begin + step]
        frames = Frames(seconds=part, shown=[0.0] * len(part), fps=fps, source=request.name)
        frames.seconds_per_grid, frames.decoder = per_grid, "Pillow"
        clip = picture.expand(len(part), -1, -1, -1)
        if request.out == "uint8":
            frames.pixels = clip.contiguous().to(request.device)
        else:
            patches, frames.grid_thw = patchify(clip, **vars(request.normal))
            frames.patches = patches.to(request.device)
        yield frames


def _presentation_times(
    files: Sequence[str], policy: FramePolicy, fps: float | None, seconds: Sequence[float] | None
) -> tuple[list[float], float]:
    """(when each file of a clip is shown, when the last one ends), in seconds."""
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
        files = [path_of(f"paths[{index}]", path, remedy) for index, path in enumerate(paths)]
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
