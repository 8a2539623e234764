"""What a question may show of its clip, in the record and to a model that narrates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourdthinker.synth import corpus, narration
from fourdthinker.synth.asking import shown_frames
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.questions import Facts, Question, Support
from fourdthinker.synth.tracks import CameraTrack

INGEST = {"frames": ["a", "b", "c", "d"], "seconds": [0.0, 1.0, 3.0, 4.0]}
FACTS = Facts("c", "v", 4.0, CameraTrack(np.array([0.0, 4.0]), np.tile(np.eye(4), (2, 1, 1))))


def question(kind: str, name: str = "q") -> Question:
    return Question(name, "c", "v", kind, "Where?", "left", 0.0, 3.0, kind, Support(None, (0.0,)))


def results() -> dict[str, Any]:
    imagery = {name: {"images": [], "kinds": [], "instants": []} for name in ("q", "r", "s", "t")}
    return {"ingest": INGEST, "imagery": imagery}


@pytest.mark.parametrize("kind", ["abs_dir_pred", "rel_dir_pred"])
def test_nothing_shows_the_future_of_a_prediction(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = question(kind)
    assert shown_frames(asked, INGEST) == (["a", "b", "c"], [0.0, 1.0, 3.0])
    made = corpus._made(corpus.Finished(Source("v", "", "d", "d", "v"), "c", results()), asked, FACTS, "")
    assert (made.frames, made.seconds) == (["a", "b", "c"], [0.0, 1.0, 3.0])
    sent: list[Any] = []
    monkeypatch.setattr(narration, "_pictures", lambda out, *given: sent.append(given))
    narration._job(asked, FACTS, results(), Path(), 0)
    assert sent[0] == (["a", "b", "c"], [0.0, 1.0, 3.0])


def test_other_questions_show_the_whole_clip() -> None:
    assert shown_frames(question("camera"), INGEST) == (["a", "b", "c", "d"], [0.0, 1.0, 3.0, 4.0])


def test_each_question_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narration, "_pictures", lambda *given: [])

    def seeds(of_run: int) -> list[int]:
        asked = [question("camera", name) for name in "qrst"]
        return [narration._job(one, FACTS, results(), Path(), of_run).seed for one in asked]

    assert seeds(0) == seeds(0)
    assert len({seed % 6 for seed in seeds(0)}) > 1
    assert seeds(1) == [seed + 1 for seed in seeds(0)]
