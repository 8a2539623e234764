"""`rollout_workers` on a Ray of two nodes, an actor on each: the run without them, also if one is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")

import ray
from ray.cluster_utils import Cluster
from transformers import TrainerCallback

from fourdthinker.settings import make_config
from fourdthinker.trainers.grpo import GrpoTrainer, train_grpo
from fourdthinker.trainers.settings import GrpoConfig
from tests.e2e.training import BARE, metrics, prompts
from tests.processes import processes_named
from tests.tiny import tiny_checkpoint

SETTINGS: dict[str, Any] = BARE | {
    "rewards": ["tests.e2e.training:length_reward"],
    "reward_weights": [1.0],
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_generations": 3,
    "max_completion_length": 8,
    "learning_rate": 1e-2,
    "loss": {"beta": 0.0},
    "max_steps": 3,
}
REMOTE = {"rollout_workers": 2, "save_steps": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ.pop("RAY_ADDRESS", None)
    node = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.add_node(**node)  # with an object store of its own, as another machine has
    ray.init(address=made.address, log_to_driver=False)
    assert len(ray.nodes()) == 2
    yield
    ray.shutdown()
    made.shutdown()


class KillOne(TrainerCallback):
    """Kills a worker after the first update."""

    def __init__(self) -> None:
        self.killed: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.killed = processes_named("ray::_Actor")[:1]
            os.kill(self.killed[0], signal.SIGKILL)
            while self.killed[0] in processes_named("ray::_Actor"):
                time.sleep(0.05)


def train(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *callbacks: TrainerCallback, **extra: Any
) -> list[list[list[int]]]:
    """The tokens of the rollouts of each update."""
    seen: list[list[list[int]]] = []
    make = GrpoTrainer._make_replay

    def spy(self: GrpoTrainer, experiences: list[Any]) -> Any:
        rows = [
            row[:length]
            for e in experiences
            for row, length in zip(e.rollout.tokens.tolist(), e.rollout.lengths.tolist(), strict=True)
        ]
        seen.append(rows)
        return make(self, experiences)

    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    config = make_config(GrpoConfig, SETTINGS | {"output_dir": str(folder)} | extra)
    with monkeypatch.context() as patch:
        patch.setattr(GrpoTrainer, "_make_replay", spy)
        train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 12), callbacks=callbacks)
    return seen


def test_the_tokens_are_those_of_local_rollouts_and_a_killed_worker_costs_nothing(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = train(tmp_path / "local", monkeypatch)
    kill = KillOne()
    remote = train(tmp_path / "remote", monkeypatch, kill, **REMOTE)
    assert kill.killed
    assert remote == local
    limit = time.monotonic() + 60
    while processes_named("ray::_Actor") and time.monotonic() < limit:
        time.sleep(0.1)
    assert processes_named("ray::_Actor") == [], "they end with the run"
    lines = metrics(tmp_path / "remote")
    assert [line["staleness"] for line in lines] == [0, 0, 0]
    assert [line["loss"] for line in lines] == pytest.approx([x["loss"] for x in metrics(tmp_path / "local")])

    (tmp_path / "remote" / "final").rename(tmp_path / "final")
    (tmp_path / "remote" / "checkpoint-3").rename(tmp_path / "checkpoint-3")
    resumed = train(tmp_path / "remote", monkeypatch, resume_from_checkpoint="auto", **REMOTE)
    assert resumed == local[2:], "it goes on after the second update"


def test_updates_are_sampled_ahead(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = REMOTE | {"rollout_staleness": 1, "loss": {"beta": 0.0, "sampler_cap": 2.0}}
    train(tmp_path, monkeypatch, **options)
    assert [line["staleness"] for line in metrics(tmp_path)] == [0, 1, 1]
