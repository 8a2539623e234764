"""Both trainers on a GPU, in both families: bf16 autocast over float32 weights, with and without gradient
checkpointing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fourdthinker.backbones import FAMILIES
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from tests.e2e.training import length_reward, metrics, prompts, samples  # noqa: F401 - named by its path below
from tests.gpu.device import DEVICE
from tests.tiny import tiny_checkpoint

COMMON = {"bf16": True, "gradient_checkpointing": True, "report_to": [], "max_steps": 2, "save_steps": 0,
          "logging_steps": 1, "use_cpu": DEVICE.type == "cpu"}  # fmt: skip


def steps(run: Path) -> list[dict[str, float]]:
    lines = metrics(run)
    assert len(lines) == 2
    for line in lines:
        assert math.isfinite(line["loss"])
        assert 0 < line["grad_norm"] < math.inf
    return lines


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_dift(family: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(family=family)
    config = DiftConfig(output_dir=str(tmp_path), per_device_train_batch_size=4, **COMMON)
    train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 8))
    steps(tmp_path)


def test_dift_makes_norms_again(tmp_path: Path) -> None:
    """As training does by itself: no layer is checkpointed as a whole, and no norm is Liger's."""
    checkpoint = tiny_checkpoint(family="qwen3_vl")
    words = COMMON | {"gradient_checkpointing": False}
    config = DiftConfig(output_dir=str(tmp_path), per_device_train_batch_size=4, liger=False, **words)
    train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 8))
    steps(tmp_path)
    layer = checkpoint.backbone.hf.model.language_model.layers[0]
    for module in (layer.input_layernorm, layer.self_attn.q_proj, layer.self_attn.q_norm, layer.mlp):
        assert module.forward.__module__ == "fourdthinker.backbones.recompute"


@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_grpo(family: str, share: bool, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(family=family)
    config = GrpoConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, num_generations=4, share_prompt=share,
        max_completion_length=48, rewards=["tests.e2e.training:length_reward"], reward_weights=[1.0],
        loss={"beta": 0.01}, liger="auto" if share else False, **COMMON,
    )  # fmt: skip
    train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 4))
    for line in steps(tmp_path):
        assert line["sampler_gap"] < 0.1  # sampler and trainer see the same policy
