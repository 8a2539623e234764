"""A reference model that follows the policy, and a penalty of repetition that sampling alone knows."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.backbones import Checkpoint, load_checkpoint
from fourdthinker.errors import CheckpointError, ConfigError
from fourdthinker.settings import make_config
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.moving_reference import MovingReference
from fourdthinker.trainers.settings import GrpoConfig
from tests.e2e.training import BARE, metrics, prompts, without_times
from tests.tiny import tiny_checkpoint

GRPO: dict[str, Any] = BARE | {
    "rewards": ["tests.e2e.training:length_reward"],
    "reward_weights": [1.0],
    "num_generations": 3,
    "max_completion_length": 8,
    "learning_rate": 1e-2,
    "log_rollouts": 0,
    "loss": {"beta": 0.1},
    "save_steps": 1,
    "save_total_limit": None,
    "max_steps": 5,
    "sync_ref_model": True,
    "ref_model_sync_steps": 2,
    "ref_model_mixup_alpha": 0.75,
    "resume_from_checkpoint": "auto",
}


def train(folder: Path, **extra: Any) -> list[dict[str, Any]]:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    config = make_config(GrpoConfig, GRPO | {"output_dir": str(folder)} | extra)
    train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 6))
    return [without_times(line) for line in metrics(folder)]


def weights_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    checkpoint.backbone.freeze_vision()
    named = checkpoint.backbone.named_parameters()
    return {name: weight.detach() for name, weight in named if weight.requires_grad}


def test_it_becomes_a_mixture_every_so_many_updates_and_goes_on_alike(tmp_path: Path) -> None:
    lines = train(tmp_path / "run")
    start = weights_of(tiny_checkpoint(hidden=32, layers=1))
    second, fourth = (weights_of(load_checkpoint(tmp_path / "run" / f"checkpoint-{n}")) for n in (2, 4))
    first = {name: 0.25 * weight + 0.75 * second[name] for name, weight in start.items()}
    after = {name: 0.25 * weight + 0.75 * fourth[name] for name, weight in first.items()}
    for number, expected in enumerate((start, first, first, after, after), start=1):
        reference, policy = (tiny_checkpoint(hidden=32, layers=1, seed=9).backbone for _ in range(2))
        policy.freeze_vision()
        MovingReference(reference, policy).load(tmp_path / "run" / f"checkpoint-{number}")
        for name, weight in expected.items():
            torch.testing.assert_close(reference.get_parameter(name).detach(), weight)
    shutil.rmtree(tmp_path / "run" / "final")
    for number in (4, 5):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{number}")
    assert train(tmp_path / "run") == lines
    still = {"sync_ref_model": False, "ref_model_sync_steps": 512, "ref_model_mixup_alpha": 0.6}
    assert train(tmp_path / "still", **still)[2]["kl"] > 1.2 * lines[2]["kl"]


def test_what_cannot_move_is_refused(tmp_path: Path) -> None:
    adapter = "lora is set: an adapter has no like in the reference"
    open_tower = {"lora": {"r": 4}, "freeze_vision": False}
    for extra, said in (
        ({"lora": {"r": 4}}, adapter),
        (open_tower, adapter),
        ({"loss": {"beta": 0.0}}, "no reference model"),
    ):
        with pytest.raises(ConfigError, match=f"sync_ref_model is true, and {said}"):
            make_config(GrpoConfig, GRPO | extra)
    make_config(GrpoConfig, GRPO | {"loss": {"beta": 0.0}, "reward_kl_weight": 0.1})
    backbone = tiny_checkpoint(hidden=32, layers=1).backbone
    with pytest.raises(CheckpointError, match=r"the reference cannot be read .* earlier checkpoint"):
        MovingReference(backbone, backbone).load(tmp_path)
    MovingReference(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"the reference cannot be read .* earlier checkpoint"):
        MovingReference(backbone, backbone).load(tmp_path)


def test_what_is_not_trained_stays() -> None:
    reference, policy = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    policy.bias.requires_grad_(False)
    bias = reference.bias.detach().clone()
    MovingReference(reference, policy).mix(policy, 1.0)
    assert torch.equal(reference.weight, policy.weight)
    assert torch.equal(reference.bias, bias)


def test_small_steps_are_not_rounded_away_in_bfloat16(tmp_path: Path) -> None:
    """Weights whose difference is a few steps of bfloat16, mixed 40 times, half of them after a restart."""
    torch.manual_seed(0)
    start = torch.nn.Linear(64, 64).to(torch.bfloat16)
    policy = copy.deepcopy(start)
    with torch.no_grad():
        policy.weight.mul_(1 + 2**-6)
    first, second = copy.deepcopy(start), copy.deepcopy(start)
    moving = MovingReference(first, policy)
    for _ in range(20):
        moving.mix(policy, 0.1)
    moving.save(tmp_path)
    moving = MovingReference(second, policy)
    moving.load(tmp_path)
    assert torch.equal(first.weight, second.weight)
    for _ in range(20):
        moving.mix(policy, 0.1)
    went, way = ((m.weight - start.weight).detach().double() for m in (second, policy))
    assert float((went * way).sum() / way.square().sum()) == pytest.approx(1 - 0.9**40, abs=0.05)


def test_the_masters_are_mixed_and_not_what_they_are_rounded_to() -> None:
    reference, policy = (torch.nn.Linear(2, 2, bias=False).to(torch.bfloat16) for _ in range(2))
    masters = {"weight": policy.weight.detach().float() + 2**-12}
    moving = MovingReference(reference, policy)
    moving.mix(policy, 1.0, masters)
    assert torch.equal(moving._wide["weight"], masters["weight"])
    assert torch.equal(reference.weight, masters["weight"].to(torch.bfloat16))


def test_penalties_are_of_sampling_alone(tmp_path: Path) -> None:
    """They change what is drawn; log-probs of sampler and trainer are those of the model, without them."""
    shared = {"max_steps": 1, "ref_model_sync_steps": 2, "max_completion_length": 24, "log_rollouts": 3}
    (plain,) = train(tmp_path / "plain", **shared)
    for name, value in (("repetition_penalty", 30.0), ("presence_penalty", 50.0)):
        (line,) = train(tmp_path / name, **shared, **{name: value})
        assert line["sampler_gap_max"] < 1e-4
        assert line["ratio"] == pytest.approx(1.0, abs=1e-5)
        assert line["reward"] != plain["reward"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"top_p": 0.9, "presence_penalty": 1.5, "loss": {"sampler_cap": 2.0}}, True),
        ({"top_p": 0.9}, False),
        ({"loss": {"sampler_cap": 2.0}}, False),
    ],
)
def test_importance_sampling_of_what_was_drawn_otherwise_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, extra: dict[str, Any], said: bool
) -> None:
    train(tmp_path, max_steps=1, save_steps=0, **extra)
    warned = [text for text in caplog.messages if "weigh tokens by the model's distribution" in text]
    assert len(warned) == said
    assert all(text.startswith("top_p=0.9, presence_penalty=1.5: ") for text in warned)
