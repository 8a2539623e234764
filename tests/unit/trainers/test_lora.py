"""LoRA on bfloat16 weights: what is loaded, and what goes on, is the policy that was trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.backbones import Checkpoint, load_checkpoint, save_checkpoint
from fourdthinker.backbones.adapted import adapted_layers
from fourdthinker.backbones.adapters import merge_adapter
from fourdthinker.backbones.common import Backbone
from fourdthinker.errors import ConfigError
from fourdthinker.samples import collate
from fourdthinker.settings import make_config
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.settings import DiftConfig
from tests.e2e.training import metrics, samples
from tests.tiny import tiny_checkpoint

BASE: dict[str, Any] = {
    "use_cpu": True,
    "report_to": [],
    "logging_steps": 1,
    "warmup_steps": 0,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 2,
    "max_steps": 20,
    "save_steps": 10,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    checkpoint = tiny_checkpoint(layers=1)
    backbone = checkpoint.backbone
    with torch.no_grad():  # as one that has learnt to open blocks
        backbone.head_weight[list(backbone.latents.ids)] += torch.randn(3, 32)
    save_checkpoint(tmp_path / "model", checkpoint)
    return tmp_path / "model"


def loaded(path: Path) -> Checkpoint:
    return load_checkpoint(path, dtype=torch.bfloat16)


def train(folder: Path, checkpoint: Checkpoint, **extra: Any) -> Path:
    config = make_config(DiftConfig, BASE | {"lora": {"r": 4}, "output_dir": str(folder)} | extra)
    return train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 6))


def hidden(backbone: Backbone) -> torch.Tensor:
    checkpoint = tiny_checkpoint(layers=1)
    batch = collate(samples(checkpoint, 3), checkpoint.backbone.vision.pad_id)
    with torch.no_grad():
        return backbone.eval()(batch, lambda b, hidden, batch: hidden)


def test_base_and_adapter_reloaded_are_the_trained_policy(model: Path, tmp_path: Path) -> None:
    checkpoint = loaded(model)
    final = train(tmp_path / "run", checkpoint)
    again = load_checkpoint(final).backbone
    assert again.dtype == torch.bfloat16
    assert torch.equal(hidden(again), hidden(checkpoint.backbone))
    weights = {n: p for n, p in checkpoint.backbone.named_parameters() if "lora_" in n}
    assert {p.dtype for p in weights.values()} == {torch.float32}
    assert any(p.any() for n, p in weights.items() if "lora_B" in n), "nothing was trained"
    # What used to be written: base and adapter as one, in the type of the base.
    _, lost = merge_adapter(load_checkpoint(final).backbone, torch.bfloat16)
    assert lost > 0.5
    _, lost = merge_adapter(load_checkpoint(final).backbone, torch.float32)
    assert lost < 0.01


@pytest.mark.parametrize("embeddings", [False, True])
def test_a_resumed_run_is_the_unbroken_one(model: Path, tmp_path: Path, embeddings: bool) -> None:
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    lora = {"r": 4, "train_embeddings": embeddings}
    one, two = loaded(model), loaded(model)
    train(whole, one, lora=lora)
    train(rest, two, lora=lora, resume_from_checkpoint=str(whole / "checkpoint-10"))
    assert [line["loss"] for line in metrics(rest)] == [line["loss"] for line in metrics(whole)][10:]
    for a, b in zip(one.backbone.parameters(), two.backbone.parameters(), strict=True):
        assert torch.equal(a, b)


def test_rslora_scales_by_the_root_of_the_rank_wherever_the_adapter_goes(model: Path, tmp_path: Path) -> None:
    """In training, in checkpoints, when a run goes on, and merged."""
    lora = {"r": 4, "alpha": 6.0, "use_rslora": True}
    short: dict[str, Any] = {"max_steps": 2, "save_steps": 1, "learning_rate": 3e-2}
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    checkpoint = load_checkpoint(model)
    final = train(whole, checkpoint, lora=lora, **short)
    trained = hidden(checkpoint.backbone)
    layers = adapted_layers(checkpoint.backbone.hf).values()
    assert {layer.scaling["default"] for layer in layers} == {6.0 / 2}
    assert torch.equal(hidden(load_checkpoint(final).backbone), trained)
    merged, _ = merge_adapter(load_checkpoint(final).backbone, torch.float32)
    torch.testing.assert_close(hidden(merged), trained, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(trained, hidden(load_checkpoint(model).backbone), atol=1e-2)
    resumed: dict[str, Any] = {"resume_from_checkpoint": str(whole / "checkpoint-1")}
    train(rest, load_checkpoint(model), lora=lora, **short, **resumed)
    assert [line["loss"] for line in metrics(rest)] == [line["loss"] for line in metrics(whole)][1:]
    with pytest.raises(ConfigError, match="use_rslora"):
        train(tmp_path / "other", load_checkpoint(model), lora={"r": 4, "alpha": 6.0}, **short, **resumed)


def overwrite(model: Path) -> None:
    """Another training wrote its model to the same folder."""
    checkpoint = load_checkpoint(model)
    with torch.no_grad():
        for weight in checkpoint.backbone.parameters():
            weight += 0.05 * torch.randn_like(weight)
    save_checkpoint(model, checkpoint)


def from_folder(model: Path, folder: Path, updates: int) -> Path:
    named: dict[str, Any] = {"model": str(model), "resume_from_checkpoint": "auto", "lora": {"r": 4}}
    config = make_config(DiftConfig, BASE | named | {"output_dir": str(folder), "max_steps": updates})
    return train_dift(config, samples=samples(tiny_checkpoint(layers=1), 6))


@pytest.mark.parametrize("then", [overwrite, shutil.rmtree])
def test_a_run_goes_on_with_the_base_of_its_checkpoint(
    model: Path, tmp_path: Path, then: Callable[[Path], None]
) -> None:
    base = load_checkpoint(model).backbone.state_dict()
    from_folder(model, tmp_path / "run", 1)
    then(model)
    final = load_checkpoint(from_folder(model, tmp_path / "run", 2), adapter=False)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
    for name, weight in final.backbone.state_dict().items():
        assert torch.equal(weight, base[name])


def test_a_model_in_memory_gets_the_base_of_the_checkpoint(model: Path, tmp_path: Path) -> None:
    short: dict[str, Any] = {"max_steps": 1, "save_steps": 1}
    train(tmp_path / "run", load_checkpoint(model), **short)
    expected = hidden(load_checkpoint(tmp_path / "run" / "final").backbone)
    base = load_checkpoint(model).backbone.state_dict()
    overwrite(model)
    checkpoint = load_checkpoint(model)
    named: dict[str, Any] = {"resume_from_checkpoint": str(tmp_path / "run" / "checkpoint-1")}
    train(tmp_path / "rest", checkpoint, **short, **named)
    assert torch.equal(hidden(checkpoint.backbone), expected)
    saved = load_checkpoint(tmp_path / "rest" / "final", adapter=False).backbone.state_dict()
    assert all(torch.equal(weight, base[name]) for name, weight in saved.items())
