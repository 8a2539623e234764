"""One reading of a video: index, decoding, conversion; and again where the first way fails (`attempts`)."""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fourdthinker.frames import index_cache
from fourdthinker.frames.attempts import FAILURES, Attempt, LayoutChanged, Untold, final_error, next_attempt
from fourdthinker.frames.codecs import codec_of
from fourdthinker.frames.container import Deadline, aspect_of, breaks_off, check_single, opened
from fourdthinker.frames.convert import Frames, patchify
from fourdthinker.frames.converter import Converter
from fourdthinker.frames.decode import decoded_frames, shares, single_packet
from fourdthinker.frames.edits import EditSegment, segments_of
from fourdthinker.frames.gpu import read as gpu
from fourdthinker.frames.gpu.nvdec import NvdecError
from fourdthinker.frames.matroska import Walk, walk
from fourdthinker.frames.policy import hold, rate
from fourdthinker.frames.request import Request, times_wanted
from fourdthinker.frames.sink import Damaged, Missing
from fourdthinker.frames.threads import set_threads
from fourdthinker.frames.timeline import Held, Timeline
from fourdthinker.frames.timeline_from_decoding import check_order, decodable, decoded_timeline
from fourdthinker.frames.timeline_from_packets import build_timeline

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

ROOM = 16 << 20  # bytes of packets kept from the reading of the index to the decoding
logger = logging.getLogger(__name__)


def _long(attempt: Attempt, timeline: Timeline) -> bool:
    """Whether the decoder is told to delay pictures as much as it can.

    It is where that matters, or where nothing vouches for what the stream says of it.
    """
    return attempt.careful or timeline.stamps is not None


class Reading:
    """One reading, over the attempts that it may take.

    pictures: what makes them what was asked for. timeline, from_cache: known after the first attempt that
    tells, and whether it comes from the index cache; learnt: with which `cached` and `order` of an attempt.
    listed: the timeline that packets tell, where that was not enough; told: likewise, where the pictures' own
    headers give its order, which a decoder then has to keep. walk: over the file's elements. held:
    all packets of the timeline, where they are at hand. wanted: the times asked for; done: so many of them
    are handed out.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.deadline = Deadline(request.name, request.timeout)
        self.device = torch.device(request.device)
        self.pictures = Converter(request, self.deadline)
        self.timeline: Timeline | None = None
        self.listed: Timeline | None = None
        self.told: Timeline | None = None
        self.learnt: tuple[bool, str] | None = None
        self.from_cache = False
        self.walk = Walk()
        self.held: list[av.Packet] | None = None
        self.wanted: list[float] = []
        self.done = 0

    def batches(self, batch: int | None) -> Generator[Frames, None, None]:
        """The frames, `batch` times of them at once, or all (None)."""
        request = self.request
        attempt = Attempt(
            request.threads, on_gpu=self.device.type == "cuda", quick=request.source.reader == "auto"
        )
        while True:
            try:
                with self._opened(attempt, attempt.threads) as (container, video):
                    timeline, unread = self._learn(attempt, container, video)
                    if unread or self.held is not None:
                        if not self.done:
                            self.wanted = times_wanted(request, timeline)
                        if attempt.on_gpu:
                            yield from self._emit_by_gpu(attempt, timeline, batch)
                        else:
                            yield from self._emit(attempt, container, video, timeline, batch)
                        return
            except FAILURES as error:
                following = next_attempt(attempt, error, from_cache=self.from_cache)
                if following is None:
                    raise final_error(request.name, error) from error
                if isinstance(error, NvdecError):
                    gpu.say(str(error))
                if following.order != attempt.order:
                    self.listed = self.timeline if isinstance(error, Missing) else None
                attempt = following

    def learn(self) -> Timeline:
        """The timeline alone."""
        attempt = Attempt(self.request.threads, quick=False)
        while True:
            try:
                with self._opened(attempt, 1) as (container, video):
                    return self._learn(attempt, container, video)[0]
            except Untold as error:
                following = next_attempt(attempt, error, from_cache=False)
                if following is None:
                    raise final_error(self.request.name, error) from error
                attempt = following

    def _opened(
        self, attempt: Attempt, threads: int, *, longest_delay: bool = False
    ) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
        source = self.request.source
        return opened(
            source.media,
            source.stream,
            threads,
            self.deadline,
            quick=attempt.quick,
            longest_delay=longest_delay,
        )

    def _learn(
        self, attempt: Attempt, container: InputContainer, video: VideoStream
    ) -> tuple[Timeline, bool]:
        """(the timeline, whether the container still stands at its beginning). Raises Untold."""
        source, name, check = self.request.source, self.request.name, self.deadline.check
        if self.timeline is not None and self.learnt == (attempt.cached, attempt.order):
            return self.timeline, True
        key = None if isinstance(source.media, bytes) else index_cache.key_of(name, video.index, source.fps)
        self.learnt, self.from_cache, unread = None, False, True
        if attempt.order == "decoder":
            self.held = None  # which may begin elsewhere
            with self._opened(attempt, 1, longest_delay=True) as (whole, its_video):
                logger.info("%s: the order of its pictures is learnt by decoding", name)
                self.timeline = decoded_timeline(
                    whole,
                    its_video,
                    name,
                    self.listed,
                    self.request.partial,
                    self.walk.suspect_from,
                    check,
                    source.fps,
                    self._segments(its_video, whole),
                )
            if self.told is not None:
                check_order(self.told, self.timeline)
        else:
            self.timeline = index_cache.load(key) if key is not None and attempt.cached else None
            self.from_cache = self.timeline is not None and (
                self.timeline.stamps is not None or self.timeline.base == video.time_base
            )
            if not self.from_cache:
                self.timeline, unread = self._listed(attempt, container, video), False
                headers = codec_of(video.codec_context.name).display_order is not None
                self.told = self.timeline if headers else None
        if self.timeline is None:
            raise Untold(name)
        sound = attempt.order == "packets" or self.timeline.fault is None
        unchanged = key is not None and key == index_cache.key_of(name, video.index, source.fps)
        if key is not None and unchanged and sound and not self.from_cache:
            index_cache.store(key, self.timeline)
        self.learnt = attempt.cached, attempt.order
        return self.timeline, unread

    def _listed(self, attempt: Attempt, container: InputContainer, video: VideoStream) -> Timeline | None:
        """The timeline, if packets tell it."""
        source, name, check = self.request.source, self.request.name, self.deadline.check
        held = Held(ROOM)
        check_single(source.media, name, container.format.name, check)
        broken = breaks_off(source.media, container.format.name)
        self.walk = Walk(suspect_from=sys.maxsize) if broken else walk(source.media, name, check)

        def shown(skipped: int, count: int) -> set[int]:
            with self._opened(attempt, 1) as (whole, its_video):
                return decodable(whole, its_video, skipped, count)

        timeline = build_timeline(
            container,
            video,
            name,
            held,
            self.walk,
            check,
            fps=source.fps,
            segments=self._segments(video, container),
            decodable=shown,
        )
        self.held = held.packets
        return timeline

    def _segments(self, video: VideoStream, container: InputContainer) -> tuple[EditSegment, ...]:
        """Of the edit list, which no other format than MP4 and MOV has."""
        if video.time_base is None or not container.format.name.startswith("mov"):
            return ()
        return segments_of(self.request.source.media, self.request.name, video.id, video.time_base)

    def _emit(
        self,
        attempt: Attempt,
        container: InputContainer,
        video: VideoStream,
        timeline: Timeline,
        batch: int | None,
    ) -> Iterator[Frames]:
        request = self.request
        chosen = [hold(timeline.begin, t) for t in self.wanted[self.done :]]
        unique = sorted(set(chosen))
        decord = request.source.reader == "decord"
        straight = attempt.straight and request.out == "patches" and batch is None and chosen == unique
        straight = straight and not decord
        if decord:
            codec = video.codec_context.name
            pieces = self.pictures.by_decord(timeline, unique, codec, aspect_of(video), attempt.threads)
        else:
            stamps = [timeline.pts[index] for index in unique]
            several = not attempt.careful and batch is None and attempt.straight
            alone = not attempt.careful and single_packet(timeline, stamps, video.codec_context.name)
            set_threads(video, 1 if alone else attempt.threads, longest_delay=_long(attempt, timeline))
            workers = attempt.threads if several else 1
            parts, rest = shares(timeline, stamps, video.codec_context.name, workers)
            if parts and self.device.type == "cpu":
                straight = straight and not any(len(part) % 2 for part in (parts if rest else parts[:-1]))
                pieces = self._side_by_side(attempt, container, video, timeline, parts, rest, straight)
            else:
                pictures = self._frames(attempt, container, video, timeline, stamps)
                pieces = self.pictures.converted(pictures, video, straight, attempt.threads)
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
                final = next_attempt(attempt, error, from_cache=self.from_cache) is None
                if not (request.partial and final and high):
                    raise
                fault = f"at {error.seconds:.3f} s the data cannot be decoded ({error})"
            keep = [k for k, position in enumerate(need) if position < high]
            if fault is None and batch is None:
                fault = self._fault(timeline)
            frames = self._pack(
                timeline, [need[k] - low for k in keep], [piece for _, piece in ready], straight
            )
            frames.seconds = [self.wanted[self.done + k] for k in keep]
            frames.shown = [timeline.begin[unique[need[k]]] for k in keep]
            frames.fault = fault
            self.done += len(need)
            yield frames

    def _emit_by_gpu(self, attempt: Attempt, timeline: Timeline, batch: int | None) -> Iterator[Frames]:
        """The same by NVDEC. Raises NvdecError for streams that it does not decode, and for damage."""
        request = self.request
        first = gpu.first_picture(request.source, self.deadline)
        self.pictures.aspect = first.aspect
        orientation, _, size = self.pictures.fit(first.frame)
        chosen = [hold(timeline.begin, t) for t in self.wanted]
        step = len(chosen) if batch is None else batch
        for begin in range(self.done, len(chosen), step):
            here = chosen[begin : begin + step]
            whole = gpu.decode(
                request,
                self.deadline,
                timeline,
                [timeline.pts[index] for index in here],
                first,
                size=size,
                orientation=orientation,
                held=self.held,
                seek=attempt.seek,
            )
            frames = self._pack(timeline, range(len(here)), [whole], request.out == "patches")
            frames.seconds = self.wanted[begin : begin + step]
            frames.shown = [timeline.begin[index] for index in here]
            frames.decoder = "nvdec"
            frames.fault = self._fault(timeline)
            self.done += len(here)
            yield frames

    def _fault(self, timeline: Timeline) -> str | None:
        if not self.request.partial or timeline.fault is None:
            return None
        return f"at {timeline.fault[0]:.3f} s {timeline.fault[1]}"

    def _pack(
        self, timeline: Timeline, positions: Sequence[int], pieces: Sequence[Tensor], straight: bool
    ) -> Frames:
        """Frames of the pictures at these positions of the pieces put together."""
        request = self.request
        fps, per_grid = rate(self.wanted, request.policy)
        frames = Frames(
            fps=fps, source=request.name, seconds_per_grid=per_grid, decoder=self.pictures.decoder
        )
        frames.times_from = timeline.times_from
        whole = pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
        if straight and self.pictures.size is not None:
            patch = request.normal.patch
            grid = [-(-len(positions) // 2), self.pictures.size[0] // patch, self.pictures.size[1] // patch]
            frames.patches, frames.grid_thw = whole.to(self.device), torch.tensor([grid])
            return frames
        every = list(positions) == list(range(len(whole)))
        pixels = whole if every else whole.index_select(0, torch.tensor(positions, device=whole.device))
        if request.out == "uint8":
            frames.pixels = pixels.to(self.device)
        else:
            patches, frames.grid_thw = patchify(pixels, **vars(request.normal))
            frames.patches = patches.to(self.device)
        return frames

    def _frames(
        self,
        attempt: Attempt,
        container: InputContainer,
        video: VideoStream,
        timeline: Timeline,
        stamps: Sequence[int],
    ) -> Iterator[av.VideoFrame]:
        return decoded_frames(
            container,
            video,
            timeline,
            stamps,
            self.deadline,
            held=self.held,
            seek=attempt.seek and not attempt.careful,
            careful=attempt.careful,
        )

    def _side_by_side(
        self,
        attempt: Attempt,
        container: InputContainer,
        video: VideoStream,
        timeline: Timeline,
        parts: Sequence[Sequence[int]],
        rest: Sequence[int],
        straight: bool,
    ) -> Iterator[tuple[int, Tensor]]:
        """As `Converter.converted`, by several decoders at once.

        The first share is decoded from this container. What is left over is decoded by one with all threads.
        """
        shapes: set[tuple[int, int]] = set()

        def decode(
            container: InputContainer, video: VideoStream, stamps: Sequence[int]
        ) -> list[tuple[int, Tensor]]:
            pieces = []
            for group in self.pictures.groups(
                self._frames(attempt, container, video, timeline, stamps), video, straight
            ):
                shapes.add(group.shape)
                pieces.append((len(group.frames), self.pictures.convert(group, straight, 1)))
            return pieces

        def read(stamps: Sequence[int]) -> list[tuple[int, Tensor]]:
            with self._opened(attempt, 1, longest_delay=_long(attempt, timeline)) as (other, its_video):
                return decode(other, its_video, stamps)

        _ = timeline.order, timeline.key_before(0)  # made once, before the threads want them
        set_threads(video, 1, longest_delay=_long(attempt, timeline))
        with ThreadPoolExecutor(len(parts) - 1) as pool:
            others = [pool.submit(read, part) for part in parts[1:]]
            results = [decode(container, video, parts[0]), *(other.result() for other in others)]
        if len(shapes) > 1:  # the first picture decides on the size of all
            raise LayoutChanged
        for pieces in results:
            yield from pieces
        if rest:
            long = _long(attempt, timeline)
            with self._opened(attempt, attempt.threads, longest_delay=long) as (other, its_video):
                yield from self.pictures.converted(
                    self._frames(attempt, other, its_video, timeline, rest),
                    its_video,
                    straight,
                    attempt.threads,
                )
