"""4DThinker's camera question: which moves, concurrent ones as a set, one after the other as a sequence."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fourdthinker.synth.motion import move_sets
from fourdthinker.synth.questions.forms import Facts, Question, Support, seconds
from fourdthinker.synth.questions.phrases import CAMERA, put
from fourdthinker.synth.tracks import STATIC, STATIONARY

SHORTEST = 0.8  # seconds of a part that is asked about
UNCLEAR = 0.3  # seconds of unclear motion that a part may hold
MOST = 3  # questions of each form about a clip


def camera_questions(facts: Facts, rng: np.random.Generator) -> list[Question]:
    """Questions about parts of constant moves, and about two or three such parts in a row.

    Args:
        facts: of the clip.
        rng: draws parts and wordings.

    Returns:
        Questions of the pools "camera 1", "camera 2" and "camera 3".
    """
    parts = move_sets(facts.moves)
    questions = []
    for length in (1, 2, 3):
        rows = [list(parts[i : i + length]) for i in range(len(parts) - length + 1)]
        rows = [
            row
            for row in rows
            if all(end - start >= SHORTEST for start, end, _ in row)
            and all(abs(a[1] - b[0]) < 1e-6 and a[2] != b[2] for a, b in pairwise(row))
            and not _unclear(facts, row[0][0], row[-1][1])
        ]
        for number in sorted(rng.permutation(len(rows))[:MOST]):
            questions.append(_camera_question(facts, rows[number], f"{length}.{number}", rng))
    return questions


def _unclear(facts: Facts, start: float, end: float) -> bool:
    """Whether the camera may do something else, unnamed, in that time."""
    return any(min(b, end) - max(a, start) > UNCLEAR for a, b in facts.unclear)


def _camera_question(
    facts: Facts, row: list[tuple[float, float, frozenset[str]]], number: str, rng: np.random.Generator
) -> Question:
    start, end = np.ceil(row[0][0] * 10) / 10, np.floor(row[-1][1] * 10) / 10  # within what is constant
    texts = [" and ".join(sorted(names)) for _, _, names in row]
    still = next((o.track.name for o in facts.objects if o.direction == STATIONARY), None)
    inner = [(a + b) / 2 for a, b, _ in row] if len(row) > 1 else []
    return Question(
        id=f"{facts.clip}.camera.{number}",
        clip=facts.clip,
        source=facts.source,
        type="camera",
        text=put(CAMERA, rng, seconds(start), seconds(end), {}),
        answer=", then ".join(texts),
        start=float(start),
        end=float(end),
        pool=f"camera {len(row)}",
        support=Support(still, tuple(sorted({float(start), *map(float, inner), float(end)}))),
        evidence=tuple(
            f"from {seconds(max(a, start))} to {seconds(min(b, end))} "
            + (
                "the view of what rests does not change"
                if text == STATIC
                else f"the view changes as in a {text}"
            )
            for (a, b, _), text in zip(row, texts, strict=True)
        ),
    )
