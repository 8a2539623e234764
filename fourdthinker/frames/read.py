"""Frames of a video file by presentation time."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from typing import Literal

import torch

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.frames.checks import policy_of, whole
from fourdthinker.frames.container import Source, name_of
from fourdthinker.frames.convert import CLIP_MEAN, CLIP_STD, Frames, Normal
from fourdthinker.frames.image_file import is_image
from fourdthinker.frames.images import image_as_video
from fourdthinker.frames.policy import FramePolicy
from fourdthinker.frames.pool import in_order, threads
from fourdthinker.frames.reading import Reading
from fourdthinker.frames.request import FrameSource, Request

TIMEOUT = 600.0  # seconds


def read_frames(
    source: FrameSource | Source,
    policy: FramePolicy | None = None,
    *,
    times: Sequence[float] | None = None,
    start: float | None = None,
    end: float | None = None,
    stream: int | None = None,
    device: str | torch.device = "cpu",
    out: Literal["uint8", "patches"] = "uint8",
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    dtype: torch.dtype = torch.float32,
    partial: bool = False,
    timeout: float | None = TIMEOUT,
) -> Frames:
    """Read the frames of a video that are shown at given times.

    All times are seconds of the file's presentation clock, whose first frame need not be at 0.

    Args:
        source: a file, its bytes, or a FrameSource.
        policy: which frames, and their size; None: `FramePolicy()`. Pictures are turned upright and resized
            by it; with `times`, no policy and out="uint8" they keep their size.
        times: the times wanted, in any order, at most 1 microsecond outside the clip; None: those of the
            policy between `start` and `end`.
        start: where the clip begins; None: with the file. One outside the file is moved to its bound.
        end: where the clip ends; None: with the file. One outside the file is moved to its bound.
        stream: index of the stream in the container; None: the best video stream.
        device: "cpu", or a CUDA device to decode (where NVDEC can) and to resize on.
        out: "uint8" pixels [T, H, W, 3], or "patches" with grid_thw, normalised by `mean` and `std`.
        mean: of each channel; a value of a patch becomes (value / 255 - mean) / std.
        std: of each channel.
        dtype: of patches: float32, float16 or bfloat16.
        partial: where the file is damaged or cut off, return the frames before that, and the reason in
            `fault`.
        timeout: seconds that the reading may take; None: no limit.

    Returns:
        The frames, in the order of the times.

    Raises:
        VideoError: names file, time and cause: an empty, missing or unreadable file, no video stream, no
            frames, a time outside the clip, damaged or missing data that a wanted frame needs, as far as the
            decoder tells: damage within a picture that FFmpeg repairs without a word is not seen.
        ConfigError: arguments that are wrong whatever the file.
    """
    request = _request(
        source, policy, times, start, end, stream, device, out, Normal(14, mean, std, dtype), partial, timeout
    )
    with closing(_batches(request, None)) as batches:
        return next(batches)


def iterate_frames(
    source: FrameSource | Source,
    policy: FramePolicy | None = None,
    *,
    times: Sequence[float] | None = None,
    start: float | None = None,
    end: float | None = None,
    stream: int | None = None,
    device: str | torch.device = "cpu",
    out: Literal["uint8", "patches"] = "uint8",
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    dtype: torch.dtype = torch.float32,
    batch: int = 64,
) -> Iterator[Frames]:
    """The same frames as `read_frames`, a few at a time, in memory that does not depend on their number.

    Args:
        source: as for `read_frames`.
        policy: as for `read_frames`.
        times: as for `read_frames`, but they must not decrease.
        start: as for `read_frames`.
        end: as for `read_frames`.
        stream: as for `read_frames`.
        device: as for `read_frames`.
        out: as for `read_frames`.
        mean: as for `read_frames`.
        std: as for `read_frames`.
        dtype: as for `read_frames`.
        batch: frames at a time; for patches an even number, whole temporal patches.

    Returns:
        An iterator; the file stays open until it is used up or closed.

    Raises:
        VideoError: as `read_frames`, when the fault is met.
        ConfigError: as `read_frames`, and for times that decrease.
    """
    remedy = "give a number of frames above 0, even for patches"
    whole("batch", batch, 1, remedy)
    if out == "patches" and batch % 2:
        raise ConfigError(f"batch is {batch}; {remedy}")
    request = _request(
        source, policy, times, start, end, stream, device, out, Normal(14, mean, std, dtype), False, None
    )
    if any(b < a for a, b in pairwise(request.times or ())):
        raise ConfigError("iterate_frames: the times must not decrease; sort them, or use read_frames")
    yield from _batches(request, batch)


def read_many(
    sources: Iterable[FrameSource | Source],
    policy: FramePolicy | None = None,
    *,
    workers: int | None = None,
    device: str | torch.device = "cpu",
    out: Literal["uint8", "patches"] = "uint8",
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    dtype: torch.dtype = torch.float32,
    partial: bool = False,
    timeout: float | None = TIMEOUT,
) -> Iterator[Frames | VideoError]:
    """`read_frames` of each of many videos, in order, on a pool of threads.

    At most three times as many results as `workers` are in memory.

    Args:
        sources: videos as for `read_frames`; read as it goes, and may be endless.
        policy: as for `read_frames`.
        workers: files read at the same time; None: one for each processor.
        device: as for `read_frames`.
        out: as for `read_frames`.
        mean: as for `read_frames`.
        std: as for `read_frames`.
        dtype: as for `read_frames`.
        partial: as for `read_frames`.
        timeout: seconds that each file may take; None: no limit.

    Returns:
        An iterator over the frames of each video, or over its error where it cannot be read.

    Raises:
        ConfigError: arguments that are wrong whatever the files.
    """
    if isinstance(sources, (str, bytes, os.PathLike, FrameSource)) or not isinstance(sources, Iterable):
        raise ConfigError(f"sources is of type {type(sources).__name__}; give a list of videos")
    if workers is not None:
        whole("workers", workers, 1, "give a number of threads above 0")

    def read(source: FrameSource | Source) -> Frames | VideoError:
        try:
            return read_frames(
                source,
                policy,
                device=device,
                out=out,
                mean=mean,
                std=std,
                dtype=dtype,
                partial=partial,
                timeout=timeout,
            )
        except VideoError as error:
            return error

    yield from in_order(read, sources, workers or os.cpu_count() or 1)


def _batches(request: Request, batch: int | None) -> Generator[Frames, None, None]:
    if is_image(request.source.media):
        yield from image_as_video(request, batch)
    else:
        yield from Reading(request).batches(batch)


def _request(
    source: FrameSource | Source,
    policy: FramePolicy | None,
    times: Sequence[float] | None,
    start: float | None,
    end: float | None,
    stream: int | None,
    device: str | torch.device,
    out: str,
    normal: Normal,
    partial: bool,
    timeout: float | None,
) -> Request:
    if not isinstance(source, FrameSource):
        source = FrameSource(source, stream=stream)
    elif stream is not None:
        raise ConfigError("give the stream in the FrameSource, or to the call, not both")
    keep_size = policy is None and times is not None and out == "uint8"
    policy = policy_of(policy)
    normal = Normal(policy.factor // 2, normal.mean, normal.std, normal.dtype)
    name = name_of(source.media)
    return Request(
        source, name, policy, keep_size, times, start, end, out, device, normal, partial, timeout, threads()
    )
