"""One question of the page with its completions side by side."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from fourdthinker.report.completions import Block, Part
from fourdthinker.report.media import Picture

# What cards are filtered by: name of the flag -> what is said of it.
FLAGS = {
    "wrong": "Wrong",
    "flipped": "Flipped",
    "equal": "No variance",
}


@dataclass(frozen=True)
class ShownRow:
    """A completion as it is shown.

    Attributes:
        chip: reward, or whose answer it is.
        kind: "gain", "loss" or "", its colour.
        advantage: in words, "" without one.
        left, width: of the advantage's bar, in percent.
        parts: of the text.
        details: further facts.
        blocks: what its latents point at.
        audit: how the answer changes with other latents.
    """

    chip: str
    kind: str
    parts: list[Part]
    details: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    audit: str = ""
    advantage: str = ""
    left: str = "50"
    width: str = "0"


@dataclass(frozen=True)
class Card:
    """One question as it is shown.

    Attributes:
        anchor: its name in the page, for links.
        head: where it comes from.
        type: of the question, "" without one.
        flags: names of `FLAGS` that hold.
        question: its text.
        options: letter, text and whether it is right.
        answer: the right number of a question without options, "" with options.
        pictures: some frames.
        trouble: why there are none of a clip that has some.
        rows: the completions.
        left_out: how many more there are.
        related: links to other cards about the same question: address and text.
    """

    anchor: str
    head: str
    type: str
    flags: list[str]
    question: str
    options: list[tuple[str, str, bool]]
    answer: str
    pictures: list[Picture]
    trouble: str
    rows: list[ShownRow]
    left_out: int = 0
    related: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Deck:
    """A section of cards that are filtered together.

    Attributes:
        title: of the section.
        name: of it in links.
        said: what it shows.
        cards: the questions.
        left_out: how many more there are.
        where: the file that has these.
        csv: all of them as a table, a data URL; "" without.
    """

    title: str
    name: str
    said: str
    cards: list[Card]
    left_out: int = 0
    where: str = ""
    csv: str = ""

    @property
    def types(self) -> list[str]:
        """Types of question to choose from."""
        return sorted({card.type for card in self.cards} - {""})

    @property
    def flags(self) -> list[tuple[str, str]]:
        """Flags that hold for some cards and not for all: name and words."""
        counts = {name: sum(name in card.flags for card in self.cards) for name in FLAGS}
        return [(name, words) for name, words in FLAGS.items() if 0 < counts[name] < len(self.cards)]


def shown_options(options: dict[str, str], right: str | None) -> list[tuple[str, str, bool]]:
    """Letter, text and whether it is right, of each option."""
    return [(letter, text, letter == right) for letter, text in options.items()]


class Names:
    """Names for links within one page, none of which is given twice."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, text: str) -> str:
        """A name made of a text, of letters, digits, "-", "." and "_" alone."""
        name = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")[:80] or "card"
        number, unique = 1, name
        while unique in self._taken:
            number += 1
            unique = f"{name}-{number}"
        self._taken.add(unique)
        return unique
