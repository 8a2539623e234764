"""Questions about a clip, answered by its geometry; options come later, from the whole corpus."""

from __future__ import annotations

import zlib

import numpy as np

from fourdthinker.synth.questions.camera import camera_questions
from fourdthinker.synth.questions.facts import described, measure
from fourdthinker.synth.questions.forms import Facts, ObjectFacts, Question, Support
from fourdthinker.synth.questions.metric import metric_questions
from fourdthinker.synth.questions.objects import object_questions
from fourdthinker.synth.questions.viewpoint import viewpoint_questions

__all__ = ["Facts", "ObjectFacts", "Question", "Support", "ask", "described", "measure"]


def ask(facts: Facts, seed: int) -> list[Question]:
    """All questions about a clip whose answers are clear.

    Args:
        facts: of the clip.
        seed: of instants and wordings; the same clip gets the same ones.

    Returns:
        Questions without options; those for a number have the pool "" and take none.
    """
    rng = np.random.default_rng([seed, zlib.crc32(facts.clip.encode())])
    return [
        *camera_questions(facts, rng),
        *object_questions(facts, rng),
        *viewpoint_questions(facts, rng),
        *metric_questions(facts, rng),
    ]
