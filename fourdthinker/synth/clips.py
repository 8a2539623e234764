"""Clips of a video: frames read once, cut at shots, split, checked, and kept while stages work on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourdthinker.files import atomic_writer
from fourdthinker.frames import FramePolicy, Probe, iterate_frames
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.settings import SynthSettings
from fourdthinker.synth.shots import CutFinder, thumbnail

_NEAR = 1e-6
_BATCH = 16
_BLACK, _FLAT = 14.0, 6.0  # mean and deviation of brightness, 0 to 255
_STILL = 0.35  # levels that a block of the picture changes, from one frame to the next, where nothing moves
_MOVING = 0.2  # share of the frames that must change more: where few a second are shown, many are repeated
FRAME_QUALITY = 95


class RejectError(Exception):
    """The content of an item is of no use, for a reason that trying once more does not change."""


@dataclass(frozen=True)
class Clip:
    """One clip and its frames.

    Attributes:
        item: its id: source, and begin and end in milliseconds.
        start, end: in seconds of the source.
        times: [T] float64, when each frame is shown, in seconds since `start`.
        pixels: [T, H, W, 3] uint8.
        chosen: indices of the frames that records name, by the frame policy.
    """

    item: str
    start: float
    end: float
    times: NDArray[np.float64]
    pixels: NDArray[np.uint8]
    chosen: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.start


@dataclass(frozen=True)
class Bad:
    """A shot that makes no clip, and why."""

    item: str
    reason: str


def windows(found: Probe, source: Source, settings: SynthSettings) -> list[tuple[float, float]]:
    """Parts of a video that are read apart, so that processes can share a long one.

    Args:
        found: what the file holds.
        source: which part of it is wanted.
        settings: window_seconds and min_seconds.

    Returns:
        (start, end) in seconds, one after the other.

    Raises:
        RejectError: one picture, pictures that are too large, or less than min_seconds.
    """
    if found.frames < 2:
        raise RejectError("one picture")
    if found.size[0] * found.size[1] > settings.max_source_pixels:
        raise RejectError(f"pictures of more than {settings.max_source_pixels} pixels")
    start = found.begin if source.start is None else max(found.begin, source.start)
    end = found.end if source.end is None else min(found.end, source.end)
    if end - start < settings.min_seconds - _NEAR:
        raise RejectError(f"shorter than {settings.min_seconds:g} s")
    count = max(1, int((end - start) // settings.window_seconds))
    edges = np.linspace(start, end, count + 1) if count > 1 else np.array([start, end])
    return [(float(a), float(b)) for a, b in pairwise(edges)]


def read_clips(source: Source, window: tuple[float, float], settings: SynthSettings) -> Iterator[Clip | Bad]:
    """Read a part of a video once and cut it into clips, with at most one long clip in memory.

    Args:
        source: the video; its `path` is a file.
        window: the part, in seconds.
        settings: of the ingest stage.

    Yields:
        Clips, and what makes none, in the order of time.

    Raises:
        VideoError: the video cannot be read, or not from some time on.
    """
    most = round(settings.max_seconds * settings.analysis_fps)
    least = settings.shortest
    cutter = CutFinder(settings.cut_histogram, settings.cut_difference)
    held: list[tuple[float, NDArray[np.uint8]]] = []
    for batch in iterate_frames(source.path, _policy(settings), start=window[0], end=window[1], batch=_BATCH):
        pixels = np.asarray(batch.pixels)
        for time, frame in zip(batch.seconds, pixels, strict=True):
            if cutter.add(frame):
                yield from _split(source, held[:-1], settings)
                held = held[-1:]
            held.append((time, frame.copy()))
            if len(held) >= most + least + 1:  # the last frame may be the first one of another shot
                yield _clip(source, held[:most], settings)
                held = held[most:]
    if cutter.pending():
        held.pop()
    yield from _split(source, held, settings)


def read_clip(source: Source, item: str, start: float, end: float, settings: SynthSettings) -> Clip:
    """Read one clip that `read_clips` has found before: the same frames.

    Args:
        source: the video.
        item: the clip's id.
        start: of the clip, in seconds of the source.
        end: of the clip.
        settings: of the ingest stage.

    Returns:
        The clip.

    Raises:
        VideoError: the video cannot be read.
    """
    count = round((end - start) * settings.analysis_fps)
    times = [start + k / settings.analysis_fps for k in range(count)]
    batches = iterate_frames(source.path, _policy(settings), times=times, batch=_BATCH)
    held = [
        (time, frame)
        for batch in batches
        for time, frame in zip(batch.seconds, np.asarray(batch.pixels), strict=True)
    ]
    clip = _clip(source, held, settings)
    if isinstance(clip, Bad) or clip.item != item:
        raise RejectError("the video is not what it was when it was cut")
    return clip


def _policy(settings: SynthSettings) -> FramePolicy:
    return FramePolicy(
        fps=settings.analysis_fps,
        max_frames=1 << 24,
        max_pixels=settings.analysis_pixels,
        min_pixels=4,
        factor=2,
    )


def _split(
    source: Source, held: list[tuple[float, NDArray[np.uint8]]], settings: SynthSettings
) -> Iterator[Clip | Bad]:
    """What is left of a shot, in one clip or, where it is too long for that, in two."""
    if not held:
        return
    seconds = len(held) / settings.analysis_fps
    if seconds < settings.min_seconds - _NEAR:
        yield Bad(_name(source, held, settings), f"shot shorter than {settings.min_seconds:g} s")
    elif seconds > settings.max_seconds + _NEAR:
        half = len(held) // 2
        yield _clip(source, held[:half], settings)
        yield _clip(source, held[half:], settings)
    else:
        yield _clip(source, held, settings)


def _name(source: Source, held: list[tuple[float, NDArray[np.uint8]]], settings: SynthSettings) -> str:
    start, end = held[0][0], held[-1][0] + 1 / settings.analysis_fps
    return f"{source.name}-{round(1000 * start):07d}-{round(1000 * end):07d}"


def _clip(source: Source, held: list[tuple[float, NDArray[np.uint8]]], settings: SynthSettings) -> Clip | Bad:
    name = _name(source, held, settings)
    start = round(held[0][0], 6)
    small = np.stack([thumbnail(frame) for _, frame in held])
    if small.mean() < _BLACK and small.std() < _FLAT:
        return Bad(name, "black")
    changes = np.abs(np.diff(small, axis=0)).max((1, 2, 3))
    if np.mean(changes >= _STILL) < _MOVING:
        return Bad(name, "still: the pictures do not change")
    # Rounded, so that a clip that is read by itself has the very same times.
    times = np.round(np.array([time for time, _ in held]) - start, 6)
    end = round(held[-1][0] + 1 / settings.analysis_fps, 6)
    wanted = settings.frames.times(len(held) / settings.analysis_fps)
    chosen = np.unique(np.searchsorted(times, np.array(wanted) + _NEAR, side="right") - 1)
    return Clip(
        name,
        start,
        end,
        times,
        np.stack([frame for _, frame in held]),
        tuple(int(k) for k in chosen),
    )


def frame_path(item: str, number: int) -> str:
    """Where a frame of a clip is written, relative to the output folder."""
    return f"media/{item}/frame-{number:04d}.jpg"


def write_frames(clip: Clip, out: Path) -> list[str]:
    """Write the frames that records name, as JPEG files.

    Args:
        clip: of which.
        out: the output folder.

    Returns:
        Their paths, relative to it.
    """
    (out / "media" / clip.item).mkdir(parents=True, exist_ok=True)
    paths = []
    for number, index in enumerate(clip.chosen):
        paths.append(frame_path(clip.item, number))
        write_jpeg(out / paths[-1], clip.pixels[index])
    return paths


def write_jpeg(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a JPEG file at once; it is not waited for the disk, since it can be made once more."""
    from PIL import Image

    with atomic_writer(path, sync=False) as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=FRAME_QUALITY)
