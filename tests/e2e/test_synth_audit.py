"""5,000 questions of ours, of every type, audited: whoever sees no pixel is at chance."""

from __future__ import annotations

import math
from collections import Counter

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is missing: pip install fourdthinker[audit]")

from fourdthinker.audit import ChoiceQuestion, audit
from fourdthinker.synth.options import add_options
from fourdthinker.synth.questions import Question, ask
from tests.unit.synth.scenes import scene

SCENES = 480
TYPES = 25


def item(question: Question, index: int) -> ChoiceQuestion:
    letters, texts = list(question.options), tuple(question.options.values())
    right = letters.index(str(question.letter))
    return ChoiceQuestion(question.id, question.source, question.type, question.text, texts, right, index)


@pytest.fixture(scope="module")
def items() -> list[ChoiceQuestion]:
    made = [question for index in range(SCENES) for question in ask(scene(index, seed=1), 0)]
    return [item(q, k) for k, q in enumerate(add_options(made, 0).questions) if q.options]


def test_no_solver_beats_chance_on_5000_questions(items: list[ChoiceQuestion]) -> None:
    assert len(items) >= 5000
    assert len({item.type for item in items}) == TYPES
    found = audit(items, folds=4)
    assert found.leaks == ()
    for line in found.lines:
        if line.type is None:
            assert line.accuracy - line.chance < 1.96 * math.sqrt(
                line.chance * (1 - line.chance) / len(items)
            )


def test_the_letters_are_uniform(items: list[ChoiceQuestion]) -> None:
    four = [item.answer for item in items if len(item.options) == 4]
    for number in Counter(four).values():
        assert number / len(four) == pytest.approx(0.25, abs=4 * math.sqrt(0.1875 / len(four)))
