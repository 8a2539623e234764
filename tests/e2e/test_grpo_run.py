"""4DRL as users start it: torchrun, real videos, kill and resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.backbones import load_checkpoint
from fourdthinker.settings import make_config
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.settings import GrpoConfig
from tests.e2e.training import (
    evaluated,
    evaluations,
    finish,
    killed,
    metrics,
    settings,
    torchrun,
    without_times,
    write_data,
    write_model,
)

MODULE = ("-m", "fourdthinker.trainers.grpo")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a run on six tiny videos; two updates on each batch of rollouts."""
    folder = tmp_path_factory.mktemp("grpo")
    _, data = write_data(folder / "data", 6)
    return {
        "model": str(write_model(folder / "model")),
        "data": str(data),
        "use_cpu": True,
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "num_generations": 4,
        "num_iterations": 2,
        "max_completion_length": 12,
        "loss": {"beta": 0.05},
        "learning_rate": 1e-2,
        "rewards": ["tests.e2e.training:length_reward", "fourdthinker.rewards:accuracy_reward"],
        "reward_weights": [1.0, 1.0],
        "max_tokens_per_forward": 100,
        "save_steps": 4,
        "log_rollouts_steps": 2,
        "log_rollouts": 6,
    }


def test_two_processes(base: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    extra = {"output_dir": str(run), "max_steps": 4, "cache_dir": str(tmp_path / "cache"), "save_steps": 0}
    _, held_out = write_data(tmp_path / "held_out", 5)
    evaluation = {"eval_data": str(held_out), "eval_steps": 4, "per_device_eval_batch_size": 2}
    output = finish(torchrun(2, *MODULE, *settings(base | extra | evaluation)))
    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["sampler_gap"] < 1e-4
        assert line["sampler_gap_max"] < 1e-3
        assert line["entropy"] > 0
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6), "the reference is where training starts"
    assert lines[3]["kl"] > 1e-6
    fresh = lines[::2]
    assert all("reward" in line and "completion_length" in line for line in fresh)
    assert all(
        sum(line[f"finish_{r}"] for r in ("eos", "length", "stop")) == pytest.approx(1) for line in fresh
    )
    assert abs(lines[1]["ratio"] - 1) > 1e-6, "the second update is off policy"
    rollouts = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rollouts] == [1] * 6 + [3] * 6
    assert {r["sample"] for r in rollouts} == {0, 1, 2, 3}
    for r in rollouts:
        assert r["reward"] == pytest.approx(sum(r["rewards"].values()))
        assert r["id"].startswith("r")

    # One process says the same of the weights that were evaluated.
    assert f"the best checkpoint is {run}/checkpoint-4: eval_reward" in output
    unmoved = {"model": str(run / "checkpoint-4"), "learning_rate": 0.0, "max_steps": 1, "num_iterations": 1}
    unmoved |= {"save_steps": 0, "output_dir": str(tmp_path / "alone"), "per_device_eval_batch_size": 3}
    train_grpo(make_config(GrpoConfig, base | evaluation | unmoved | {"eval_steps": 1}))
    (here,), (there,) = evaluations(tmp_path / "alone").values(), evaluations(run).values()
    assert evaluated(there) == pytest.approx(evaluated(here))
    assert there["eval_completion_length"] > 0


def test_killed_and_resumed_run_has_the_losses_of_an_unbroken_one(
    base: dict[str, Any], tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    unbroken = torchrun(1, *MODULE, *settings(base | {"output_dir": str(whole)}))
    config = base | {"output_dir": str(broken), "resume_from_checkpoint": "auto"}
    killed(1, "grpo", 7, *settings(config))
    assert {path.name for path in broken.glob("checkpoint-*")} == {"checkpoint-4"}
    finish(unbroken)
    finish(torchrun(1, *MODULE, *settings(config)))

    expected, got = metrics(whole), metrics(broken)
    assert [line["step"] for line in got] == [line["step"] for line in expected] == list(range(1, 9))
    for a, b in zip(expected, got, strict=True):
        assert without_times(a) == without_times(b)
    assert (whole / "rollouts.jsonl").read_text() == (broken / "rollouts.jsonl").read_text()
    a, b = (load_checkpoint(run / "final").backbone.state_dict() for run in (whole, broken))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_goes_on_with_another_number_of_processes(base: dict[str, Any], tmp_path: Path) -> None:
    """Two processes die after their first checkpoint; one goes on, with the same prompts, rollouts and losses
    as one that did everything."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    one = base | {"gradient_accumulation_steps": 2, "save_steps": 2, "max_steps": 4}
    unbroken = torchrun(1, *MODULE, *settings(one | {"output_dir": str(whole)}))
    config = {"output_dir": str(broken), "resume_from_checkpoint": "auto"}
    killed(2, "grpo", 3, *settings(base | {"save_steps": 2, "max_steps": 4} | config))
    finish(unbroken)
    finish(torchrun(1, *MODULE, *settings(one | config)))
    expected, got = metrics(whole), metrics(broken)
    assert [line["step"] for line in got] == [1, 2, 3, 4]
    for a, b in zip(expected, got, strict=True):
        assert a.keys() == b.keys()
        for name in ("loss", "grad_norm", "kl", "entropy", "reward", "completion_length"):
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=2e-3, abs=1e-6), (name, a["step"])


def test_equal_groups_can_be_left_out(base: dict[str, Any], tmp_path: Path) -> None:
    # Accuracy alone is 0 for all rollouts of an untrained model, so that nothing is left to train on.
    before = load_checkpoint(base["model"]).backbone.state_dict()
    extra = {"rewards": ["fourdthinker.rewards:accuracy_reward"], "reward_weights": [1.0], "max_steps": 1}
    extra |= {
        "num_iterations": 1,
        "drop_equal_groups": True,
        "save_steps": 0,
        "output_dir": str(tmp_path / "run"),
    }
    final = train_grpo(make_config(GrpoConfig, base | extra))
    (line,) = metrics(tmp_path / "run")
    assert line["equal_groups"] == 1
    assert line["loss"] == line["grad_norm"] == 0
    after = load_checkpoint(final).backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "extra", [{"loss": {"loss_type": "dapo", "beta": 0}}, {"scale_rewards": "batch", "share_prompt": False}]
)
def test_other_settings(base: dict[str, Any], tmp_path: Path, extra: dict[str, Any]) -> None:
    config = base | extra | {"max_steps": 2, "save_steps": 0, "output_dir": str(tmp_path / "run")}
    train_grpo(make_config(GrpoConfig, config))
    assert len(metrics(tmp_path / "run")) == 2
