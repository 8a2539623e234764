"""Synthesis over many videos: how fast each stage is, what becomes of bad files, whether memory stays flat.

    python -m bench synthesis --only rates --clips FOLDER [--videos 8] [--save]
    python -m bench synthesis --only poison [--videos 1000] [--save]
    python -m bench synthesis --only memory [--videos 2000] [--save]

`rates` wants videos of 480 rows, such as those that `bench geometry estimated --clips FOLDER` keeps. `poison`
makes small videos, one in twenty of them bad. `memory` takes one small video through all stages again
and again.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench._measure import add_save, positive, save
from fourdthinker.synth.inputs import Source, candidates, open_candidate
from fourdthinker.synth.journal import Entry, Journal
from fourdthinker.synth.run import Options, synthesise
from fourdthinker.synth.settings import STAGES, SynthSettings
from fourdthinker.synth.stages import Job, work
from fourdthinker.worlds.scenes import make_world, render, write_video

log = logging.getLogger(__name__)

_POISON = 20  # one bad video in so many
_TIMEOUT = 60.0  # seconds for one item
_NAMES = ("a b", "it's", 'say "x"', "two\nlines", "ünï 東京", "-dash", "50%")  # of good videos
KINDS = ("rates", "poison", "memory")
Row = dict[str, Any]


def rates(folder: Path, videos: int) -> list[Row]:
    """Items a minute of one process, by stage."""
    files = sorted(str(path) for path in folder.glob("*-480-*.mp4"))[:videos]
    with tempfile.TemporaryDirectory() as name:
        summary = synthesise(files, Path(name, "out"), options=Options(workers=1, progress=False))
    return [
        {"stage": stage} | {key: row[key] for key in ("done", "rejected", "seconds", "per_minute")}
        for stage, row in summary["stages"].items()
    ]


def pictures(seed: int, frames: int = 40, size: int = 64) -> np.ndarray:
    """A textured wall that drifts by."""
    wide = np.random.default_rng(seed).integers(0, 255, (size // 8, (size + frames) // 8 + 1, 3), np.uint8)
    wide = wide.repeat(8, 0).repeat(8, 1)
    return np.stack([wide[:, k : k + size] for k in range(frames)])


def _written(path: Path, pixels: np.ndarray) -> None:
    write_video(path.with_name("made.mp4"), pixels, 10.0)  # FFmpeg takes some names for patterns
    path.with_name("made.mp4").rename(path)


def _cut_off(path: Path, seed: int) -> None:
    _written(path, pictures(seed))
    path.write_bytes(path.read_bytes()[:700])


# What a bad file is called in the results, and how one is made: from a path and a seed.
_BAD: dict[str, Callable[[Path, int], object]] = {
    "noise": lambda path, seed: path.write_bytes(np.random.default_rng(seed).bytes(4000)),
    "cut off": _cut_off,
    "text": lambda path, seed: path.write_text(f"no video {seed}"),
    "empty": lambda path, seed: path.touch(),
    "black": lambda path, seed: _written(path, np.full((40, 64, 64, 3), seed % 3, np.uint8)),
    "still": lambda path, seed: _written(path, pictures(seed)[:1].repeat(40, 0)),
    "one picture": lambda path, seed: _written(path, pictures(seed)[:1]),
    "huge": lambda path, seed: _written(path, np.full((1, 9000, 9000 + 2 * seed, 3), 90, np.uint8)),
    "pipe": lambda path, seed: os.mkfifo(path),  # which never ends
    "link out": lambda path, seed: path.symlink_to("/dev/zero"),
    "link to nothing": lambda path, seed: path.symlink_to("nothing"),
    "wrong suffix": lambda path, seed: _written(path.with_suffix(".txt"), pictures(seed)),
}


def poison(videos: int) -> list[Row]:
    """What becomes of many videos, some of them bad."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "videos")
        folder.mkdir()
        made: Counter[str] = Counter()
        for number in range(videos):
            kind = list(_BAD)[number // _POISON % len(_BAD)] if number % _POISON == 0 else "good"
            made[kind] += 1
            odd = _NAMES[number] if number < len(_NAMES) else ""
            path = folder / f"{number:04d}{odd}.mp4"
            if kind == "good":
                _written(path, pictures(number))
            else:
                _BAD[kind](path, number)
        began = time.monotonic()
        options = Options(workers=1, progress=False, timeout=_TIMEOUT)
        settings = SynthSettings(analysis_fps=4)
        summary = synthesise([str(folder)], Path(name, "out"), settings, options)
        seconds = time.monotonic() - began
    row: Row = {"videos": videos, "made": dict(made), "given": summary["videos"]["given"]}
    row |= {"seconds": round(seconds, 1), "failed": len(summary["failed"])}
    row["stages"] = {
        stage: {"done": one["done"], "rejected": _kinds(one["rejected"])}
        for stage, one in summary["stages"].items()
    }
    return [row]


def _kinds(reasons: dict[str, int]) -> dict[str, int]:
    """Reasons without what they say of one file."""
    found: Counter[str] = Counter()
    for reason, count in reasons.items():
        found[reason.split(": ")[0].split(" as ")[0]] += count
    return dict(found)


def memory(videos: int) -> list[Row]:
    """Resident memory of a process that takes one clip through all stages, again and again."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        path, out = Path(name, "a.mp4"), Path(name, "out")
        clip = render(make_world(1, "move right", "left", frames=32, fps=10, size=96))
        write_video(path, clip.pixels, 10.0)
        out.mkdir()
        with Journal(out) as journal:
            source = open_candidate(candidates([str(path)])[0], journal, 0, {})
        assert isinstance(source, Source)
        for number in range(1, videos + 1):
            states: Counter[str] = Counter()

            def count(message: Any, states: Counter[str] = states) -> None:
                if isinstance(message, Entry):
                    states[message.state] += 1

            work(Job(source, SynthSettings(), out, STAGES), count)
            shutil.rmtree(out / "media", ignore_errors=True)
            if number % max(1, videos // 10) == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                megabytes = round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
                rows.append({"clips": number, "megabytes": megabytes, **states})
                log.info("%s", rows[-1])
    return rows


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench synthesis", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--clips", type=Path, help="folder of videos for rates")
    parser.add_argument(
        "--videos", type=positive, help="default: 8 for rates, 1000 for poison, 2000 for memory"
    )
    add_save(parser)
    options = parser.parse_args(argv)
    if "rates" in options.only and options.clips is None:
        parser.error("rates needs --clips FOLDER, as `bench geometry estimated --clips FOLDER` fills it")
    calls: dict[str, Callable[[], list[Row]]] = {
        "rates": lambda: rates(options.clips, options.videos or 8),
        "poison": lambda: poison(options.videos or 1000),
        "memory": lambda: memory(options.videos or 2000),
    }
    for kind in options.only:
        rows = calls[kind]()
        for row in rows:
            log.info("%s", row)
        if options.save:
            log.info("saved in %s", save(f"synthesis {kind}", rows))
    return 0
