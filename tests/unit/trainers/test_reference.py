"""The reference model of a 4DRL run that goes on is made of the weights that the run began from."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fourdthinker.backbones import load_checkpoint, save_checkpoint
from fourdthinker.backbones.common import Backbone
from fourdthinker.errors import ConfigError
from fourdthinker.settings import make_config
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.model import reference_model
from fourdthinker.trainers.plan import make_plan
from fourdthinker.trainers.run_state import RunState
from fourdthinker.trainers.settings import GrpoConfig
from tests.e2e.training import metrics, prompts
from tests.tiny import tiny_checkpoint
from tests.unit.trainers.every_update import GRPO

OPEN_LORA = {"r": 2, "train_embeddings": True}


def train(root: Path, updates: int, **extra: Any) -> Path:
    values = GRPO | {"model": str(root / "model"), "output_dir": str(root / "run"), "max_steps": updates}
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    return train_grpo(make_config(GrpoConfig, values | extra), prompts=prompts(checkpoint, 8))


def write_model(root: Path, seed: int) -> None:
    checkpoint = tiny_checkpoint(hidden=32, layers=1, seed=seed)
    with torch.no_grad():  # as one that has learnt to open blocks
        checkpoint.backbone.head_weight[list(checkpoint.backbone.latents.ids)] += torch.randn(3, 32)
    save_checkpoint(root / "model", checkpoint)


@pytest.mark.parametrize("lora", [None, OPEN_LORA], ids=["all weights", "embeddings"])
def test_other_weights_under_the_name_of_the_model_are_refused(tmp_path: Path, lora: Any) -> None:
    write_model(tmp_path, 0)
    train(tmp_path, 1, lora=lora)
    original = load_checkpoint(tmp_path / "model")
    write_model(tmp_path, 1)
    with pytest.raises(ConfigError, match="does not hold the weights that the run of") as error:
        train(tmp_path, 2, lora=lora)
    assert f"model {tmp_path / 'model'}" in str(error.value)
    save_checkpoint(tmp_path / "model", original)
    train(tmp_path, 2, lora=lora)
    first, second = (RunState.read(tmp_path / "run" / f"checkpoint-{number}") for number in (1, 2))
    assert first.start == second.start
    assert metrics(tmp_path / "run")[-1]["kl"] > 0


def test_a_run_without_a_reference_knows_what_it_began_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The term may come with a later part of the run."""
    write_model(tmp_path, 0)
    train(tmp_path, 1, loss={"beta": 0.0})
    write_model(tmp_path, 1)
    with pytest.raises(ConfigError, match="does not hold the weights"):
        train(tmp_path, 2, loss={"beta": 0.1})
    folder = tmp_path / "run" / "checkpoint-1"
    RunState(**vars(RunState.read(folder)) | {"start": None}).write(folder)
    with caplog.at_level(logging.WARNING):
        train(tmp_path, 2, loss={"beta": 0.1})
    said = f"{folder} does not say which weights its run began from"
    assert any(said in line for line in caplog.messages)


@pytest.mark.parametrize("open_tower", [False, True])
def test_a_reference_that_is_loaded_again_shares_a_frozen_tower(tmp_path: Path, open_tower: bool) -> None:
    """The memory is that of a reference that is copied, and what the plan says."""
    write_model(tmp_path, 0)
    shutil.copytree(tmp_path / "model", tmp_path / "trained")
    values = {"model": str(tmp_path / "model"), "loss": {"beta": 0.1}, "freeze_vision": not open_tower}
    config, device = make_config(GrpoConfig, values), SimpleNamespace(device="cpu")
    loaded = load_checkpoint(tmp_path / "trained")
    copied = reference_model(config, device, None, loaded, loaded)  # type: ignore[arg-type]
    again = reference_model(config, device, str(tmp_path / "trained"), None, loaded)  # type: ignore[arg-type]
    policy = storages(loaded.backbone)
    more = [sum(size for key, size in storages(b).items() if key not in policy) for b in (copied, again)]
    plan = make_plan(config)
    assert more == [plan.parts["reference"]] * 2
    assert (more[1] < sum(policy.values())) == (not open_tower)
    assert all(torch.equal(w, again.state_dict()[name]) for name, w in copied.state_dict().items())


def test_a_tower_with_other_weights_is_not_shared(tmp_path: Path) -> None:
    write_model(tmp_path, 0)
    config = make_config(GrpoConfig, {"model": str(tmp_path / "model"), "loss": {"beta": 0.1}})
    for change in (lambda tower: next(tower.parameters()).data.add_(1e-3), lambda tower: tower.double()):
        loaded = load_checkpoint(tmp_path / "model")
        change(loaded.backbone.visual)
        device = SimpleNamespace(device="cpu")
        reference = reference_model(config, device, str(tmp_path / "model"), None, loaded)  # type: ignore[arg-type]
        assert not storages(reference).keys() & storages(loaded.backbone).keys()


def storages(backbone: Backbone) -> dict[int, int]:
    """Bytes of the storages of the weights, by address."""
    kept = [p.untyped_storage() for p in backbone.parameters()]
    return {storage.data_ptr(): storage.nbytes() for storage in kept}
