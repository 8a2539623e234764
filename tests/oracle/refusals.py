"""What the reader may refuse, kind by kind; everything else must be read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.oracle.coded import ENCODERS
from tests.oracle.files import MISSING, RAW, STORAGE, Recipe


@dataclass(frozen=True)
class Refusal:
    """words: of the message, a pattern. why: the reason, as docs/video.md gives it. kinds: the files, and
    ways of reading, that it may concern."""

    words: str
    why: str
    kinds: Callable[[Recipe, str], bool]


REFUSALS = (
    Refusal(
        r"zero frames: stream 0 holds nothing that decodes to frames with times",
        "a raw stream has no times",
        lambda recipe, way: recipe.suffix in RAW,
    ),
    Refusal(
        r"AVI does not say when each is shown",
        "AVI with pictures that are not stored in the order of display",
        lambda recipe, way: recipe.suffix == "avi" and ENCODERS[recipe.encoder].reorders,
    ),
    Refusal(
        r"its type is not one of those read here",
        "formats that are not read",
        lambda recipe, way: recipe.suffix == "h261",
    ),
    Refusal(
        r"pictures have no time, and the stream names no rate",
        "stamps are missing and there is no rate to count by",
        lambda recipe, way: recipe.suffix in ("mpg", "vob", "obu", "m4v") or recipe.stamps == MISSING,
    ),
    Refusal(
        r"an edit list hides pictures, and stamps do not tell in which order",
        "an edit list in a file whose stamps are those of the order of storage",
        lambda recipe, way: bool(recipe.hide) and recipe.stamps == STORAGE,
    ),
    Refusal(
        r"reader='decord'|decord (has |cannot read it)",
        "decord's limits",
        lambda recipe, way: way.startswith("decord"),
    ),
)


def refusal(recipe: Recipe, way: str, words: str) -> Refusal | None:
    """The entry that allows this error for this kind of file."""
    found = (entry for entry in REFUSALS if entry.kinds(recipe, way) and re.search(entry.words, words))
    return next(found, None)
