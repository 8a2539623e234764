"""Damaged video files, by the thousand: each gives frames or a VideoError, within its time and memory.

python -m tests.fuzz.containers --cases 2000 [--first 0] [--seconds 60] [--note FILE]
python -m tests.fuzz.containers --write 17 FILE     the file of case 17

A case is a file of corpus/ with a few mutations drawn from its number, so that a failing one can be had
again. Damage here is what a transfer, a disk or an attacker does: cuts, flipped and overwritten bytes,
lengths and counts that lie, parts left out, repeated, or taken from another file.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, Frames, index_cache, read_frames

log = logging.getLogger("fuzz")

CORPUS = Path(__file__).parent / "corpus"
LIMIT_SECONDS = 60  # for one case; two readings of a file of a few frames take milliseconds
LIMIT_BYTES = 1 << 30  # resident above the start, for pictures that a header claims to be large
# What readers of MP4, Matroska, AVI, MPEG-TS and of H.264 look for.
BOXES = b"moov trak mdhd elst stts ctts stss stsc stsz stco stsd avcC mdat tkhd mvhd idx1 strh".split()
ELEMENTS = [bytes.fromhex(name) for name in ("1a45dfa3", "1549a966", "1654ae6b", "1f43b675", "a3", "e7")]
NAMES = [*BOXES, *ELEMENTS, b"\x47\x41\x00", b"\x00\x00\x01"]
NUMBERS = [0, 1, 2, *(2**bits + more for bits in (7, 8, 15, 16, 31, 32) for more in (-2, -1, 0))]
POLICY = FramePolicy(fps=8, max_frames=12, max_pixels=56 * 56)


class Wrong(Exception):
    """A result that no file should give."""


def corpus() -> list[bytes]:
    files = sorted(CORPUS.iterdir())
    if not files:
        raise FileNotFoundError(f"{CORPUS} is empty")
    return [file.read_bytes() for file in files]


def damaged(number: int, files: list[bytes]) -> bytes:
    """The file of a case."""
    draw = random.Random(number)
    data = bytearray(files[number % len(files)])
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        if data:
            _damage(data, draw, files)
    return bytes(data)


def _damage(data: bytearray, draw: random.Random, files: list[bytes]) -> None:
    at = draw.randrange(len(data))
    kind = draw.randrange(9)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        data[at] ^= 1 << draw.randrange(8)
    elif kind == 2:
        for place in range(at, min(at + draw.randrange(1, 40), len(data))):
            data[place] = draw.randrange(256)
    elif kind in (3, 4, 5):  # a number close to a name that the container's reader looks for
        places = [p for name in NAMES for p in [data.find(name, draw.randrange(len(data)))] if p >= 0]
        near = (draw.choice(places) if places else at) + draw.randrange(-8, 40)
        width = draw.choice((1, 2, 4, 8))
        value = draw.choice(NUMBERS) if draw.random() < 0.7 else draw.randrange(1 << 32)
        near = min(max(near, 0), max(len(data) - width, 0))
        data[near : near + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "big")
    elif kind == 6:
        del data[at : at + draw.choice((1, 4, 16, 188, 400))]
    elif kind == 7:
        part = data[at : at + draw.choice((4, 16, 188, 400))]
        place = draw.randrange(len(data))
        data[place:place] = part
    else:
        other = draw.choice(files)
        begin = draw.randrange(len(other))
        part = other[begin : begin + draw.choice((16, 188, 600))]
        data[at : at + len(part)] = part


def check(frames: Frames) -> None:
    """What holds of the frames of any file."""
    pixels, count = frames.pixels, len(frames.seconds)
    if pixels is None or pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise Wrong("no pixels")
    if not 1 <= count <= POLICY.max_frames or pixels.shape[0] != count or len(frames.shown) != count:
        raise Wrong(f"{count} times, {len(frames.shown)} stamps and {list(pixels.shape)} pixels")
    if pixels.shape[1] * pixels.shape[2] > POLICY.max_pixels:
        raise Wrong(f"{list(pixels.shape)} pixels for at most {POLICY.max_pixels}")
    late = [(t, s) for t, s in zip(frames.seconds[1:], frames.shown[1:]) if s > t + 1e-4]
    if late or sorted(frames.shown) != list(frames.shown):
        raise Wrong(f"times {frames.seconds} show frames of {frames.shown}")


def read(data: bytes, path: Path | None) -> str:
    """Reads a file, twice where it has a path; the outcome in a word. Raises Wrong, or what is unforeseen."""
    outcomes: list[Frames | str] = []
    if path is not None:
        path.write_bytes(data)
    for _ in range(1 if path is None else 2):
        try:
            frames = read_frames(data if path is None else path, POLICY)
        except VideoError as error:
            outcomes.append(str(error))
            continue
        check(frames)
        outcomes.append(frames)
    first, last = outcomes[0], outcomes[-1]
    if isinstance(first, str) or isinstance(last, str):
        if first != last:
            raise Wrong(f"a second reading differs: {_brief(first)}, then {_brief(last)}")
        return "error"
    if first.seconds != last.seconds or not torch.equal(first.pixels, last.pixels):
        raise Wrong("a second reading gives other frames")
    return "frames"


def _brief(outcome: Frames | str) -> str:
    return outcome if isinstance(outcome, str) else f"frames at {outcome.seconds}"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(first: int, cases: int, seconds: float, note: Path | None) -> int:
    """Number of failing cases; each is named on the log.

    A crash or a hang ends the process with its traceback. note: a file that names the case being read.
    """
    files, outcomes, failed = corpus(), Counter[str](), 0
    start, before = time.monotonic(), _peak()
    logging.getLogger("fourdthinker").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[index_cache.VARIABLE] = str(Path(folder, "index"))
        for number in range(first, first + cases):
            if time.monotonic() - start > seconds:
                break
            if note is not None:
                note.write_text(f"{number}\n")
            path = Path(folder, f"case{number}.bin") if number % 3 == 0 else None
            torch.set_num_threads(1 + number % 2)
            faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
            try:
                outcomes[read(damaged(number, files), path)] += 1
            except Exception as error:
                failed += 1
                log.exception("case %d: %s", number, type(error).__name__)
            finally:
                faulthandler.cancel_dump_traceback_later()
                if path is not None:
                    path.unlink(missing_ok=True)
            if _peak() - before > LIMIT_BYTES:
                failed += 1
                log.error("case %d: took %d MB", number, (_peak() - before) >> 20)
                before = _peak()
    log.info(
        "%d cases in %.0f s: %s, %d failed",
        sum(outcomes.values()) + failed,
        time.monotonic() - start,
        dict(outcomes),
        failed,
    )
    return failed


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Read damaged video files.")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--note", type=Path, help="file that names the case being read")
    parser.add_argument("--write", nargs=2, metavar=("CASE", "FILE"))
    options = parser.parse_args(argv)
    if options.write:
        Path(options.write[1]).write_bytes(damaged(int(options.write[0]), corpus()))
        return 0
    faulthandler.enable()
    return 1 if run(options.first, options.cases, options.seconds, options.note) else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
