"""Decoded pictures made into what was asked for, a few at a time, while others are decoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fourdthinker.errors import VideoError
from fourdthinker.frames import decord_reader
from fourdthinker.frames.attempts import FAILURES, LayoutChanged
from fourdthinker.frames.codecs import codec_of
from fourdthinker.frames.colour import REPEAT, Layout, Planes, planes_of
from fourdthinker.frames.container import Deadline, aspect_of
from fourdthinker.frames.convert import convert as convert_planes
from fourdthinker.frames.convert import resize
from fourdthinker.frames.native import native
from fourdthinker.frames.orientation import Orientation, orientation_of
from fourdthinker.frames.request import Request
from fourdthinker.frames.sink import Damaged, Disordered, Missing
from fourdthinker.frames.timeline import Timeline

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream

CHUNK = 4  # frames held at full size until they are converted; even, for patches are cut from two frames


@dataclass
class PlaneGroup:
    """Planes of some frames that are read in the same way. shape: height and width when upright."""

    frames: list[Planes]
    layout: Layout
    shape: tuple[int, int]
    orientation: Orientation
    last: bool = False


class Converter:
    """Of the pictures of one reading. size, aspect, decoder: known from the first picture on."""

    def __init__(self, request: Request, deadline: Deadline) -> None:
        self.request, self.deadline = request, deadline
        self.device = torch.device(request.device)
        self.size: tuple[int, int] | None = None
        self.aspect = 1.0
        self.decoder = ""

    def fit(self, frame: av.VideoFrame) -> tuple[Orientation, tuple[int, int], tuple[int, int]]:
        """(what makes a frame upright, its size then, the size it is converted to)."""
        orientation = orientation_of(frame, self.request.name)
        crossed = orientation.transposed
        shape = (frame.width, frame.height) if crossed else (frame.height, frame.width)
        return orientation, shape, self.target(shape, 1.0 / self.aspect if crossed else self.aspect)

    def target(self, shape: tuple[int, int], aspect: float) -> tuple[int, int]:
        """The size that upright pictures of this size, with pixels of this aspect, are converted to."""
        if self.request.keep_size:
            if self.size not in (None, shape):
                raise VideoError(
                    f"{self.request.name}: the picture size changes within the clip; give a policy to resize "
                    "by"
                )
            self.size = shape
        elif self.size is None:
            self.size = self.request.policy.size(shape[0], max(1, round(shape[1] * aspect)))
        return self.size

    def converted(
        self, pictures: Iterator[av.VideoFrame], video: VideoStream, straight: bool, threads: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Decoded pictures as they are asked for, converted while others are decoded.

        Args:
            pictures: frames of one stream, in the order wanted.
            video: the stream.
            straight: make normalised patches in the same pass, instead of uint8 pictures.
            threads: of the native code.

        Yields:
            (number of frames n, uint8 [n, h, w, 3] or patches), in order.

        Raises:
            LayoutChanged: with `straight`, pictures change their size or layout.
        """
        groups = self.groups(pictures, video, straight)
        if threads == 1 or self.device.type == "cuda":  # there, the caller's stream orders all work
            for group in groups:
                yield len(group.frames), self.convert(group, straight, 1)
            return
        waiting: deque[tuple[int, Future[Tensor]]] = deque()
        fault: Exception | None = None
        with ThreadPoolExecutor(1) as pool:
            try:
                for group in groups:
                    if len(waiting) == 2:
                        count, future = waiting.popleft()
                        yield count, future.result()
                    share = threads if group.last else 1
                    waiting.append((len(group.frames), pool.submit(self.convert, group, straight, share)))
            except FAILURES as error:
                fault = error
            for count, future in waiting:
                yield count, future.result()
        if fault is not None:
            raise fault

    def groups(
        self, pictures: Iterator[av.VideoFrame], video: VideoStream, straight: bool
    ) -> Iterator[PlaneGroup]:
        """Runs of at most CHUNK frames of one layout."""
        module = native()
        name = video.codec_context.name
        known = codec_of(name)
        codec = f"{'Pillow' if known.compose else 'libavcodec'} {name}"
        codec += "" if module else ", RGB by swscale and Pillow"
        siting = known.siting(video.codec_context.extradata or b"")
        group: PlaneGroup | None = None
        fault: Exception | None = None
        try:
            for frame in pictures:
                planes, layout, remade = planes_of(frame, siting, rgb=module is None)
                if not self.decoder:
                    self.decoder = codec + (f", {remade} by swscale" if remade and module else "")
                if self.request.keep_size:
                    layout = replace(layout, siting=REPEAT)
                if self.size is None:
                    self.aspect = aspect_of(video)
                orientation, shape, _ = self.fit(frame)
                alike = group is not None and (layout, shape, orientation) == (
                    group.layout,
                    group.shape,
                    group.orientation,
                )
                if group is not None and (not alike or len(group.frames) == CHUNK):
                    if straight and len(group.frames) % 2:
                        raise LayoutChanged
                    yield group
                    group = None
                if group is None:
                    group = PlaneGroup([], layout, shape, orientation)
                group.frames.append(planes)
        except (Damaged, Missing, Disordered) as error:
            fault = error
        if group is not None:
            yield replace(group, last=True)
        if fault is not None:
            raise fault

    def by_decord(
        self, timeline: Timeline, chosen: Sequence[int], codec: str, aspect: float, threads: int
    ) -> Iterator[tuple[int, Tensor]]:
        """As `converted`, with frames of decord, of which the k-th is the k-th of the timeline.

        Args:
            timeline: of the stream.
            chosen: indices of pictures in the order of display, increasing.
            codec: FFmpeg's name of the decoder.
            aspect: width to height of a pixel.
            threads: of the decoder.

        Yields:
            (number of frames n, uint8 [n, h, w, 3]), in order.

        Raises:
            ConfigError: decord is not installed or cannot do what is asked.
            VideoError: decord fails or has other pictures, or the file lacks one that others may refer to.
        """
        source, self.decoder = self.request.source, "decord"
        if timeline.times_from != "container":
            raise VideoError(
                f"{self.request.name}: reader='decord' knows a picture by the time that the file gives it, "
                "and these times are missing or wrong; use reader='auto'"
            )
        if codec_of(codec).compose:
            raise VideoError(
                f"{self.request.name}: reader='decord' composes pictures of {codec} otherwise than they are "
                "shown; use reader='auto'"
            )
        if any(timeline.lacking(timeline.pts[index]) is not None for index in chosen):
            raise VideoError(f"{self.request.name}: a picture is missing; the file is damaged")
        orientation, rest = decord_reader.orientation_left(source.media, self.deadline)
        aspect = 1.0 / aspect if orientation.transposed else aspect
        for pixels in decord_reader.pictures(
            source.media, source.stream, self.request.name, timeline, chosen, CHUNK, threads, rest
        ):
            self.deadline.check()
            size = self.target(pixels.shape[1:3], aspect)
            yield len(pixels), resize(pixels, size, self.request.policy.resample)

    def convert(self, group: PlaneGroup, straight: bool, threads: int) -> Tensor:
        """Pictures of a group of decoded frames, made on the host from their planes.

        Args:
            group: frames of one layout and orientation; the size to make must be known.
            straight: whether normalised patches are made in the same pass, instead of uint8 pictures.
            threads: of the native code.
        """
        if self.size is None:
            raise AssertionError("a group of frames without a size")
        request = self.request
        return convert_planes(
            group.frames,
            group.layout,
            self.size,
            resample=request.policy.resample,
            orientation=group.orientation,
            normal=request.normal if straight else None,
            threads=threads,
            device=self.device,
        )
