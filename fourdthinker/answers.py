"""The one reader of answers, for rewards, evaluation, records, audit and synthesis.

A completion holds its reasoning and its answer between tags: ``<think>...</think> <answer>...</answer>``.
Whatever needs either of a text asks here; nothing else of the package looks for these tags.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # in the order in which a completion has them

_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE | re.ASCII)
# One reasoning part, one answer, nothing else. Each body forbids the four tags, so the pattern cannot match a
# text that repeats a part, and every body has one way to match (no backtracking blow-up on hostile text).
_BODY = r"(?:(?!</?(?:think|answer)>).)*"
_FORM = re.compile(
    rf"\s*<think>({_BODY})</think>\s*<answer>({_BODY})</answer>\s*", re.IGNORECASE | re.DOTALL | re.ASCII
)

# A letter within a text that can be meant for an option: one that stands alone, but no article, no part of
# "i.e." and nothing beside an apostrophe.
_NAMED = re.compile(
    r"(?<![^\W_])(?:([A-Z])(?![^\W_])|(?<![.'’])(?!a\s+[^\W\d_])([a-z])(?![^\W_]|['’]|\.[^\W_]))"
)
# Words and marks that may take back, doubt or turn around what stands before them.
_TAKES_BACK = re.compile(
    r"(?<![^\W_])(?:no|nope|nah|non|not|never|neither|nor|none|cannot|wait|wrong(?:ly)?|incorrect(?:ly)?"
    r"|false(?:ly)?|untrue|invalid|mistak\w*|errors?|oops|sorry|scrap|scratch|undo|cancel\w*|delet\w*|discard\w*"
    r"|correct(?:ion|ed|ing)|retract\w*|withdr[ae]w\w*|revis\w*|reconsider\w*|ignor\w*|forget|disregard\w*"
    r"|(?:str(?:ike|uck)|cross(?:ed)?|rul(?:e|ed|ing)|tak(?:e|en|ing)) (?:\w+ )?(?:out|back|that|it)"
    r"|chang(?:e|ed|ing) my|second thoughts?|actually|rather|instead|but|however|though|although|unless"
    r"|except|exclud\w*|eliminat\w*|reject\w*|impossible|improbable|unlikely|unsure|uncertain|doubt\w*|maybe"
    r"|perhaps|possibly|might|or|either|others?|another|opposite|reverse|contrary|else|hm+|kidding|jok(?:e|ing))"
    r"(?![^\W_])"
    r"|n['’]t(?![^\W_])|[?~✗✘❌⛔≠¬不错非或但\u0335-\u0338]|</?(?:s|del|strike)\b",
    re.IGNORECASE,
)


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
       line, and then that option's text, or other words, or both, that neither name another option nor may
       take this one back: ``B. left``. Words name an option that hold its text, or its letter alone. Words
       that say no, that doubt or that turn around ("not", "wrong", "wait", "but", "or", "?", a line through
       letters) may take it back: "A) or B)", "B. wrong" and "A: left? no: right" are None. Only a comma,
       "not" and another option's text behind this one's take nothing back: ``B. left, not right``;
    4. one of these or ``B`` followed by the text of that same option: ``B left``, ``B.left``.

    In 3 and 4, full stops and exclamation marks at the end of a text do not count.

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
    if separated and _ended(normalised(rest)) == _ended(normalised(options[letter])):
        return letter
    words = (marked and rest[:1].isspace()) or re.match(r"[^\S\n]*\n", rest)
    return letter if words and not _leaves(rest, letter, options) else None


def _leaves(rest: str, letter: str, options: Mapping[str, str]) -> bool:
    """Whether what stands behind the letter of an option speaks of another option, or may take it back."""
    words, texts = _plain(rest), {key: _ended(_plain(text)) for key, text in options.items()}
    own = re.match(re.escape(texts[letter]) + r"(?![^\W_])", words, re.IGNORECASE)
    after = own.end() if own else 0  # that text may say what it likes
    others = [text for key, text in texts.items() if text and key != letter]
    if own and _rejects(words[after:], others):
        return False
    named = {_key(options, match[1] or match[2]) for match in _NAMED.finditer(words, after)}
    if named - {letter, None} or _TAKES_BACK.search(words, after):
        return True
    for other in others:
        found = rf"(?<![^\W_])(?=({re.escape(other)})(?![^\W_]))"
        if any(match.end(1) > after for match in re.finditer(found, words, re.IGNORECASE)):
            return True
    return False


def _rejects(words: str, others: Sequence[str]) -> bool:
    """Whether words are a comma, "not" and the text of another option, and no option says that with "not"."""
    said = re.fullmatch(r", not (.+)", _ended(words), re.IGNORECASE)
    texts = {text.casefold() for text in others}
    return said is not None and said[1].casefold() in texts and f"not {said[1]}".casefold() not in texts


def _ended(text: str) -> str:
    """Without the full stops, exclamation marks and spaces at its end, if it has anything else."""
    return text.rstrip(".! ") or text


def _plain(text: str) -> str:
    """With one space for every run of whitespace, and letters that only look odd as usual ones."""
    return unicodedata.normalize("NFKC", " ".join(text.split()))


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
