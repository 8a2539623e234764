"""Random clips read at random times: the frames that PyAV's plain decoding says are shown then, bit for bit.

python -m tests.fuzz.times --cases 500 [--first 0] [--seconds 60]

A case draws codec, container, groups of pictures, B-frames, presentation times (uneven, with an offset, cut
by an edit list) and the times asked for. What skips, seeks and indexes is compared with decoding everything.
Files are read a second time, when their index comes from the index_cache, and a third time with that damaged.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import random
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import torch

from fourdthinker.errors import VideoError
from fourdthinker.frames import index_cache, read_frames
from tests.clips import make_clip, number_of, remux

log = logging.getLogger("fuzz")

LIMIT_SECONDS = 180  # for one case, encoding included, on a machine that is busy


class Wrong(Exception):
    """Frames other than those shown at the times."""


def _x264(draw: random.Random) -> dict[str, str]:
    parts = [f"keyint={draw.choice((2, 7, 25, 250))}", f"bframes={draw.choice((0, 1, 3, 7))}"]
    more = ["open-gop=1", "scenecut=0", "b-pyramid=none", "b-pyramid=strict", "ref=1", "intra-refresh=1"]
    parts += draw.sample([*more, "slices=3", "b-adapt=0", "min-keyint=1"], draw.randrange(4))
    return {"preset": "ultrafast", "x264-params": ":".join(parts)}


def _x265(draw: random.Random) -> dict[str, str]:
    parts = [f"keyint={draw.choice((5, 20, 250))}", f"bframes={draw.choice((0, 3, 4))}", "log-level=none"]
    parts += draw.sample(("open-gop=0", "b-pyramid=0", "scenecut=0", "temporal-layers=2"), draw.randrange(3))
    return {"preset": "ultrafast", "x265-params": ":".join(parts)}


def _vpx(draw: random.Random) -> dict[str, str]:
    return {"g": draw.choice(("3", "20", "250")), "deadline": "realtime", "cpu-used": "8", "lag-in-frames":
            draw.choice(("0", "10")), "auto-alt-ref": draw.choice(("0", "1"))}  # fmt: skip


def _svt(draw: random.Random) -> dict[str, str]:
    return {"preset": "12", "crf": "50", "g": draw.choice(("4", "16", "250")), "svtav1-params": "lp=1"}


def _plain(draw: random.Random) -> dict[str, str]:
    return {"g": draw.choice(("1", "4", "12")), "bf": draw.choice(("0", "2"))}


CODECS: tuple[tuple[str, Callable[[random.Random], dict[str, str]], tuple[str, ...]], ...] = (
    ("libx264", _x264, ("mp4", "mkv", "ts", "avi", "mov")),
    ("libx264", _x264, ("mp4", "mkv")),
    ("libx265", _x265, ("mp4", "mkv", "ts")),
    ("libvpx-vp9", _vpx, ("webm", "mp4", "mkv")),
    ("libvpx", _vpx, ("webm", "mkv")),
    ("libsvtav1", _svt, ("mp4", "mkv", "webm")),
    ("mpeg4", _plain, ("mp4", "avi", "mkv")),
)


def make(number: int, folder: Path) -> tuple[Path, str]:
    """The clip of a case, and its recipe in words."""
    draw = random.Random(number)
    codec, options_of, suffixes = draw.choice(CODECS)
    options, suffix = options_of(draw), draw.choice(suffixes)
    count = draw.choice((1, 2, 9, 40, 120))
    even = suffix in ("avi", "ts") or codec == "libsvtav1" or draw.random() < 0.4
    gaps = [40 if even else draw.choice((1, 7, 33, 40, 40, 100, 400)) for _ in range(count)]
    start = draw.choice((0, 0, 40, 5000))
    stamps = [start + sum(gaps[:k]) for k in range(count)]
    size = draw.choice(((48, 64), (64, 64), (66, 98)))
    path = make_clip(folder / f"case{number}.{suffix}", stamps, codec=codec, options=options, size=size)
    recipe = f"{codec} {options} {suffix} {count} frames from {start} {'even' if even else 'uneven'} {size}"
    if suffix == "mp4" and codec.startswith("libx26") and count > 2 and draw.random() < 0.4:
        back = draw.choice((0.04, 0.3, 1.0)) + start / 1000
        path = remux(path, folder / f"cut{number}.mp4", shift=-back)
        recipe += f" shifted by {-back} s"
    return path, recipe


def shown(path: Path) -> list[tuple[float, int]]:
    """(time, number) of every frame, by plain decoding."""
    with av.open(str(path)) as container:
        return [
            (frame.time, number_of(frame.to_ndarray(format="rgb24")))
            for frame in container.decode(video=0)
            if frame.time is not None
        ]


def check(number: int, folder: Path) -> str:
    """Raises Wrong, naming the recipe, or whatever reading raises."""
    try:
        path, recipe = make(number, folder)
        frames = shown(path)
    except av.error.FFmpegError:
        return "not made"  # an encoder refuses the settings, or a stream is too short to be recognised
    begin = [time for time, _ in frames]
    if not begin or any(b <= a for a, b in pairwise(begin)):
        return "no clock"  # H.264 with B-frames in AVI: the times are guesses, and out of order
    draw = random.Random(~number)
    try:
        whole = read_frames(path, times=begin)
    except VideoError as error:
        if path.suffix == ".avi" and "AVI does not say when each is shown" in str(error):
            return "no clock"
        raise
    if [number_of(picture) for picture in whole.pixels] != [n for _, n in frames]:
        raise Wrong(f"{recipe}: frames {[number_of(p) for p in whole.pixels]}, not {[n for _, n in frames]}")
    for turn in range(3):
        times = [draw.uniform(begin[0], begin[-1]) for _ in range(draw.choice((1, 2, 8)))]
        times += draw.sample(begin, min(len(begin), draw.randrange(3)))
        draw.shuffle(times)
        if turn == 2:
            _spoil(path, draw)
        some = read_frames(path, times=times)
        places = [max(0, bisect_right(begin, t + 1e-6) - 1) for t in times]
        if not torch.equal(some.pixels, whole.pixels[places]):
            got = [number_of(picture) for picture in some.pixels]
            raise Wrong(f"{recipe}: at {times} frames {got}, not {[frames[p][1] for p in places]}")
        if not np.allclose(some.shown, [begin[p] for p in places], atol=1e-6):
            raise Wrong(f"{recipe}: at {times} stamps {some.shown}, not {[begin[p] for p in places]}")
    return "same"


def _spoil(path: Path, draw: random.Random) -> None:
    """Damage the index that was kept for a file, if there is one."""
    for stream in range(2):
        key = index_cache.key_of(str(path), stream)
        kept = index_cache._path_of(key) if key is not None else None
        if kept is not None and kept.is_file():
            data = bytearray(kept.read_bytes())
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            kept.write_bytes(bytes(data[: draw.choice((len(data), len(data) // 2))]))


def run(first: int, cases: int, seconds: float) -> int:
    """Number of failing cases, each named on the log."""
    start, outcomes, failed = time.monotonic(), Counter[str](), 0
    logging.getLogger("fourdthinker").setLevel(logging.ERROR)  # damaged indices are told about
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[index_cache.VARIABLE] = str(folder / "index")
        for number in range(first, first + cases):
            if time.monotonic() - start > seconds:
                break
            faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
            try:
                outcomes[check(number, folder)] += 1
            except Exception as error:
                failed += 1
                log.exception("case %d: %s: %s", number, type(error).__name__, make(number, folder)[1])
            finally:
                faulthandler.cancel_dump_traceback_later()
                for file in folder.glob("*.*"):
                    file.unlink()
    log.info("%d cases in %.0f s: %s, %d failed", sum(outcomes.values()) + failed, time.monotonic() - start,
             dict(outcomes), failed)  # fmt: skip
    return failed


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Read random clips at random times.")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9)
    options = parser.parse_args(argv)
    torch.set_num_threads(2)
    os.environ.setdefault("SVT_LOG", "1")
    return 1 if run(options.first, options.cases, options.seconds) else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
