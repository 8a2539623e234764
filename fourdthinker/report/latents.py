"""What `fourdthinker latents` found: its two tables, and every question with what its latents are near to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from fourdthinker.evaluate.numeric import as_compared, mean_relative_accuracy
from fourdthinker.evaluate.table import number, percent, points, span
from fourdthinker.report.cards import Card, Deck, Names, ShownRow, shown_options
from fourdthinker.report.completions import audit_deltas, read_row, shaded_parts, shown_blocks
from fourdthinker.report.lines import read_lines
from fourdthinker.report.media import Album, clip_of, pictures_or_trouble
from fourdthinker.report.tables import Cell, Table, TableRow

log = logging.getLogger(__name__)

LATENTS = "latents.json"
_MOST = 100  # questions shown
# Of a block: key -> name
_BLOCK = {
    "rows": "answers",
    "oracle_cosine": "cosine to target",
    "mean_target_cosine": "of the mean target",
    "between_clip_cosine": "between clips",
    "norm_ratio": "norm / embedding",
    "effective_rank": "effective rank",
    "latents_to_frames": "latents to frames",
    "answer_to_latents": "answer to latents",
}


def latent_tables(found: Mapping[str, Any]) -> list[Table]:
    """The tables of a latents.json.

    Args:
        found: its contents.

    Returns:
        Modes, then blocks; those that there are.
    """
    modes, blocks = found.get("modes"), found.get("blocks")
    tables = [
        _modes(modes if isinstance(modes, dict) else {}),
        _blocks(blocks if isinstance(blocks, list) else []),
    ]
    return [table for table in tables if table.rows]


def _modes(modes: Mapping[str, Any]) -> Table:
    rows = []
    for mode, entry in modes.items():
        if not isinstance(entry, dict):
            continue
        cells = [Cell(percent(entry.get("accuracy")), "strong", span(entry))]
        difference, kl = entry.get("difference"), entry.get("kl")
        if isinstance(difference, dict):
            low, high = number(difference.get("low")), number(difference.get("high"))
            kind = "loss" if high is not None and high < 0 else "gain" if low is not None and low > 0 else ""
            cells += [Cell(points(difference.get("mean")), kind), Cell(span(difference, difference=True))]
        else:
            cells += [Cell("–"), Cell("–")]
        cells += [
            Cell(percent(entry.get("flips"))),
            Cell(_three(kl.get("mean")) if isinstance(kl, dict) else "–"),
        ]
        rows.append(TableRow(str(mode), cells, mode == "own"))
    caption = (
        "The same questions with other vectors in the place of the latents. Difference to own in percentage "
        "points, paired; flips: answers that are others; KL of the letters' probabilities, in nats."
    )
    return Table("latents", caption, ("Accuracy", "Less own", "95 % interval", "Flips", "KL"), rows)


def _blocks(blocks: list[Any]) -> Table:
    rows = []
    for block in blocks:
        if isinstance(block, dict):
            cells = [
                Cell(str(block[key]) if isinstance(block.get(key), int) else _three(block.get(key)))
                for key in _BLOCK
            ]
            rows.append(TableRow(f"Block {block.get('block')}", cells))
    return Table("blocks", "The n-th blocks of all answers with own latents.", list(_BLOCK.values()), rows)


def _three(value: object) -> str:
    size = number(value)
    return "–" if size is None else f"{size:.3f}".replace("-", "−")


def thought_deck(path: Path, name: str, album: Album, names: Names) -> Deck | None:
    """The questions of a thoughts.jsonl; None where there are none.

    Args:
        path: of the file.
        name: of the run, "" where the page is about one.
        album: gets the pictures.
        names: of the page.
    """
    entries, bad = read_lines(path)
    lines = [entry for _, entry in entries if entry.get("id") is not None]
    if bad or len(lines) < len(entries):
        log.warning("%s: %d lines are left out", path, bad + len(entries) - len(lines))
    lines.sort(key=lambda entry: (not _flips(entry), not _is_wrong(entry)))
    anchors = [names.of(f"{name} thought {entry['id']}") for entry in lines[:_MOST]]
    cards = [_card(entry, anchor, album) for entry, anchor in zip(lines, anchors, strict=False)]
    if not cards:
        return None
    said = (
        "Answers at temperature 0. Below a text are its blocks: of each latent the region of the frames "
        "whose feature it is nearest to, its norm, and its cosine to the target. Last how the probability of "
        "the right letter changes with other vectors in the place of all latents. Flipped: another mode "
        "changes the answer."
    )
    title = " · ".join(filter(None, ("What the latents show", name)))
    return Deck(title, names.of(f"thoughts {name}"), said, cards, len(lines) - len(cards), path.name)


def _card(entry: Mapping[str, Any], anchor: str, album: Album) -> Card:
    clip = clip_of(entry.get("media"), number(entry.get("start")), number(entry.get("end")))
    pictures, trouble = pictures_or_trouble(album, clip, 8)
    row = read_row(entry)
    answer = None if entry.get("answer") is None else str(entry["answer"])
    own, wrong = _answers(entry).get("own"), _is_wrong(entry)
    options = entry.get("options")
    shown = {str(k): str(v) for k, v in options.items()} if isinstance(options, dict) else {}
    given = [f"{mode} {letter or '–'}" for mode, letter in _answers(entry).items() if mode != "own"]
    return Card(
        anchor=anchor,
        head=str(entry["id"]),
        type=str(entry.get("type") or ""),
        flags=["wrong"] * wrong + ["flipped"] * _flips(entry),
        question=str(entry.get("question") or ""),
        options=shown_options(shown, answer),
        answer="" if shown else answer or "",
        pictures=pictures,
        trouble=trouble,
        rows=[
            ShownRow(
                chip=f"{own or 'no answer'}, {'wrong' if wrong else 'right'}",
                kind="loss" if wrong else "gain",
                parts=shaded_parts(row),
                details=["with " + ", ".join(given)] if given else [],
                blocks=shown_blocks(row, clip, album),
                audit=audit_deltas(row),
            )
        ],
    )


def _answers(entry: Mapping[str, Any]) -> dict[str, str | None]:
    """Mode -> answer."""
    modes = entry.get("modes")
    out: dict[str, str | None] = {}
    for mode, told in modes.items() if isinstance(modes, dict) else ():
        if isinstance(told, dict):
            out[str(mode)] = None if told.get("answer") is None else str(told["answer"])
    return out


def _is_wrong(entry: Mapping[str, Any]) -> bool:
    own, right = (_meant(entry, answer) for answer in (_answers(entry).get("own"), entry.get("answer")))
    if isinstance(own, Fraction) and isinstance(right, Fraction):
        return mean_relative_accuracy(str(own), str(right)) < 1
    return own != right


def _flips(entry: Mapping[str, Any]) -> bool:
    return len({_meant(entry, answer) for answer in _answers(entry).values()}) > 1


def _meant(entry: Mapping[str, Any], answer: object) -> str | Fraction | None:
    return as_compared(None if answer is None else str(answer), entry.get("options") or {})
