"""Evaluation while training: what it says, that it changes nothing else, and that the best stays."""

from __future__ import annotations

import json
import random
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fourdthinker.backbones import Checkpoint, load_checkpoint
from fourdthinker.objectives import dift_objective
from fourdthinker.records import Record
from fourdthinker.reward_calls import RewardFailedError
from fourdthinker.sampler import LatentSampler, SamplingConfig
from fourdthinker.samples import collate
from fourdthinker.settings import make_config
from fourdthinker.trainers import checkpointing
from fourdthinker.trainers.batches import Items
from fourdthinker.trainers.checkpointing import ResumableTrainer
from fourdthinker.trainers.dift import DiftTrainer, train_dift
from fourdthinker.trainers.evaluation import held_out_batches, measure_of
from fourdthinker.trainers.experience import rollout_seeds
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from tests.e2e.training import BARE, evaluations, metrics, prompts, samples, without_times
from tests.e2e.training import evaluated as means
from tests.tiny import tiny_checkpoint

# Dropout draws from torch's generator: one number drawn elsewhere would change every loss after it.
BASE: dict[str, Any] = BARE | {
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "max_steps": 6,
    "save_steps": 3,
    "lora": {"r": 4, "dropout": 0.3, "train_embeddings": True},
    "resume_from_checkpoint": "auto",
}
HELD_OUT = {"per_device_eval_batch_size": 2, "eval_steps": 2}


def train(folder: Path, *, held_out: int = 5, content: int = 7, **extra: Any) -> Checkpoint:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    values = BASE | (HELD_OUT if held_out else {}) | {"output_dir": str(folder)}
    config = make_config(DiftConfig, values | extra)
    others = samples(checkpoint, held_out, seed=content) if held_out else None
    train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 6), held_out=others)
    return checkpoint


def draw() -> None:
    random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose evaluation draws random numbers wherever they come from."""
    folder, evaluate = tmp_path_factory.mktemp("evaluated") / "run", DiftTrainer.evaluate_batch

    def drawing(self: DiftTrainer, batch: list[Any]) -> Any:
        draw()
        return evaluate(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiftTrainer, "evaluate_batch", drawing)
        train(folder, save_total_limit=None)
    return folder


def test_an_evaluation_changes_nothing_of_the_training(evaluated: Path, tmp_path: Path) -> None:
    train(tmp_path, held_out=0)
    assert [without_times(line) for line in metrics(tmp_path)] == [
        without_times(line) for line in metrics(evaluated)
    ]
    assert evaluations(tmp_path) == {}
    assert list(evaluations(evaluated)) == [2, 4, 6]


@pytest.mark.parametrize("held_out", [5, 0])
def test_a_run_goes_on_alike_with_and_without_evaluation(
    evaluated: Path, tmp_path: Path, held_out: int
) -> None:
    shutil.copytree(evaluated, tmp_path / "run")
    for name in ("checkpoint-4", "checkpoint-6", "final"):
        shutil.rmtree(tmp_path / "run" / name, ignore_errors=True)
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-3",
    ]
    train(tmp_path / "run", held_out=held_out)
    assert [without_times(line) for line in metrics(tmp_path / "run")] == [
        without_times(line) for line in metrics(evaluated)
    ]
    expected, got = evaluations(evaluated), evaluations(tmp_path / "run")
    assert list(got) == ([2, 4, 6] if held_out else [2])
    for step in got:
        assert without_times(got[step]) == without_times(expected[step])


def test_what_is_written_is_the_loss_of_the_held_out_samples(evaluated: Path) -> None:
    """All of them in one batch, by the weights of the checkpoint that the evaluation led to."""
    line, loaded = evaluations(evaluated)[2], load_checkpoint(evaluated / "checkpoint-2")
    backbone = loaded.backbone.eval()
    batch = collate(samples(loaded, 5, seed=7), backbone.vision.pad_id)
    numbers = {"num_tokens": batch["rows"].numel(), "num_latents": batch["latent_index"].numel()}
    with torch.no_grad():
        loss, found = backbone(batch, partial(dift_objective, **numbers))
    assert line["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name in ("ce", "cosine", "latent_cos", "latent_norm_ratio"):
        assert line[f"eval_{name}"] == pytest.approx(float(found[name][0] / found[name][1]), rel=1e-5)


def test_held_out_samples_have_the_bottleneck_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(
        DiftTrainer, "_objective", lambda self, *_: lambda backbone, hidden, batch: note(seen, hidden, batch)
    )
    train(tmp_path, max_steps=1, eval_steps=1, latent_bottleneck=True)
    assert len(seen) >= 2
    assert all(seen)


def note(
    seen: list[bool], hidden: torch.Tensor, batch: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, Any]]:
    seen.append("bottleneck" in batch)
    return hidden.mean(), {"ce": (torch.ones(()), torch.ones(()))}


def best_of(checkpoint: Path) -> tuple[Any, Any, Any]:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return state["best_global_step"], state["best_metric"], state["best_model_checkpoint"]


def gone(run: Path, best: Path) -> dict[str, Any]:
    shutil.rmtree(best)
    return {}


def half_written(run: Path, best: Path) -> dict[str, Any]:
    (best / "trainer_state.json").unlink()
    return {}


def shortened(run: Path, best: Path) -> dict[str, Any]:
    path = best / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return {}


def other_records(run: Path, best: Path) -> dict[str, Any]:
    return {"content": 8}


def other_records_after_none(run: Path, best: Path) -> dict[str, Any]:
    train(run, held_out=0, max_steps=7)
    shutil.rmtree(run / "final")
    return {"content": 8}


def another_loss(run: Path, best: Path) -> dict[str, Any]:
    return {"ce_loss_weight": 3.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, None),
        (gone, "checkpoint-3, is gone; it is looked for anew"),
        (half_written, "checkpoint-3, is gone"),  # it is set aside when the run begins
        (shortened, "checkpoint-3, has [0-9]+ of the [0-9]+ bytes of model.safetensors"),
        (other_records, "checkpoint-3, was found by other held-out records, rewards"),
        (other_records_after_none, "checkpoint-3, was found by other held-out records, rewards"),
        (another_loss, "checkpoint-3, was found by other held-out records, rewards"),
    ],
)
def test_a_best_checkpoint_that_is_lost_or_of_another_measure_is_forgotten(
    evaluated: Path, tmp_path: Path, caplog: Any, change: Any, said: str | None
) -> None:
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    shutil.rmtree(run / "final")
    for number in (3, 6):  # the third is the best, and nothing after it is better
        path = run / f"checkpoint-{number}" / "trainer_state.json"
        best = {"best_global_step": 3, "best_metric": -1.0, "best_model_checkpoint": "elsewhere"}
        path.write_text(json.dumps(json.loads(path.read_text()) | best))
    extra = change(run, run / "checkpoint-3") if change else {}
    caplog.clear()
    train(run, max_steps=8, save_steps=8, save_total_limit=None, **extra)
    found = best_of(run / "checkpoint-8")
    warnings = [record.getMessage() for record in caplog.records if "looked for anew" in record.getMessage()]
    if said is None:
        assert warnings == []
        assert found == (3, -1.0, str(run / "checkpoint-3"))
        return
    (warning,) = warnings
    assert re.search(said, warning)
    assert found == (8, evaluations(run)[8]["eval_loss"], str(run / "checkpoint-8"))


def test_the_best_is_looked_for_while_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removes it between two evaluations."""
    losses = iter([1.0, 2.0, 3.0])

    def evaluated(self: DiftTrainer, means: dict[str, float]) -> dict[str, float]:
        if self.state.global_step == 2:
            shutil.rmtree(tmp_path / "checkpoint-1")
        return {"loss": next(losses)}

    monkeypatch.setattr(DiftTrainer, "evaluated", evaluated)
    monkeypatch.setattr(DiftTrainer, "evaluate_batch", lambda self, batch: {})
    train(tmp_path, max_steps=3, eval_steps=1, save_steps=3)
    assert best_of(tmp_path / "checkpoint-3")[:2] == (2, 2.0)


def test_files_of_the_best_are_read_by_the_first_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, max_steps=1, eval_steps=1, save_steps=1)
    looked: list[bool] = []

    def check_best(self: DiftTrainer) -> None:
        for first in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr(self, "is_world_process_zero", lambda first=first: first)
                patch.setattr(checkpointing, "incomplete", lambda path, first=first: looked.append(first))
                ResumableTrainer.check_best(self)

    monkeypatch.setattr(DiftTrainer, "check_best", check_best)
    train(tmp_path, max_steps=2, eval_steps=2, save_steps=2)
    assert looked
    assert all(looked)


@pytest.mark.parametrize("save_steps", [1, 0])
def test_the_best_checkpoint_is_never_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_steps: int
) -> None:
    losses = iter([3.0, 1.0, float("nan"), 2.0, 1.0])
    monkeypatch.setattr(DiftTrainer, "evaluated", lambda self, means: {"loss": next(losses)})
    monkeypatch.setattr(DiftTrainer, "evaluate_batch", lambda self, batch: {})
    extra = {"eval_steps": 1, "save_steps": save_steps, "save_total_limit": 1}
    train(tmp_path, max_steps=4, **extra)
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert left == ({"checkpoint-2", "checkpoint-4"} if save_steps else {"checkpoint-2"})
    (newest,) = [tmp_path / "checkpoint-4"] if save_steps else [tmp_path / "checkpoint-2"]
    state = json.loads((newest / "trainer_state.json").read_text())
    assert (state["best_metric"], state["best_global_step"]) == (1.0, 2)
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")
    if save_steps:  # in a folder that was moved it is still the best
        tmp_path = tmp_path.rename(tmp_path.with_name("moved"))
        shutil.rmtree(tmp_path / "final")
        train(tmp_path, max_steps=5, **extra)
        assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-5"}


@pytest.mark.parametrize(
    ("number", "size", "ranks"), [(5, 2, 1), (5, 2, 2), (1, 8, 3), (12, 2, 3), (7, 1, 4)]
)
def test_ranks_evaluate_as_often_and_everything_once(number: int, size: int, ranks: int) -> None:
    items: Items[Any] = Items(list(range(number)))
    made = [list(held_out_batches(items, size, rank, ranks)) for rank in range(ranks)]
    assert len({len(batches) for batches in made}) == 1
    every = [item for batches in made for batch in batches for _, item in batch]
    assert sorted(every) == list(range(number))
    assert max(len(batch) for batches in made for batch in batches) <= size


class Drawing:
    """A reward that remembers how often it was called, and draws random numbers."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, text: str, record: Record, length: int) -> float:
        draw()
        self.calls += 1
        return (self.calls * 7 + length) % 5 / 4


class Failing:
    """A reward of which one call of the second evaluation fails, while the others are the best of all.

    Args:
        number: of the held-out prompts.
        silent: whether it says nothing there, in place of failing.
    """

    def __init__(self, number: int, *, silent: bool = False) -> None:
        self.number, self.silent, self.calls = number, silent, 0

    def __call__(self, text: str, record: Record) -> float | None:
        self.calls += 1
        if self.calls == self.number + 2:
            if self.silent:
                return None
            raise RewardFailedError("the judge is away")
        return [0.5, 9.0, 0.7][(self.calls - 1) // self.number % 3]


@pytest.mark.parametrize(("number", "silent"), [(19, False), (20, False), (3, True)])
def test_an_evaluation_whose_rewards_failed_decides_nothing(
    number: int, silent: bool, tmp_path: Path, caplog: Any
) -> None:
    """But where few did: a judge that is busy now and then must not hide the best checkpoint."""
    counts = silent or number == 20
    values = BARE | {"num_generations": 2, "max_completion_length": 4, "log_rollouts": 0}
    values |= {"rewards": [f"{__name__}:Failing"], "reward_weights": [1.0], "loss": {"beta": 0.0}}
    values |= {"reward_arguments": {"Failing": {"number": number, "silent": silent}}}
    values |= {"per_device_eval_batch_size": 20}
    values |= {"max_steps": 3, "eval_steps": 1, "save_total_limit": None, "output_dir": str(tmp_path)}
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    train_grpo(
        make_config(GrpoConfig, values),
        checkpoint=checkpoint,
        prompts=prompts(checkpoint, 4),
        held_out=prompts(checkpoint, number, seed=5),
    )
    lines = evaluations(tmp_path)
    assert [lines[step]["eval_reward"] for step in (1, 2, 3)] == pytest.approx([0.5, 9.0, 0.7])
    share = 0.0 if silent else 1 / number
    assert [lines[step]["eval_failed_rewards"] for step in (1, 2, 3)] == pytest.approx([0.0, share, 0.0])
    step, best = (2, 9.0) if counts else (3, 0.7)
    assert best_of(tmp_path / f"checkpoint-{step}")[:2] == (step, pytest.approx(best))
    assert not (tmp_path / f"checkpoint-{5 - step}").exists()
    assert ("step 2: the rewards of 5.3 % of the evaluation's rollouts failed" in caplog.text) != counts


def counted(text: str, record: Record, length: int, tokens: Any) -> float:
    return length + float(tokens.sum() % 7)


def test_sampled_rollouts_are_drawn_by_the_same_seeds_in_every_evaluation(tmp_path: Path) -> None:
    values = BARE | {"num_generations": 2, "max_completion_length": 6, "log_rollouts": 0, "max_steps": 2}
    values |= {"rewards": [f"{__name__}:counted"], "reward_weights": [1.0], "loss": {"beta": 0.0}}
    values |= {"num_generations_eval": 3, "temperature": 0.9, "learning_rate": 0.0, "eval_steps": 1}
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    others = prompts(checkpoint, 4, seed=5)
    found = []
    for size in (1, 3):
        config = make_config(
            GrpoConfig,
            values | {"output_dir": str(tmp_path / str(size)), "per_device_eval_batch_size": size},
        )
        train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 2), held_out=others)
        found += [means(line) for line in evaluations(tmp_path / str(size)).values()]
    assert len(found) == 4
    for line in found:
        assert line == pytest.approx(found[0])
    seeds = rollout_seeds(config.seed, 0, range(4), 3)
    options = SamplingConfig(max_new_tokens=6, temperature=0.9)
    rollout = LatentSampler(checkpoint.backbone.eval()).sample(others, 3, options, seeds=seeds)
    assert found[0]["eval_completion_length"] == pytest.approx(float(rollout.lengths.double().mean()))
    rows = zip(rollout.lengths.tolist(), rollout.tokens, strict=True)
    rewards = [counted("", Record("rl", "a", "?"), n, row[:n]) for n, row in rows]
    assert len(set(rewards)) > 4, "rows of a prompt differ"
    assert found[0]["eval_reward"] == pytest.approx(sum(rewards) / 12)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({}, {"temperature": 0.5}, True),
        ({"num_generations_eval": 2}, {"num_generations_eval": 2, "temperature": 0.5}, False),
        ({"num_generations_eval": 2}, {"num_generations_eval": 4}, False),
        ({"num_generations_eval": 2}, {}, False),
    ],
)
def test_evaluations_are_comparable_where_they_sample_alike(
    first: dict[str, Any], second: dict[str, Any], same: bool
) -> None:
    held_out = Items(prompts(tiny_checkpoint(hidden=32, layers=1), 2))
    found = [measure_of(make_config(GrpoConfig, values), held_out) for values in (first, second)]
    assert (found[0] == found[1]) == same


def test_greedy_rollouts_of_held_out_prompts_are_rewarded_and_change_nothing(tmp_path: Path) -> None:
    values = BARE | {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 6}
    values |= {"rewards": [f"{__name__}:Drawing"], "reward_weights": [1.0], "log_rollouts": 0}
    values |= {"loss": {"beta": 0.0}, "max_steps": 2, "learning_rate": 0.0}
    lines = {}
    for held_out in (3, 0):
        checkpoint, folder = tiny_checkpoint(hidden=32, layers=1), tmp_path / str(held_out)
        others = prompts(checkpoint, held_out, seed=5) if held_out else None
        evaluation = {"eval_steps": 1} if held_out else {}
        config = make_config(GrpoConfig, values | evaluation | {"output_dir": str(folder)})
        train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 4), held_out=others)
        lines[held_out] = [without_times(line) for line in metrics(folder)]
    assert lines[3] == lines[0], "its rewards remember nothing of the evaluation"
    greedy = SamplingConfig(max_new_tokens=6, temperature=0.0)
    rollout = LatentSampler(checkpoint.backbone.eval()).sample(prompts(checkpoint, 3, seed=5), 1, greedy)
    reward, found = Drawing(), evaluations(tmp_path / "3")
    for step in (1, 2):
        rewards = [reward("", Record("rl", "a", "?"), length) for length in rollout.lengths.tolist()]
        assert found[step]["eval_reward"] == pytest.approx(sum(rewards) / 3)
        assert found[step]["eval_completion_length"] == pytest.approx(float(rollout.lengths.double().mean()))
        assert found[step]["eval_reward_Drawing"] == found[step]["eval_reward"]
    state = json.loads((tmp_path / "3" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["best_metric"] == found[1]["eval_reward"]
