"""Answers that are numbers: how one is read from a completion, and its mean relative accuracy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from fourdthinker.answers import answer_text

_LENGTH = (
    r"(?:[kcdm]?m|(?:kilo|centi|deci|milli)?met(?:er|re)s?|ft|foot|feet|in|inch(?:es)?|yd|yards?|mi|miles?)"
)
_TIME = r"(?:m?s|h|secs?|mins?|hrs?|(?:milli)?seconds?|minutes?|hours?)"
_POWER = r"(?:²|³|\^?[23])?"
_UNIT = (
    rf"(?:(?:sq\.?|square|cubic)\s?{_LENGTH}|sqm|{_LENGTH}{_POWER}(?:(?:\s?/\s?|\sper\s){_TIME}{_POWER})?|{_TIME}"
    r"|mph|kph|kmh|°|deg|degrees?|rad|radians?|%|percent|frames?|fps|px|pixels?|kg|g)"
)
# A number in digits, with a unit behind it or none. The lengths bound what a hostile text can cost.
_NUMBER = re.compile(
    r"([-+]?(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,30})?(?:\.\d{1,30})?(?:[eE][-+]?\d{1,2})?)"
    rf"\s*(?:{_UNIT}\.?)?\.?",
    re.IGNORECASE | re.ASCII,
)
THRESHOLDS = tuple(Fraction(50 + 5 * k, 100) for k in range(10))  # .50, .55, ... .95


def parse_number(text: str) -> str | None:
    """The number that a completion answers with.

    Only the last closed `<answer>...</answer>` is read, and it must hold nothing but one number in digits,
    with or without a unit of length, area, volume, time, speed, angle or mass, "%", frames or pixels: `3`,
    `-2.5 m`, `1,200`, `1e3`. "about 3", "3 or 4", "3 or", "2 million", "5k" and "three" are None.

    Args:
        text: a decoded completion.

    Returns:
        The number as it was written, without commas and unit; or None.
    """
    match = _NUMBER.fullmatch(answer_text(text) or "")
    number = match[1].replace(",", "") if match else ""
    return number if any(c.isdigit() for c in number.lower().partition("e")[0]) else None


def as_compared(answer: str | None, options: Mapping[str, str]) -> str | Fraction | None:
    """An answer as it is told from others: a number by its value, since 3 and 3.0 are one answer.

    Args:
        answer: a letter, or a number as `parse_number` returns or a file of questions writes it; or None.
        options: those of its question; {} where the answer is a number.

    Returns:
        The letter, the value of the number, or what is neither as it is.
    """
    number = None if options or answer is None else parse_number(f"<answer>{answer}</answer>")
    return answer if number is None else Fraction(number)


def mean_relative_accuracy(answer: str | None, target: str) -> float:
    """Share of the thresholds θ = .50, .55, ... .95 at which |answer − target| / |target| ≤ 1 − θ.

    Numbers are compared exactly as they are written, not as binary fractions. VSI-Bench divides by the
    target and has none of 0; here the absolute error takes the place of the relative one then.

    Args:
        answer: a number; None: nothing could be read, which scores 0.
        target: the right number.

    Returns:
        0.0, 0.1, ... 1.0.
    """
    if answer is None:
        return 0.0
    right = Fraction(target)
    error = abs(Fraction(answer) - right) / (abs(right) or 1)
    return sum(error <= 1 - threshold for threshold in THRESHOLDS) / len(THRESHOLDS)
