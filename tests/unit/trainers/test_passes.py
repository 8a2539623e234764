"""How often tower and language model run in an update: once for whatever is known already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.backbones import Checkpoint
from fourdthinker.backbones.common import Backbone
from fourdthinker.samples import Prompt, Vision
from fourdthinker.settings import make_config
from fourdthinker.trainers import grpo, other_passes
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.grpo import GrpoTrainer, train_grpo
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from tests.e2e.training import prompts, write_data, write_model
from tests.tiny import tiny_checkpoint

BASE: dict[str, Any] = {"use_cpu": True, "report_to": [], "save_steps": 0, "logging_steps": 1}
GRPO = BASE | {
    "per_device_train_batch_size": 4,
    "rewards": ["tests.e2e.training:length_reward"],
    "reward_weights": [1.0],
    "num_generations": 4,
    "max_completion_length": 8,
    "log_rollouts": 0,
    "max_steps": 2,
}


class Counted:
    """What ran: clips through the tower, and passes of the language model by their objective."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clips = 0
        self.trained = 0  # passes with a loss
        self.logprobs: list[tuple[Backbone, bool]] = []  # passes without: of which model, adapter off or not
        self._without = 0
        tower, trained, logprobs = Backbone.encode_vision, grpo.grpo_objective, other_passes.reference_outputs
        without = Backbone.without_adapter

        def encode_vision(backbone: Backbone, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
            self.clips += grid_thw.shape[0]
            return tower(backbone, patches, grid_thw)

        def grpo_objective(*args: Any, **kwargs: Any) -> Any:
            self.trained += 1
            return trained(*args, **kwargs)

        def reference_outputs(backbone: Backbone, *args: Any, **kwargs: Any) -> Any:
            self.logprobs.append((backbone, self._without > 0))
            return logprobs(backbone, *args, **kwargs)

        def without_adapter(backbone: Backbone) -> Any:
            self._without += 1
            return without(backbone)

        monkeypatch.setattr(Backbone, "encode_vision", encode_vision)
        monkeypatch.setattr(Backbone, "without_adapter", without_adapter)
        monkeypatch.setattr(grpo, "grpo_objective", grpo_objective)
        monkeypatch.setattr(other_passes, "reference_outputs", reference_outputs)
        # The comparison of shared and plain forwards in the first step has passes of its own.
        monkeypatch.setattr(GrpoTrainer, "_check_sharing", lambda *_: True)


def with_patches(checkpoint: Checkpoint, number: int) -> list[Prompt]:
    """Prompts of which the last two ask about the same clip."""
    made, generator = prompts(checkpoint, number), torch.Generator().manual_seed(3)
    for prompt in made:
        patches = torch.randn(32, checkpoint.backbone.vision.patch_dim, generator=generator)
        prompt.vision = Vision(torch.tensor([[2, 4, 4]]), patches)
    made[-1].vision = made[-2].vision
    return made


def run(folder: Path, checkpoint: Checkpoint, **extra: Any) -> None:
    config = make_config(GrpoConfig, GRPO | {"output_dir": str(folder)} | extra)
    train_grpo(config, checkpoint=checkpoint, prompts=with_patches(checkpoint, 4))


@pytest.mark.parametrize("share", [True, False])
def test_a_clip_is_encoded_once_for_rollout_reference_and_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    counted, checkpoint = Counted(monkeypatch), tiny_checkpoint(layers=1)
    run(tmp_path, checkpoint, loss={"beta": 0.1}, share_prompt=share, max_tokens_per_forward=120)
    assert counted.clips == 2 * 3, "3 distinct clips in each of 2 updates"
    assert counted.trained > 4
    assert len(counted.logprobs) == counted.trained, "the reference once for each forward"
    assert all(model is not checkpoint.backbone for model, _ in counted.logprobs)


def test_updates_on_the_same_rollouts_encode_and_refer_to_nothing_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, checkpoint = Counted(monkeypatch), tiny_checkpoint(layers=1)
    run(tmp_path, checkpoint, loss={"beta": 0.1}, num_iterations=2, max_steps=4)
    assert (counted.clips, counted.trained, len(counted.logprobs)) == (6, 4, 2)


def test_no_pass_but_the_trained_one_without_a_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On policy the log-probs before the update are those of its own forward."""
    counted, checkpoint = Counted(monkeypatch), tiny_checkpoint(layers=1)
    run(tmp_path, checkpoint, loss={"beta": 0.0})
    assert (counted.clips, counted.trained, counted.logprobs) == (6, 2, [])


def test_the_reference_of_an_adapter_is_the_model_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, checkpoint = Counted(monkeypatch), tiny_checkpoint(layers=1)
    with torch.no_grad():  # latent tokens that were trained
        checkpoint.backbone.head_weight[checkpoint.backbone.latents.start_id] += 0.1
    run(tmp_path, checkpoint, loss={"beta": 0.1}, lora={"r": 4})
    assert (counted.clips, counted.trained) == (6, 2)
    assert counted.logprobs == [(checkpoint.backbone, True)] * 2


def test_a_trained_tower_runs_for_the_rollouts_and_for_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, checkpoint = Counted(monkeypatch), tiny_checkpoint(layers=1)
    run(tmp_path, checkpoint, loss={"beta": 0.0}, freeze_vision=False)
    assert counted.clips == 2 * (3 + 4), "each prompt of a training forward has its own"


@pytest.mark.parametrize("cached", [False, True])
def test_targets_are_computed_once_when_they_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    data, _ = write_data(tmp_path / "data", 4)  # 4 clips, 6 overlays
    values = {"model": str(write_model(tmp_path / "model")), "data": str(data), "num_train_epochs": 3}
    values |= {"cache_dir": str(tmp_path / "cache"), "cache_video": True} if cached else {}
    counted = Counted(monkeypatch)
    train_dift(make_config(DiftConfig, BASE | {"output_dir": str(tmp_path / "run")} | values))
    assert counted.clips == (4 + 6) * (1 if cached else 3)
