"""What a question may show of its clip, in the record and to a model that narrates."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fourdthinker.synth import corpus, narration
from fourdthinker.synth.asking import facts_of, shown_frames
from fourdthinker.synth.clips import Clip
from fourdthinker.synth.context import Context
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.journal import Entry, Journal
from fourdthinker.synth.labels import motion
from fourdthinker.synth.payload import dumps, loads
from fourdthinker.synth.questions import Facts, Question, Support
from fourdthinker.synth.settings import CLIP_STAGES, SynthSettings
from fourdthinker.synth.tracks import CameraTrack
from tests.unit.synth.paths import FORWARD, steady, walked

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
    found: Any = SimpleNamespace(of=lambda clip: results(), facts=lambda clip: FACTS)
    made = corpus._made(Source("v", "", "d", "d", "v"), asked, found, "")
    assert (made.frames, made.seconds) == (["a", "b", "c"], [0.0, 1.0, 3.0])
    sent: list[Any] = []
    monkeypatch.setattr(narration, "_pictures", lambda out, *given: sent.append(given))
    narration._job(asked, FACTS, results(), Path(), 0)
    assert sent[0] == (["a", "b", "c"], [0.0, 1.0, 3.0])


def test_other_questions_show_the_whole_clip() -> None:
    assert shown_frames(question("camera"), INGEST) == (["a", "b", "c", "d"], [0.0, 1.0, 3.0, 4.0])


def test_unclear_times_come_from_the_stage_motion() -> None:
    """3.5 degrees a second beside a dolly: too much for none, too little for a pan."""
    track = walked(FORWARD, steady(0, 3.5, 0), 4)
    found: Any = {"geometry": {"camera": vars(track), "objects": [], "things": []}}
    clip = Clip("c", 0.0, 4.0, track.times, np.zeros((len(track.times), 8, 8, 3), np.uint8), (0,))
    source = Source("v", "", "d", "d", "v")
    found["motion"] = loads(dumps(motion(Context(clip, source, SynthSettings(), Path(), found))))
    facts = facts_of("c", "v", found)
    assert [move.name for move in facts.moves] == ["dolly in"]
    assert facts.unclear == ((0.0, 4.0),)


def test_results_of_many_clips_are_not_held(tmp_path: Path) -> None:
    """Of 2,000 clips they took 340 MB."""
    stages = ("ingest", *CLIP_STAGES)
    source = Source("v", "", "d", "d", "v")
    clips = {f"c{k}": corpus.Finished(source, f"c{k}", dict.fromkeys(stages, "key")) for k in range(100)}
    with Journal(tmp_path) as journal:
        for item in clips:
            for stage in stages:
                journal.record(Entry(item, stage, "key", "v", "done", payload=dumps(np.zeros(10_000))))
        results = corpus.Results(clips, journal)
        tracemalloc.start()
        for item in clips:
            assert len(results.of(item)["segment"]) == 10_000
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert held < 40 * len(stages) * 80_000


def test_each_question_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narration, "_pictures", lambda *given: [])

    def seeds(of_run: int) -> list[int]:
        asked = [question("camera", name) for name in "qrst"]
        return [narration._job(one, FACTS, results(), Path(), of_run).seed for one in asked]

    assert seeds(0) == seeds(0)
    assert len({seed % 6 for seed in seeds(0)}) > 1
    assert seeds(1) == [seed + 1 for seed in seeds(0)]
