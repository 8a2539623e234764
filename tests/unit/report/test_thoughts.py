"""Questions of a latent audit on the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fourdthinker.report.cards import Names
from fourdthinker.report.latents import thought_deck
from fourdthinker.report.media import Album


@pytest.mark.parametrize(
    ("right", "zero", "flags"),
    [
        ("3 m", "3.0", []),
        ("3.1", "3.00", []),  # within 5 %
        ("3", "3.01", ["flipped"]),
        ("3", None, ["flipped"]),
        ("4", "3", ["wrong"]),
        ("three", "x", ["wrong", "flipped"]),
    ],
)
def test_numbers_are_wrong_and_flipped_by_their_value(
    tmp_path: Path, right: str, zero: str | None, flags: list[str]
) -> None:
    modes = {"own": {"answer": "3"}, "zero": {"answer": zero}}
    line = {"id": "a", "question": "How far?", "answer": right, "options": {}, "modes": modes}
    (tmp_path / "thoughts.jsonl").write_text(json.dumps(line) + "\n")
    deck = thought_deck(tmp_path / "thoughts.jsonl", "", Album(tmp_path), Names())
    assert deck is not None
    assert deck.cards[0].flags == flags
