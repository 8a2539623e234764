"""One reading of a video: index, decoding, conversion, and what is tried when the first way fails."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fourdthinker.errors import VideoError
from fourdthinker.frames import decord_reader, index_cache
from fourdthinker.frames.codecs import codec_of
from fourdthinker.frames.colour import REPEAT, Layout, Planes, planes_of
from fourdthinker.frames.container import Deadline, aspect_of, opened
from fourdthinker.frames.convert import Frames, convert, patchify, resize
from fourdthinker.frames.decode import SeekFailed, frames_at, shares, single_packet
from fourdthinker.frames.gpu import read as gpu
from fourdthinker.frames.gpu.nvdec import NvdecError
from fourdthinker.frames.matroska import first_gap
from fourdthinker.frames.native import native
from fourdthinker.frames.orientation import Orientation, orientation_of
from fourdthinker.frames.request import Request, times_wanted
from fourdthinker.frames.sampling import hold, rate
from fourdthinker.frames.sink import Damaged, Missing
from fourdthinker.frames.threads import set_threads
from fourdthinker.frames.timeline import Held, Timeline, build_timeline, decoded_timeline

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream


CHUNK = 4  # frames held at full size until they are converted; even, for patches are cut from two frames
ROOM = 16 << 20  # bytes of packets kept from the reading of the index to the decoding
logger = logging.getLogger(__name__)


@dataclass
class _Group:
    """Planes of some frames that are read in the same way. shape: height and width when upright."""

    frames: list[Planes]
    layout: Layout
    shape: tuple[int, int]
    orientation: Orientation
    last: bool = False


class _Changed(Exception):
    """The pictures change their size or layout within a clip, which the way of reading does not allow."""


class Reading:
    """The state of one reading, over the attempts that it may take."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.deadline = Deadline(request.name, request.timeout)
        self.threads = request.threads
        self.timeline: Timeline | None = None
        self.listed: Timeline | None = None  # what packets say, where that was not enough
        self.gap: int | None = None  # where in the file data are missing
        self.held: list[av.Packet] | None = None
        self.kept = self.stale = False  # the timeline comes from the index_cache; that one was wrong
        self.quick = request.source.reader == "auto"  # opened without decoding the first pictures
        self.seek = True  # in the file, over what need not be read
        self.careful = False  # every packet is decoded in order
        self.counted = False  # the timeline comes from decoding
        self.straight = True  # the picture size stays: patches at once, several decoders
        self.wanted: list[float] = []
        self.done = 0  # of the times wanted, those handed out
        self.size: tuple[int, int] | None = None
        self.aspect = 1.0
        self.decoder = ""
        self.device = torch.device(request.device)
        self.on_gpu = self.device.type == "cuda"  # decoded by it

    def batches(self, batch: int | None) -> Generator[Frames, None, None]:
        """The frames, `batch` times of them at once, or all (None)."""
        source, name = self.request.source, self.request.name
        while True:
            with opened(source.media, source.stream, self.threads, self.deadline, quick=self.quick) as (
                container,
                video,
            ):
                unread = self.timeline is not None or self._index(container, video)
                if self.timeline is not None and (unread or self.held is not None):
                    try:
                        if self.on_gpu:
                            yield from gpu.emit(self, self.timeline, batch)
                        else:
                            yield from self._emit(container, video, self.timeline, batch)
                        return
                    except _Changed:
                        self.straight = False
                    except NvdecError as error:
                        gpu.say(str(error))
                        self.on_gpu = False
                    except (Damaged, Missing) as error:
                        self._next_attempt(error)
                elif self.timeline is None:
                    # Packets do not tell which frames are shown, or some show nothing.
                    self.careful = self.counted = True
            if self.counted and self.timeline is None:
                logger.info("%s: its frames are counted by decoding", name)
                with opened(source.media, source.stream, 1, self.deadline) as (container, video):
                    listed, partial, check = self.listed, self.request.partial, self.deadline.check
                    self.timeline = decoded_timeline(container, video, name, listed, partial, self.gap, check)

    def _next_attempt(self, error: Damaged | Missing) -> None:
        """What to try after an error, or VideoError when everything was tried."""
        name = self.request.name
        if self.kept:  # in case the file is not what the index says, in spite of its state
            self.timeline, self.kept, self.stale = None, False, True
        elif isinstance(error, SeekFailed) and self.seek:
            self.seek = False
        elif isinstance(error, Damaged):
            # Threads report a fault late, or before good frames. A second reading without them names its
            # time, or finds that it lies behind the last frame wanted.
            if self.threads == 1:
                raise VideoError(
                    f"{name}: the data at {error.seconds:.3f} s cannot be decoded ({error}); the file is "
                    "damaged. Replace it, or ask for times before that"
                ) from error
            self.threads = 1
        elif self.quick:
            self.quick = False
        elif self.counted:
            raise VideoError(
                f"{name}: the frame at {error.seconds:.3f} s cannot be decoded; the file is damaged"
            ) from error
        elif self.careful and self.threads > 1:  # threads may lose the error that says why
            self.threads = 1
        elif self.careful:
            self.listed, self.timeline, self.counted = self.timeline, None, True
        else:
            self.careful = True

    def _index(self, container: InputContainer, video: VideoStream) -> bool:
        """Find the timeline, if packets tell it. Whether the container still stands at its beginning."""
        media, name = self.request.source.media, self.request.name
        key = None if isinstance(media, bytes) or self.stale else index_cache.key_of(name, video.index)
        if key is not None:
            self.timeline = index_cache.load(key)
            if self.timeline is not None and self.timeline.base == video.time_base:
                self.kept = True
                return True
        held = Held(ROOM)
        self.gap = first_gap(media, name, self.deadline.check)
        self.timeline = build_timeline(container, video, name, held, self.gap, self.deadline.check)
        self.held = held.packets
        if key is not None and self.timeline is not None and key == index_cache.key_of(name, video.index):
            index_cache.store(key, self.timeline)
        return False

    def _emit(
        self, container: InputContainer, video: VideoStream, timeline: Timeline, batch: int | None
    ) -> Iterator[Frames]:
        request = self.request
        if not self.done:
            self.wanted = times_wanted(request, timeline)
        chosen = [hold(timeline.begin, t) for t in self.wanted[self.done :]]
        unique = sorted(set(chosen))
        decord = request.source.reader == "decord"
        straight = self.straight and request.out == "patches" and batch is None and chosen == unique
        straight = straight and not decord
        if decord:
            pieces = self._by_decord([timeline.begin[index] for index in unique], aspect_of(video))
        else:
            stamps = [timeline.pts[index] for index in unique]
            workers = 1 if self.careful or batch is not None or not self.straight else self.threads
            alone = not self.careful and single_packet(timeline, stamps, video.codec_context.name)
            set_threads(video, 1 if alone else self.threads)
            parts, rest = shares(timeline, stamps, video.codec_context.name, workers)
            if parts and self.device.type == "cpu":
                straight = straight and not any(len(part) % 2 for part in (parts if rest else parts[:-1]))
                pieces = self._side_by_side(container, video, timeline, parts, rest, straight)
            else:
                pieces = self._converted(self._frames(container, video, timeline, stamps), video, straight)
        step = len(chosen) if batch is None else batch
        ready: deque[tuple[int, Tensor]] = deque()
        low = high = 0  # `ready` holds the unique frames from low on and before high
        for begin in range(0, len(chosen), step):
            need = [bisect_left(unique, index) for index in chosen[begin : begin + step]]
            while ready and low + ready[0][0] <= min(need):
                low += ready.popleft()[0]
            fault = None
            try:
                while high <= max(need):
                    ready.append(next(pieces))
                    high += ready[-1][0]
            except (Damaged, Missing) as error:
                final = self.counted if isinstance(error, Missing) else self.threads == 1
                if not (request.partial and final and not self.kept and high):
                    raise
                fault = f"at {error.seconds:.3f} s the data cannot be decoded ({error})"
            keep = [k for k, place in enumerate(need) if place < high]
            if fault is None and request.partial and timeline.fault is not None and batch is None:
                fault = f"at {timeline.fault[0]:.3f} s {timeline.fault[1]}"
            frames = self.pack([need[k] - low for k in keep], [piece for _, piece in ready], straight)
            frames.seconds = [self.wanted[self.done + k] for k in keep]
            frames.shown = [timeline.begin[unique[need[k]]] for k in keep]
            frames.fault = fault
            self.done += len(need)
            yield frames

    def fit(self, frame: av.VideoFrame) -> tuple[Orientation, tuple[int, int], tuple[int, int]]:
        """(what makes a frame upright, its size then, the size it is converted to)."""
        orientation = orientation_of(frame, self.request.name)
        crossed = orientation.transposed
        shape = (frame.width, frame.height) if crossed else (frame.height, frame.width)
        return orientation, shape, self._target(shape, 1.0 / self.aspect if crossed else self.aspect)

    def _target(self, shape: tuple[int, int], aspect: float) -> tuple[int, int]:
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

    def pack(self, places: Sequence[int], pieces: Sequence[Tensor], straight: bool) -> Frames:
        """Frames of the pictures at these places of the pieces put together."""
        request = self.request
        fps, per_grid = rate(self.wanted, request.policy)
        frames = Frames(fps=fps, source=request.name, seconds_per_grid=per_grid, decoder=self.decoder)
        whole = pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
        if straight and self.size is not None:
            patch = request.normal.patch
            grid = [-(-len(places) // 2), self.size[0] // patch, self.size[1] // patch]
            frames.patches, frames.grid_thw = whole.to(self.device), torch.tensor([grid])
            return frames
        every = list(places) == list(range(len(whole)))
        pixels = whole if every else whole.index_select(0, torch.tensor(places, device=whole.device))
        if request.out == "uint8":
            frames.pixels = pixels.to(self.device)
        else:
            patches, frames.grid_thw = patchify(pixels, **vars(request.normal))
            frames.patches = patches.to(self.device)
        return frames

    def _frames(
        self, container: InputContainer, video: VideoStream, timeline: Timeline, stamps: Sequence[int]
    ) -> Iterator[av.VideoFrame]:
        return frames_at(
            container,
            video,
            timeline,
            stamps,
            self.deadline,
            held=self.held,
            seek=self.seek and not self.careful,
            careful=self.careful,
        )

    def _side_by_side(
        self,
        container: InputContainer,
        video: VideoStream,
        timeline: Timeline,
        parts: Sequence[Sequence[int]],
        rest: Sequence[int],
        straight: bool,
    ) -> Iterator[tuple[int, Tensor]]:
        """As `_converted`, by several decoders at once; the first share is decoded from this container. What
        is left by one with all threads."""
        source = self.request.source
        shapes: set[tuple[int, int]] = set()

        def decode(
            container: InputContainer, video: VideoStream, stamps: Sequence[int]
        ) -> list[tuple[int, Tensor]]:
            pieces = []
            for group in self._groups(self._frames(container, video, timeline, stamps), video, straight):
                shapes.add(group.shape)
                pieces.append((len(group.frames), self._convert(group, straight, 1)))
            return pieces

        def read(stamps: Sequence[int]) -> list[tuple[int, Tensor]]:
            with opened(source.media, source.stream, 1, self.deadline, quick=self.quick) as (
                other,
                its_video,
            ):
                return decode(other, its_video, stamps)

        _ = timeline.order, timeline.key_before(0)  # made once, before the threads want them
        set_threads(video, 1)
        with ThreadPoolExecutor(len(parts) - 1) as pool:
            others = [pool.submit(read, part) for part in parts[1:]]
            results = [decode(container, video, parts[0]), *(other.result() for other in others)]
        if len(shapes) > 1:  # the first picture decides on the size of all
            raise _Changed
        for pieces in results:
            yield from pieces
        if rest:
            with opened(source.media, source.stream, self.threads, self.deadline, quick=self.quick) as (
                other,
                its_video,
            ):
                yield from self._converted(
                    self._frames(other, its_video, timeline, rest), its_video, straight
                )

    def _converted(
        self, pictures: Iterator[av.VideoFrame], video: VideoStream, straight: bool
    ) -> Iterator[tuple[int, Tensor]]:
        """(number of frames, uint8 [n, h, w, 3] or patches) in order, converted while others are decoded."""
        groups = self._groups(pictures, video, straight)
        if self.threads == 1 or self.device.type == "cuda":  # there, the caller's stream orders all work
            for group in groups:
                yield len(group.frames), self._convert(group, straight, 1)
            return
        waiting: deque[tuple[int, Future[Tensor]]] = deque()
        fault: Exception | None = None
        with ThreadPoolExecutor(1) as pool:
            try:
                for group in groups:
                    if len(waiting) == 2:
                        count, future = waiting.popleft()
                        yield count, future.result()
                    threads = self.threads if group.last else 1
                    waiting.append((len(group.frames), pool.submit(self._convert, group, straight, threads)))
            except (Damaged, Missing, _Changed) as error:
                fault = error
            for count, future in waiting:
                yield count, future.result()
        if fault is not None:
            raise fault

    def _groups(
        self, pictures: Iterator[av.VideoFrame], video: VideoStream, straight: bool
    ) -> Iterator[_Group]:
        """Runs of at most CHUNK frames of one layout."""
        module = native()
        codec = f"libavcodec {video.codec_context.name}" + ("" if module else ", RGB by swscale and Pillow")
        siting = codec_of(video.codec_context.name).siting(video.codec_context.extradata or b"")
        group: _Group | None = None
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
                        raise _Changed
                    yield group
                    group = None
                if group is None:
                    group = _Group([], layout, shape, orientation)
                group.frames.append(planes)
        except (Damaged, Missing) as error:
            fault = error
        if group is not None:
            yield replace(group, last=True)
        if fault is not None:
            raise fault

    def _by_decord(self, begin: Sequence[float], aspect: float) -> Iterator[tuple[int, Tensor]]:
        """As `_converted`, with frames of decord."""
        source, self.decoder = self.request.source, "decord"
        orientation, rest = decord_reader.orientation_left(source.media, self.deadline)
        aspect = 1.0 / aspect if orientation.transposed else aspect
        for pixels in decord_reader.pictures(
            source.media, source.stream, self.request.name, begin, CHUNK, self.threads, rest
        ):
            self.deadline.check()
            size = self._target(pixels.shape[1:3], aspect)
            yield len(pixels), resize(pixels, size, self.request.policy.resample)

    def _convert(self, group: _Group, straight: bool, threads: int) -> Tensor:
        if self.size is None:
            raise AssertionError("a group of frames without a size")
        request = self.request
        return convert(
            group.frames,
            group.layout,
            self.size,
            resample=request.policy.resample,
            orientation=group.orientation,
            normal=request.normal if straight else None,
            threads=threads,
            device=self.device,
        )
