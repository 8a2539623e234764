"""What the loss of an update is divided by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.errors import ConfigError
from fourdthinker.reward_calls import Reward
from fourdthinker.settings import make_config
from fourdthinker.trainers.arguments import training_arguments
from fourdthinker.trainers.batches import Items
from fourdthinker.trainers.grpo import GrpoTrainer, Replay, make_trainer, train_grpo
from fourdthinker.trainers.passes import ADVANTAGES, PREPARING
from fourdthinker.trainers.settings import GrpoConfig
from fourdthinker.trainers.update import Parts
from tests.e2e.training import length_reward, metrics, prompts
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo", "grpo"])
def test_what_a_micro_batch_is_divided_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss_type: str
) -> None:
    """bnpo as in TRL: a mean over the tokens of each batch of a device, then over the batches."""
    kept: list[tuple[list[Any], Replay]] = []
    original = GrpoTrainer._make_replay

    def spy(self: GrpoTrainer, experiences: list[Any]) -> Replay:
        experiences[1].kept[0] = experiences[1].trained[0] = (
            False  # so that the batches have unequal numbers of tokens
        )
        kept.append((experiences, original(self, experiences)))
        return kept[-1][1]

    monkeypatch.setattr(GrpoTrainer, "_make_replay", spy)
    checkpoint = tiny_checkpoint(layers=1)
    values = {"use_cpu": True, "report_to": [], "max_steps": 1, "save_steps": 0, "output_dir": str(tmp_path)}
    values |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "num_generations": 3}
    values |= {"rewards": ["tests.e2e.training:length_reward"], "reward_weights": [1.0], "log_rollouts": 0}
    values |= {"max_completion_length": 6, "loss": {"loss_type": loss_type, "beta": 0.0}}
    train_grpo(make_config(GrpoConfig, values), checkpoint=checkpoint, prompts=prompts(checkpoint, 2))
    ((experiences, replay),) = kept
    tokens = [experience.num_tokens for experience in experiences]
    assert tokens[0] > tokens[1]
    expected = {"bnpo": [2 * n for n in tokens], "dapo": [sum(tokens)] * 2, "grpo": [5, 5]}[loss_type]
    assert torch.stack(replay.num_tokens).tolist() == [sum(tokens)] * 2
    assert torch.stack(replay.num_items).tolist() == expected


def test_a_rank_that_cannot_halve_keeps_each_rollouts_log_probs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank halves its forwards; this one, of single rollouts, gets empty ones between its own."""
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    values = {"use_cpu": True, "report_to": [], "max_steps": 2, "save_steps": 0, "output_dir": str(tmp_path)}
    values |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "num_generations": 2}
    values |= {"rewards": ["tests.e2e.training:length_reward"], "reward_weights": [1.0], "log_rollouts": 0}
    values |= {"max_completion_length": 8, "num_iterations": 2, "max_tokens_per_forward": 10}
    config, items = make_config(GrpoConfig, values), prompts(checkpoint, 2)
    parts = Parts(training_arguments(config), checkpoint, Items(items), None)
    trainer = make_trainer(config, [Reward("length_reward", length_reward)], parts)
    phases: list[tuple[Any, ...]] = []
    monkeypatch.setattr(trainer.watch, "enter", lambda *phase: phases.append(phase))
    trainer.prepare_update([[(i, items[i])] for i in range(2)])
    assert phases[0] == ("step 1: advantages of all rollouts", 1, 0, ADVANTAGES)
    assert PREPARING < ADVANTAGES, "a rank that still samples is behind"
    update, known = trainer.begin_update(), []
    for forwards in update:
        for forward in forwards:
            known.append(torch.full_like(forward.batch["rollout_logprobs"], forward.number))
            trainer.after_forward(forward, known[-1])
    assert [len(forwards) for forwards in update] == [2, 2]
    assert not trainer.halve()
    monkeypatch.setattr(trainer, "most_of_ranks", lambda counts: [count + 1 for count in counts])
    old = [[f.batch.get("old_logprobs") for f in forwards] for forwards in trainer.forwards()]
    assert [forwards[-1] for forwards in old] == [None, None], "the empty ones"
    for mine, first in zip([m for forwards in old for m in forwards[:2]], known, strict=True):
        assert torch.equal(mine, first)


SHARED: dict[str, Any] = {
    "use_cpu": True,
    "report_to": [],
    "max_steps": 1,
    "save_steps": 0,
    "log_rollouts": 0,
}
SHARED |= {"rewards": ["tests.e2e.training:length_reward"], "reward_weights": [1.0], "num_generations": 3}
SHARED |= {"max_completion_length": 6, "loss": {"beta": 0.0}}


def shared_update(folder: Path, attention: str | None) -> list[float]:
    checkpoint = tiny_checkpoint(layers=1)
    if attention is not None:
        checkpoint.backbone.hf.model.language_model.config._attn_implementation = attention
    config = make_config(GrpoConfig, SHARED | {"output_dir": str(folder)})
    train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 2))
    (line,) = metrics(folder)
    return [line["loss"], line["grad_norm"]]


def test_prompts_are_shared_by_every_attention_that_takes_a_mask(tmp_path: Path) -> None:
    plain, eager = shared_update(tmp_path / "plain", None), shared_update(tmp_path / "eager", "eager")
    assert plain[1] > 0
    assert eager == pytest.approx(plain, rel=1e-4, abs=1e-6)
    with pytest.raises(ConfigError, match=r"share_prompt needs sdpa or eager .* has flash_attention_2"):
        shared_update(tmp_path / "flash", "flash_attention_2")


def first_passes(folder: Path, monkeypatch: pytest.MonkeyPatch, **extra: Any) -> tuple[Any, list[Any]]:
    """Lines of two updates on the same rollouts, and of each forward its batch and log-probs."""
    passes: list[Any] = []
    after = GrpoTrainer.after_forward

    def spy(self: GrpoTrainer, forward: Any, *outputs: torch.Tensor) -> None:
        passes.append((forward.batch, outputs[0].clone()))
        after(self, forward, *outputs)

    own = {"output_dir": str(folder), "max_steps": 2, "num_iterations": 2, "logging_steps": 1}
    checkpoint = tiny_checkpoint(layers=1)
    config = make_config(GrpoConfig, SHARED | own | {"learning_rate": 1e-2, "warmup_steps": 0} | extra)
    with monkeypatch.context() as patch:
        patch.setattr(GrpoTrainer, "after_forward", spy)
        train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 2))
    return metrics(folder), passes


def test_the_first_pass_has_the_ratio_1_to_log_probs_of_another_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself it is 1 by construction. The sampler decodes, and an unshared forward repeats the prompt."""
    lines, (first, second) = first_passes(tmp_path / "shared", monkeypatch)
    assert lines[0]["sampler_gap"] < 1e-4
    assert lines[0]["sampler_gap_max"] < 1e-3
    _, (plain, _) = first_passes(tmp_path / "plain", monkeypatch, share_prompt=False)
    assert torch.equal(plain[0]["rollout_logprobs"], first[0]["rollout_logprobs"]), "the same rollouts"
    assert "old_logprobs" not in first[0]
    assert not torch.equal(plain[1], first[1]), "computed in another way"
    written = first[0]["rollout_logprobs"] != 0
    assert written.sum() > 10
    for other in (plain[1], first[0]["rollout_logprobs"]):
        assert ((first[1] - other).exp() - 1)[written].abs().max() < 1e-4
    assert torch.equal(second[0]["old_logprobs"], first[1]), "what the second pass is compared with"
    moved = (second[1] - plain[1]).exp()[written].mean().item()
    assert lines[1]["ratio"] == pytest.approx(moved, rel=1e-4)
    assert abs(moved - 1) > 1e-3
