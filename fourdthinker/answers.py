"""The one reader of answers, for rewards, evaluation, records, audit and synthesis.

A completion holds its reasoning and its answer between tags: ``<think>...</think> <answer>...</answer>``.
Whatever needs either of a text asks here; nothing else of the package looks for these tags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # in the order in which a completion has them

_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE | re.ASCII)
# One reasoning part, one answer, nothing else. Each body forbids the four tags, so the pattern cannot match a
# text that repeats a part, and every body has one way to match (no backtracking blow-up on hostile text).
_BODY = r"(?:(?!</?(?:think|answer)>).)*"
_FORM = re.compile(
    rf"\s*<think>({_BODY})</think>\s*<answer>({_BODY})</answer>\s*", re.IGNORECASE | re.DOTALL | re.ASCII
)

# A letter within a text that can be meant for an option: a capital alone, or any letter with a mark.
_NAMED = re.compile(r"(?<![^\W_])(?:([A-Z])(?![^\W_])|(?<!\.)([a-z])(?:\)|[.:](?!\S)))")


def thought_and_answer(text: str) -> tuple[str, str] | None:
    """The two parts of a text that consists of one reasoning and one answer.

    Args:
        text: a decoded completion.

    Returns:
        What stands between ``<think>`` and ``</think>``, and between ``<answer>`` and ``</answer>``, whole.
        None where a tag (whatever its case) does not stand exactly once and in this order, or where anything
        but whitespace stands around the parts.
    """
    match = _FORM.fullmatch(text)
    return (match[1], match[2]) if match else None


def answer_text(text: str) -> str | None:
    """What a completion gives as its answer: the last closed ``<answer>...</answer>``.

    Tags are matched whatever their case. An answer that was opened and never closed does not count, so a
    completion cut by the length limit falls back on the last complete answer, or has none.

    Args:
        text: a decoded completion.

    Returns:
        The stripped content, or None when there is none.
    """
    opened: int | None = None
    content: str | None = None
    for tag in _ANSWER_TAG.finditer(text):
        if not tag.group(1):
            opened = tag.end()
        elif opened is not None:
            content = text[opened : tag.start()]
            opened = None
    return None if content is None else content.strip()


def parse_answer(text: str, options: Mapping[str, str]) -> str | None:
    """Which option a completion chose.

    Only the last closed ``<answer>...</answer>`` is read (`answer_text`), never free text around it. Case
    does not matter and runs of whitespace count as one space. In this order:

    1. a letter and nothing else but marks: it may have ``(`` before it, and ``)``, ``.``, ``:``, ``).`` or
       ``):`` behind it. ``B``, ``(b)``, ``B.``, ``(B``, ``B).``;
    2. the exact text of exactly one option: with an option "A cube" under B, the answer "A cube" means B;
    3. ``(B)``, ``B.``, ``B)`` or ``B:`` followed by a space, or one of these or ``B`` alone on the first
       line, and then that option's text, or other words, or both, that name no other option: ``B. left``.
       Words name another option that are its text, or that hold its letter as a capital that stands alone,
       or with a mark (``(c)``, ``c)``, ``c.``, ``c:``): "A) or B)" and "B. wrong; C" are None;
    4. one of these or ``B`` followed by the text of that same option: ``B left``, ``B.left``.

    Anything else ("A and B", "A different cube", the text of two options) is None.

    Args:
        text: a decoded completion.
        options: letter -> option text; letters are single upper-case characters.

    Returns:
        A letter of `options`, or None.
    """
    content = answer_text(text)
    if not content or not options:
        return None
    bare = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", content)
    if bare:
        letter = _key(options, bare.group(1))
        if letter is not None:
            return letter

    answer = normalised(content)
    same = [letter for letter, option in options.items() if normalised(option) == answer]
    if len(same) == 1:
        return same[0]
    if same:
        return None

    led = re.match(r"\(([A-Za-z])\)|([A-Za-z])([.):]?)", content)
    if not led:
        return None
    letter = _key(options, led.group(1) or led.group(2))
    if letter is None:
        return None
    rest = content[led.end() :]
    marked = bool(led.group(1) or led.group(3))
    separated = marked or rest[:1].isspace()
    if separated and normalised(rest) == normalised(options[letter]):
        return letter
    words = (marked and rest[:1].isspace()) or re.match(r"[^\S\n]*\n", rest)
    return letter if words and not _names_another(rest, letter, options) else None


def _names_another(rest: str, letter: str, options: Mapping[str, str]) -> bool:
    """Whether what stands behind the letter of an option speaks of another option."""
    if normalised(rest) in {normalised(text) for other, text in options.items() if other != letter}:
        return True
    words, own = " ".join(rest.split()), " ".join(options[letter].split())
    if words[: len(own)].casefold() == own.casefold():  # whatever letters that holds
        words = words[len(own) :]
    named = {key for match in _NAMED.finditer(words) if (key := _key(options, match[1] or match[2]))}
    return bool(named - {letter})


def _key(options: Mapping[str, str], letter: str) -> str | None:
    return letter.upper() if letter.upper() in options else None


def normalised(text: str) -> str:
    """The form in which answers are compared.

    Args:
        text: an answer, or the text of an option.

    Returns:
        It without regard to case, and with one space for every run of whitespace.
    """
    return " ".join(text.split()).casefold()
