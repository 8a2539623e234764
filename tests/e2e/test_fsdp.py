"""FSDP2 by the whole trainers, on two processes of a CPU: gradients of one process, checkpoints, going on.

`make test LANE=others` runs all cases, which takes minutes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from fourdthinker.backbones import Checkpoint, gathering, load_checkpoint
from fourdthinker.errors import ConfigError
from fourdthinker.settings import make_config
from fourdthinker.trainers.arguments import training_arguments
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.settings import DiftConfig, TrainConfig
from tests.e2e.test_zero import CASES, compare, config_of, items_of, save_model, with_workers
from tests.e2e.training import BARE, metrics, samples
from tests.processes import run_ranks
from tests.tiny import tiny_checkpoint

ALL = CASES | {"dift_compiled": {"torch_compile": True}}
by_hand = pytest.mark.skipif(
    "FOURDTHINKER_FSDP" not in os.environ, reason="takes minutes: make test LANE=others"
)


class Gradients(TrainerCallback):
    """The reduced gradients before the optimizer uses them, put together."""

    def __init__(self) -> None:
        self.whole: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        sliced = {name: p.grad for name, p in named if p.grad is not None}
        assert all(isinstance(gradient, DTensor) for gradient in sliced.values())
        self.whole = {name: gradient.full_tensor() for name, gradient in sliced.items()}


def train(config: Any, checkpoint: Checkpoint, items: list[Any], callbacks: list[TrainerCallback]) -> None:
    if isinstance(config, DiftConfig):
        train_dift(config, checkpoint=checkpoint, samples=items, callbacks=callbacks)
    else:
        train_grpo(config, checkpoint=checkpoint, prompts=items, callbacks=callbacks)


def update(rank: int, folder: Path, case: str, settings: dict[str, Any]) -> None:
    """In each of two processes: roll out, update, save."""
    CASES[case] = settings
    config: TrainConfig = config_of(case, folder, batch=2, accumulation=2)
    config = config.model_copy(update={"fsdp": True, "output_dir": str(folder / "fsdp")})
    if case == "grpo_in_turn":
        gathering.have_room = lambda *_: False
    if case == "grpo_workers":
        config = with_workers(config)
    checkpoint, keep = load_checkpoint(folder / "model"), Gradients()
    train(config, checkpoint, items_of(case, checkpoint), [keep])
    if rank == 0:
        torch.save(keep.whole, folder / "gradients.pt")


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c == "grpo" else by_hand) for c in ALL])
def test_an_update_is_that_of_one_process(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that are tied, and with an adapter those that are not."""
    monkeypatch.setitem(CASES, case, ALL[case])
    save_model(tmp_path, case)
    assert run_ranks(update, tmp_path, case, ALL[case]) == [0, 0]
    compare(tmp_path, case, tmp_path / "fsdp" / "final")


def run_of(folder: Path, **values: Any) -> DiftConfig:
    base = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 1, "learning_rate": 1e-3}
    base |= {"bf16": True, "fsdp": True, "output_dir": str(folder), "resume_from_checkpoint": "auto"}
    return make_config(DiftConfig, BARE | base | values)


def begin_or_go_on(rank: int, run: Path) -> Checkpoint:
    """A model in bfloat16 for a run; one that is there is set back to its second update."""
    if rank == 0 and run.exists():
        shutil.rmtree(run / "final")
        shutil.rmtree(run / "checkpoint-4")
    dist.barrier()
    checkpoint = tiny_checkpoint(hidden=32, layers=2)
    checkpoint.backbone.to(torch.bfloat16)
    return checkpoint


def go_on(rank: int, folder: Path) -> None:
    """Four updates at once, and two and two. A loss that is not a number is skipped on both ranks."""
    for name in ("unbroken", "stopped", "stopped"):
        checkpoint = begin_or_go_on(rank, folder / name)
        items = samples(checkpoint, 8)
        items[3].latents = torch.full((4, 32), torch.nan)
        train_dift(run_of(folder / name), checkpoint=checkpoint, samples=items)


def test_a_run_goes_on_as_if_nothing_had_stopped_it(tmp_path: Path) -> None:
    """Of a model in bfloat16: the optimizer has float32, and what is saved is bfloat16."""
    assert run_ranks(go_on, tmp_path) == [0, 0]
    one, other = (metrics(tmp_path / name) for name in ("unbroken", "stopped"))
    assert [line["loss"] for line in one] == [line["loss"] for line in other]
    assert [max(line["bad_steps"] for line in lines) for lines in (one, other)] == [1, 1]
    final = [load_checkpoint(tmp_path / name / "final").backbone for name in ("unbroken", "stopped")]
    weights, others = (backbone.state_dict() for backbone in final)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    kept = load_file(tmp_path / "unbroken" / "checkpoint-4" / "masters.safetensors")
    trained = "model.model.language_model.layers.0.mlp.up_proj.weight"
    assert kept[trained].dtype == torch.float32
    assert torch.equal(kept[trained].bfloat16(), weights[trained])
    assert not torch.equal(kept[trained], weights[trained].float())
    assert not any("visual" in name for name in kept), "what is not trained is in the model's own file"


def go_on_with_an_adapter(rank: int, folder: Path) -> None:
    """Four updates at once, and two and two."""
    for name in ("unbroken", "stopped", "stopped"):
        checkpoint = begin_or_go_on(rank, folder / name)
        config = run_of(folder / name, lora={"r": 4, "dropout": 0.0, "train_embeddings": True})
        train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 8))


@by_hand
def test_a_checkpoint_of_an_adapter_holds_what_is_trained(tmp_path: Path) -> None:
    assert run_ranks(go_on_with_an_adapter, tmp_path) == [0, 0]
    one, other = (metrics(tmp_path / name) for name in ("unbroken", "stopped"))
    assert [line["loss"] for line in one] == [line["loss"] for line in other]
    kept = load_file(tmp_path / "stopped" / "checkpoint-4" / "masters.safetensors")
    assert sum("lora_" in name for name in kept) == len(kept) - 1 == 2 * 7 * 2  # and the tied embeddings
    final = [load_checkpoint(tmp_path / name / "final").backbone for name in ("unbroken", "stopped")]
    for mine, right in zip(final[1].parameters(), final[0].parameters(), strict=True):
        assert torch.equal(mine, right)


def some_updates(rank: int, folder: Path, updates: int, batch: int) -> None:
    checkpoint = tiny_checkpoint(hidden=32, layers=2)
    values = {"bf16": False, "lr_scheduler_type": "constant", "per_device_train_batch_size": batch}
    values |= {"adam_epsilon": 1e-3}  # or AdamW makes much of a gradient that is rounding
    config = run_of(folder, max_steps=updates, **values)
    train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 12))


@by_hand
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """Of two, three and two, six records an update; the states of three and of two are put together."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert run_ranks(some_updates, whole, 6, 3) == [0, 0]
    assert run_ranks(some_updates, moved, 2, 3) == [0, 0]
    assert run_ranks(some_updates, moved, 4, 2, processes=3) == [0, 0, 0]
    assert run_ranks(some_updates, moved, 6, 3) == [0, 0]
    for key in ("step", "loss", "grad_norm"):
        ours, right = ([line[key] for line in metrics(run)] for run in (moved, whole))
        assert ours == pytest.approx(right, rel=1e-4)
    final = [load_checkpoint(run / "final").backbone for run in (moved, whole)]
    for mine, right in zip(final[0].parameters(), final[1].parameters(), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-6)


def void(rank: int, folder: Path) -> None:
    """The second micro-batch of an update is not finite: nothing of the first is left for the next update."""
    for fsdp in (True, False):
        checkpoint = tiny_checkpoint(hidden=32, layers=2)
        items = samples(checkpoint, 16)
        items[8].latents = torch.full((12, 32), torch.nan)  # in the second micro-batch of the second update
        values = {"fsdp": fsdp, "bf16": False, "gradient_accumulation_steps": 2, "save_steps": 0, "seed": 3}
        config = run_of(folder / str(fsdp), optim="sgd", learning_rate=0.1, **values)
        train_dift(config, checkpoint=checkpoint, samples=items)


def test_a_void_update_leaves_nothing_behind(tmp_path: Path) -> None:
    assert run_ranks(void, tmp_path) == [0, 0]
    ours, plain = (metrics(tmp_path / name) for name in ("True", "False"))
    assert [line["bad_steps"] for line in ours] == [0, 1, 1, 1]
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in ours] == pytest.approx([line[key] for line in plain], rel=1e-4)


def test_one_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fsdp=true .* one was started; start several"):
        training_arguments(run_of(tmp_path))


def test_what_accelerate_launch_asks_for_is_not_taken_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        ConfigError, match=r"ACCELERATE_USE_FSDP is true .* start by torchrun, with fsdp=true"
    ):
        training_arguments(run_of(tmp_path, fsdp=False))


def half(rank: int, folder: Path) -> None:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    checkpoint.backbone.to(torch.bfloat16)
    config = run_of(folder / "run", bf16=False)
    with pytest.raises(ConfigError, match=r"is trained in bfloat16, .* set bf16=true"):
        train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 2))


@by_hand
def test_weights_without_float32_are_refused(tmp_path: Path) -> None:
    assert run_ranks(half, tmp_path) == [0, 0]


def without(rank: int, folder: Path) -> None:
    checkpoint = tiny_checkpoint(hidden=32, layers=2)
    train_dift(run_of(folder / "run", max_steps=2), checkpoint=checkpoint, samples=samples(checkpoint, 8))
    said = "by 2 processes under FSDP, and this run has 2 without DeepSpeed and FSDP"
    with pytest.raises(ConfigError, match=said):
        train_dift(run_of(folder / "run", fsdp=False), checkpoint=checkpoint, samples=samples(checkpoint, 8))


@by_hand
def test_another_form_of_state_is_refused(tmp_path: Path) -> None:
    assert run_ranks(without, tmp_path) == [0, 0]
