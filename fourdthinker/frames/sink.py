"""Which of the frames that a decoder gives are those wanted, and sound."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fourdthinker.frames.bitstream.pictures import KEYFRAME, NON_REFERENCE, NOT_SHOWN
from fourdthinker.frames.orientation import matrix_of
from fourdthinker.frames.timeline import Timeline

if TYPE_CHECKING:
    import av
    from av.video.codeccontext import VideoCodecContext


MANY = 1000  # pictures that have come out are remembered before those of no more use are forgotten
REORDERED = 16  # pictures at most that precede another in decoding and follow it in presentation


class Missing(Exception):
    """The decoder did not show the frame that the container lists at `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__("a frame that the container lists is not there")
        self.seconds = seconds


class Disordered(Exception):
    """Pictures leave the decoder in another order than they are said to be shown in, from `seconds` on."""

    def __init__(self, seconds: float) -> None:
        super().__init__("pictures leave the decoder in another order than they are said to be shown in")
        self.seconds = seconds


class Damaged(Exception):
    """The decoder cannot make a frame of the data with this stamp, at `seconds`.

    doubted: only the container says that decoding can begin where it began.
    """

    def __init__(self, cause: str, timeline: Timeline, stamp: int, *, doubted: bool = False) -> None:
        super().__init__(cause)
        self.doubted = doubted
        self.stamp, self.seconds = stamp, timeline.seconds(stamp)


def repeats(frame: av.VideoFrame, before: av.VideoFrame | None) -> bool:
    """Whether a decoder gives the picture `before` once more, as MPEG-4's does where B-pictures begin.

    The same number alone does not say so, for a packet may hold two pictures; these are two in memory."""
    if before is None or frame.pts is None or frame.pts != before.pts:
        return False
    return [plane.buffer_ptr for plane in frame.planes] == [plane.buffer_ptr for plane in before.planes]


class Sink:
    """Sorts what a decoder gives into the frames wanted.

    Frames are known by their stamps (`Timeline`), which must increase from one to the next: else the stamps
    do not tell which picture is shown when. Where the timeline has no packets, frames are counted instead.

    A wanted frame is held until all that was decoded before it has come out: what it refers to may be shown
    after it, and only then tells that it is damaged. several: threads decode, so that errors may be lost;
    what was decoded before a wanted frame and has not come out then counts as damaged. doubted: only the
    container says which pictures are keyframes; where the decoder says that the one it began at is none,
    Missing is raised, since what it makes of it is gray or worse.
    """

    def __init__(
        self, timeline: Timeline, wanted: Sequence[int], several: bool, doubted: bool = False
    ) -> None:
        self.timeline, self.doubted = timeline, doubted
        self.pending = list(reversed(wanted))
        self.held: deque[tuple[int, av.VideoFrame]] = deque()  # with the stamp that has to be seen first
        self.seen = self.landed = timeline.pts[0]  # frames shown before `landed` may lack what they refer to
        self.latest: int | None = None  # the stamp that came out last
        self.before: av.VideoFrame | None = None  # that came out last
        self.several = several
        self.out: set[int] = set()  # the stamps that came out
        self.matrix: bytes | None = None  # the last display matrix, since the last keyframe
        self.whole = 0  # before this position, all that was decoded came out

    def land(self, stamp: int) -> None:
        """Decoding goes on at a keyframe of this stamp, with an empty decoder."""
        self.landed, self.latest, self.before = stamp, None, None

    def take(self, frames: Sequence[av.VideoFrame], limit: int | None = None) -> Iterator[av.VideoFrame]:
        """Frames that are wanted and sound. limit: position of a packet from which on none is taken."""
        pending = self.pending
        for frame in frames:
            found = matrix_of(frame)
            if found is not None or frame.key_frame:
                self.matrix = found
            elif self.matrix is not None:
                frame.opaque = bytes(bytearray(self.matrix))  # one object for each: freeing one frees it
            if not self.timeline.coded:
                if frame.is_corrupt:
                    continue
                frame.pts = 0 if self.latest is None else self.latest + 1
            elif repeats(frame, self.before):
                continue
            self.before = frame
            pts = frame.pts
            if pts is None or pts < self.landed:
                continue
            if self.doubted and pts == self.landed and not frame.key_frame and self._begins_run(pts):
                raise Missing(self.timeline.seconds(pts))
            if self.latest is not None and pts <= self.latest:
                raise Disordered(self.timeline.seconds(pts))
            self.latest = pts
            if limit is not None and self.timeline.order.get(pts, limit) >= limit:
                continue
            if frame.is_corrupt and self.needs(pts):
                raise Damaged("a frame is incomplete", self.timeline, pts)
            passed = bool(pending) and pts > pending[-1]
            if pending and pts == pending[-1]:
                pending.pop()
                self.held.append((self._last_before(pts), frame))
            if self.several and self.timeline.coded:
                self.out.add(pts)
            self.seen = max(self.seen, pts)
            while self.held and self.held[0][0] <= self.seen:
                yield self._release()
            if passed:
                raise Missing(self.timeline.seconds(pending[-1]))

    def settle(self) -> Iterator[av.VideoFrame]:
        """The frames held, when all has come out."""
        while self.held:
            yield self._release()

    def _begins_run(self, pts: int) -> bool:
        """Whether a picture is a keyframe, by the container, behind the first."""
        position = self.timeline.order.get(pts, 0)
        return position > 0 and bool(self.timeline.flags[position] & KEYFRAME)

    def _release(self) -> av.VideoFrame:
        frame = self.held.popleft()[1]
        timeline = self.timeline
        if self.several and frame.pts in timeline.order:
            position = timeline.order[frame.pts]
            first = max(self.whole, timeline.key_before(frame.pts) or 0)
            for stamp, flag in zip(
                timeline.coded[first:position], timeline.flags[first:position], strict=True
            ):
                shown = stamp >= self.landed and not flag & NON_REFERENCE and timeline.shows(stamp)
                if shown and stamp not in self.out:
                    raise Damaged("a picture that others need did not come out", timeline, stamp)
            self.whole = max(self.whole, position)
            if len(self.out) > MANY:
                self.out = {stamp for stamp in self.out if timeline.order.get(stamp, position) >= self.whole}
        return frame

    def rescue(self, context: VideoCodecContext, stamp: int) -> Iterator[av.VideoFrame]:
        """What a decoder still holds of before a fault at that stamp."""
        import av.error

        limit = self.timeline.order.get(stamp)
        if limit is None:
            return
        try:
            yield from self.take(context.decode(None), limit)
        except (av.error.FFmpegError, Damaged, Missing, Disordered):
            return

    def _last_before(self, pts: int) -> int:
        """The latest stamp among the pictures that a frame may refer to, its own included."""
        position = self.timeline.order.get(pts, 0)
        coded, flags = self.timeline.coded, self.timeline.flags
        first = max(self.timeline.key_before(pts) or 0, position - 2 * REORDERED)
        unseen = NON_REFERENCE | NOT_SHOWN
        return max((coded[k] for k in range(first, position) if not flags[k] & unseen), default=pts)

    def needs(self, pts: int) -> bool:
        """Whether a frame still to come out, or held, may refer to the picture of this stamp."""
        waiting = [*self.pending, *(frame.pts or 0 for _, frame in self.held)]
        order = self.timeline.order
        if pts not in order:
            return any(pts <= stamp for stamp in waiting)
        position = order[pts]
        return any((self.timeline.key_before(w) or 0) <= position <= order[w] for w in waiting)
