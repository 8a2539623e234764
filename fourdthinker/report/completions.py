"""A completion as the page shows it: tokens by their probability, and what its blocks point at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fourdthinker.errors import FourdError
from fourdthinker.evaluate.table import number
from fourdthinker.latents import LATENT_PAD
from fourdthinker.report.media import Album, Clip, Picture
from fourdthinker.transcript import text_spans

_SHADES = (0.9, 0.7, 0.4, 0.15)  # a probability below the n-th one has shade n


@dataclass(frozen=True)
class Part:
    """A piece of a text.

    Attributes:
        kind: "text", "tag" or "imagery".
        text: what is shown; of imagery the number of latents.
        shade: 0, likely, to 4, unlikely.
        title: the probabilities.
    """

    kind: str
    text: str
    shade: int = 0
    title: str = ""


@dataclass(frozen=True)
class Latent:
    """One latent of a block.

    Attributes:
        title: what is shown of it, in words.
        facts: norm and cosine, as far as they are known.
        picture: the frame that it is nearest to; None: not known.
        box: left, top, width and height of the region, in pixels of the picture.
    """

    title: str
    facts: str
    picture: Picture | None = None
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Block:
    """One block: its number from 1, and its latents."""

    number: int
    latents: list[Latent]


@dataclass(frozen=True)
class Row:
    """One completion as it was logged.

    Attributes:
        text: of it.
        tokens, logprobs: of each token its text and its log-prob, None where it was forced; [] where they
            were not logged.
        blocks: of each block what `evaluate.transcripts.row_blocks` says, unchecked.
        audit: mode of the latents -> probability of the right letter, unchecked.
    """

    text: str
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    blocks: list[Any] = field(default_factory=list)
    audit: Mapping[str, Any] = field(default_factory=dict)


def read_row(entry: Mapping[str, Any]) -> Row:
    """A completion of a line of JSON; what is not of the right form is left out."""
    tokens, logprobs, blocks = entry.get("tokens"), entry.get("logprobs"), entry.get("blocks")
    if not (isinstance(tokens, list) and isinstance(logprobs, list) and len(tokens) == len(logprobs)):
        tokens, logprobs = [], []
    modes = entry.get("modes")
    return Row(
        str(entry.get("text")),
        [str(token) for token in tokens],
        [number(value) for value in logprobs],
        blocks if isinstance(blocks, list) else [],
        modes if isinstance(modes, dict) else {},
    )


def shaded_parts(row: Row) -> list[Part]:
    """The text of a completion, cut where the kind or the probability of its tokens changes.

    Tokens that are not those of the text give no shades.
    """
    marks = _marks(row)
    parts: list[Part] = []
    for kind, begin, end in text_spans(row.text):
        if kind != "text":
            shown = str(row.text.count(LATENT_PAD, begin, end)) if kind == "imagery" else row.text[begin:end]
            parts.append(Part(kind, shown))
            continue
        inside = [(b, e, p) for b, e, p in marks if b < end and e > begin]
        reached = begin
        for first, last, probability in inside:
            first, last = max(first, begin), min(last, end)
            if first > reached:
                parts.append(Part("text", row.text[reached:first]))
            shade = sum(probability < bound for bound in _SHADES)
            parts.append(Part("text", row.text[first:last], shade, f"probability {probability:.2g}"))
            reached = last
        if reached < end:
            parts.append(Part("text", row.text[reached:end]))
    return parts


def _marks(row: Row) -> list[tuple[int, int, float]]:
    """Begin, end and probability of the tokens that are worth a shade."""
    said = "".join(row.tokens)
    if not said or not row.text.endswith(said):
        return []
    position, out = len(row.text) - len(said), []
    for token, logprob in zip(row.tokens, row.logprobs, strict=True):
        begin, position = position, position + len(token)
        probability = 1.0 if logprob is None else math.exp(min(0.0, logprob))
        if token and probability < _SHADES[0]:
            out.append((begin, position, probability))
    return out


def shown_blocks(row: Row, clip: Clip, album: Album) -> list[Block]:
    """The blocks of a completion with the regions that their latents are nearest to.

    A region whose frame cannot be read has no picture.
    """
    out = []
    for index, block in enumerate(row.blocks):
        if not isinstance(block, dict):
            continue
        norms, cosines, nearest = (_listed(block.get(name)) for name in ("norms", "cosines", "nearest"))
        count = max(len(norms), len(nearest))
        latents = [
            _latent(n, _nth(norms, n), _nth(cosines, n), _nth(nearest, n), clip, album) for n in range(count)
        ]
        if latents:
            out.append(Block(index + 1, latents))
    return out


def audit_deltas(row: Row) -> str:
    """How the probability of the right letter changes with other latents; "" where no audit was made."""
    chances = {
        str(mode): number(entry.get("right")) for mode, entry in row.audit.items() if isinstance(entry, dict)
    }
    own = chances.pop("own", None)
    if own is None:
        return ""
    told = [
        f"{mode} {value - own + 0.0:+.2f}".replace("-", "−")
        for mode, value in chances.items()
        if value is not None
    ]
    return f"right letter {own:.2f}" + "".join(f" · {text}" for text in told)


def _latent(index: int, norm: object, cosine: object, near: object, clip: Clip, album: Album) -> Latent:
    size, target = number(norm), number(cosine)
    facts = [f"‖h‖ {size:.3g}"] if size is not None else []
    facts += [f"target {target:.2f}".replace("-", "−")] if target is not None else []
    title = f"latent {index + 1}"
    picture, box = None, (0.0, 0.0, 0.0, 0.0)
    if isinstance(near, dict):
        picture, corners = _region(near, clip, album)
        alike = number(near.get("cosine"))
        if picture is not None:
            left, top, right, bottom = corners
            wide, high = picture.width, picture.height
            box = (left * wide, top * high, (right - left) * wide, (bottom - top) * high)
            title += f" is nearest to a region of the {picture.title}"
        if alike is not None:
            title += f", cosine {alike:.2f}".replace("-", "−")
    return Latent(title, " · ".join(facts), picture, box)


def _region(
    near: Mapping[str, Any], clip: Clip, album: Album
) -> tuple[Picture | None, tuple[float, float, float, float]]:
    """The frame of a region and its corners in shares of it."""
    corners = [number(value) for value in _listed(near.get("box"))]
    medium, share = number(near.get("medium")), number(near.get("share"))
    bounds = [min(1.0, max(0.0, value)) for value in corners if value is not None]
    if len(bounds) != 4 or medium is None or share is None or bounds[0] > bounds[2] or bounds[1] > bounds[3]:
        return None, (0.0, 0.0, 0.0, 0.0)
    try:
        picture = album.frame(clip, int(medium), share, number(near.get("seconds")))
    except (FourdError, OSError):  # the card says why there are no pictures
        picture = None
    return picture, (bounds[0], bounds[1], bounds[2], bounds[3])


def _listed(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _nth(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None
