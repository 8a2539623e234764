"""The glossary is short, and words that it replaces are no names in the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"

# Not used as a name, nor as a part of one between underscores; what is said instead.
RETIRED = {
    "spare": "non-reference",
    "echo": "duplicate",
    "opening": "assistant_prefix",
    "hand_over": "what is done: accumulate, consume",
    "away": "what is left out",
    "look": "poll, read: what is done",
    "stills": "separate, or images",
    "again": "what is done once more",
    "clock": "presentation time, or time base",
    "place": "position, index, offset, path: what it is",
    "gap": "what differs: log-prob difference, missing data",
}


def terms() -> list[str]:
    rows = re.findall(r"^\| ([^|]+?) +\|", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
    return [row for row in rows if row not in {"term", "---"}]


@cache
def names(path: Path) -> list[tuple[int, str]]:
    """Every name that a file defines or uses, with its line."""
    return list(_names(path))


def _names(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, (ast.arg, ast.keyword)) and node.arg:
            yield node.value.lineno if isinstance(node, ast.keyword) else node.lineno, node.arg


def uses(word: str, folders: tuple[str, ...] = ("fourdthinker", "kernels", "train", "bench")) -> list[str]:
    pattern = re.compile(rf"(?:^|_){word}(?:_|$)", re.IGNORECASE)
    return [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in names(path)
        if pattern.search(name)
    ]


def test_the_glossary_has_at_most_sixty_terms_and_each_once():
    found = terms()
    assert 40 <= len(found) <= 60
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("word", RETIRED)
def test_retired_words_are_no_names(word):
    assert uses(word) == [], f"say {RETIRED[word]} instead of {word!r}"


def test_no_name_is_the_word_at():
    found = [name for name in uses("at") if name.endswith(" at")]
    others = {name for name in found if "np.add.at(" in line_of(name)}  # numpy's
    assert set(found) == others, "say index, position or offset: what it is"


def line_of(found: str) -> str:
    path, _, line = found.partition(" ")[0].partition(":")
    return (ROOT / path).read_text(encoding="utf-8").splitlines()[int(line) - 1]


def test_a_retired_word_would_be_found():
    assert uses("frames")
