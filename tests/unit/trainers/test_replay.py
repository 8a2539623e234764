"""Checkpoints between two updates on the same rollouts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fourdthinker.backbones import load_checkpoint
from fourdthinker.errors import CheckpointError, ConfigError
from fourdthinker.trainers.replay import load_replay
from fourdthinker.trainers.run_state import RunState
from tests.e2e.training import metrics
from tests.unit.trainers.every_update import run

SETTINGS: dict[str, Any] = {
    "gradient_accumulation_steps": 2,
    "max_tokens_per_forward": 50,
    "num_generations": 4,
    "num_iterations": 3,
    "max_steps": 4,
}


def train(folder: Path, **extra: Any) -> Path:
    return run(folder, SETTINGS | extra)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("replay") / "run").parent


def stopped(whole: Path, folder: Path, step: int) -> Path:
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "final")
    for later in range(step + 1, 5):
        shutil.rmtree(folder / f"checkpoint-{later}")
    return folder


def test_a_run_goes_on_between_updates_on_the_same_rollouts(whole: Path, tmp_path: Path) -> None:
    run = stopped(whole, tmp_path / "run", 2)
    train(run)
    for line, other in zip(metrics(run), metrics(whole), strict=True):
        for name in ("loss", "grad_norm", "kl", "ratio", "clip_low"):
            assert line[name] == other[name], name
    # Three updates on the same rollouts: the first is on policy, and the later ones are far from it.
    away = [abs(line["ratio"] - 1) for line in metrics(run)]
    assert max(away[0], away[3]) < 1e-5
    assert min(away[1], away[2]) > 0.1
    assert [line["clip_low"] + line["clip_high"] > 0.1 for line in metrics(run)] == [False, True, True, False]
    mine, theirs = (load_checkpoint(folder / "final").backbone.state_dict() for folder in (run, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_rollouts_are_kept_where_they_are_needed(whole: Path) -> None:
    kept = {p.parent.name for p in whole.glob("checkpoint-*/rollouts_0.safetensors")}
    assert kept == {f"checkpoint-{n}" for n in (1, 2, 4)}


def test_without_its_rollouts_a_checkpoint_is_not_gone_on_from(whole: Path, tmp_path: Path) -> None:
    run = stopped(whole, tmp_path / "run", 4)
    (run / "checkpoint-4" / "rollouts_0.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no rollouts_0\.safetensors"):
        train(run, resume_from_checkpoint=str(run / "checkpoint-4"))


def test_rollouts_of_other_processes_are_refused(whole: Path, tmp_path: Path) -> None:
    folder = stopped(whole, tmp_path / "run", 4) / "checkpoint-4"
    state = RunState.read(folder)
    RunState(**vars(state) | {"processes": 2}).write(folder)
    for name in ("rng_state_0.pth", "rng_state_1.pth", "rollouts_1.safetensors"):
        (folder / name).touch()
    with pytest.raises(ConfigError, match="of which each of its 2 processes has its own"):
        train(folder.parent, gradient_accumulation_steps=4)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"loss": {"beta": 0.0}}, r"loss\.beta is 0\.0 and was 0\.1; set"),
        ({"temperature": 0.5}, r"temperature is 0\.5 and was 1\.0; set"),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}, "steps is 1 and was 2; set"),
    ],
    ids=["loss", "temperature", "micro-batches"],
)
def test_what_stored_rollouts_depend_on_is_held(
    whole: Path, tmp_path: Path, extra: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=rf"rollouts_0\.safetensors holds rollouts .*{said}"):
        train(tmp_path, resume_from_checkpoint=str(whole / "checkpoint-1"), **extra)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (None, "no 'micro_batches'"),
        ({"micro_batches": "[{}]", "settings": "{}"}, r"no 0\.advantages, .*indices of 0"),
    ],
    ids=["no metadata", "no tensors"],
)
def test_rollouts_that_lack_something_are_named(
    tmp_path: Path, metadata: dict[str, str] | None, said: str
) -> None:
    path = tmp_path / "rollouts.safetensors"
    save_file({"num_tokens": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=rf"{path}: the rollouts cannot be read \({said}"):
        load_replay(path, {}, list, list, pad_id=0, share=True, device=torch.device("cpu"))  # type: ignore[arg-type]


def test_each_tensor_that_rollouts_lack_is_named(whole: Path, tmp_path: Path) -> None:
    """As in a checkpoint of a version that kept less."""
    stored = whole / "checkpoint-1" / "rollouts_0.safetensors"
    with safe_open(stored, framework="pt") as file:
        metadata = file.metadata()
    path, tensors = tmp_path / stored.name, load_file(stored)
    unneeded = ("ref_logprobs", "old_logprobs")  # of some losses only
    for name in (name for name in tensors if name.startswith("1.") and not name.endswith(unneeded)):
        save_file({n: tensor for n, tensor in tensors.items() if n != name}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=rf"the rollouts cannot be read \(no {name}\); resume"):
            load_replay(path, {}, list, list, pad_id=0, share=True, device=torch.device("cpu"))  # type: ignore[arg-type]
