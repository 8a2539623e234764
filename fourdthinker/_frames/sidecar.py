"""Timelines kept on disk, so that a second visit to a file need not read through it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import zlib
from array import array
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from fourdthinker._frames.timeline import Timeline

VERSION = 3
VARIABLE = "FOURDTHINKER_INDEX_CACHE"
LARGEST = 1 << 26  # bytes of an index when unpacked; about a day and a half of video at 30 frames a second
logger = logging.getLogger(__name__)


def folder() -> Path | None:
    """Where indices are kept: $FOURDTHINKER_INDEX_CACHE ("off": nowhere), or a folder of the user's cache."""
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


def key_of(path: str, stream: int) -> str | None:
    """What tells one state of a file from all others; None for what is no file."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return json.dumps(
        [VERSION, path, stream, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    )


def load(key: str) -> Timeline | None:
    """The timeline kept under a key; None when there is none that is whole."""
    place = _place(key)
    if place is None:
        return None
    try:
        data = place.read_bytes()
    except OSError:
        return None
    try:
        return _unpack(data, key)
    except (ValueError, LookupError, TypeError, ArithmeticError, zlib.error, RecursionError) as error:
        logger.warning("%s: the index is damaged (%s); it is made again", place, error)
        return None


def store(key: str, timeline: Timeline) -> None:
    """Keep a timeline; a folder that cannot be written to is logged once a call, and is no error."""
    place = _place(key)
    if place is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=".new")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_pack(timeline, key))
            os.replace(temporary, place)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        logger.info("%s: the index cannot be kept (%s); set %s", place, error.strerror, VARIABLE)


def _place(key: str) -> Path | None:
    home = folder()
    return None if home is None else home / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.idx"


def _pack(timeline: Timeline, key: str) -> bytes:
    """CRC-32 of the rest in hexadecimal; a line of JSON; zlib of the numbers: stamps shown, stamps coded
    (both as differences), flags."""
    body = _differences(timeline.pts) + _differences(timeline.coded) + timeline.flags
    packed = zlib.compress(body, 1)
    head = {
        "key": key,
        "base": [timeline.base.numerator, timeline.base.denominator],
        "end": timeline.end,
        "fault": timeline.fault,
        "slices": timeline.slices,
        "counts": [len(timeline.pts), len(timeline.coded)],
    }
    return signed(json.dumps(head).encode() + b"\n" + packed)


def signed(rest: bytes) -> bytes:
    return b"%08x" % zlib.crc32(rest) + rest


def _unpack(data: bytes, key: str) -> Timeline:
    if data != signed(data[8:]):
        raise ValueError("its sum is another")
    line, _, packed = data[8:].partition(b"\n")
    head = json.loads(line)
    if head["key"] != key:
        raise ValueError("it is of another file")
    shown, coded = (int(count) for count in head["counts"])
    size = 8 * shown + 9 * coded
    if min(shown, coded) < 1 or size > LARGEST:
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
    if not set(pts) <= set(order):
        raise ValueError("frames without packets")
    if fault is not None:
        fault = float(fault[0]), str(fault[1])
    base = Fraction(int(head["base"][0]), int(head["base"][1]))
    if base <= 0:
        raise ValueError(f"a clock of {base} seconds")
    return Timeline(base, pts, end, order, body[8 * (shown + coded) :], fault, int(head["slices"]))


def _differences(numbers: object) -> bytes:
    values = array("q", numbers)  # type: ignore[call-overload]
    return array("q", [b - a for a, b in zip(array("q", [0]) + values, values, strict=False)]).tobytes()


def _sums(data: bytes) -> array[int]:
    values, total = array("q", data), 0
    for place, step in enumerate(values):
        total += step
        values[place] = total
    return values
