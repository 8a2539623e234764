"""Files of every codec, container and kind of stamps, read in every way: the picture shown then, or an error.

python -m tests.fuzz.order --cases 2000 [--first 0] [--seconds 60]
python -m tests.fuzz.order --write 17 FOLDER     the file of case 17, and what it must show

Pictures carry their number and their orientation, so that what a file must show is known from how it was
made (tests/oracle). A case fails where a picture is another one, where an error is none of those that
tests/oracle/refusals.py lists for this kind of file, and where anything but VideoError is raised.
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
from collections import Counter
from pathlib import Path

import torch

from fourdthinker.frames import index_cache
from tests.oracle.access import REFUSED, RIGHT, WRONG, Judged, decord_ways, judge, limits, settled, ways
from tests.oracle.files import make
from tests.oracle.recipes import drawn
from tests.oracle.refusals import refusal

log = logging.getLogger("fuzz")

LIMIT_SECONDS = 900  # for one case, encoding included, on a machine that is busy


def has_decord() -> bool:
    try:
        import decord  # noqa: F401
    except ImportError:
        return False
    return True


def check(number: int, folder: Path, decord: bool) -> Judged:
    """Make the file of a case and read it."""
    clip = make(drawn(number), folder)
    draw = random.Random(number)
    torch.set_num_threads(draw.choice((1, 2)))
    room, seek = draw.choice(((None, None), (None, None), (0, None), (0, 5)))
    os.environ[index_cache.VARIABLE] = draw.choice(("off", str(folder / "index")))
    with limits(room, seek):
        clip = settled(clip)
        all_ways = ways(clip, draw)
        if decord and draw.random() < 0.3:
            all_ways += decord_ways(clip)
        return judge(clip, all_ways)


def faults(judged: Judged) -> list[str]:
    """What of a case must not be."""
    result = [f"{verdict.way}: {verdict.words}" for verdict in judged.of(WRONG)]
    for verdict in judged.of(REFUSED):
        if refusal(judged.clip.recipe, verdict.way, verdict.words) is None:
            result.append(f"{verdict.way}: refused, though not listed: {verdict.words}")
    return result


def run(first: int, cases: int, seconds: float) -> int:
    """Number of failing cases, each named on the log."""
    start, outcomes, failed = time.monotonic(), Counter[str](), 0
    decord = has_decord()
    logging.getLogger("fourdthinker").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(first, first + cases):
            if time.monotonic() - start > seconds:
                break
            faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
            try:
                judged = check(number, folder, decord)
            except Exception as error:
                failed += 1
                log.exception("case %d: %s: %s", number, type(error).__name__, drawn(number))
            else:
                outcomes.update(verdict.outcome for verdict in judged.verdicts)
                outcomes["files"] += 1
                wrong = faults(judged)
                if wrong:
                    failed += 1
                    log.error("case %d: %s: %d of %d reads: %s", number, judged.clip.recipe, len(wrong),
                              len(judged.verdicts), wrong[0][:300])  # fmt: skip
            finally:
                faulthandler.cancel_dump_traceback_later()
                for file in folder.glob("*.*"):
                    file.unlink()
    took = time.monotonic() - start
    reads = ", ".join(f"{outcomes[kind]} {kind}" for kind in (RIGHT, REFUSED, WRONG))
    log.info("%d files in %.0f s, reads: %s; %d files failed", outcomes["files"], took, reads, failed)
    return failed


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Read files of every kind in every way.")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--write", nargs=2, metavar=("CASE", "FOLDER"))
    options = parser.parse_args(argv)
    if options.write:
        clip = make(drawn(int(options.write[0])), Path(options.write[1]))
        log.info("%s: %s\n%s", clip.path, clip.recipe, clip.truth)
        return 0
    return 1 if run(options.first, options.cases, options.seconds) else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
