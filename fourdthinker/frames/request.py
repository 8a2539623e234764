"""What was asked for: a source, and which of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.frames.checks import (
    above_zero,
    device_of,
    frame_rate,
    number,
    numbers,
    out_of,
    path_of,
    whole,
)
from fourdthinker.frames.container import Source
from fourdthinker.frames.convert import Normal
from fourdthinker.frames.policy import FASTEST, NEAR, FramePolicy
from fourdthinker.frames.timeline import Timeline


@dataclass(frozen=True)
class FrameSource:
    """A video: a file or its bytes.

    Attributes:
        media: a path, or the bytes of a file.
        stream: index of the stream in the container; None: the best video stream.
        reader: "auto", or "decord" to decode with that package.
        fps: pictures a second of a stream that has no times, such as raw H.264. Times that a stream has are
            then ignored: picture k is shown at k / fps.
    """

    media: Source
    stream: int | None = field(default=None, kw_only=True)
    reader: Literal["auto", "decord"] = field(default="auto", kw_only=True)
    fps: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.media, bytes):
            path_of("source", self.media, "give a path, the bytes of a file, or a FrameSource")
        if self.stream is not None:
            remedy = "give the index of a stream in the container, or None for the best"
            whole("stream", self.stream, 0, remedy)
        if self.reader not in ("auto", "decord"):
            raise ConfigError(f"reader is {self.reader!r}; choose 'auto' or 'decord'")
        if self.fps is not None:
            remedy = f"give pictures a second above 0, at most {FASTEST:g}, or None for the file's own times"
            object.__setattr__(self, "fps", frame_rate(self.fps, remedy))


@dataclass(frozen=True)
class Request:
    """What was asked for; see `read_frames`. Checked when it is made, once for all functions that read."""

    source: FrameSource
    name: str
    policy: FramePolicy
    keep_size: bool
    times: Sequence[float] | None
    start: float | None
    end: float | None
    out: str
    device: str | torch.device
    normal: Normal
    partial: bool
    timeout: float | None
    threads: int

    def __post_init__(self) -> None:
        out_of(self.out)
        object.__setattr__(self, "device", device_of(self.device))
        if self.timeout is not None:
            remedy = "give seconds above 0, or None for no limit"
            above_zero("timeout", self.timeout, remedy, finite=False)
        if self.times is not None:
            if self.start is not None or self.end is not None:
                raise ConfigError("give times, or start and end, not both")
            times = numbers("times", self.times, "give finite seconds")
            if not times:
                raise ConfigError("times is empty; give at least one time")
            object.__setattr__(self, "times", times)
        for label in ("start", "end"):
            if getattr(self, label) is not None:
                object.__setattr__(self, label, number(label, getattr(self, label), "give seconds"))


def times_wanted(request: Request, timeline: Timeline) -> list[float]:
    """The times asked for, checked against what the file shows."""
    name, times, start, end = request.name, request.times, request.start, request.end
    first, last = timeline.begin[0], timeline.end
    span = f"the clip is shown from {first:.6g} to {last:.6g} s"
    if timeline.fault is not None:
        span += f"; at {timeline.fault[0]:.3f} s {timeline.fault[1]}"
    if times is not None:
        wanted = list(times)
        for t in wanted:
            beyond = request.partial and timeline.fault is not None and t > last
            if not beyond and not first - NEAR <= t <= last + NEAR:
                raise VideoError(f"{name}: no frame is shown at {t:.6g} s; {span}")
    else:
        low = first if start is None else max(first, start)
        high = last if end is None else min(last, end)
        if not low < high and not (low == high == first == last):
            raise VideoError(f"{name}: nothing lies between start {start} and end {end} s; {span}")
        wanted = request.policy.times(high - low, low)
    if timeline.fault is not None:
        fault_time, cause = timeline.fault
        sound = [t for t in wanted if t < fault_time - NEAR]
        cut = len(sound) < len(wanted) or (times is None and (end is None or end > fault_time + NEAR))
        if not sound or (cut and not request.partial):
            raise VideoError(f"{name}: at {fault_time:.3f} s {cause}")
        wanted = sound
    return wanted
