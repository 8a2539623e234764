"""Frames of a video file by presentation time, decoded through PyAV."""

from __future__ import annotations

import errno
import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import av
import av.error
import numpy as np
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from torch import Tensor

from fourdthinker._frames.images import NEAR, _check_out, hold, rate
from fourdthinker._frames.pixels import CLIP_MEAN, CLIP_STD, Frames, patchify, resize
from fourdthinker._frames.policy import FramePolicy
from fourdthinker._frames.timeline import Timeline, build_timeline, decoded_timeline
from fourdthinker.errors import ConfigError, VideoError

CHUNK = 8  # frames held at full size at a time
SEEK_PACKETS = 24  # decoding through this many packets is cheaper than a seek
# Containers that hold one file's media and refer to nothing else (playlists and scripts are not opened).
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,ogg,asf,ivf,gif,mxf,wav,mp3,"
    "aac,flac,h264,hevc,m4v,av1,obu,yuv4mpegpipe,rm,nut,image2pipe,png_pipe,jpeg_pipe,webp_pipe"
)

logger = logging.getLogger(__name__)


class _Missing(Exception):
    """The decoder did not show a frame that the container lists; holds its time."""


class _Damaged(Exception):
    """The decoder cannot make a frame of the data at `seconds`."""

    def __init__(self, cause: str, seconds: float) -> None:
        super().__init__(cause)
        self.seconds = seconds


def read_frames(
    source: str | os.PathLike[str] | bytes,
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
) -> Frames:
    """Read the frames of a video that are shown at given times.

    source: a file, or its bytes. All times are seconds of the file's presentation clock, whose first frame
    need not be at 0. times: the times wanted, in any order, at most 1 microsecond outside the clip; without
    it, those of the policy between start and end (default: all of the clip; both are clipped to it).
    Pictures are turned upright and resized by the policy (default: FramePolicy()); with times and no
    policy, and out="uint8", they keep their size. stream: index of the stream in the container; default the
    best video stream. out: "uint8" pixels [T, H, W, 3], or "patches" with grid_thw, normalised with
    mean and std. Decoded on the host, moved to device.

    Raises VideoError naming file, time and cause: an empty, missing or unreadable file, no video stream, no
    frames, a time outside the clip, damaged or missing data before the last frame wanted. Nothing is
    concealed.
    """
    _check_out(out)
    if times is not None and (start is not None or end is not None):
        raise ConfigError("give times, or start and end, not both")
    if times is not None and not len(times):
        raise ConfigError("times is empty; give at least one time")
    keep_size = policy is None and times is not None and out == "uint8"
    policy = policy or FramePolicy()
    name = "<bytes>" if isinstance(source, bytes) else os.path.abspath(os.fspath(source))
    threads = torch.get_num_threads()
    with _opened(source, name, stream, threads) as (container, video):
        listed = build_timeline(container, video, name)
    request = _Request(source, name, stream, policy, keep_size, times, start, end, out, device, mean, std)
    if listed is not None:
        try:
            return _read(request, listed)
        except _Missing:  # packets that show nothing (VP8's hidden frames, MPEG-4's "not coded" ones)
            logger.info("%s: packets without a frame; its frames are counted by decoding", name)
    with _opened(source, name, stream, 1) as (container, video):
        timeline = decoded_timeline(container, video, name, listed)
    try:
        return _read(request, timeline)
    except _Missing as missing:
        raise VideoError(
            f"{name}: the frame at {missing} s cannot be decoded; the file is damaged"
        ) from missing


@dataclass(frozen=True)
class _Request:
    source: str | os.PathLike[str] | bytes
    name: str
    stream: int | None
    policy: FramePolicy
    keep_size: bool
    times: Sequence[float] | None
    start: float | None
    end: float | None
    out: str
    device: str | torch.device
    mean: Sequence[float]
    std: Sequence[float]


def _read(request: _Request, timeline: Timeline) -> Frames:
    name, policy, keep_size = request.name, request.policy, request.keep_size
    wanted = _wanted(request, timeline)
    chosen = [hold(timeline.begin, t) for t in wanted]
    order = sorted(set(chosen))
    place = {index: k for k, index in enumerate(order)}
    size: tuple[int, int] | None = None
    sized: list[Tensor] = []
    full: list[np.ndarray] = []

    def flush() -> None:
        if full:
            pixels = np.stack(full)
            sized.append(resize(pixels, size or pixels.shape[1:3], policy.resample))
            full.clear()

    for picture, aspect in _pictures(request, timeline, [timeline.pts[i] for i in order]):
        if size is None and not keep_size:
            size = policy.size(picture.shape[0], max(1, round(picture.shape[1] * aspect)))
        if full and full[0].shape != picture.shape:
            if keep_size:
                raise VideoError(
                    f"{name}: the picture size changes within the clip; give a policy to resize by"
                )
            flush()
        full.append(picture)
        if len(full) == CHUNK:
            flush()
    flush()
    pixels = torch.cat(sized)[[place[index] for index in chosen]]
    fps, per_grid = rate(wanted, policy)
    frames = Frames(
        seconds=wanted,
        shown=[timeline.begin[index] for index in chosen],
        fps=fps,
        source=name,
        seconds_per_grid=per_grid,
    )
    if request.out == "uint8":
        frames.pixels = pixels.to(request.device)
    else:
        patches, frames.grid_thw = patchify(
            pixels, patch=policy.factor // 2, mean=request.mean, std=request.std
        )
        frames.patches = patches.to(request.device)
    return frames


def _wanted(request: _Request, timeline: Timeline) -> list[float]:
    name, times, start, end = request.name, request.times, request.start, request.end
    first, last = timeline.begin[0], timeline.end
    span = f"the clip is shown from {first:.6g} to {last:.6g} s"
    if timeline.fault is not None:
        span += f"; at {timeline.fault[0]:.3f} s {timeline.fault[1]}"
    if times is not None:
        wanted = [float(t) for t in times]
        for t in wanted:
            if not first - NEAR <= t <= last + NEAR:
                raise VideoError(f"{name}: no frame is shown at {t:.6g} s; {span}")
        needed = max(wanted)
    else:
        low = first if start is None else max(first, start)
        high, needed = (last, math.inf) if end is None else (min(last, end), end)
        if not low < high and not (low == high == first == last):
            raise VideoError(f"{name}: nothing lies between start {start} and end {end} s; {span}")
        wanted = request.policy.times(high - low, low)
    if timeline.fault is not None and needed > timeline.fault[0] + NEAR:
        raise VideoError(f"{name}: at {timeline.fault[0]:.3f} s {timeline.fault[1]}")
    return wanted


@contextmanager
def _opened(
    source: str | os.PathLike[str] | bytes, name: str, stream: int | None, threads: int
) -> Iterator[tuple[InputContainer, VideoStream]]:
    size = (
        len(source) if isinstance(source, bytes) else os.path.getsize(name) if os.path.isfile(name) else None
    )
    if size is None:
        raise VideoError(f"{name}: {'is a folder, not a video' if os.path.isdir(name) else 'no such file'}")
    if size == 0:
        raise VideoError(f"{name}: the file is empty (0 bytes)")
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        # Titles and the like are not read here, and many files hold them in another encoding than UTF-8.
        container = av.open(
            io.BytesIO(source) if isinstance(source, bytes) else name,
            options=options,
            metadata_errors="replace",
        )
    except av.error.FFmpegError as error:
        cause = "its type is not one of those read here" if error.errno == errno.EINVAL else error.strerror
        raise VideoError(
            f"{name}: not a video that can be opened ({cause}); it may be cut off, or no video at all"
        ) from error
    with container:
        video = _stream(container, stream, name)
        context = video.codec_context
        if context is None:
            raise VideoError(f"{name}: no decoder for the codec of stream {video.index}; convert it to H.264")
        if threads > 1:
            video.thread_type = "AUTO"
            context.thread_count = threads
        else:
            context.thread_count = 1
        yield container, video


def _stream(container: InputContainer, index: int | None, name: str) -> VideoStream:
    covers = av.stream.Disposition.attached_pic
    videos = {s.index: s for s in container.streams.video if not s.disposition & covers}
    if not videos:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
        raise VideoError(f"{name}: no video stream (streams: {kinds})")
    if index is None:
        best = container.streams.best("video")
        return videos.get(best.index if best is not None else -1, next(iter(videos.values())))
    if index not in videos:
        known = ", ".join(str(i) for i in videos)
        raise VideoError(f"{name}: stream {index} is no video stream; video streams are {known}")
    return videos[index]


def _pictures(
    request: _Request, timeline: Timeline, wanted: Sequence[int]
) -> Iterator[tuple[np.ndarray, float]]:
    """The frames with these stamps, increasing, as upright RGB, with the aspect ratio of their pixels."""
    done = 0
    # Threads report a fault late, or before good frames. A second reading without them names its time, or
    # finds that it lies behind the last frame wanted.
    for threads in dict.fromkeys((torch.get_num_threads(), 1)):
        try:
            with _opened(request.source, request.name, request.stream, threads) as (container, video):
                for frame in _decode(container, video, timeline, wanted[done:]):
                    yield _upright(frame, video)
                    done += 1
            return
        except _Damaged as damage:
            if threads == 1:
                raise VideoError(
                    f"{request.name}: the data at {damage.seconds:.3f} s cannot be decoded ({damage}); the "
                    "file is damaged. Replace it, or ask for times before that"
                ) from damage


def _decode(
    container: InputContainer, video: VideoStream, timeline: Timeline, wanted: Sequence[int]
) -> Iterator[av.VideoFrame]:
    pending = list(reversed(wanted))
    position, landed = 0, timeline.pts[0]
    packets = container.demux(video)
    while pending:
        key = timeline.key_before(pending[-1])
        if key is not None and timeline.order[key] - position > SEEK_PACKETS:
            container.seek(key, stream=video)
            packets, landed, position = container.demux(video), key, timeline.order[key]
        packet = next(packets, None)
        if packet is None:
            raise _Missing(timeline.seconds(pending[-1]))
        if packet.pts is not None:
            position = max(position, timeline.order.get(packet.pts, 0))
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            raise _Damaged(
                error.strerror, timeline.seconds(packet.pts or packet.dts or pending[-1])
            ) from error
        for frame in frames:
            if not pending or frame.pts is None or frame.pts < landed:
                continue  # shown before the keyframe that decoding began at: may lack what it refers to
            if frame.is_corrupt and frame.pts <= pending[0]:
                raise _Damaged("a frame is incomplete", timeline.seconds(frame.pts))
            if frame.pts > pending[-1]:
                raise _Missing(timeline.seconds(pending[-1]))
            if frame.pts == pending[-1]:
                pending.pop()
                yield frame


def _upright(frame: av.VideoFrame, video: VideoStream) -> tuple[np.ndarray, float]:
    pixels = frame.to_ndarray(format="rgb24")
    aspect = float(video.sample_aspect_ratio or 1) or 1.0
    turns = round(frame.rotation / 90) % 4
    if turns % 2:
        aspect = 1.0 / aspect
    return (np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels), aspect
