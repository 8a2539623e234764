"""`fourdthinker demo --quick`: every phase on real files, what results.json holds, and resuming."""

import json
from pathlib import Path

import pytest

from fourdthinker.demo import run_demo
from fourdthinker.demo.settings import PHASES, DemoSettings, quick_settings
from fourdthinker.demo.twins import SCENES
from fourdthinker.records import read_records

MODELS = ("base", "dift", "dift_control", "rl")
CHECKS = ("black_frames", "other_frames", "black_frames_control", "other_frames_control")
DIFFERENCES = ("rl_minus_dift", "rl_minus_control", "greedy_rl_minus_dift")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_demo(tmp_path_factory.mktemp("demo") / "run", quick=True, seed=3).parent


def test_results(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    questions = len(read_records(run / "render" / "test.jsonl", kind="rl"))
    for name in ("chance", "majority", *MODELS, *CHECKS):
        entry = results[name]
        assert 0 <= entry["low"] <= entry["accuracy"] <= entry["high"] <= 1, name
        assert entry["n"] == questions
        assert "greedy" in entry
        assert name in CHECKS or 0 <= entry["greedy"] <= 1
    for name in MODELS:
        assert results[name]["entropy"] >= 0
        assert results[name]["failed"] == 0
        assert results[name]["samples"] == 4
    for name in DIFFERENCES:
        assert results[name]["low"] <= results[name]["mean"] <= results[name]["high"]
    mean = results["rl"]["accuracy"] - results["dift"]["accuracy"]
    assert results["rl_minus_dift"]["mean"] == pytest.approx(mean, abs=1e-9)
    assert results["seeds"] == {"demo": 3}
    assert set(results["seconds"]) == {*PHASES, "total"}


def test_files(run: Path) -> None:
    settings = quick_settings(3)
    assert len(list((run / "render").glob("*/*.mp4"))) == sum(
        (settings.render.train, settings.render.rl, settings.render.test, 3 * SCENES)
    )
    for name, kind in (
        ("captions", "dift"),
        ("dift", "dift"),
        ("control", "dift"),
        ("rl", "rl"),
        ("test", "rl"),
        ("twins", "rl"),
    ):
        assert read_records(run / "render" / f"{name}.jsonl", kind=kind)
    for phase, steps in (("base", 8), ("dift", 12), ("rl", 3), ("dift_control", 3)):
        assert (run / phase / "final" / "model.safetensors").exists()
        lines = [json.loads(line) for line in (run / phase / "metrics.jsonl").read_text().splitlines()]
        assert max(line["step"] for line in lines) == steps
    page = (run / "report.html").read_text()
    assert "After 4DRL" in page
    assert "Rollouts" in page


def test_a_finished_demo_is_not_done_again(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.glob("*/done.json")}
    assert len(before) == len(PHASES)
    results = (run / "results.json").read_text()
    run_demo(run, quick=True, seed=3)
    assert {path: path.stat().st_mtime_ns for path in run.glob("*/done.json")} == before
    again = json.loads((run / "results.json").read_text())
    assert again["rl"] == json.loads(results)["rl"]


def test_splits_share_no_clip(run: Path) -> None:
    clips = {
        split: {path.read_bytes() for path in (run / "render" / split).glob("*.mp4")}
        for split in ("train", "rl", "test")
    }
    assert not clips["train"] & clips["test"]
    assert not clips["rl"] & clips["test"]
    assert not clips["train"] & clips["rl"]


def test_a_phase_depends_on_its_own_settings_and_those_before() -> None:
    keys = {phase: DemoSettings(seed=0).key(phase) for phase in PHASES}
    assert len(set(keys.values())) == len(PHASES)
    other = DemoSettings(seed=1)
    assert all(other.key(phase) != keys[phase] for phase in PHASES)
    full = DemoSettings(seed=0)
    longer = DemoSettings(seed=0, rl=quick_settings(0).rl)
    changed = {phase for phase in PHASES if longer.key(phase) != full.key(phase)}
    assert changed == {"rl", "dift_control", "evaluate"}
    assert DemoSettings.from_dict(json.loads(json.dumps(full.to_dict()))) == full
