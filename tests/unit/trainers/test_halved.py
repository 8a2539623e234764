"""Memory that runs out elsewhere than in the passes with a loss: the same on half as much, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.backbones import load_checkpoint
from fourdthinker.sampler import LatentSampler
from fourdthinker.settings import make_config
from fourdthinker.trainers import other_passes, sampled_rows, vision_cache
from fourdthinker.trainers.dift import DiftTrainer, train_dift
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.halved import Halved
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from fourdthinker.trainers.update import MemoryLimitError
from tests.e2e.training import BARE, evaluations, metrics, prompts, samples, write_data, write_model
from tests.tiny import tiny_checkpoint

GRPO = BARE | {
    "learning_rate": 1e-2,
    "optim": "sgd",
    "max_steps": 2,
    "per_device_train_batch_size": 3,
    "rewards": ["tests.e2e.training:length_reward"],
    "reward_weights": [1.0],
    "num_generations": 4,
    "max_completion_length": 12,
    "log_rollouts": 0,
    "loss": {"beta": 0.1},
    "top_entropy": 0.5,
}


class Full:
    """A function that has no memory for more than `most` items, which `count` finds in what it is given."""

    def __init__(self, function: Callable[..., Any], count: Callable[..., int], most: int) -> None:
        self.function, self.count, self.most, self.failed = function, count, most, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.count(*arguments, **options) > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.\nAnd more.")
        return self.function(*arguments, **options)


def doubled(items: Sequence[int]) -> list[int]:
    return [2 * item for item in items]


def test_all_is_done_in_order_and_what_fits_is_remembered() -> None:
    work, halved = Full(doubled, len, 3), Halved("work")
    assert halved(work, range(11)) == [[0, 2], [4, 6], [8, 10], [12, 14], [16, 18], [20]]
    assert halved.times == work.failed == 2  # of 11 and of 5
    assert halved(work, [1, 2, 3]) == [[2, 4], [6]]
    assert halved(work, []) == []
    assert work.failed == 2


def test_there_is_an_end_to_halving() -> None:
    work = Full(doubled, len, 0)
    with pytest.raises(MemoryLimitError, match=r"^out of memory: work, 1 at once: Tried .* 20\.00 GiB\.; lo"):
        Halved("work")(work, range(1000))
    assert work.failed == 10  # of 1000, 500, ... 1
    work = Full(doubled, len, 0)
    with pytest.raises(MemoryLimitError, match="work, 1000 at once: Tried"):
        Halved("work", alone=False)(work, range(1000))
    assert work.failed == 1


def grpo(folder: Path, **extra: Any) -> dict[str, torch.Tensor]:
    checkpoint = tiny_checkpoint(layers=1)
    config = make_config(GrpoConfig, GRPO | {"output_dir": str(folder)} | extra)
    more = {"held_out": prompts(checkpoint, 5, seed=1)} if "eval_steps" in extra else {}
    train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 6), **more)
    return {name: p.detach().clone() for name, p in checkpoint.backbone.named_parameters()}


def rows(sampler: Any, given: Sequence[Any], n: int, *others: Any, **options: Any) -> int:
    return len(given) * n


def plain_rows(batch: dict[str, Any]) -> int:
    return 0 if "segments" in batch else len(batch["policy_mask"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("halved") / "run"
    return folder, grpo(folder)


@pytest.mark.parametrize(
    ("place", "name", "count", "most", "failed"),
    [
        (LatentSampler, "sample", rows, 3, 2),  # of 12 and of 6 rows; 3 are three quarters of a group
        (sampled_rows, "encode_prompts", lambda backbone, given: len(given), 1, 1),
        (other_passes, "reference_outputs", lambda backbone, h, batch, **_: len(batch["policy_mask"]), 3, 2),
        (other_passes, "policy_logprobs", lambda backbone, h, batch, **_: plain_rows(batch), 1, 1),
        (other_passes, "policy_entropies", lambda backbone, h, batch, **_: len(batch["policy_mask"]), 5, 2),
    ],
)
def test_rollouts_and_other_passes_are_halved(
    plain: tuple[Path, dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    count: Any,
    most: int,
    failed: int,
) -> None:
    full = Full(getattr(place, name), count, most)
    if isinstance(place, type):
        monkeypatch.setattr(place, name, lambda *a, **o: full(*a, **o))
    else:
        monkeypatch.setattr(place, name, full)
    weights = grpo(tmp_path / "run")
    assert full.failed == failed
    for key, value in plain[1].items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=2e-6)
    for line, other in zip(metrics(tmp_path / "run"), metrics(plain[0]), strict=True):
        assert line["out_of_memory"] == failed
        for key in ("loss", "reward", "reward_std", "kl", "completion_length", "latents"):
            assert line[key] == pytest.approx(other[key], rel=1e-4, abs=1e-7), key


def test_sharing_is_checked_once_memory_suffices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For the first update there is none for two completions behind one prompt."""
    shared: list[torch.Tensor] = []

    def first(backbone: Any, hidden: torch.Tensor, batch: dict[str, Any], **_: Any) -> int:
        if "segments" in batch:
            shared.append(hidden)
        return "segments" in batch and len(shared) == 1

    full = Full(other_passes.policy_logprobs, first, 0)
    monkeypatch.setattr(other_passes, "policy_logprobs", full)
    grpo(tmp_path, max_steps=3)
    assert len(shared) == 2, "one that fails, one that compares, and no third"
    assert "share_prompt is checked after a later update" in caplog.text
    assert len(metrics(tmp_path)) == 3


def test_a_single_row_without_memory_ends_the_run_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Full(LatentSampler.sample, rows, 0)
    monkeypatch.setattr(LatentSampler, "sample", lambda *a, **o: full(*a, **o))
    with pytest.raises(MemoryLimitError, match=r"rollouts, 1 at once: Tried .*--dry-run says") as error:
        grpo(tmp_path)
    assert full.failed == 4  # of 12, 6, 3 and 1
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("trainer", ["dift", "grpo"])
def test_an_evaluation_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str) -> None:
    sizes = {"eval_steps": 1, "max_steps": 1, "per_device_eval_batch_size": 4}

    def run(folder: Path) -> dict[str, float]:
        if trainer == "grpo":
            grpo(folder, **sizes)
        else:
            checkpoint = tiny_checkpoint(layers=1)
            config = make_config(DiftConfig, BARE | sizes | {"output_dir": str(folder)})
            others = samples(checkpoint, 6, seed=1)
            train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 4), held_out=others)
        return evaluations(folder)[1]

    whole = run(tmp_path / "whole")
    if trainer == "grpo":
        full = Full(
            LatentSampler.sample, lambda s, given, n, config, **_: len(given) * (not config.temperature), 2
        )
        monkeypatch.setattr(LatentSampler, "sample", lambda *a, **o: full(*a, **o))
    else:
        full = Full(DiftTrainer.evaluate_batch, lambda trainer, batch: len(batch), 2)
        monkeypatch.setattr(DiftTrainer, "evaluate_batch", lambda *a: full(*a))
    halved = run(tmp_path / "halved")
    assert full.failed == 1
    for name in whole.keys() - {"eval_seconds", "eval_latent_direction"}:  # which is one of each forward
        assert halved[name] == pytest.approx(whole[name], rel=1e-4), name


@pytest.mark.parametrize("most", [1, 0])
def test_features_before_the_first_step_are_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Before the first step nothing else says in one line what to do."""
    dift, _ = write_data(tmp_path / "data", 3)
    model = write_model(tmp_path / "model")
    full = Full(vision_cache.encode_visions, lambda backbone, visions: len(visions), most)
    monkeypatch.setattr(vision_cache, "encode_visions", full)
    values = BARE | {
        "output_dir": str(tmp_path / "run"),
        "model": str(model),
        "data": str(dift),
        "max_steps": 1,
    }
    config = make_config(DiftConfig, values | {"cache_dir": str(tmp_path / "cache"), "cache_video": True})
    if most:
        assert load_checkpoint(train_dift(config)).backbone.num_layers == 1
    else:
        with pytest.raises(MemoryLimitError, match="vision features, 1 at once: Tried"):
            train_dift(config)
    assert full.failed == 2 - most
