"""Two processes with batch b and two accumulation steps against one process with the whole batch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.objectives import dift_objective
from fourdthinker.samples import collate
from fourdthinker.trainers.batches import ShardedBatches
from tests.e2e.gradients_worker import dift_gradients, grpo_gradients, open_tower_gradients
from tests.e2e.training import finish, metrics, relative_difference, samples, torchrun
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    finish(torchrun(2, str(Path(__file__).with_name("gradients_worker.py")), str(folder)))
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    return [rank | {"bad_run": metrics(folder / "bad")} for rank in ranks]


def check(two: list[dict[str, Any]], one: dict[str, torch.Tensor], trainer: str) -> None:
    """Gradients of both ranks against those of one process; those that are all zero as such."""
    for rank in range(2):
        gradients = two[rank][trainer]
        assert gradients.keys() == one.keys()
        assert len(one) > 10
        assert not any(gradients[name].any() for name in one if not one[name].any())
        difference = relative_difference(gradients, one, [name for name in one if one[name].any()])
        assert max(difference.values()) <= 1e-5, difference


@pytest.mark.parametrize("trainer", ["dift", "dift_budget"])
def test_dift_gradients_do_not_depend_on_the_division(
    two_processes: list[dict[str, Any]], tmp_path: Path, trainer: str
) -> None:
    one = dift_gradients(tmp_path, batch=8, accumulation=1)
    check(two_processes, one, trainer)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_trained_tower_runs_on_ranks_without_pictures(
    two_processes: list[dict[str, Any]], tmp_path: Path, family: str
) -> None:
    """Without pictures on one rank, and in one micro-batch on both, gradients are those of one process."""
    one = open_tower_gradients(tmp_path, family, batch=4, accumulation=1)
    assert any("visual" in name for name in one)
    check(two_processes, one, f"tower_{family}")


def test_weighting_by_micro_batch_would_be_seen(tmp_path: Path) -> None:
    one = dift_gradients(tmp_path, batch=8, accumulation=1)
    checkpoint = tiny_checkpoint(hidden=32, layers=1, tied=False)
    backbone, items = checkpoint.backbone, samples(checkpoint, 8)
    backbone.freeze_vision()
    for indices in ShardedBatches(8, 2, seed=42):
        batch = collate([items[i] for i in indices], backbone.vision.pad_id)
        tokens, latents = len(batch["rows"]), len(batch["latent_index"])
        loss, _ = backbone(batch, partial(dift_objective, num_tokens=tokens, num_latents=latents))
        (loss / 4).backward()
    naive = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    difference = relative_difference(naive, one, list(one))
    assert max(difference.values()) > 1e-3
    assert min(difference.values()) > 1e-5, "each tensor alone would show it"


def test_grpo_gradients_do_not_depend_on_the_division(
    two_processes: list[dict[str, Any]], tmp_path: Path
) -> None:
    one = grpo_gradients(tmp_path, batch=8, accumulation=1, budget=None)
    check(two_processes, one, "grpo")


def test_ranks_see_different_prompts(two_processes: list[dict[str, Any]]) -> None:
    first, second = (rank["many"]["indices"] for rank in two_processes)
    assert len(first) == len(second) == 4
    assert sorted(first + second) == list(range(8))


def test_ranks_draw_different_random_numbers(two_processes: list[dict[str, Any]]) -> None:
    # One prompt is all there is, so both ranks sample it, four times in every update.
    rows = [tuple(tokens) for rank in two_processes for tokens in rank["one"]["tokens"]]
    assert {i for rank in two_processes for i in rank["one"]["indices"]} == {0}
    assert len(rows) == 2 * 2 * 2 * 4
    assert len(set(rows)) == len(rows)


def test_all_ranks_skip_a_step_that_is_bad_on_one(two_processes: list[dict[str, Any]]) -> None:
    first, second = (rank["bad"] for rank in two_processes)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.isfinite(value).all() for value in first.values())
    lines = two_processes[0]["bad_run"]
    assert lines[-1]["bad_steps"] == 1
    assert sorted(line["loss"] == 0 for line in lines) == [False, True]
