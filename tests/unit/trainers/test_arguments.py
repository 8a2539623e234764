"""What a run leaves in the process that trained, and what of transformers it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.training_args import OptimizerNames

from fourdthinker.errors import ConfigError
from fourdthinker.settings import make_config
from fourdthinker.trainers import driver
from fourdthinker.trainers.arguments import training_arguments
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.settings import DiftConfig
from tests.e2e.training import BARE, samples
from tests.tiny import tiny_checkpoint


def test_what_engines_write_into_the_environment_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the next run of the process would be refused, or divided against its settings."""
    written = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    for name in written:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")

    def engine(config: Any) -> Any:
        for name, value in written.items():
            monkeypatch.setenv(name, value)
        raise ConfigError("what an engine says")

    monkeypatch.setattr(driver, "training_arguments", engine)
    with pytest.raises(ConfigError, match="what an engine says"):
        train_dift(DiftConfig(output_dir=str(tmp_path)))
    assert {name: os.environ[name] for name in written if name in os.environ} == {
        "ACCELERATE_MIXED_PRECISION": "no"
    }


ALWAYS_THERE = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
OWN_WAYS = ("schedule_free", "lomo", "adalomo", "galore", "apollo")


def refusal_of(config: DiftConfig) -> str | None:
    """What is said of settings before anything is loaded."""
    try:
        training_arguments(config)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("optim", [name.value for name in OptimizerNames])
def test_every_optimizer_of_transformers_works_or_is_refused_by_name(tmp_path: Path, optim: str) -> None:
    """Before anything is loaded, also where its package is installed."""
    values = BARE | {"optim": optim, "max_steps": 1, "learning_rate": 1e-3, "output_dir": str(tmp_path)}
    if optim.startswith(OWN_WAYS):
        with pytest.raises(ConfigError, match=rf"optim is {optim}, which .*; choose another"):
            make_config(DiftConfig, values)
        return
    config = make_config(DiftConfig, values)
    if (reason := refusal_of(config)) is not None:
        assert optim not in ALWAYS_THERE
        assert "install" in reason or "failed to import" in reason, "it names the missing package"
        return
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    before = {name: p.detach().clone() for name, p in checkpoint.backbone.named_parameters()}
    train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 2))
    trained = {name: p for name, p in checkpoint.backbone.named_parameters() if p.requires_grad}
    moved = [name for name, p in trained.items() if not torch.equal(p, before[name])]
    assert len(moved) > 0.9 * len(trained)
