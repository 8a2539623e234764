"""Forwards of a bounded number of tokens, and what happens when even those are too large."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.backbones.common import Backbone
from fourdthinker.objectives import dift_objective, grpo_objective
from fourdthinker.samples import collate
from fourdthinker.settings import make_config
from fourdthinker.trainers import dift, grpo
from fourdthinker.trainers.budget import cut, cut_into, halves
from fourdthinker.trainers.dift import DiftTrainer, train_dift
from fourdthinker.trainers.grpo import GrpoTrainer, train_grpo
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from fourdthinker.trainers.update import MemoryLimitError
from tests.e2e.gradients_worker import dift_gradients, grpo_gradients
from tests.e2e.training import BARE, metrics, prompts, relative_difference, samples
from tests.tiny import tiny_checkpoint

BASE: dict[str, Any] = BARE | {
    "learning_rate": 1e-2,
    "optim": "sgd",  # Adam makes a step of a rounding error
    "max_steps": 2,
}
GRPO = BASE | {
    "per_device_train_batch_size": 2,
    "rewards": ["tests.e2e.training:length_reward"],
    "reward_weights": [1.0],
    "num_generations": 4,
    "max_completion_length": 12,
    "num_iterations": 2,
    "max_steps": 4,
    "log_rollouts": 0,
    "loss": {"beta": 0.1},
}


def padded(lengths: Sequence[int]) -> int:
    return len(lengths) * max(lengths)


def test_parts_keep_the_budget_and_the_order() -> None:
    assert cut([9, 5, 5, 4, 2, 1], padded, 10) == [[9], [5, 5], [4, 2], [1]]
    assert cut([9, 5], padded, 1) == [[9], [5]]
    assert cut([9, 5], padded, None) == [[9, 5]]
    assert cut([], padded, 10) == [[]]


def test_parts_become_as_many_as_are_asked_for() -> None:
    assert cut_into([[1, 2, 3], [4]], 2) == [[1, 2, 3], [4]]
    assert cut_into([[1, 2, 3], [4]], 4) == [[1], [2], [3], [4]]
    assert cut_into([[1], [4]], 4) == [[1], [4], [], []]
    assert halves([1, 2, 3]) == [[1], [2, 3]]
    assert halves([1]) == [[1]]


def gradients_of(backbone: Backbone, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    backbone.zero_grad()
    loss, _ = backbone(batch, lambda *a: dift_objective(*a, num_tokens=100, num_latents=20))
    loss.backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_packed_samples_do_not_see_each_other(family: str) -> None:
    checkpoint = tiny_checkpoint(family=family, tied=False)
    backbone, items = checkpoint.backbone, samples(checkpoint, 5)
    backbone.freeze_vision()
    packed = collate(items, 0, packed=True)
    assert packed["input_ids"].shape == (1, sum(item.input_ids.numel() for item in items))
    one, two = gradients_of(backbone, packed), gradients_of(backbone, collate(items, 0))
    names = [name for name in two if two[name].any()]
    assert len(names) > 20
    assert max(relative_difference(one, two, names).values()) < 1e-5


def forwards(
    monkeypatch: pytest.MonkeyPatch, trainer: type[DiftTrainer | GrpoTrainer]
) -> list[list[tuple[int, ...]]]:
    """The sizes [B, S] of the forwards that a trainer makes from now on, a list for each update."""
    seen: list[list[tuple[int, ...]]] = []
    original = trainer.forwards

    def spy(self: Any) -> Any:
        update = original(self)
        seen.append([tuple(f.batch["input_ids"].shape) for forwards in update for f in forwards])
        return update

    monkeypatch.setattr(trainer, "forwards", spy)
    return seen


def test_dift_sorts_by_length_and_keeps_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = forwards(monkeypatch, DiftTrainer)
    plain = dift_gradients(tmp_path, batch=4, accumulation=2)
    cut_ = dift_gradients(tmp_path, batch=4, accumulation=2, budget=130)
    assert len(seen[0]) == 2
    assert all(rows * length <= 130 for rows, length in seen[1])
    lengths = [length for _, length in seen[1]]
    assert lengths == sorted(lengths, reverse=True)
    assert sum(rows * length for rows, length in seen[1]) < sum(rows * length for rows, length in seen[0])
    assert max(relative_difference(cut_, plain, [n for n in plain if plain[n].any()]).values()) < 1e-5


def test_grpo_keeps_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = forwards(monkeypatch, GrpoTrainer)
    plain = grpo_gradients(tmp_path, batch=4, accumulation=2, budget=None)
    cut_ = grpo_gradients(tmp_path, batch=4, accumulation=2, budget=70)
    assert len(seen[0]) == 2
    assert len(seen[1]) > 4
    assert all(rows * length <= 70 for rows, length in seen[1])
    assert max(relative_difference(cut_, plain, [n for n in plain if plain[n].any()]).values()) < 1e-5


class Full:
    """An objective that runs out of memory whenever a forward has more than `rows` rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, objective: Any, rows: int) -> None:
        self.failed = 0
        self.objective, self.rows = objective, rows
        monkeypatch.setattr(module, objective.__name__, self)

    def __call__(self, backbone: Backbone, hidden: torch.Tensor, batch: Any, **options: Any) -> Any:
        rows = batch["advantages"].shape[0] if "advantages" in batch else hidden.shape[0]
        if rows > self.rows:
            self.failed += 1
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.\nAnd more.")
        return self.objective(backbone, hidden, batch, **options)


def dift_weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = tiny_checkpoint(layers=1)
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    config = make_config(DiftConfig, BASE | sizes | {"output_dir": str(folder)})
    train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 16))
    return {name: p.detach().clone() for name, p in checkpoint.backbone.named_parameters()}


def grpo_weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = tiny_checkpoint(layers=1)
    config = make_config(GrpoConfig, GRPO | {"output_dir": str(folder)})
    train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 4))
    return {name: p.detach().clone() for name, p in checkpoint.backbone.named_parameters()}


@pytest.mark.parametrize(
    ("module", "objective", "weights", "rows"),
    [(dift, dift_objective, dift_weights, 1), (grpo, grpo_objective, grpo_weights, 3)],
)
def test_a_step_without_memory_is_run_again_at_half_the_rows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    module: Any,
    objective: Any,
    weights: Any,
    rows: int,
) -> None:
    plain = weights(tmp_path / "plain")
    full = Full(monkeypatch, module, objective, rows)
    with caplog.at_level(logging.WARNING):
        smaller = weights(tmp_path / "smaller")
    assert full.failed == 2  # of 4 or 8 rows, then of 2 or 4; never once it is known
    assert "out of memory" in caplog.text
    trained = metrics(tmp_path / "smaller")
    assert [line["out_of_memory"] for line in trained] == [2] * len(trained)
    for name, value in plain.items():
        torch.testing.assert_close(smaller[name], value, rtol=1e-3, atol=2e-5)
    for line, other in zip(trained, metrics(tmp_path / "plain"), strict=True):
        assert "out_of_memory" not in other
        for name in ("loss", "grad_norm", "ce", "cosine", "kl", "entropy"):
            if name in other:
                assert line[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6), name


def test_single_rows_without_memory_end_the_run_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Full(monkeypatch, dift, dift_objective, 0)
    with pytest.raises(MemoryLimitError, match=r"^out of memory: step 1: Tried to allocate 20.00 GiB.;"):
        dift_weights(tmp_path)
    assert full.failed == 3  # of 4, 2 and 1
