"""What the text of an option shows: its steps, how often they turn round, how rough they are, its number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

# Pairs of words that undo each other: one axis each, -1 for the first and +1 for the second.
_OPPOSITES = (
    "left right",
    "up down",
    "upward downward",
    "upwards downwards",
    "forward backward",
    "forwards backwards",
    "forward back",
    "front behind",
    "above below",
    "in out",
    "into out",
    "smaller larger",
    "smaller bigger",
    "decrease increase",
    "decreases increases",
    "decreasing increasing",
    "shrinks grows",
    "closer farther",
    "closer further",
    "nearer farther",
    "toward away",
    "towards away",
    "approaches recedes",
    "slower faster",
    "slows speeds",
    "slowing speeding",
    "decelerates accelerates",
    "clockwise counterclockwise",
    "clockwise anticlockwise",
    "former latter",
)
_STILL = re.compile(
    r"\b(?:constant|nearly|same|static|still|stationary|unchanged|steady|steadily|rest|remains|stays|keeps?|holds)\b"
)
_AXES: dict[str, tuple[str, int]] = {}
for _pair in _OPPOSITES:
    _low, _high = _pair.split()
    _axis = next((_AXES[word][0] for word in (_low, _high) if word in _AXES), _pair)
    _AXES.setdefault(_low, (_axis, -1))
    _AXES.setdefault(_high, (_axis, 1))

_NUMBERED = re.compile(r"\(\d+\)")  # a text that numbers its steps has no other ones
_STEPS = re.compile(r";|,|->|→|\band then\b|\bthen\b|\bfollowed by\b|\bfinally\b|\bnext\b")
_WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)?")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
_BOX = re.compile(r"[\[(]\s*" + r"\s*,\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*[\])]")
# Axes of words that say where something is or goes: across the picture, along its height, into its depth.
_SIDES = (
    ("left right",),
    ("up down", "upward downward", "upwards downwards", "above below"),
    ("toward away", "closer farther", "forward backward", "forwards backwards", "front behind"),
)
_ABSENT = re.compile(r"\s*(?:no|none|there (?:is|are|was|were)(?: no|n't| not))\b", re.IGNORECASE)


@dataclass(frozen=True)
class Shape:
    """What an option's text shows without its meaning.

    Attributes:
        characters: of the text.
        words: of the text, as a set.
        steps: parts that follow each other: "(1) ... (2) ...", "first, then second".
        reversals: neighbouring steps of which one undoes the other: left, then right.
        roughness: mean change from one step to the next, plus the share of steps that are not at rest.
        number: the only number of the text, or None.
        sides: from -1 to 1 in each direction of _SIDES, such as -1 for left.
        box: middle x and y and the side of the first box of the text, in its unit, or None.
        times: first number outside of boxes, and the largest less the smallest of them, or None.
    """

    characters: int
    words: frozenset[str]
    steps: int
    reversals: int
    roughness: float
    number: float | None
    sides: tuple[float, ...]
    box: tuple[float, float, float] | None
    times: tuple[float, float] | None


def normal(text: str) -> str:
    """A text without case, marks and spare spaces; all texts that deny ("no cars there") are one."""
    return "<none>" if _ABSENT.match(text) else " ".join(_words(text))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("counter-clockwise", "counterclockwise"))


@lru_cache(maxsize=1 << 16)
def shape(text: str) -> Shape:
    """The shape of an option's text."""
    split = _NUMBERED if _NUMBERED.search(text) else _STEPS
    parts = [part for part in split.split(text.lower()) if _words(part)] or [""]
    axes = [_axis_values(_words(part)) for part in parts]
    changes = [_change(a, b) for a, b in pairwise(axes)]
    still = [bool(_STILL.search(part)) for part in parts]
    numbers = _NUMBER.findall(text)
    return Shape(
        characters=len(text),
        words=frozenset(_words(text)),
        steps=len(parts),
        reversals=sum(any(a[axis] * b.get(axis, 0) < 0 for axis in a) for a, b in pairwise(axes)),
        roughness=(sum(changes) / len(changes) if changes else 0.0) + 1 - sum(still) / len(still),
        number=float(numbers[0]) if len(numbers) == 1 else None,
        sides=tuple(_mean([one[axis] for one in axes for axis in names if axis in one]) for names in _SIDES),
        box=_box(text),
        times=_times(text),
    )


def _mean(values: list[int]) -> float:
    return sum(values) / max(1, len(values))


def _box(text: str) -> tuple[float, float, float] | None:
    found = _BOX.search(text)
    if found is None:
        return None
    left, top, right, bottom = map(float, found.groups())
    return (left + right) / 2, (top + bottom) / 2, abs((right - left) * (bottom - top)) ** 0.5


def _times(text: str) -> tuple[float, float] | None:
    found = [float(number) for number in _NUMBER.findall(_BOX.sub(" ", text))]
    return (found[0], max(found) - min(found)) if found else None


def _axis_values(words: list[str]) -> dict[str, int]:
    return dict(_AXES[word] for word in words if word in _AXES)


def _change(a: dict[str, int], b: dict[str, int]) -> int:
    return sum(abs(a.get(axis, 0) - b.get(axis, 0)) for axis in {*a, *b})


def likeness(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared words by all words of two texts: 1 for equal sets."""
    return len(a & b) / len(a | b) if a or b else 1.0
