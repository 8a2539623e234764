"""Recipes of files: drawn from a case's number, and a few that stand for each kind."""

from __future__ import annotations

import random
from fractions import Fraction

from tests.oracle.coded import ENCODERS
from tests.oracle.files import (
    DUPLICATED,
    EXCHANGED,
    JITTERED,
    MATRIX,
    MESSAGE,
    STORAGE,
    TRUE,
    Recipe,
    containers_for,
    stamps_for,
)

FAMILIES = ("h264", "h264", "hevc", "mpeg4", "mpeg2", "mpeg1", "vp8", "vp9", "av1", "others", "others")
MAIN = frozenset(FAMILIES)
RATES = (Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(10), Fraction(50))
# Of encoders, or their containers, that know few rates.
FIXED = ("mpeg1", "mpeg2", "h263", "h261", "rv10", "rv20", "dnxhr", "gif")
WITH_EDITS = ("mp4", "mov")
WITHOUT = [(TRUE, suffix) for suffix in ("mp4", "mov", "mkv", "ts")]
EDITED = (TRUE, STORAGE, JITTERED, DUPLICATED, EXCHANGED)  # stamps of files with an edit list
COUNTED = ("h264", "hevc", "mpeg1", "mpeg2")  # codecs that tell of pictures left out
CUTS = [(TRUE, suffix) for suffix in ("mp4", "mov", "mkv", "ts", "flv", "nut")]


def family(encoder: str) -> str:
    name = encoder.split("-")[0]
    return name if name in MAIN else "others"


def drawn(number: int) -> Recipe:
    """The recipe of a case."""
    draw = random.Random(number)
    chosen = draw.choice(FAMILIES)
    encoder = draw.choice([name for name in ENCODERS if family(name) == chosen])
    suffix = draw.choice(containers_for(encoder))
    stamps = draw.choice(stamps_for(encoder, suffix))
    rate = Fraction(25) if encoder.startswith(FIXED) or suffix == "obu" else draw.choice(RATES)
    if suffix == "mxf" and rate == 10:  # which its muxer does not take
        rate = Fraction(25)
    count = draw.choice((9, 40, 40, 75, 150))
    if suffix == "mxf" and count == 150:  # its muxer has no index for so many with B-pictures
        count = 75
    more: dict[str, int | str] = {}
    kind = draw.random()
    if kind < 0.3 and suffix in WITH_EDITS:
        more = {"orientation": draw.randrange(2, 9), "by": MATRIX}
    elif kind < 0.3 and encoder.startswith("h264") and suffix == "ts":  # repeated at each keyframe
        more = {"orientation": draw.randrange(2, 9), "by": MESSAGE}
    elif kind < 0.5 and suffix in WITH_EDITS and stamps in EDITED:
        more = {"hide": draw.randrange(1, count // 2)}
    elif kind < 0.6 and ENCODERS[encoder].open_groups and (stamps, suffix) in CUTS and count >= 40:
        more = {"cut": draw.choice((1, 2))}
    elif kind > 0.8 and encoder.startswith(COUNTED) and (stamps, suffix) in WITHOUT:
        more = {"without": draw.randrange(1, count - 1)}
    return Recipe(encoder, suffix, stamps, count, rate, seed=number, **more)
