"""Timelines kept on disk, so that a second visit to a file need not read through it.

All together they take ROOM bytes (256 MiB) of disk, and a sixteenth more until the folder is looked through
again. The ones used last are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import re
import time
import zlib
from array import array
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import get_args

from fourdthinker.errors import OutputError
from fourdthinker.files import UNFINISHED, make_folder, parse_json, write_bytes
from fourdthinker.frames.display_times import TimesFrom
from fourdthinker.frames.timeline import Timeline

VERSION = 15
VARIABLE = "FOURDTHINKER_INDEX_CACHE"
LARGEST = 1 << 26  # bytes of an index when unpacked; about a day and a half of video at 30 frames a second
ROOM = 256 << 20  # bytes of disk that all indices may take
EVERY = ROOM // 16  # bytes stored between two looks through the folder, on average
BLOCK = 4096  # bytes of disk that the smallest file takes
ABANDONED = 3600.0  # seconds after which a file half written belongs to a process that has died
# Names as `store` makes them. The folder may be one that holds the user's own files.
KEPT = re.compile(r"[0-9a-f]{32}\.idx")
# Not the generator that the user seeds; and workers, forked from one process again and again, must not all
# draw the same numbers.
_dice = random.SystemRandom()
logger = logging.getLogger(__name__)


def folder() -> Path | None:
    """Where indices are kept: $FOURDTHINKER_INDEX_CACHE ("off": nowhere), or a folder of the user's cache.

    In it only files that `store` made are ever removed: the indices used longest ago when all take more than
    ROOM bytes, and what a process that died left half written.
    """
    named = os.environ.get(VARIABLE)
    if named == "off":
        return None
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if cache.startswith("~"):  # a user without a home, as in some containers
        logger.info("no home folder: indices are not kept; set %s", VARIABLE)
        return None
    return Path(cache) / "fourdthinker" / "index"


def key_of(path: str, stream: int, fps: float | None = None) -> str | None:
    """What tells one state of a file, read at this rate, from all others; None for what is no file."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return json.dumps(
        [VERSION, path, stream, fps, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    )


def load(key: str) -> Timeline | None:
    """The timeline kept under a key; None when there is none that is whole."""
    path = _path_of(key)
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except OSError:
        return None
    try:
        timeline = _unpack(data, key)
    except (ValueError, LookupError, TypeError, ArithmeticError, zlib.error) as error:
        logger.warning("%s: the index is damaged (%s); it is made again", path, error)
        return None
    with suppress(OSError):  # kept where we may not write
        os.utime(path, follow_symlinks=False)  # used now
    return timeline


def store(key: str, timeline: Timeline) -> None:
    """Keep a timeline; a folder that cannot be written to is logged once a call, and is no error."""
    path = _path_of(key)
    if path is None:
        return
    data = _pack(timeline, key)
    try:
        make_folder(path.parent)
        write_bytes(path, data, sync=False)
    except OutputError as error:
        logger.info("the index cannot be kept; set %s: %s", VARIABLE, error)
        return
    # By chance, for no process knows what the others store; by size, so that looking through the folder costs
    # each file in it the same however many there are.
    if _dice.random() * EVERY < _on_disk(len(data)):
        tidy(path.parent)


def tidy(home: Path) -> None:
    """Remove the indices used longest ago until the rest take at most ROOM bytes, and what was abandoned.

    Others may do the same at the same time, or read: what has vanished is no error.
    """
    files, total, now = [], 0, time.time()
    try:
        with os.scandir(home) as entries:
            for entry in entries:
                kept = KEPT.fullmatch(entry.name) is not None
                if not (kept or UNFINISHED.fullmatch(entry.name)):
                    continue
                with suppress(OSError):
                    if not entry.is_file(follow_symlinks=False):
                        continue
                    state = entry.stat(follow_symlinks=False)
                    if kept:
                        files.append((state.st_mtime_ns, _on_disk(state.st_size), entry.path))
                        total += files[-1][1]
                    elif now - state.st_mtime > ABANDONED:
                        os.unlink(entry.path)
    except OSError as error:
        logger.info("%s: the indices cannot be looked through (%s); set %s", home, error.strerror, VARIABLE)
    for _, size, path in sorted(files):
        if total <= ROOM:
            break
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass  # by another process
        except OSError:  # of another user
            continue
        total -= size


def _on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _path_of(key: str) -> Path | None:
    home = folder()
    return None if home is None else home / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.idx"


def _pack(timeline: Timeline, key: str) -> bytes:
    """CRC-32 of the rest in hexadecimal; a line of JSON; zlib of the numbers.

    The numbers are pictures shown, packets coded, clock (all as differences), flags.
    """
    stamps = timeline.stamps or ()
    body = b"".join(map(_differences, (timeline.pts, timeline.coded, stamps))) + timeline.flags
    packed = zlib.compress(body, 1)
    head = {
        "key": key,
        "base": [timeline.base.numerator, timeline.base.denominator],
        "end": timeline.end,
        "fault": timeline.fault,
        "counts": [len(timeline.pts), len(timeline.coded), len(stamps)],
        "times_from": timeline.times_from,
        "skipped": timeline.skipped,
        "origin": timeline.origin,
    }
    return signed(json.dumps(head).encode() + b"\n" + packed)


def signed(rest: bytes) -> bytes:
    """Data with their CRC-32 before them, by which a damaged file is told."""
    return b"%08x" % zlib.crc32(rest) + rest


def _unpack(data: bytes, key: str) -> Timeline:
    if data != signed(data[8:]):
        raise ValueError("its sum is another")
    line, _, packed = data[8:].partition(b"\n")
    head = parse_json(line)
    if head["key"] != key:
        raise ValueError("it is of another file")
    shown, coded, timed = (int(count) for count in head["counts"])
    size = 8 * (shown + timed) + 9 * coded
    if shown < 1 or min(coded, timed) < 0 or max(coded, timed) < 1 or size > LARGEST:
        raise ValueError(f"{shown} frames of {coded} packets")
    unpacker = zlib.decompressobj()
    body = unpacker.decompress(packed, size + 1)
    if len(body) != size:
        raise ValueError(f"{len(body)} bytes where {size} should be")
    pts = _sums(body[: 8 * shown])
    order = _sums(body[8 * shown : 8 * (shown + coded)])
    end, fault = float(head["end"]), head["fault"]
    if not math.isfinite(end) or any(b <= a for a, b in pairwise(pts)):
        raise ValueError("times that do not increase")
    stamps = _sums(body[8 * (shown + coded) : 8 * (shown + coded + timed)]) if timed else None
    if coded and not set(pts) <= set(order):
        raise ValueError("frames without packets")
    if stamps is not None and (pts[0] < 0 or pts[-1] >= timed or any(b < a for a, b in pairwise(stamps))):
        raise ValueError("stamps that are not those of the frames")
    times_from, skipped = head["times_from"], int(head["skipped"])
    if times_from not in get_args(TimesFrom) or skipped < 0:
        raise ValueError(f"times from {times_from!r}, {skipped} packets before them")
    if fault is not None:
        fault = float(fault[0]), str(fault[1])
    base = Fraction(int(head["base"][0]), int(head["base"][1]))
    if base <= 0:
        raise ValueError(f"stamps of {base} seconds")
    flags = body[8 * (shown + coded + timed) :]
    return Timeline(base, pts, end, order, flags, fault, stamps, times_from, skipped, int(head["origin"]))


def _differences(numbers: object) -> bytes:
    values = array("q", numbers)  # type: ignore[call-overload]
    return array("q", [b - a for a, b in zip(array("q", [0]) + values, values, strict=False)]).tobytes()


def _sums(data: bytes) -> array[int]:
    values, total = array("q", data), 0
    for index, step in enumerate(values):
        total += step
        values[index] = total
    return values
