"""What the reader may refuse, kind by kind; everything else must be read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.oracle.files import MISSING, Recipe


def _no_recipe(recipe: Recipe, way: str) -> bool:
    """Kinds that tests make by hand."""
    return False


@dataclass(frozen=True)
class Refusal:
    """words: of the message, a pattern. kind: the files, as the table of docs/video.md calls them. recipes:
    those of the oracle, and ways of reading them, that it may concern."""

    words: str
    kind: str
    recipes: Callable[[Recipe, str], bool] = _no_recipe


REFUSALS = (
    Refusal(
        r"its type is not one of those read here",
        "formats that are not named here, such as JPEGs one after the other",
        lambda recipe, way: recipe.suffix in ("h261", "mjpeg"),
    ),
    Refusal(
        r"pictures have no time, and the stream names no rate",
        "stamps missing, and the stream names no rate: AV1 (OBU), MPEG-4 that names only its ticks",
        lambda recipe, way: recipe.suffix in ("mpg", "vob", "obu", "m4v") or recipe.stamps == MISSING,
    ),
    Refusal(r"its edit list", "edit lists that repeat or exchange parts, or change their speed"),
    Refusal(
        r"stamps fall back from",
        "program streams, TS, Matroska and WebM put one behind the other (`cat`), whose stamps begin "
        "anew; of FLV, ASF and MP4 FFmpeg shows the first file alone",
    ),
    Refusal(r"a second (NUT|MXF) file begins behind the first", "NUT and MXF put one behind the other"),
    Refusal(
        r"pictures leave the decoder in another order than when",
        "a decoder that gives another order than the pictures' headers, or than when the file was read "
        "through",
    ),
    Refusal(
        r"its disposal is|does not lie on the canvas|text that a viewer must draw|it has no colours",
        "GIF, animated PNG",
    ),
    Refusal(r"an animated WebP", "animated WebP, as a video"),
    Refusal(
        r"its alpha is coded apart from its pictures", "alpha of VP8 and VP9 (WebM) and of animated AVIF"
    ),
    Refusal(r"HEIC is not read here", "HEIC"),
    Refusal(
        r"its display matrix .* turns the picture",
        "display matrices of other angles than quarters, or of shear",
    ),
    Refusal(
        r"is missing or there twice\); the file",
        "the same of MPEG-4 part 2 with B-pictures",
        lambda recipe, way: recipe.without > 0 and recipe.encoder.startswith("mpeg4-b"),
    ),
    Refusal(
        r"which it may refer to, is missing|a picture is missing",
        "H.264, MPEG-1 and MPEG-2 from which pictures are missing, in a sound container",
        lambda recipe, way: recipe.without > 0,
    ),
    Refusal(
        r"cannot be decoded.*; the file is damaged",
        "the same of H.265",
        lambda recipe, way: recipe.without > 0 and recipe.encoder.startswith("hevc"),
    ),
    Refusal(
        r"is missing or there twice|cannot be decoded",
        "a packet stored twice in a row (a picture that others refer to: H.264, H.265, MPEG-1, 2 and 4)",
    ),
    Refusal(
        r"the data end here or are damaged",
        "GIF with something else than a block behind a picture; animated PNG with another number of pictures "
        "than it announces, or without its end",
    ),
    Refusal(r"The file is cut off", "a header that announces more than there is"),
    Refusal(
        r"reader='decord'|decord (has |cannot read it)",
        '`reader="decord"`',
        lambda recipe, way: way.startswith("decord"),
    ),
)


def refusal(recipe: Recipe, way: str, words: str) -> Refusal | None:
    """The entry that allows this error for this kind of file."""
    found = (entry for entry in REFUSALS if entry.recipes(recipe, way) and re.search(entry.words, words))
    return next(found, None)
