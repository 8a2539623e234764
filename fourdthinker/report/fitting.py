"""What a page has room for: with all of its pictures it is to stay below 15 MB, whatever is logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from fourdthinker.report.cards import Card, Deck, ShownRow
from fourdthinker.report.completions import Part

ROOM = 5_500_000  # bytes of all completions of a page
_SHADE, _LATENT, _ROW = 50, 700, 300  # bytes of markup around each


def fitting(deck: Deck, room: int) -> Deck:
    """A deck within so many bytes.

    Each card has an equal part of them, and what it leaves is the others'. A completion that is too long has
    neither shades nor regions, and in the last resort an end that is cut; where those of a card are too many,
    the last ones are counted and not shown.

    Args:
        deck: with all its cards.
        room: bytes of markup for them.

    Returns:
        The deck with all its cards.
    """
    cards: list[Card] = []
    for number, card in enumerate(deck.cards):
        fitted = _fitting(card, room // (len(deck.cards) - number))
        room -= sum(map(_size, fitted.rows))
        cards.append(fitted)
    return replace(deck, cards=cards)


def _fitting(card: Card, room: int) -> Card:
    rows: list[ShownRow] = []
    for number, row in enumerate(card.rows):
        if _size(row) > room // (len(card.rows) - number):
            row = _plain(row)
        if rows and _size(row) > room:
            break
        rows.append(_cut(row, max(room, 2 * _ROW)))
        room -= _size(rows[-1])
    return replace(card, rows=rows, left_out=card.left_out + len(card.rows) - len(rows))


def _size(row: ShownRow) -> int:
    latents = sum(len(block.latents) for block in row.blocks)
    return _ROW + _LATENT * latents + sum(_bytes(part) for part in row.parts)


def _bytes(part: Part) -> int:
    return len(part.text.encode("utf-8", "replace")) + (_SHADE if part.shade or part.kind != "text" else 0)


def _plain(row: ShownRow) -> ShownRow:
    """Without shades and blocks; the text is that of before."""
    parts: list[Part] = []
    for kind, same in groupby(row.parts, key=lambda part: part.kind):
        found = list(same)
        parts += [Part(kind, "".join(part.text for part in found))] if kind == "text" else found
    return replace(row, parts=parts, blocks=[])


def _cut(row: ShownRow, room: int) -> ShownRow:
    """Without the end of a text that is longer than the room."""
    if _size(row) <= room:
        return row
    return replace(row, parts=_beginning(row.parts, room - _ROW))


def _beginning(parts: Sequence[Part], room: int) -> list[Part]:
    out: list[Part] = []
    for part in parts:
        size = _bytes(part)
        if size > room:
            kept = part.text.encode("utf-8", "replace")[: max(0, room)].decode("utf-8", "ignore")
            return [*out, *([Part("text", f"{kept} … (cut here; all of it is in the log)")])]
        out.append(part)
        room -= size
    return out
