"""The narrator that needs no model: reasoning put together from the geometry, in varied wording.

When, what, imagine it (one `<output_image>` for each overlay, in time order), take the camera's own motion
away, what follows, and the answer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from fourdthinker.latents import IMAGERY
from fourdthinker.synth.motion import move_sets
from fourdthinker.synth.questions.forms import Facts, Question, join_runs, seconds
from fourdthinker.synth.tracks import STATIC, with_article

LABELLED = 0.8  # of a time: where less of it has clear moves, nothing is said of the camera

_WHEN = (
    "The question is about the time from {start} to {end}.",
    "What counts is the part between {start} and {end}.",
    "First the time: {start} to {end}.",
    "I go to the part of the clip from {start} to {end}.",
)
_AT = (
    "The question is about the scene at {start}.",
    "What counts is how things are at {start}.",
    "First the time: {start}.",
    "I go to {start} in the clip.",
)
_WHAT = (
    "The thing to follow is {object}.",
    "I keep my eyes on {object}.",
    "What matters here is {object}.",
    "So I track {object}.",
)
_REFERENCE = (
    "To judge the camera I need something that stands still, such as {object}.",
    "A fixed reference helps: {object} does not move in the scene.",
    "I take {object} as a reference, since it stays where it is.",
)
_NO_REFERENCE = (
    "To judge the camera I compare how the whole view changes.",
    "The background stands still, so its motion in the view is the camera's.",
)
_IMAGINE = (
    "I imagine {object} {pictures}.",
    "Let me picture {object} {pictures}.",
    "In my mind I see {object} {pictures}.",
    "I call up {object} {pictures}.",
)
_MOVING = (
    "Meanwhile the camera's own motion is {moves}, and I take that out of what I see.",
    "The camera itself does this: {moves}. I subtract it.",
    "Part of the change in the view comes from the camera ({moves}), so I remove that part.",
)
_RESTING = (
    "The camera stands still, so all that changes is in the scene.",
    "Since the camera does not move, nothing has to be taken away.",
)
_VIEWER = (
    "The viewpoint moves too, and its own motion counts here.",
    "I go along with the viewpoint, so its motion is part of what is seen.",
)
_FOLLOWS = (
    "This shows: {evidence}.",
    "What I find: {evidence}.",
    "From this, {evidence}.",
    "I see that {evidence}.",
)
_CONCLUDE = ("That is {answer}.", "So the answer is {answer}.", "This fits {answer}.", "Hence {answer}.")
_NEAREST = (  # of a measured value and values to choose from
    "The option nearest to that is {answer}.",
    "Of the options, {answer} is nearest to this.",
    "What comes nearest is {answer}.",
)


def narrate(question: Question, facts: Facts, instants: Sequence[float], seed: int) -> str:
    """Reasoning and answer, as a record's text_output.

    Args:
        question: with its options, or open.
        facts: of its clip.
        instants: seconds of its overlays, increasing.
        seed: of the wording.

    Returns:
        "<think>...</think>", a line break, "<answer>...</answer>", with a placeholder for each instant.
    """
    rng = np.random.default_rng([seed, zlib.crc32(question.id.encode())])

    def say(templates: Sequence[str], **names: str) -> str:
        text = str(rng.choice(templates)).format(**names)
        return text[:1].upper() + text[1:]

    name = question.support.object
    thing = "the scene" if name is None else with_article(name)
    start, end = _asked(question)
    parts = [say(_WHEN if start < end else _AT, start=seconds(start), end=seconds(end))]
    if question.type == "camera":
        parts.append(say(_NO_REFERENCE) if name is None else say(_REFERENCE, object=thing))
    elif name is not None:
        parts.append(say(_WHAT, object=thing))
    if instants:
        shown = [f"at {seconds(instant)} {IMAGERY}" for instant in instants]
        parts.append(say(_IMAGINE, object=thing, pictures=_listed(shown)))
    parts += _camera_sentence(question, facts, say)
    parts += [say(_FOLLOWS, evidence=clause) for clause in question.evidence]
    chosen = question.value is not None and question.letter is not None
    parts.append(say(_NEAREST if chosen else _CONCLUDE, answer=answer_line(question)))
    return f"<think>{' '.join(parts)}</think>\n<answer>{answer_line(question)}</answer>"


def answer_line(question: Question) -> str:
    """The answer as a completion gives it: "B. left", or a number with its unit."""
    return question.answer if question.letter is None else f"{question.letter}. {question.answer}"


def camera_words(facts: Facts, start: float, end: float) -> str:
    """The camera's moves within a time, in order: "pan left, then static"; "" where most is not clear."""
    parts = [(min(b, end) - max(a, start), names) for a, b, names in move_sets(facts.moves)]
    if sum(length for length, _ in parts if length > 0) < LABELLED * (end - start):
        return ""
    return join_runs([" and ".join(sorted(names)) for length, names in parts if length > 0.1])


def _asked(question: Question) -> tuple[float, float]:
    """The time that is asked about: of metric questions, which show the whole clip, their instants."""
    if question.centres is None:
        return question.start, question.end
    return question.support.instants[0], question.support.instants[-1]


def _camera_sentence(question: Question, facts: Facts, say: Callable[..., str]) -> list[str]:
    if question.type == "camera" or question.support.object is None:
        return []
    if question.type.startswith("rel_"):
        return [say(_VIEWER)]
    if not question.type.startswith(("object_direction", "object_speed", "object_displacement", "abs_")):
        return []
    moves = camera_words(facts, *_asked(question))
    if not moves:
        return []
    return [say(_RESTING) if moves == STATIC else say(_MOVING, moves=moves)]


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
