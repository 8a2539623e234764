"""The stage questions of one clip, and what it asks from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fourdthinker.synth.clips import RejectError
from fourdthinker.synth.context import Context
from fourdthinker.synth.labels import camera_of, moves_of, objects_of
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
    things = [
        ObjectFacts(track, words["direction"], words["distance"], words["speed"])
        for track, words in zip(objects_of(results), results["motion"]["objects"], strict=True)
    ]
    return Facts(clip, source, float(camera.times[-1]), camera, moves_of(results), tuple(things))


def questions(context: Context) -> dict[str, Any]:
    """Questions with their answers, and the instants that a picture is imagined of."""
    facts = facts_of(context.clip.item, context.source.group, context.results)
    found = ask(facts, context.settings.seed)
    if not found:
        raise RejectError("nothing clear to ask about")
    return {"questions": found}


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
