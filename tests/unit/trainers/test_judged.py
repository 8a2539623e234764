"""Runs whose reward is a model behind an HTTP endpoint that fails at times, or never comes back."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.errors import ConfigError
from fourdthinker.records import Record
from fourdthinker.settings import make_config
from fourdthinker.trainers.experience import load_rewards
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.rollouts import RolloutTrainer
from fourdthinker.trainers.settings import GrpoConfig
from fourdthinker.trainers.update import NoRewardsError
from tests.e2e.training import BARE, metrics, prompts
from tests.processes import run_ranks
from tests.tiny import tiny_checkpoint
from tests.unit.test_judges import Server

KINDS = ("good", "hang", "500", "nan", "lie", "once")  # what the server does with a question of this text


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_a_judge_that_fails_costs_its_rollouts_and_the_others_are_trained(
    tmp_path: Path, server: Server
) -> None:
    judge = {"url": server.url, "model": "m", "prompt": "SAID {question} {completion}", "timeout": 0.3}
    judge |= {"attempts": 2, "backoff": 0.001}
    values: dict[str, Any] = BARE | {"output_dir": str(tmp_path), "max_steps": 2, "learning_rate": 1e-2}
    values |= {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "num_generations": 2}
    values |= {"max_completion_length": 6, "log_rollouts": 12, "log_rollouts_steps": 1, "loss": {"beta": 0.0}}
    values |= {"rewards": ["fourdthinker.judges:HttpJudge", "tests.e2e.training:length_reward"]}
    values |= {"reward_weights": [2.0, 1.0], "reward_arguments": {"HttpJudge": judge}}
    checkpoint, asked = tiny_checkpoint(hidden=32, layers=1), []
    for prompt, kind in zip(prompts(checkpoint, len(KINDS)), KINDS, strict=True):
        assert prompt.record is not None
        asked.append(replace(prompt, record=replace(prompt.record, question=kind, options={})))
    train_grpo(make_config(GrpoConfig, values), checkpoint=checkpoint, prompts=asked)
    lines = metrics(tmp_path)
    assert len(lines) == 2
    for line in lines:
        assert line["failed_rewards"] == pytest.approx(4 / 6)
        assert line["reward_HttpJudge"] == pytest.approx((0.75 + 0.25) / 2)
        assert line["alarms"] >= 1
    assert lines[0]["grad_norm"] > 0
    written = [json.loads(text) for text in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    for one in written:
        judged = {"good": 0.75, "once": 0.25}.get(one["question"])
        assert one["rewards"]["HttpJudge"] == judged
        own = one["rewards"]["length_reward"]
        assert one["reward"] == (None if judged is None else pytest.approx(2 * judged + own))
        assert judged is not None or one["advantage"] == 0.0
    assert len(written) == 12, "of the first micro-batch of both updates"
    assert (tmp_path / "final" / "config.json").is_file()


def test_two_judges_of_one_class_have_arguments_of_their_own(server: Server) -> None:
    names = ("HttpJudge", "style")
    values: dict[str, Any] = {
        "rewards": ["fourdthinker.judges:HttpJudge", "fourdthinker.judges:HttpJudge#style"]
    }
    values |= {"reward_arguments": {name: {"url": server.url, "model": name} for name in names}}
    rewards = load_rewards(make_config(GrpoConfig, values))
    assert [(one.name, one.function.model) for one in rewards] == [(name, name) for name in names]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("reward", "arguments", "said"),
    [
        ("accuracy_reward", {}, r"memory:0: accuracy_reward needs options and an answer, .*HttpJudge"),
        ("st_reward", {}, r"memory:0: st_reward needs the key 'solution'"),
        ("soft_overlong_reward", {"buffer": 5}, r"buffer is 5; it must be 1 to max_completion_length = 4"),
        (
            "soft_overlong_reward",
            {"buffer": "x"},
            r"reward_arguments\.soft_overlong_reward: .*; give numbers",
        ),
    ],
)
def test_what_rewards_can_do_nothing_with_is_found_before_the_first_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: str, arguments: dict[str, Any], said: str
) -> None:
    monkeypatch.delattr(RolloutTrainer, "sample")
    values: dict[str, Any] = BARE | {"output_dir": str(tmp_path), "max_steps": 1, "max_completion_length": 4}
    values |= {"rewards": [f"fourdthinker.rewards:{reward}"], "reward_arguments": {reward: arguments}}
    values |= {"loss": {"beta": 0.0}}
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    asked = [
        replace(one, record=replace(one.record, options={}, answer="4"))  # type: ignore[type-var]
        for one in prompts(checkpoint, 2)
    ]
    with pytest.raises(ConfigError, match=said):
        train_grpo(make_config(GrpoConfig, values), checkpoint=checkpoint, prompts=asked)


FREE = threading.Event()


def hangs(text: str, record: Record) -> float:
    FREE.wait(30)
    return 1.0


def test_a_reward_that_never_comes_back_is_alarmed_of_and_ends_the_run_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It would go on for ever without training anything."""
    FREE.clear()
    values: dict[str, Any] = BARE | {"output_dir": str(tmp_path), "max_steps": 4, "num_generations": 3}
    values |= {"rewards": [f"{__name__}:hangs"], "reward_weights": [1.0], "on_reward_error": "skip"}
    values |= {"reward_timeout": 0.02, "max_completion_length": 4, "log_rollouts": 0, "loss": {"beta": 0.0}}
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    given = prompts(checkpoint, 9)
    with pytest.raises(
        NoRewardsError, match=r"in 3 updates in a row, at last: reward hangs: no answer within .*resume_from"
    ):
        train_grpo(make_config(GrpoConfig, values), checkpoint=checkpoint, prompts=given)
    FREE.set()
    lines = metrics(tmp_path)
    assert [line["hanging_rewards"] for line in lines] == [3.0, 6.0]
    assert all(line["failed_rewards"] == 1.0 for line in lines)
    assert "alarm hanging_rewards: 3 calls of rewards a process" in caplog.text
    assert not (tmp_path / "final").exists()


async def away(text: str, record: Record) -> float:
    raise ConnectionError("refused")


def test_a_judge_that_is_away_never_ends_the_run_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values: dict[str, Any] = BARE | {"output_dir": str(tmp_path), "max_steps": 4, "num_generations": 2}
    values |= {"rewards": [f"{__name__}:away"], "max_completion_length": 4, "loss": {"beta": 0.0}}
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    before = {name: weight.clone() for name, weight in checkpoint.backbone.named_parameters()}
    train_grpo(make_config(GrpoConfig, values), checkpoint=checkpoint, prompts=prompts(checkpoint, 4))
    assert [line["failed_rewards"] for line in metrics(tmp_path)] == [1.0] * 4
    assert "alarm failed_rewards: the rewards of 100% of the rollouts failed" in caplog.text
    for name, weight in checkpoint.backbone.named_parameters():
        assert torch.equal(weight, before[name]), name


async def judged_elsewhere(text: str, record: Record) -> float:
    """Hangs on the first of two processes alone."""
    await asyncio.sleep(30 * (os.environ["RANK"] == "0"))
    return float(len(text))


def train_beside_one_that_hangs(rank: int, folder: Path) -> None:
    values: dict[str, Any] = BARE | {"output_dir": str(folder), "max_steps": 1, "num_generations": 2}
    values |= {"gradient_accumulation_steps": 8, "per_device_train_batch_size": 1, "ddp_timeout": 6}
    values |= {"rewards": [f"{__name__}:judged_elsewhere"], "reward_weights": [1.0], "learning_rate": 1e-2}
    values |= {"reward_timeout": 0.5, "reward_concurrency": 1, "max_completion_length": 4, "log_rollouts": 0}
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    values |= {"loss": {"beta": 0.0}}
    train_grpo(make_config(GrpoConfig, values), checkpoint=checkpoint, prompts=prompts(checkpoint, 16))


def test_a_process_whose_judge_hangs_comes_back_before_the_other_gives_up(tmp_path: Path) -> None:
    """16 calls of the update, each to its time-out, would take longer than the other process waits."""
    assert run_ranks(train_beside_one_that_hangs, tmp_path) == [0, 0]
    (line,) = metrics(tmp_path)
    assert line["failed_rewards"] == 0.5
    assert line["grad_norm"] > 0
