"""The bench of training steps runs from end to end on a tiny model, against TRL's own trainer."""

from __future__ import annotations

import importlib.util
import json

import pytest

from bench import __main__ as command
from bench import _measure as measure
from bench import _training_trl as trl
from bench import training
from tests.unit.bench.test_training import TINY

HAS_TRL = all(importlib.util.find_spec(name) for name in trl.NEEDS)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(training, "ANSWER", 20)
    return tmp_path / "results"


def test_a_run_races_and_saves(results, capsys):
    words = [*TINY, "--only", "grpo", "dift", "--candidates", "ours", "fair", "--save"]
    assert command.run(["training", *words]) == 0
    (path,) = results.iterdir()
    saved = json.loads(path.read_text())
    rows = {row["candidate"]: row for row in saved["training grpo"]["rows"]}
    assert set(rows) == ({"ours", "TRL, fair"} if HAS_TRL else {"ours"})
    for row in rows.values():
        assert 0 < row["generation_s"] < row["low"]
        assert 0 < row["loss_s"] < row["low"]
        assert row["kept_bytes"] < row["peak_bytes"]
    if HAS_TRL:
        assert rows["TRL, fair"]["slower"] == round(rows["TRL, fair"]["low"] / rows["ours"]["low"], 2)
    by = {(row["what"], row["candidate"]): row for row in saved["training dift"]["rows"]}
    assert set(by) == {(what, who) for what in ("loss", "step") for who in ("ours", "transformers")}
    assert by["loss", "transformers"]["ours_to_its_peak"] < 0.8
    assert "A 4DRL step" in capsys.readouterr().out
