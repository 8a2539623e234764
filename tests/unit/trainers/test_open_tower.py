"""What a vision tower that is trained needs of items in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.errors import ConfigError
from fourdthinker.settings import make_config
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from tests.e2e.training import BARE, pixel_samples, prompts, samples
from tests.tiny import tiny_checkpoint

REFUSED = r"freeze_vision is false, and {} holds vision\.features, .*; give it vision\.patches alone"


class OnAccess(Sequence[Any]):
    """Items that are made when they are asked for, as those of a data set that does not fit in memory."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]


def opened(folder: Path, **extra: Any) -> dict[str, Any]:
    values = {"output_dir": str(folder), "max_steps": 2, "freeze_vision": False, "weight_decay": 0.0}
    return BARE | values | {"learning_rate": 1e-2} | extra


@pytest.mark.parametrize("made", [list, OnAccess])
def test_samples_that_hold_features_are_refused(tmp_path: Path, made: Any) -> None:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    with pytest.raises(ConfigError, match=REFUSED.format(r"item \d")):
        train_dift(
            make_config(DiftConfig, opened(tmp_path)),
            checkpoint=checkpoint,
            samples=made(samples(checkpoint, 3)),
        )
    assert (tmp_path / "config.yaml").exists() == (made is OnAccess), "those of a list before the run begins"


def test_held_out_samples_that_hold_features_are_refused(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    with pytest.raises(ConfigError, match=REFUSED.format("item 1")):
        train_dift(
            make_config(DiftConfig, opened(tmp_path, eval_steps=1)),
            checkpoint=checkpoint,
            samples=pixel_samples(checkpoint, 2),
            held_out=samples(checkpoint, 2),
        )


def test_prompts_that_hold_features_are_refused(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    values = opened(tmp_path, num_generations=2, max_completion_length=4)
    with pytest.raises(ConfigError, match=REFUSED.format(r"record 'p0' \(memory:0\)")):
        train_grpo(make_config(GrpoConfig, values), checkpoint=checkpoint, prompts=prompts(checkpoint, 2))


@pytest.mark.parametrize(("rates", "moves"), [(None, True), ({"tower": 0, "projector": 0}, False)])
def test_pixels_train_the_tower(tmp_path: Path, rates: dict[str, float] | None, moves: bool) -> None:
    checkpoint = tiny_checkpoint(layers=1)
    tower = checkpoint.backbone.visual
    before = {name: p.detach().clone() for name, p in tower.named_parameters()}
    make = pixel_samples if moves else samples  # features do where no part of the tower is trained
    train_dift(
        make_config(DiftConfig, opened(tmp_path, learning_rates=rates, per_device_train_batch_size=3)),
        checkpoint=checkpoint,
        samples=make(checkpoint, 3),
    )
    moved = [not torch.equal(p, before[name]) for name, p in tower.named_parameters()]
    assert sum(moved) > 0.9 * len(moved) if moves else not any(moved)
