"""The stage questions of one clip, and what it asks from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fourdthinker.synth.clips import RejectError
from fourdthinker.synth.context import Context
from fourdthinker.synth.labels import UNSCALED, camera_of, moves_of, objects_of, unclear_of
from fourdthinker.synth.motion import seen_part
from fourdthinker.synth.questions import Facts, ObjectFacts, Question, Support, ask


def facts_of(clip: str, source: str, results: Mapping[str, Any]) -> Facts:
    """All that the stages have found out about a clip.

    Args:
        clip: its id.
        source: the video that it is of.
        results: stage -> result, of geometry and motion.

    Returns:
        What questions are asked from.
    """
    camera = camera_of(results)
    parts = [seen_part(track, camera) for track in objects_of(results)]
    things = [
        ObjectFacts(part, words["direction"], words["distance"], words["speed"])
        for part, words in zip(parts, results["motion"]["objects"], strict=True)
        if part is not None
    ]
    return Facts(
        clip,
        source,
        float(camera.times[-1]),
        camera,
        moves_of(results),
        tuple(things),
        unclear_of(results),
    )


def questions(context: Context) -> dict[str, Any]:
    """Questions with their answers, and the instants that a picture is imagined of."""
    facts = facts_of(context.clip.item, context.source.group, context.results)
    found = ask(facts, context.settings.seed)
    if not found:
        raise RejectError("nothing clear to ask about" if facts.camera.scaled else UNSCALED)
    return {"questions": found}


def shown_frames(question: Question, ingest: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    """The frames of the clip that go with a question.

    Args:
        question: one about the clip; a prediction asks for what comes after its end.
        ingest: result of that stage.

    Returns:
        Paths, and seconds of each; of a prediction only those up to its end.
    """
    kept = [
        (path, second)
        for path, second in zip(ingest["frames"], ingest["seconds"], strict=True)
        if second <= latest(question.type, question.end)
    ]
    return [path for path, _ in kept], [second for _, second in kept]


def latest(kind: str, end: float) -> float:
    """Seconds up to which a question of that type and end may show the clip."""
    return end + 1e-6 if kind.endswith("_dir_pred") else math.inf


def question_of(values: Mapping[str, Any]) -> Question:
    """A question as the journal holds it."""
    given = {field.name: values[field.name] for field in dataclasses.fields(Question)}
    support = values["support"]
    given["support"] = Support(support["object"], tuple(support["instants"]))
    given["evidence"] = tuple(values["evidence"])
    if values["bbox"] is not None:
        left, top, right, bottom = values["bbox"]
        given["bbox"] = (left, top, right, bottom)
    return Question(**given)
