"""Ways of reading a clip, and whether what they return is what is shown."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, Frames, FrameSource, decode, iterate_frames, read_frames
from fourdthinker.frames import reading as holder
from fourdthinker.frames.convert import CLIP_MEAN, CLIP_STD
from tests.oracle.files import Clip, Truth
from tests.oracle.marks import UPRIGHT, mark_of

RIGHT, REFUSED, WRONG = "right", "refused", "wrong"
NEAR = 1.1e-3  # seconds: how well `shown` must tell when a picture begins
SMALL = FramePolicy(fps=10, max_pixels=96 * 96, max_frames=1000)


@dataclass
class Verdict:
    """Outcome of one way of reading. words: the error, or what is wrong."""

    way: str
    outcome: str
    words: str = ""


@dataclass
class Way:
    """A way of reading: the call, and what of its result the truth foretells. begin: the first time that a
    policy has to ask for; count: how many pictures must come."""

    name: str
    call: Callable[[], Sequence[Frames]]
    begin: float | None = None
    count: int | None = None


@dataclass
class Judged:
    clip: Clip
    verdicts: list[Verdict] = field(default_factory=list)

    def of(self, outcome: str) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.outcome == outcome]


def judge(clip: Clip, ways: Sequence[Way]) -> Judged:
    """Read a clip in these ways. Errors other than VideoError go through."""
    judged = Judged(clip)
    for way in ways:
        try:
            parts = way.call()
        except VideoError as error:
            judged.verdicts.append(Verdict(way.name, REFUSED, str(error)))
            continue
        words = "; ".join(_faults(clip.truth, parts, way))
        judged.verdicts.append(Verdict(way.name, WRONG if words else RIGHT, words))
    return judged


def _faults(truth: Truth, parts: Sequence[Frames], way: Way) -> Iterator[str]:
    seconds = [time for part in parts for time in part.seconds]
    told = all(part.fault is None for part in parts)
    if way.begin is not None and abs(seconds[0] - way.begin) > truth.slack + NEAR:
        yield f"begins at {seconds[0]:.4f} s, not at {way.begin:.4f}"
    if way.count is not None and told and len(seconds) != way.count:
        yield f"{len(seconds)} pictures, not {way.count}"
    for part in parts:
        pixels = part.pixels if part.pixels is not None else unpatched(part)
        if len(pixels) < len(part.seconds):
            yield f"{len(pixels)} pictures for {len(part.seconds)} times"
        for time, shown, picture in zip(part.seconds, part.shown, pixels):
            yield from _fault(truth, time, shown, picture)


def _fault(truth: Truth, time: float, shown: float, picture: Any) -> Iterator[str]:
    mark, right = mark_of(picture), truth.shown(time)
    if mark is None:
        yield f"at {time:.4f} s a picture that cannot be read, not {sorted(right)}"
    elif mark.number not in right:
        yield f"at {time:.4f} s picture {mark}, not {sorted(right)}"
    elif mark.orientation != UPRIGHT:
        yield f"at {time:.4f} s picture {mark}, not upright"
    else:
        begin = next(begin for begin, number in truth.frames if number == mark.number)
        if abs(begin - shown) > truth.slack + NEAR:
            yield f"at {time:.4f} s picture {mark} shown from {shown:.4f} s, not from {begin:.4f}"


def unpatched(frames: Frames) -> torch.Tensor:
    """float32 [T, H, W, 3] of 0 to 255, from patches of CLIP's normalisation."""
    times, rows, columns = frames.grid_thw[0].tolist()
    side = round((frames.patches.shape[1] / 6) ** 0.5)
    parts = frames.patches.reshape(times, rows // 2, columns // 2, 2, 2, 3, 2, side, side)
    whole = parts.permute(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(2 * times, rows * side, columns * side, 3)
    return (whole * torch.tensor(CLIP_STD) + torch.tensor(CLIP_MEAN)) * 255


def middles(truth: Truth) -> list[float]:
    """A time within each picture's presentation; of the last, whose end may be open, near its beginning; of
    pictures without duration, when they begin."""
    ends = [begin for begin, _ in truth.frames[1:]] + [truth.frames[-1][0] + 1e-5]
    return [(begin + end) / 2 for (begin, _), end in zip(truth.frames, ends)]


def ways(clip: Clip, draw: random.Random, singles: int = 6) -> list[Way]:
    """All ways of reading, with times drawn. singles: reads of one picture, each way through the clip."""
    truth, path = clip.truth, clip.path
    times = middles(truth)
    few = sorted(draw.sample(range(len(times)), min(singles, len(times))))
    some = [times[k] for k in few]
    mixed = draw.sample(some, len(some))
    source: Any = path if draw.random() < 0.5 else path.read_bytes()
    low, high = sorted((draw.uniform(truth.begin, truth.end), draw.uniform(truth.begin, truth.end)))
    low, high = min(low, truth.end - 0.1), max(high, low + 0.05)
    result = [
        Way("all", lambda: [read_frames(path, times=times)], count=len(times)),
        Way("some", lambda: [read_frames(source, times=mixed)], count=len(mixed)),
        Way("policy", lambda: [read_frames(path, SMALL)], begin=truth.begin, count=_count(truth, SMALL)),
        Way("patches", lambda: [read_frames(source, SMALL, out="patches")], begin=truth.begin),
        Way("range", lambda: [read_frames(path, SMALL, start=low, end=high)], begin=max(low, truth.begin)),
        Way("partial", lambda: [read_frames(path, times=times, partial=True)], count=len(times)),
        Way("iterate", lambda: list(iterate_frames(path, times=times, batch=draw.choice((1, 3, 8))))),
        Way("iterate policy", lambda: list(iterate_frames(source, SMALL, batch=4)), begin=truth.begin),
    ]
    for name, order in (("forwards", some), ("backwards", some[::-1]), ("at random", mixed)):
        for time in order[: singles if name == "at random" else singles // 2]:
            result.append(Way(f"single {name}", lambda time=time: [read_frames(path, times=[time])], count=1))
    return result


@contextmanager
def limits(room: int | None, seek: int | None) -> Iterator[None]:
    """Let a reading keep `room` bytes of packets in memory, and leap over `seek` packets in the file, as if
    small clips were long ones. None: as it is."""
    before = holder.ROOM, decode.SEEK
    holder.ROOM = before[0] if room is None else room
    decode.SEEK = before[1] if seek is None else seek
    try:
        yield
    finally:
        holder.ROOM, decode.SEEK = before


def settled(clip: Clip) -> Clip:
    """The clip as this reader has it begin, among the ways that the file leaves open."""
    if len(clip.moves) == 1:
        return clip
    try:
        begin = read_frames(clip.path, SMALL).shown[0]
    except VideoError:
        return clip
    return clip.moved(min(clip.moves, key=lambda move: abs(clip.truth.begin + move - begin)))


def decord_ways(clip: Clip) -> list[Way]:
    source = FrameSource(clip.path, reader="decord")
    times = middles(clip.truth)
    return [
        Way("decord all", lambda: [read_frames(source, times=times)], count=len(times)),
        Way("decord single", lambda: [read_frames(source, times=[times[len(times) // 2]])], count=1),
        Way("decord policy", lambda: [read_frames(source, SMALL)], begin=clip.truth.begin),
    ]


def _count(truth: Truth, policy: FramePolicy) -> int | None:
    """Pictures of the whole clip; None where it is open, or a rounding decides, when its last one ends."""
    if not truth.even:
        return None
    exact = (truth.end - truth.begin) * policy.fps
    return (
        None if abs(exact - round(exact)) < 0.06 else len(policy.times(truth.end - truth.begin, truth.begin))
    )
