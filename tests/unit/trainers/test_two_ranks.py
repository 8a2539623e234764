"""Options of 4DRL that look at rollouts of all processes: two processes train what one does."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.settings import make_config
from fourdthinker.trainers.experience import Experience
from fourdthinker.trainers.grpo import GrpoTrainer, train_grpo
from fourdthinker.trainers.settings import GrpoConfig
from tests.e2e.gradients_worker import KeepGradients
from tests.e2e.training import BARE, metrics, prompts, relative_difference, without_times
from tests.processes import run_ranks
from tests.tiny import tiny_checkpoint

SHARED: dict[str, Any] = BARE | {
    "rewards": ["tests.unit.trainers.test_rollouts:varied"],
    "reward_weights": [1.0],
    "num_generations": 3,
    "max_completion_length": 8,
    "max_grad_norm": 0,
    "log_rollouts": 0,
    "max_steps": 1,
    "loss": {"beta": 0.0},
}
CASES: dict[str, dict[str, Any]] = {
    "refill": {"rewards": ["tests.unit.trainers.test_rollouts:half_solved"], "refill_rounds": 6},
    "batch": {"scale_rewards": "batch"},
    "bnpo": {"loss": {"loss_type": "bnpo", "beta": 0.0}},
    "top_entropy": {"top_entropy": 0.3, "loss": {"loss_type": "dapo", "beta": 0.0}},
    "gdpo": {
        "rewards": [f"tests.unit.trainers.test_rollouts:{name}" for name in ("varied", "half_solved")],
        "reward_weights": [1.0, 0.5],
        "aggregate_rewards": "normalised",
    },
}


def update(folder: Path, case: str, *, accumulation: int) -> dict[str, Any]:
    """Gradients and line of metrics of one update on 8 prompts, and what this process trained on."""
    seen: list[Experience] = []
    make, keep = GrpoTrainer._make_replay, KeepGradients()

    def spy(self: GrpoTrainer, experiences: list[Experience]) -> Any:
        seen.extend(experiences)
        return make(self, experiences)

    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation}
    config = make_config(GrpoConfig, SHARED | sizes | CASES[case] | {"output_dir": str(folder / case)})
    checkpoint = tiny_checkpoint(hidden=32, layers=1, tied=False)
    GrpoTrainer._make_replay = spy  # type: ignore[method-assign]
    try:
        train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 12), callbacks=[keep])
    finally:
        GrpoTrainer._make_replay = make  # type: ignore[method-assign]
    return {
        "gradients": keep.gradients,
        "indices": [e.indices for e in seen],
        "rewards": torch.cat([e.rewards for e in seen]),
        "advantages": torch.cat([e.advantages for e in seen]),
        "kept_tokens": sum(int(e.entropy_mask.sum()) for e in seen if e.entropy_mask is not None),
        "tokens": sum(e.num_tokens for e in seen),
    }


def every_case(rank: int, folder: Path) -> None:
    """In each of two processes."""
    torch.save({case: update(folder, case, accumulation=2) for case in CASES}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Path, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("two")

    @cache
    def run() -> tuple[Path, list[dict[str, Any]]]:
        assert run_ranks(every_case, folder) == [0, 0]
        return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]

    return run


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does(two: Any, tmp_path: Path, case: str) -> None:
    """bnpo too: its batches are those of a device, two prompts in both."""
    folder, ranks = two()
    first, second = (rank[case] for rank in ranks)
    one = update(tmp_path, case, accumulation=4)
    # Batches of the update in turn: the first of each process, the second of each.
    indices = [batch for pair in zip(first["indices"], second["indices"], strict=True) for batch in pair]
    assert indices == one["indices"]
    for name in ("rewards", "advantages"):
        halves = [rank[name].split(6) for rank in (first, second)]
        torch.testing.assert_close(torch.cat([half for pair in zip(*halves) for half in pair]), one[name])
    for name in ("tokens", "kept_tokens"):
        assert first[name] + second[name] == one[name]
    used = [name for name, value in one["gradients"].items() if value.any()]
    assert len(used) > 10
    for rank in (first, second):
        assert max(relative_difference(rank["gradients"], one["gradients"], used).values()) <= 1e-5
    (line,), (expected,) = metrics(folder / case), metrics(tmp_path / case)
    for name, value in without_times(expected).items():
        if name not in ("grad_norm", "sampler_gap_max"):  # of two processes a mean of two largest ones
            assert line[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_every_update_of_two_processes_is_full_of_groups_that_vary(two: Any) -> None:
    _, ranks = two()
    for rank in ranks:
        assert [len(batch) for batch in rank["refill"]["indices"]] == [2, 2]
        assert all(index % 2 for batch in rank["refill"]["indices"] for index in batch)
        assert (rank["refill"]["rewards"].view(-1, 3).std(1) > 0).all()


def test_the_highest_entropies_are_those_of_all_processes(two: Any) -> None:
    _, ranks = two()
    kept, tokens = ([rank["top_entropy"][name] for rank in ranks] for name in ("kept_tokens", "tokens"))
    assert sum(kept) == 1 + int(0.3 * (sum(tokens) - 1))
    assert kept[0] != 1 + int(0.3 * (tokens[0] - 1)), "by process it would be another number"
