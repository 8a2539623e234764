"""What a page has room for: with all of its pictures it is to stay below 15 MB, whatever is logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from itertools import groupby

from fourdthinker.report.cards import Card, Deck, ShownRow
from fourdthinker.report.completions import Part

ROOM = 5_500_000  # bytes of all questions and completions of a page
_SHADE, _LATENT, _ROW = 50, 700, 300  # bytes of markup around each
_CUT = " … (cut here; all of it is in the log)"


def fitting(deck: Deck, room: int) -> Deck:
    """A deck within so many bytes.

    Each card has an equal part of them, and what it leaves is the others'. A question may take a quarter of
    it, and its options another; their ends are cut. A completion that is too long has neither shades nor
    regions, and in the last resort an end that is cut; where those of a card are too many, the last ones are
    counted and not shown.

    Args:
        deck: with all its cards.
        room: bytes of markup for them, as they are escaped.

    Returns:
        The deck with all its cards.
    """
    cards: list[Card] = []
    for number, card in enumerate(deck.cards):
        fitted = _fitting(card, room // (len(deck.cards) - number))
        room -= _size_asked(fitted) + sum(map(_size, fitted.rows))
        cards.append(fitted)
    return replace(deck, cards=cards)


def _fitting(card: Card, room: int) -> Card:
    card = _asked(card, room // 4)
    room -= _size_asked(card)
    rows: list[ShownRow] = []
    for number, row in enumerate(card.rows):
        if _size(row) > room // (len(card.rows) - number):
            row = _plain(row)
        if rows and _size(row) > room:
            break
        rows.append(_cut(row, max(room, 2 * _ROW)))
        room -= _size(rows[-1])
    return replace(card, rows=rows, left_out=card.left_out + len(card.rows) - len(rows))


def _asked(card: Card, room: int) -> Card:
    """With a question, and with options, that have so many bytes each, but at least `_ROW`."""
    each = room // max(1, len(card.options))
    options = [(letter, _short(text, each), right) for letter, text, right in card.options]
    return replace(card, question=_short(card.question, room), options=options)


def _short(text: str, room: int) -> str:
    kept = _prefix(text, max(room, _ROW))
    return text if kept == text else kept + _CUT


def _size_asked(card: Card) -> int:
    return _length(card.question) + sum(_length(text) for _, text, _ in card.options)


def _size(row: ShownRow) -> int:
    latents = sum(len(block.latents) for block in row.blocks)
    return _ROW + _LATENT * latents + sum(_bytes(part) for part in row.parts)


def _bytes(part: Part) -> int:
    return _length(part.text) + (_SHADE if part.shade or part.kind != "text" else 0)


def _length(text: str) -> int:
    """Bytes of a text in the page; escaped, a quotation mark has six."""
    return len(escape(text).encode("utf-8", "replace"))


def _prefix(text: str, room: int) -> str:
    """The beginning of a text that has no more bytes than that in the page."""
    if _length(text) <= room:
        return text
    for number, letter in enumerate(text):
        room -= _length(letter)
        if room < 0:
            return text[:number]
    return text


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
            return [*out, Part("text", _prefix(part.text, room) + _CUT)]
        out.append(part)
        room -= size
    return out
