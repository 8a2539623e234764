"""A tiny 4DRL run that leaves a checkpoint after every update, and goes on from the last one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourdthinker.settings import make_config
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.settings import GrpoConfig
from tests.e2e.training import BARE, prompts
from tests.tiny import tiny_checkpoint

GRPO: dict[str, Any] = BARE | {
    "rewards": ["tests.e2e.training:length_reward"],
    "reward_weights": [1.0],
    "per_device_train_batch_size": 1,
    "max_completion_length": 8,
    "learning_rate": 1e-2,
    "log_rollouts": 0,
    "loss": {"beta": 0.1},
    "save_steps": 1,
    "save_total_limit": None,
    "resume_from_checkpoint": "auto",
}


def run(folder: Path, values: Mapping[str, Any]) -> Path:
    """Train in a folder, with these settings over those above; the checkpoint that is left."""
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    config = make_config(GrpoConfig, GRPO | {"output_dir": str(folder)} | dict(values))
    return train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 8))
