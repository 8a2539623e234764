"""Whether a narration may become a record: tags, their order, length, imagery, and the answer."""

from __future__ import annotations

import re

from fourdthinker.answers import TAGS, normalised, thought_and_answer
from fourdthinker.latents import IMAGERY
from fourdthinker.records import letter_of
from fourdthinker.synth.questions.forms import Question

SHORTEST, LONGEST = 80, 8000  # characters of the reasoning, placeholders not counted
APART = 150  # characters between placeholders, for each of them: they stand together

_CONTROL = re.compile(r"<\|[^<>|\s]{1,64}\|>|</?(?:thinking|tool_call|image|video)>", re.IGNORECASE)
_TOLD = re.compile(
    r"\b(?:(?:correct|right|given|provided|expected) (?:answer|option|label)|ground[- ]truth|"
    r"(?:you|the user|the prompt) (?:said|told|gave|provided)|overlays?|masks?|highlighted|"
    r"measured facts?|instructions?|(?:final|true) label|(?:answer|label) is (?:already )?(?:known|given))\b",
    re.IGNORECASE,
)
# What a reasoning says that the answer is, up to the end of the line.
_CLAIM = re.compile(
    r"\b(?:answer|option|choice|label)(?:\s+(?:is|must be|should be|would be|has to be)|:)\s+"
    r"(?:(?:therefore|thus|hence|then|clearly|surely|option)[,:]?\s+)?(?=([^\n]{1,80}))",
    re.IGNORECASE,
)
# The letter that its last sentence comes to.
_END = re.compile(
    r"\b(?:is|be|fits?|choose|pick|take|select|hence|thus|therefore|so|means|answer)[,:]?\s+"
    r"(?:(?:option|answer)\s+)?[\"'(*]*([A-Z])(?![\w'])",
    re.IGNORECASE,
)
_LETTER = re.compile(r"[\"'(*]*([A-Z])(?![\w'])")  # in capitals: "a" is an article
_TIME = re.compile(r"\bat (\d+(?:\.\d+)?)\s*(?:s|sec|seconds?)\b[^.;]{0,12}$", re.IGNORECASE)
_ABOUT = r"(?:about|around|roughly|approximately|approx\.?|nearly|~|≈)?\s*"
_UNITS = {"m": "(?:m|met(?:re|er)s?)", "degrees": "(?:degrees?|deg|°)"}


def fault(text: str, question: Question, overlays: int) -> str | None:
    """What is wrong with a narration.

    Args:
        text: "<think>...</think> <answer>...</answer>".
        question: what it answers.
        overlays: how many placeholders it must hold.

    Returns:
        The reason, or None for a narration that is right.
    """
    parts = thought_and_answer(text)
    if parts is None or any(tag not in text for tag in TAGS):  # training shows them in lower case alone
        return "not <think>...</think> and then <answer>...</answer>, each tag once"
    thought, answer = parts[0], parts[1].strip()
    control = _CONTROL.search(text)
    if control:
        return f"holds the control token {control[0]!r}"
    if any("\ud800" <= c <= "\udfff" or (c < " " and c not in "\n\t") for c in text):
        return "holds characters that are no text"
    length = len(thought.replace(IMAGERY, "").strip())
    if not SHORTEST <= length <= LONGEST:
        return f"the reasoning has {length} characters, not {SHORTEST} to {LONGEST}"
    return (
        _imagery_fault(thought, text, overlays)
        or _told(thought, question)
        or _claim_fault(thought, question)
        or _answer_fault(answer, question)
    )


def _imagery_fault(thought: str, text: str, overlays: int) -> str | None:
    found = [match.start() for match in re.finditer(re.escape(IMAGERY), thought)]
    if len(found) != overlays or text.count(IMAGERY) != overlays:
        return f"{text.count(IMAGERY)} {IMAGERY} for {overlays} overlays"
    if found and found[-1] - found[0] > (APART + len(IMAGERY)) * overlays:
        return f"the {IMAGERY} do not stand together"
    named = [_TIME.search(before) for before in thought.split(IMAGERY)[:-1]]
    times = [float(time[1]) for time in named if time]
    if times != sorted(times):
        return f"the times of the {IMAGERY} are not in order"
    return None


def _told(thought: str, question: Question) -> str | None:
    asked = normalised(" ".join([question.text, question.support.object or "", *question.options.values()]))
    for told in _TOLD.finditer(thought):
        if normalised(told[0]) not in asked:  # a face mask may be what the question is about
            return f"speaks of {told[0]!r}, which it could not know from the video"
    return None


def _answer_fault(answer: str, question: Question) -> str | None:
    if question.options:
        letter = letter_of(answer, question.options)
        if letter is None:
            return f"the answer {answer[:60]!r} is no option"
        return None if letter == question.letter else f"answers {letter}, and geometry says {question.letter}"
    if question.value is None:
        same = normalised(answer) == normalised(question.answer)
        return None if same else f"answers {answer[:60]!r}, and geometry says {question.answer!r}"
    number = _number(answer, question)
    if number is None or not _is_value(number, question):
        return f"answers {answer[:60]!r}, and geometry says {question.answer!r}"
    return None


def _claim_fault(thought: str, question: Question) -> str | None:
    """Why a reasoning comes to another answer than the one below it; what it says last counts."""
    claims = [claim[1] for claim in _CLAIM.finditer(thought) if _is_claim(claim[1])]
    if question.options:
        found = [letter for claim in claims if (letter := _claimed(claim, question))]
        last = _END.findall(re.split(r"(?<=[a-z0-9)%°][.!?])\s+", thought.strip())[-1])
        found += [letter for letter in last if letter in question.options]
        if found and found[-1] != question.letter:
            return f"the reasoning comes to {found[-1]}, and geometry says {question.letter}"
    elif question.value is not None:
        numbers = [(claim, _number(claim, question, whole=False)) for claim in claims]
        told = [(claim, number) for claim, number in numbers if number is not None]
        if told and not _is_value(told[-1][1], question):
            return f"the reasoning comes to {told[-1][0][:60]!r}, and geometry says {question.answer!r}"
    return None


def _is_claim(told: str) -> bool:
    """Not a question, and nothing that is ruled out."""
    sentence = re.split(r"(?<=[.!?])\s", told)[0]
    return not sentence.endswith("?") and not re.match(r"(?:not|never|no)\b", told, re.IGNORECASE)


def _claimed(told: str, question: Question) -> str | None:
    """The letter of the option that a text begins with, by its letter or by its words."""
    letter = _LETTER.match(told)
    if letter and letter[1] in question.options:
        return letter[1]
    words = _words(told)
    begun = [key for key, text in question.options.items() if words.startswith(_words(text))]
    return max(begun, key=lambda key: len(question.options[key]), default=None)


def _words(text: str) -> str:
    """The words of a text, each with a space behind it."""
    return "".join(f"{word} " for word in re.findall(r"[\w.-]*\w", normalised(text)))


def _number(text: str, question: Question, *, whole: bool = True) -> float | None:
    """The number that a text is, its unit left out or not, or that it begins with, its unit behind it."""
    unit = _UNITS.get(question.unit, re.escape(question.unit))
    number = rf"{_ABOUT}([-+]?\d+(?:\.\d+)?)\s*{unit}"
    found = (
        re.fullmatch(rf"{number}?\.?", text.strip(" *"), re.I)
        if whole
        else re.match(rf"{number}(?!\w)", text, re.I)
    )
    return float(found[1]) if found else None


def _is_value(number: float, question: Question) -> bool:
    """Within a twentieth of the value, and half of the last digit that the answer is given with."""
    assert question.value is not None
    digits = re.search(r"\.(\d+)", question.answer)
    last = 10.0 ** -(len(digits[1]) if digits else 0)
    return abs(number - question.value) <= 0.05 * abs(question.value) + 0.5 * last + 1e-9
