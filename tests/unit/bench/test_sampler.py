"""The sampler's bench: what is written when, rows that end early, and the time of a step."""

from __future__ import annotations

import json

import pytest
import torch

from bench import __main__ as command
from bench import _measure as measure
from bench import sampler, sampler_ops
from bench._sampler_cases import build, require_work
from fourdthinker.sampler import Rollout


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_a_row_may_end_early_where_it_stays_in_the_batch():
    lengths = torch.full((64,), 512)
    lengths[:4] = 30
    require_work(lengths, 512, on_cpu=False)
    with pytest.raises(RuntimeError, match="ended after 30 of 512"):
        require_work(lengths, 512, on_cpu=True)
    lengths[4] = 20  # so many that the batch may close up
    with pytest.raises(RuntimeError, match="ended after 20 of 512"):
        require_work(lengths, 512, on_cpu=False)


class Fake:
    """A call of the sampler, of which `interleaved` below learns the seconds: one, or those of each call."""

    def __init__(self, taken, graphs=2.0):
        self.all = list(taken) if isinstance(taken, tuple) else [taken]
        self.graphs = graphs

    @property
    def taken(self):
        return self.all.pop(0) if len(self.all) > 1 else self.all[0]

    def __call__(self):
        rollout = Rollout.__new__(Rollout)
        object.__setattr__(rollout, "timing", {"graphs": self.graphs})
        object.__setattr__(rollout, "lengths", torch.tensor([512, 100]))
        return rollout


@pytest.fixture
def told(monkeypatch):
    """Seconds as the calls say, instead of a clock."""
    last = []
    real = sampler._noting

    def noting(call, noted):
        inner = real(call, noted)
        return lambda: (inner(), last.append(call.taken))

    def interleaved(calls, *, repeats, device, warm_seconds):
        assert warm_seconds == 0  # a call takes seconds
        found = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                call()
                found[name].append(last[-1] if last else 0.0)
        return found

    monkeypatch.setattr(sampler, "_noting", noting)
    monkeypatch.setattr(measure, "interleaved", interleaved)


@pytest.mark.usefixtures("told")
def test_a_step_is_the_difference_of_two_calls_with_the_same_captures():
    """0.7 s of first token, eager steps and captures are in both; tokens are those that were emitted."""
    calls = Fake(0.1), Fake(0.7 + 320 * 0.002), Fake(0.7 + 512 * 0.002)
    found = sampler._timed(calls, 2, 512, 1, "cpu")
    assert found["step"] == [pytest.approx(0.002)]
    assert found["tokens_per_s"] == round(612 / (0.7 + 512 * 0.002), 1)
    with pytest.raises(RuntimeError, match="320 tokens take 1 captures and 512 take 2"):
        sampler._timed((calls[0], Fake(1.0, graphs=1.0), calls[2]), 2, 512, 1, "cpu")


@pytest.mark.usefixtures("told")
def test_a_step_is_told_with_its_spread(results, monkeypatch):
    """The median of the differences of the rounds, each of which is in the row."""
    calls = Fake(0.1), Fake((1.0, 1.0, 1.1)), Fake((1.003, 1.001, 1.102))
    found = sampler._timed(calls, 2, 8, 3, "cpu")
    assert found["step"] == pytest.approx([0.001, 0.001 / 3, 0.002 / 3])
    monkeypatch.setattr(sampler, "_calls", lambda *words: {"ours": calls})
    monkeypatch.setattr(sampler, "_copy_rate", lambda device: 1e9)
    monkeypatch.setattr(sampler, "_timed", lambda *words: dict(found))
    assert command.run(["sampler", "--shape", "mini", "--batch", "1", "--save"]) == 0
    (path,) = results.iterdir()
    (row,) = json.loads(path.read_text())["sampler mini"]["rows"]
    assert row["ms_of_each"] == [1.0, 0.333, 0.667]
    assert row["ms_per_step"] == 0.667


def test_rows_are_written_and_told_before_the_profile(results, monkeypatch, capsys):
    def broken(call, device):
        raise OSError("no profiler")

    monkeypatch.setattr(sampler, "_profile", broken)
    words = ["sampler", "--shape", "mini", "--batch", "1", "2", "--new-tokens", "4", "--only", "ours"]
    with pytest.raises(OSError, match="no profiler"):
        command.run([*words, "--save", "--profile"])
    (path,) = results.iterdir()
    rows = json.loads(path.read_text())["sampler mini"]["rows"]
    assert [row["batch"] for row in rows] == [1, 2]
    told = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["rows"]
    assert told == [{name: value for name, value in row.items() if name != "revision"} for row in rows]


def test_rows_of_logits_are_aligned_as_those_of_the_sampler(monkeypatch):
    logits = []
    monkeypatch.setattr(sampler_ops, "sample_tokens", lambda given, **rules: logits.append(given))
    for _, read, call in sampler_ops.draws("cpu", 2):
        call()
        assert read == 2 * 151_668 * 4
    assert len(logits) == 3
    for given in logits:
        assert given.shape == (2, 151_668)
        assert given.stride(0) % 16 == 0


def test_ops_that_fail_hide_no_other(results, monkeypatch):
    def attention(device, prompts, *rest):
        if prompts == 1:
            raise KeyError("broken")
        return f"{prompts}", 1.0, lambda: None

    monkeypatch.setattr(sampler_ops, "attention", attention)
    monkeypatch.setattr(sampler_ops, "draws", lambda device, rows: [])
    monkeypatch.setattr(sampler_ops, "rates", lambda device, dtype: {"copy": 1.0})
    assert command.run(["sampler_ops", "--repeats", "1", "--save"]) == 1
    (path,) = results.iterdir()
    rows = json.loads(path.read_text())["sampler ops"]["rows"]
    assert [row["op"] for row in rows] == ["cases that fail", "2"]


def test_a_tower_alone_has_one_layer_of_the_language_model():
    assert build("mini", "cpu", torch.float32, layers=1).num_layers == 1
    assert build("mini", "cpu", torch.float32).num_layers == 2
