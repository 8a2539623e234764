"""The ablation of latents from end to end, on a handful of clips; it goes on where it was stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as command
from bench import _ablation_data as data
from bench import _ablation_training as training
from bench import ablation
from bench._ablation_tables import rows_of_seed
from fourdthinker.demo import work
from fourdthinker.demo.settings import DemoSettings, RenderSettings, quick_settings
from fourdthinker.demo.work import StoppedError
from fourdthinker.evaluate import load_result
from fourdthinker.sampler import LATENT_MODES

ONLY = ["none", "map"]


def fewest(seed: int) -> DemoSettings:
    """Even less than --quick."""
    quick = quick_settings(seed)
    phases = {"base": replace(quick.base, steps=2), "dift": replace(quick.dift, steps=2)}
    phases["rl"] = replace(quick.rl, steps=1, batch=2)
    return replace(quick, render=RenderSettings(train=16, rl=2, test=4), **phases)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in the base phase, between pictures, and while the second variant was answered; then ended."""
    folder = tmp_path_factory.mktemp("ablation") / "out"
    words = ["ablation", "--quick", "--seeds", "1", "--only", *ONLY, "--out", str(folder)]
    answer = training.answer_questions

    def stopped(*arguments: object) -> dict[str, object]:
        if "map" in str(arguments[-1]):
            raise StoppedError("killed here")
        return answer(*arguments)  # type: ignore[arg-type]

    encoded: list[int] = []
    encode, scale = data.encode_imagery, work.match_scale

    def stopped_encoding(*arguments: Any) -> Any:
        encoded.append(len(arguments[1]))
        if len(encoded) == 2:
            raise StoppedError("killed here")
        return encode(*arguments)

    def stopped_scaling(*arguments: Any) -> float:
        scale(*arguments)
        raise StoppedError("killed here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "quick_settings", fewest)
        patch.setattr(data, "_CHUNK", 8)
        with patch.context() as interrupted:
            interrupted.setattr(work, "match_scale", stopped_scaling)
            assert command.run(words) == 2
        base = folder / "seed1/base"
        began = [path.stat().st_mtime_ns for path in base.glob("checkpoint-*/model.safetensors")]
        assert len(began) == 1
        with patch.context() as interrupted:
            interrupted.setattr(data, "encode_imagery", stopped_encoding)
            assert command.run(words) == 2
        assert [path.stat().st_mtime_ns for path in base.glob("checkpoint-*/model.safetensors")] == began
        patch.setattr(data, "encode_imagery", stopped_encoding)
        with patch.context() as interrupted:
            interrupted.setattr(training, "answer_questions", stopped)
            assert command.run(words) == 2
        before = {path: path.stat().st_mtime_ns for path in folder.glob("seed1/none/*.json")}
        assert [path.stem for path in sorted(before)] == ["dift", "rl"]
        weights = folder / "seed1/map/dift/final/model.safetensors"
        trained = weights.stat().st_mtime_ns
        assert command.run(words) == 0
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert weights.stat().st_mtime_ns == trained
    assert encoded == [8, 8, 8]  # the first eight clips once
    return folder


def test_every_mode_is_asked_the_same_questions(out: Path) -> None:
    folder = out / "seed1" / "map" / "dift-answers"
    own = load_result(folder / "answers")
    assert (own.n, own.greedy) == (4, True)
    for mode in LATENT_MODES:
        found = load_result(folder / "modes" / mode)
        assert {q.id for q in found.questions} == {q.id for q in own.questions}
    bare = load_result(out / "seed1" / "none" / "rl-answers" / "answers")
    assert {q.id for q in bare.questions} == {q.id for q in own.questions}
    assert not any("latent" in text for q in bare.questions for text in q.texts)
    assert not (out / "seed1" / "none" / "dift-answers" / "modes").exists()


def test_rows_hold_every_variant(out: Path) -> None:
    rows = rows_of_seed(out, 1)
    own = {(row["variant"], row["stage"]): row for row in rows if row["part"] == "accuracy"}
    assert set(own) == {("none", "dift"), ("none", "rl"), ("map", "dift")}
    mean = own["map", "dift"]["greedy"] - own["none", "dift"]["greedy"]
    assert own["map", "dift"]["less_none"]["greedy"]["mean"] == pytest.approx(mean, abs=1e-9)
    audit = [row for row in rows if row["part"] == "audit"]
    assert {row["mode"] for row in audit} == set(LATENT_MODES)
    assert {row["variant"] for row in audit} == {"map"}
