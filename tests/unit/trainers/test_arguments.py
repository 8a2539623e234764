"""What a run leaves in the process that trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fourdthinker.errors import ConfigError
from fourdthinker.trainers import driver
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.settings import DiftConfig


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
