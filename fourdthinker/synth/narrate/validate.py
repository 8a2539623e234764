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
    r"(?:you|the user|the prompt) (?:said|told|gave|provided)|overlays?|masks?|highlighted)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


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
    return _imagery_fault(thought, text, overlays) or _told(thought) or _answer_fault(answer, question)


def _imagery_fault(thought: str, text: str, overlays: int) -> str | None:
    found = [match.start() for match in re.finditer(re.escape(IMAGERY), thought)]
    if len(found) != overlays or text.count(IMAGERY) != overlays:
        return f"{text.count(IMAGERY)} {IMAGERY} for {overlays} overlays"
    if found and found[-1] - found[0] > (APART + len(IMAGERY)) * overlays:
        return f"the {IMAGERY} do not stand together"
    return None


def _told(thought: str) -> str | None:
    told = _TOLD.search(thought)
    return f"speaks of {told[0]!r}, which it could not know from the video" if told else None


def _answer_fault(answer: str, question: Question) -> str | None:
    if question.options:
        letter = letter_of(answer, question.options)
        if letter is None:
            return f"the answer {answer[:60]!r} is no option"
        return None if letter == question.letter else f"answers {letter}, and geometry says {question.letter}"
    if question.value is None:
        same = normalised(answer) == normalised(question.answer)
        return None if same else f"answers {answer[:60]!r}, and geometry says {question.answer!r}"
    numbers = _NUMBER.findall(answer)
    if len(numbers) != 1 or abs(float(numbers[0]) - question.value) > 0.05 * abs(question.value) + 0.051:
        return f"answers {answer[:60]!r}, and geometry says {question.answer!r}"
    return None
