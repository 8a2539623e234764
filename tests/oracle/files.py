"""Video files by recipe, each with what it must show: codec, container, stamps, cuts and orientation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av

from tests.oracle import stamps as stamps_module
from tests.oracle import surgery
from tests.oracle.coded import ENCODERS, Coded, add_stream, encoded
from tests.oracle.stamps import BASE

ROUNDING = 1.1e-3  # seconds: containers that count in milliseconds
LEAST = 2e-6  # seconds: what two readings of a stamp may differ by


@dataclass(frozen=True)
class Container:
    """stamped: it keeps a presentation time for each packet, and so takes uneven ones."""

    suffix: str
    muxer: str
    stamped: bool = True


CONTAINERS = {
    c.suffix: c
    for c in (
        Container("mp4", "mp4"),
        Container("mov", "mov"),
        Container("3gp", "3gp"),
        Container("f4v", "f4v"),
        Container("ismv", "ismv"),
        Container("mkv", "matroska"),
        Container("webm", "webm"),
        Container("nut", "nut"),
        Container("flv", "flv"),
        Container("ts", "mpegts"),
        Container("mpg", "vob"),
        Container("vob", "dvd"),
        Container("asf", "asf"),
        Container("wmv", "asf"),
        Container("avi", "avi", stamped=False),
        Container("mxf", "mxf", stamped=False),
        Container("ogv", "ogg", stamped=False),
        Container("rm", "rm", stamped=False),
        Container("ivf", "ivf"),
        Container("gif", "gif", stamped=False),
        Container("h264", "h264", stamped=False),
        Container("hevc", "hevc", stamped=False),
        Container("m4v", "m4v", stamped=False),
        Container("m2v", "mpeg2video", stamped=False),
        Container("m1v", "mpeg1video", stamped=False),
        Container("mjpeg", "mjpeg", stamped=False),
        Container("obu", "obu", stamped=False),
        Container("h261", "h261", stamped=False),
    )
}
DELAYED = ("lib", "mpeg")  # encoders of codecs whose decoders may hold pictures back
RAW = ("h264", "hevc", "m4v", "m2v", "m1v", "mjpeg", "obu", "h261")
_MP4 = ("mp4", "mov", "mkv", "ts")
_OLD = ("avi", "asf", "nut")
# Containers for an encoder, by the first part of its name.
HOLDS: dict[str, tuple[str, ...]] = {
    "h264": (*_MP4, "flv", "avi", "asf", "mxf", "mpg", "vob", "nut", "3gp", "f4v", "ismv", "h264"),
    "hevc": (*_MP4, "flv", "mpg", "nut", "ismv", "hevc"),
    "vp8": ("webm", "mkv", "ogv", "avi", "nut", "ivf", "asf"),
    "vp9": ("webm", "mkv", "mp4", "flv", "avi", "nut", "ivf", "asf"),
    "av1": ("mp4", "mkv", "webm", "flv", "ivf", "obu", "nut"),
    "mpeg4": (*_MP4, "avi", "asf", "mpg", "3gp", "nut", "m4v"),
    "mpeg2": (*_MP4, "avi", "mpg", "vob", "mxf", "nut", "m2v"),
    "mpeg1": (*_MP4, "avi", "mpg", "m1v"),
    "mjpeg": ("mp4", "mov", "mkv", "avi", "asf", "nut", "mjpeg"),
    "wmv1": ("wmv", "avi"),
    "wmv2": ("wmv", "avi", "nut"),
    "msmpeg4v3": ("avi", "asf", "mkv", "mov"),
    "msmpeg4v2": ("avi", "asf"),
    "flv1": ("flv", "avi", "nut"),
    "h263": ("3gp", "avi", "mov", "asf"),
    "h263p": ("avi", "asf", "nut"),
    "h261": ("avi", "nut", "h261"),
    "rv10": ("rm",),
    "rv20": ("rm",),
    "svq1": ("mov", "avi"),
    "snow": ("avi", "mkv", "nut"),
    "ffv1": ("mkv", "avi", "mp4", "mxf", "nut"),
    "prores": ("mov", "mkv", "mxf"),
    "dnxhr": ("mov", "mxf"),
    "huffyuv": ("avi", "nut"),
    "png": ("mov", "avi"),
    "gif": ("gif",),
    "rawvideo": ("avi", "nut"),
}
TRUE, STORAGE, MISSING, SHIFTED = "true", "storage", "missing", "shifted"
JITTERED, DUPLICATED, UNEVEN, EXCHANGED = "jittered", "duplicated", "uneven", "exchanged"
ALL_STAMPS = (TRUE, STORAGE, MISSING, SHIFTED, JITTERED, DUPLICATED, UNEVEN, EXCHANGED)
MATRIX, MESSAGE = "matrix", "message"


def containers_for(encoder: str) -> list[str]:
    """Suffixes of the containers that take an encoder's packets."""
    suffixes = HOLDS[encoder.split("-")[0]]
    refused = {("vp8-hidden", "ogv"), ("h264-refresh", "mxf")}  # by FFmpeg's muxers
    return [suffix for suffix in suffixes if (encoder, suffix) not in refused]


def stamps_for(encoder: str, suffix: str) -> tuple[str, ...]:
    """Ways of stamping that this container keeps."""
    container = CONTAINERS[suffix]
    if suffix in ("mpg", "vob"):
        return TRUE, SHIFTED, MISSING
    if not container.stamped:
        return (TRUE,)
    if container.muxer == "asf":  # keeps decoding times only
        return TRUE, SHIFTED, STORAGE
    kinds = [kind for kind in ALL_STAMPS if kind != MISSING or suffix == "ts"]
    if suffix == "flv" and not encoder.startswith(("h264", "hevc")):  # keeps decoding times only
        kinds.remove(DUPLICATED)
    return tuple(kinds)


@dataclass(frozen=True)
class Recipe:
    """How a file is made. hide: pictures that an edit list takes from the beginning. cut: the number of
    keyframes, after the first, before which all packets are left out. without: the position, in decoding, of
    a packet that is left out; 0: of none. orientation, by: what a viewer has to
    do, and how the file says so. seed: of what is drawn."""

    encoder: str
    suffix: str
    stamps: str = TRUE
    count: int = 40
    rate: Fraction = Fraction(25)
    hide: int = 0
    cut: int = 0
    without: int = 0
    orientation: int = 1
    by: str = MATRIX
    seed: int = 0

    def __str__(self) -> str:
        parts = [f"{self.encoder} in {self.suffix}", f"stamps {self.stamps}", f"{self.count} at {self.rate}"]
        parts += [f"{self.hide} hidden"] if self.hide else []
        parts += [f"cut before keyframe {self.cut}"] if self.cut else []
        parts += [f"packet {self.without} left out"] if self.without else []
        parts += [f"EXIF {self.orientation} by {self.by}"] if self.orientation != 1 else []
        return ", ".join(parts) + (f", seed {self.seed}" if self.seed else "")


@dataclass
class Truth:
    """What a file shows: (begin in seconds, picture's number), in order of display; the end of the last.
    slack: seconds by which a file leaves open when a picture begins. even: at a constant rate, so that the
    end of the last is known."""

    frames: list[tuple[float, int]]
    end: float
    slack: float = LEAST
    even: bool = True

    @property
    def begin(self) -> float:
        return self.frames[0][0]

    def shown(self, time: float) -> set[int]:
        """Numbers of the pictures that may be shown then: several where they begin together, or within the
        slack of a change."""
        early, late = time - self.slack, time + self.slack
        first = max((begin for begin, _ in self.frames if begin <= early), default=self.begin)
        last = max((begin for begin, _ in self.frames if begin <= late), default=self.begin)
        near = LEAST / 2
        return {number for begin, number in self.frames if first - near < begin < last + near}


@dataclass
class Clip:
    """moves: seconds by which everything may be shown later or earlier, where a file does not say when its
    first picture begins."""

    path: Path
    recipe: Recipe
    truth: Truth
    moves: tuple[float, ...] = (0.0,)

    def moved(self, seconds: float) -> Clip:
        """The same, all of it shown so much later."""
        frames = [(begin + seconds, number) for begin, number in self.truth.frames]
        # What ASF keeps is rounded to milliseconds; the steps by which it may move are not.
        slack = max(self.truth.slack, ROUNDING) if self.recipe.suffix in ("asf", "wmv") else self.truth.slack
        truth = replace(self.truth, frames=frames, end=self.truth.end + seconds, slack=slack)
        return replace(self, truth=truth, moves=(0.0,))


def make(recipe: Recipe, folder: Path) -> Clip:
    """Write the file of a recipe and learn what it shows."""
    encoder, container = ENCODERS[recipe.encoder], CONTAINERS[recipe.suffix]
    draw = random.Random(recipe.seed)
    step = round(BASE / recipe.rate)
    path = folder / f"{recipe.encoder}-{recipe.stamps}-{recipe.seed}.{recipe.suffix}"
    options = {"movflags": "+frag_keyframe"} if recipe.suffix == "ismv" else {}
    with av.open(str(path), "w", format=container.muxer, options=options) as output:
        stream = add_stream(output, encoder, recipe.rate)
        stream.time_base = Fraction(1, BASE) if container.stamped else 1 / recipe.rate
        packets = encoded(stream, encoder, recipe.count, recipe.orientation)
        times = _times(recipe, step, draw)
        pts = _pts(recipe, packets, times, draw)
        durations = _durations(pts, step)
        stamps_module.write(packets, pts, stamps_module.decoding_times(pts, step), durations)
        first = _first(packets, recipe.cut)
        packets, pts = packets[first:], pts[first:]
        if recipe.without:
            del packets[recipe.without], pts[recipe.without]
        if recipe.by == MESSAGE and recipe.orientation != 1:
            output.start_encoding()  # fills in the parameter sets that the filter reads
            packets = surgery.orientation_message(packets, stream, recipe.orientation)
        for coded in packets:
            output.mux(coded.packet)
    if recipe.by == MATRIX and recipe.orientation != 1:
        surgery.write_matrix(path, recipe.orientation, *encoder.size)
    if recipe.stamps == MISSING:
        surgery.drop_stamps(path, draw)
    truth = _truth(recipe, path, packets, pts, step)
    return Clip(path, recipe, truth, _moves(recipe, packets, truth, step))


def _moves(recipe: Recipe, packets: Sequence[Coded], truth: Truth, step: int) -> tuple[float, ...]:
    """Decoding times, all that ASF keeps, and FFmpeg's own count in a raw stream begin by the delay of the
    decoder before, or after, the first picture."""
    if recipe.suffix not in (*RAW, "asf", "wmv") or not ENCODERS[recipe.encoder].codec.startswith(DELAYED):
        return (0.0,)
    return tuple(k * step / BASE for k in range(-4, 5) if truth.begin + k * step / BASE > -ROUNDING)


def _times(recipe: Recipe, step: int, draw: random.Random) -> list[int]:
    """When each picture is shown, as the encoder is told."""
    kinds: dict[str, Callable[[int, int, random.Random], list[int]]] = {
        UNEVEN: stamps_module.uneven, JITTERED: stamps_module.jittered, DUPLICATED: stamps_module.duplicated,
    }  # fmt: skip
    if recipe.stamps in kinds:
        times = kinds[recipe.stamps](recipe.count, step, draw)
    else:
        start = draw.choice((1, 7, 250)) * step if recipe.stamps == SHIFTED else 0
        times = stamps_module.even(recipe.count, step, start)
    return [time - recipe.hide * step for time in times]


def _pts(recipe: Recipe, packets: Sequence[Coded], times: Sequence[int], draw: random.Random) -> list[int]:
    if recipe.stamps == STORAGE:
        return stamps_module.in_order_of_storage(packets, times)
    if recipe.stamps == EXCHANGED:
        return stamps_module.exchanged(packets, times, draw)
    return stamps_module.in_order_of_display(packets, times)


def _durations(pts: Sequence[int], step: int) -> list[int]:
    following = dict(zip(sorted(pts), sorted(pts)[1:]))
    return [max(following.get(stamp, stamp + step) - stamp, 0) for stamp in pts]


def _first(packets: Sequence[Coded], keys: int) -> int:
    """Where the packets begin after so many keyframes."""
    places = [place for place, coded in enumerate(packets) if coded.key]
    if keys >= len(places):
        raise ValueError(f"{len(places)} keyframes; keyframe {keys} does not exist")
    return places[keys]


def _truth(recipe: Recipe, path: Path, packets: Sequence[Coded], written: Sequence[int], step: int) -> Truth:
    """By the rule: the k-th picture of the order of display begins at the k-th of the sorted stamps; where
    the file has none, at k steps from the first."""
    numbers = sorted(coded.number for coded in packets if not coded.hidden)
    first_key = next(coded.number for coded in packets if coded.key)
    seconds = step / BASE
    if recipe.suffix == "avi":  # a picture, or a hidden one, in each step
        return Truth([(number * seconds, number) for number in numbers], len(packets) * seconds)
    if recipe.suffix in RAW:
        frames = [(k * seconds, number) for k, number in enumerate(numbers)]
        return Truth(_from(frames, first_key), len(numbers) * seconds)
    # The demuxer leaves out packets before the keyframe from which an edit list begins.
    listed = [pts / BASE for pts in written] if recipe.hide else surgery.listed(path)
    if recipe.stamps == DUPLICATED and len(listed) < len(packets):  # it leaves out one of two that share one
        listed = [pts / BASE for pts in written]
    if len(listed) != len(packets):
        raise AssertionError(f"{recipe}: {len(listed)} packets, not {len(packets)}")
    listed = [pts for pts, coded in zip(listed, packets) if not coded.hidden]
    if CONTAINERS[recipe.suffix].muxer == "asf" and ENCODERS[recipe.encoder].reorders:
        first = min(pts for pts in listed if pts is not None)  # the others FFmpeg makes of decoding times
        frames = [(first + k * seconds, number) for k, number in enumerate(numbers)]
        return Truth(frames, frames[-1][0] + seconds, slack=ROUNDING)
    if None in listed:
        # Which number is stored where, and so which of them has a stamp, is known.
        anchors = [p - c.number * seconds for p, c in zip(listed, packets) if p is not None]
        # FFmpeg's parser may give the stamp of a PES packet to two pictures, one of them wrong.
        anchor = sorted(anchors)[len(anchors) // 2] if len(anchors) > 2 else min(anchors, default=0.0)
        frames = [(anchor + number * seconds, number) for number in numbers]
        return Truth(_from(frames, first_key), frames[-1][0] + seconds, slack=ROUNDING)
    begins = sorted(listed)
    made = sorted(pts / BASE for pts, coded in zip(written, packets) if not coded.hidden)
    moved = [begin - time for begin, time in zip(begins, made)]
    slack = max(moved) - min(moved)
    if slack > 2 * ROUNDING and recipe.suffix not in ("mpg", "vob"):  # there, FFmpeg's parser errs (above)
        raise AssertionError(f"{recipe}: the container moved stamps by {min(moved)} to {max(moved)} s")
    frames = list(zip(begins, numbers))
    # Not by the packets that FFmpeg marks as hidden: with B-frames it may mark another one.
    shown = frames
    if recipe.hide and frames[0][0] < -LEAST:
        shown = [(begin, number) for begin, number in frames if begin > -LEAST]
        shown = [(begin - shown[0][0], number) for begin, number in shown]  # the first begins with the edit
    if recipe.stamps in (TRUE, STORAGE) and len(shown) != len(numbers) - recipe.hide:
        raise AssertionError(f"{recipe}: {len(shown)} of {len(numbers)} pictures are shown")
    even = recipe.stamps not in (UNEVEN, JITTERED, DUPLICATED)
    end = shown[-1][0] + seconds
    return Truth(_from(shown, first_key), end, slack=slack if slack > 2 * ROUNDING else LEAST, even=even)


def _from(frames: list[tuple[float, int]], first: int | None) -> list[tuple[float, int]]:
    """Without pictures shown before the first keyframe: they need what is not there."""
    return [(begin, number) for begin, number in frames if first is None or number >= first]
