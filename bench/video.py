"""Reading videos: ours against its peers, from file to resized frames.

python -m bench video [--quick] [--videos FOLDER] [--only TEXT] [--save]

Frames at one a second and at 16 uniform times, resized to at most 256 * 28 * 28 pixels, from generated clips
and from the files of a folder. Before anything is timed, every reader's frames are checked to be those shown
at the times asked for.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from bench._clips import Clip, cache_folder, clip_file, number_of
from bench._measure import add_save, interleaved, peak_rss, save, show, summary
from bench._ordered import MOST as MOST_ORDERED
from bench._ordered import measure as measure_ordered
from bench._readers import (
    OURS,
    SECOND_VISIT,
    SLOW_PEER,
    Ours,
    Plan,
    Reader,
    absent,
    pyav_pillow,
    readers,
)
from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy

log = logging.getLogger("bench.video")

VIDEOS = Path(__file__).resolve().parent.parent.parent / "shared" / "videos"
UNIFORM = 16
# Frames are of equal quality when so many of their values are within so many levels of Pillow's Lanczos on
# swscale's colours; those of real clips, whose chroma swscale repeats and we interpolate, by their mean.
ALIKE, LEVELS, MEAN = 0.99, 3, 1.5
HOPELESS = 1.35  # a peer this many times slower than the best in a first run is not run again
LEFT_OUT = 2.0  # one so many times slower at one sampling of a clip is not run at the other
ROUND_SECONDS = 2.5  # spent on the timed rounds of a row
FEWEST, MOST = 3, 7  # rounds
FEW_KEYS = 4  # with fewer keyframes, seeking spares a peer next to nothing
TO_SLOW_PEER, TO_TORCHCODEC, TO_BEST = 1.7, 1.3, 0.95

MATRIX = [
    *(Clip("h264", 480, gop, 20) for gop in (30, 250)),
    *(Clip("h264", 720, gop, 20) for gop in (30, 250)),
    *(Clip("h264", 1080, gop, 10) for gop in (30, 250)),
    *(Clip("h264", 2160, gop, 5) for gop in (30, 250)),
    *(Clip(codec, height, gop, 10) for codec in ("hevc", "vp9", "av1") for height in (480, 720, 1080)
      for gop in (30, 250)),
    *(Clip("av1", 2160, gop, 5) for gop in (30, 250)),
    # Every other codec whose decoder FFmpeg can empty and go on with, as far as FFmpeg encodes it.
    *(Clip(codec, 480, gop, 10) for codec in ("vp8", "mpeg4", "mpeg1", "mpeg2", "wmv1", "wmv2", "msmpeg4",
      "flv1") for gop in (30, 250)),
    *(Clip("h263+", 720, gop, 10) for gop in (30, 250)),  # its width is a multiple of 4
    *(Clip(codec, 480, 1, 10) for codec in ("mjpeg", "prores", "ffv1")),
    *(Clip(codec, 240, 250, 6, rate=10) for codec in ("gif", "apng")),
]  # fmt: skip
QUICK = [
    Clip("h264", 720, 250, 9), Clip("h264", 480, 30, 6), Clip("hevc", 480, 30, 4), Clip("av1", 480, 120, 4),
]  # fmt: skip


@dataclass
class Outcome:
    """One reader on one row: seconds of each run (none when it failed), costs, how its frames differ."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    peak: int = 0
    difference: float = 0.0
    decoder: str = ""  # what decoded, where the reader says it
    fault: str = ""  # why it does not count

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Row:
    """One file and one way to sample it."""

    clip: str
    sampling: str
    plan: Plan
    path: Path
    bounds: bool  # H.264 with B-frames and long groups, 720p or 1080p: ahead of peers by more than equal
    numbered: bool  # its pictures carry their number
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def counting(self) -> dict[str, float]:
        """Medians of the peers whose frames are the right ones at equal quality."""
        return {name: o.median for name, o in self.outcomes.items() if o.seconds and not o.fault}

    def ratios(self) -> dict[str, tuple[str, float]]:
        """Against the slow peer, the best of torchcodec, the best of all: (name, its time by ours)."""
        medians = self.counting()
        mine = medians.pop(OURS, None)
        medians = {name: value for name, value in medians.items() if not name.startswith(OURS)}
        if mine is None or not medians:
            return {}
        best = min(medians, key=medians.__getitem__)
        found = {"best": (best, medians[best] / mine)}
        if SLOW_PEER in medians:
            found["slow"] = (SLOW_PEER, medians[SLOW_PEER] / mine)
        codecs = {name: value for name, value in medians.items() if name.startswith("torchcodec")}
        if codecs:
            best = min(codecs, key=codecs.__getitem__)
            found["torchcodec"] = (best, codecs[best] / mine)
        return found

    def misses(self) -> list[str]:
        """The bounds that this row does not keep."""
        needed = {"best": TO_BEST}
        if self.bounds:
            needed |= {"slow": TO_SLOW_PEER, "torchcodec": TO_TORCHCODEC}
        if OURS not in self.counting():
            return ["ours failed"]
        return [
            f"{ratio:.2f} of {name}, {needed[kind]:g} needed"
            for kind, (name, ratio) in self.ratios().items()
            if kind in needed and ratio < needed[kind]
        ]


# -- what is read


@dataclass(frozen=True)
class _Index:
    begin: list[float]
    stamps: list[int]
    keys: list[int]
    end: float
    size: tuple[int, int]
    stream: int


def _index(path: Path) -> _Index:
    """When each frame of the best video stream is shown, from its packets."""
    with av.open(str(path)) as container:
        video = container.streams.best("video")
        if video is None or video.time_base is None:
            raise VideoError(f"{path}: no video")
        packets = [p for p in container.demux(video) if p.pts is not None and p.size and not p.is_discard]
        packets.sort(key=lambda packet: packet.pts)
        base = video.time_base
        last = packets[-1]
        container.seek(0)
        turned = next(container.decode(video)).rotation % 180 != 0
        size = (video.width, video.height) if turned else (video.height, video.width)
        return _Index(
            [float(p.pts * base) for p in packets], [p.pts for p in packets],
            [k for k, p in enumerate(packets) if p.is_keyframe],
            float((last.pts + (last.duration or 0)) * base), size, video.index,
        )  # fmt: skip


def _rows(name: str, path: Path, bounds: bool, numbered: bool) -> Iterator[Row]:
    index, policy = _index(path), FramePolicy()
    start, length = index.begin[0], index.end - index.begin[0]
    every = [start + k * length / UNIFORM for k in range(UNIFORM)]
    for sampling, times in (("1 fps", policy.times(length, start)), ("16 uniform", every)):
        chosen = [int(np.searchsorted(index.begin, t + 1e-6, "right")) - 1 for t in times]
        plan = Plan(
            policy, times, chosen, [index.stamps[k] for k in chosen], policy.size(*index.size),
            sampling != "1 fps", index.keys, index.stream,
        )  # fmt: skip
        yield Row(name, sampling, plan, path, bounds, numbered)


def _generated(clips: Sequence[Clip], folder: Path, only: str) -> Iterator[Row]:
    for clip in clips:
        if only in clip.name:
            start = time.monotonic()
            path = clip_file(clip, folder)
            if time.monotonic() - start > 1:
                log.info("%s: made in %.0f s", clip.name, time.monotonic() - start)
            bounds = clip.codec == "h264" and clip.gop >= 250 and clip.height in (720, 1080)
            yield from _rows(clip.name, path, bounds, True)


def _real(folder: Path | None, only: str) -> Iterator[Row]:
    for path in sorted(folder.iterdir() if folder is not None and folder.is_dir() else []):
        if path.suffix in (".mp4", ".mkv", ".mov", ".webm") and only in path.name:
            try:
                yield from _rows(path.name, path, False, False)
            except (av.error.FFmpegError, VideoError, IndexError) as error:
                log.warning("%s: left out: %s", path.name, error)


# -- measuring


def _check(row: Row, name: str, pixels: np.ndarray, reference: np.ndarray, outcome: Outcome) -> None:
    """Sets difference, and fault when frames or size or quality are not those asked for."""
    if pixels.shape != reference.shape:
        outcome.fault = f"shape {list(pixels.shape)}, not {list(reference.shape)}"
        return
    apart = np.abs(pixels.astype(np.int16) - reference)
    outcome.difference = float(apart.mean())
    if row.numbered:
        # Of the same frames, for an encoder may leave out the change of a number's lowest bits.
        pairs = [(number_of(want), number_of(got)) for want, got in zip(reference, pixels)]
        wrong = [(want, got) for want, got in pairs if want != got]
        if wrong:
            outcome.fault = f"{len(wrong)} of {len(pairs)} frames wrong: {wrong[0][0]} is {wrong[0][1]}"
            return
    if not row.numbered:
        if outcome.difference > MEAN:
            outcome.fault = f"other quality: {outcome.difference:.2f} levels in the mean"
        return
    alike = float((apart <= LEVELS).mean())
    if alike < ALIKE:
        outcome.fault = f"other quality: {alike:.1%} of values within {LEVELS} levels"


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _measure(row: Row, every: dict[str, Reader], rounds_seconds: float) -> None:
    """First one run of each with peak memory and checks, then timed rounds of those still in question."""
    reference = pyav_pillow(row.path, row.plan)
    calls: dict[str, Callable[[], object]] = {}
    for name, reader in every.items():
        outcome = row.outcomes[name] = Outcome()
        kept: list[np.ndarray] = []
        spent: list[float] = []

        def first(reader: Reader = reader, kept: list[np.ndarray] = kept, spent: list[float] = spent) -> None:
            start = time.perf_counter()
            kept.append(reader(row.path, row.plan))
            spent.append(time.perf_counter() - start)

        def timed(reader: Reader = reader, outcome: Outcome = outcome) -> np.ndarray:
            before = _processor_seconds()
            pixels = reader(row.path, row.plan)
            outcome.processor.append(_processor_seconds() - before)
            return pixels

        before = _processor_seconds()
        try:
            outcome.peak = peak_rss(first)
        except Exception as error:  # noqa: BLE001 - what a peer cannot read is a result
            text = " ".join(str(error).split()).replace(str(row.path), row.path.name) or type(error).__name__
            outcome.fault = text[:120]
            log.warning("%s, %s: %s: %s", row.clip, row.sampling, name, text[:300])
            continue
        outcome.seconds, outcome.processor = spent, [_processor_seconds() - before]
        outcome.decoder = getattr(reader, "decoder", "")
        _check(row, name, kept.pop(), reference, outcome)
        if outcome.fault:
            log.warning("%s, %s: %s: %s", row.clip, row.sampling, name, outcome.fault)
        calls[name] = timed
    gc.collect()
    calls = {name: calls[name] for name in _in_question(row)}
    for name in calls:
        row.outcomes[name].processor = []
    estimate = sum(row.outcomes[name].seconds[0] for name in calls)
    repeats = min(MOST, max(MOST if row.bounds else FEWEST, int(rounds_seconds / max(estimate, 1e-3))))
    for name, seconds in interleaved(calls, repeats=repeats, warmup=0).items():
        row.outcomes[name].seconds = seconds


def _in_question(row: Row) -> list[str]:
    """Ours, the slow peer, and by a first run those that may be the best of all or of torchcodec: the
    two best and those close to the best; torchcodec's best alone where the row does not depend on it."""
    medians = row.counting()
    peers = {name: value for name, value in medians.items() if not name.startswith(OURS)}
    codecs = {name: value for name, value in peers.items() if name.startswith("torchcodec")}
    limit = _limit(peers)
    codec_limit = _limit(codecs) if row.bounds else min(codecs.values(), default=0.0)
    return [
        name
        for name, value in medians.items()
        if name.startswith(OURS) or (name == SLOW_PEER and row.bounds) or value <= limit
        or (name in codecs and value <= codec_limit)
    ]  # fmt: skip


def _limit(seconds: dict[str, float]) -> float:
    ordered = sorted(seconds.values())
    return max(HOPELESS * ordered[0], ordered[:2][-1]) if ordered else 0.0


def _left_out(row: Row, before: Row | None) -> set[str]:
    """Peers that are not worth a run. before: the row measured last."""
    names = set() if row.bounds else {SLOW_PEER}
    if len(row.plan.keys) < FEW_KEYS:
        names |= {"PyAV seeking", "OpenCV seeking"}
    if row.path.suffix == ".ts":
        names |= {SLOW_PEER, "decord"}  # 0.6.0 does not come back where keyframes are 250 apart
    if before is not None and before.path == row.path:
        peers = {name: value for name, value in before.counting().items() if not name.startswith(OURS)}
        limit = LEFT_OUT * min(peers.values(), default=0.0)
        names |= {name for name, value in peers.items() if value > limit and name != SLOW_PEER}
    return names


def _every_frame(row: Row, device: str) -> dict[str, Any]:
    """How fast ours reads all frames of a row's file, resized, to memory of the device: its record, unchecked
    but for their number."""
    index, reader = _index(row.path), Ours("off", device)
    count = len(index.begin)
    plan = Plan(
        row.plan.policy, index.begin, list(range(count)), index.stamps, row.plan.size, True, index.keys,
        index.stream,
    )  # fmt: skip
    record: dict[str, Any] = {"clip": row.clip, "sampling": "every frame", "frames": count, "reader": OURS}
    try:
        if len(reader.pixels(row.path, plan)) != count:
            raise VideoError(f"{row.path}: not {count} frames")
    except VideoError as error:
        return record | {"decoder": reader.decoder, "fault": str(error)[:120]}
    taken = summary(
        interleaved({OURS: lambda: reader.pixels(row.path, plan)}, repeats=FEWEST, warmup=0)[OURS]
    )
    return record | {
        "decoder": reader.decoder, "fault": "", **{key: round(value, 5) for key, value in taken.items()},
        "frames_per_s": round(count / taken["median"], 1),
    }  # fmt: skip


# -- telling


def _line(row: Row) -> dict[str, object]:
    medians, ratios = row.counting(), row.ratios()
    line: dict[str, object] = {"clip": row.clip, "frames": f"{len(row.plan.times)} {row.sampling}"}
    mine = row.outcomes.get(OURS)
    if mine is None or OURS not in medians:
        return {**line, "ours ms": "failed", "below": mine.fault if mine else ""}
    line["ours ms"] = f"{mine.median * 1e3:.0f}"
    for kind, title in (("slow", "decord+Pillow"), ("torchcodec", "torchcodec"), ("best", "best of all")):
        line[title] = f"{ratios[kind][1]:.2f}" if kind in ratios else ""
    best = ratios.get("best", ("", 0.0))[0]
    line["best peer"] = f"{best} {medians[best] * 1e3:.0f}" if best else ""
    if SECOND_VISIT in medians:
        line["second visit ms"] = f"{medians[SECOND_VISIT] * 1e3:.0f}"
    line["CPU s"] = f"{statistics.median(mine.processor):.2f}"
    line["its CPU s"] = f"{statistics.median(row.outcomes[best].processor):.2f}" if best else ""
    line["MB"] = f"{mine.peak / 1e6:.0f}"
    line["its MB"] = f"{row.outcomes[best].peak / 1e6:.0f}" if best else ""
    line["below"] = "!" if row.misses() else ""
    return line


def _records(row: Row) -> Iterator[dict[str, Any]]:
    for name, outcome in row.outcomes.items():
        record: dict[str, Any] = {
            "clip": row.clip, "sampling": row.sampling, "frames": len(row.plan.times), "reader": name,
            "decoder": outcome.decoder, "fault": outcome.fault,
            "mean_difference": round(outcome.difference, 3), "peak_bytes": outcome.peak,
        }  # fmt: skip
        if outcome.seconds:
            record |= {key: round(value, 5) for key, value in summary(outcome.seconds).items()}
            record["cpu_seconds"] = round(statistics.median(outcome.processor), 4)
            record["frames_per_s"] = round(len(row.plan.times) / outcome.median, 1)
        yield record


def _report(title: str, rows: Sequence[Row]) -> None:
    show(title, [_line(row) for row in rows])
    missed = [(row, row.misses()) for row in rows if row.misses()]
    for row, why in missed:
        log.info("below: %s, %s: %s", row.clip, row.sampling, "; ".join(why))
    log.info("%d of %d rows keep their bounds", len(rows) - len(missed), len(rows))
    for name, reason in absent().items():
        log.info("absent: %s: %s", name, reason)


def main(argv: list[str]) -> int:
    """Exit status 1 where ours fails, or reads on a GPU what NVDEC did not decode."""
    parser = argparse.ArgumentParser(prog="python -m bench video", description="Readers of videos, compared.")
    parser.add_argument("--quick", action="store_true", help="four small rows, at most 90 s; not with --save")
    parser.add_argument("--videos", type=Path, default=VIDEOS, help="folder of real clips")
    parser.add_argument("--only", default="", help="only clips whose name holds this text")
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser.add_argument("--device", choices=there, help="only readers of this device (default: of all)")
    add_save(parser)
    options = parser.parse_args(argv)
    if options.quick and options.save:
        parser.error("--quick measures too briefly for a figure; leave out --quick or --save")
    start, failed = time.monotonic(), False
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if options.quick:
        rows = [row for row in _generated(QUICK, cache_folder(), options.only) if row.sampling == "1 fps"]
    else:
        rows = [*_generated(MATRIX, cache_folder(), options.only), *_real(options.videos, options.only)]
    for device in [options.device] if options.device else there:
        before, measured, records = None, [], []
        for row in rows:
            row.outcomes = {}
            left_out = _left_out(row, before)
            try:
                with tempfile.TemporaryDirectory() as kept:
                    every = readers(device, kept)
                    every = {name: every[name] for name in every if name not in left_out}
                    _measure(row, every, 3.0 if options.quick else ROUND_SECONDS)
            except av.error.FFmpegError as error:
                log.warning("%s, %s: left out: %s", row.clip, row.sampling, error)
                continue
            before = row
            measured.append(row)
            log.info("%4.0f s  %s", time.monotonic() - start, _line(row))
            records += _records(row)
            if device == "cuda" and row.sampling != "1 fps":  # once a file
                records.append(_every_frame(row, device))
                log.info("%s", records[-1])
            failed = failed or any(record["reader"] == OURS and record["fault"] for record in records)
            if options.save:  # after each row, so that nothing is lost
                saved = save(
                    "video" if device == "cpu" else "video cuda", records, device, ("clip", "sampling")
                )
        _report(f"Reading videos on {device}: peers' time by ours, medians", measured)
        if measured and options.save:
            log.info("saved in %s", saved)
    if options.device != "cuda" and not options.only:
        both = measure_ordered(cache_folder(), FEWEST)
        log.info("ordered first: all frames in %.0f ms, decoding through %.0f ms: %.2f, %g at most",
                 both["ours"], both["through"], both["ratio"], MOST_ORDERED)  # fmt: skip
    log.info("%.0f s in all", time.monotonic() - start)
    return 1 if failed else 0
