"""Two processes: memory that runs out on one of them, and one that dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fourdthinker.settings import make_config
from fourdthinker.trainers import dift, grpo, watch
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.grpo import GrpoTrainer, train_grpo
from fourdthinker.trainers.metric_sums import MetricSums
from fourdthinker.trainers.passes import PassTrainer
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from fourdthinker.trainers.update import Forward, MemoryLimitError
from fourdthinker.trainers.watch import RankLostError, Watch
from tests.e2e.training import BARE, metrics, prompts, samples
from tests.processes import run_ranks
from tests.tiny import tiny_checkpoint

BASE: dict[str, Any] = BARE | {"learning_rate": 1e-3, "max_steps": 3}
DIFT = BASE | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
GRPO = BASE | {
    "rewards": ["tests.e2e.training:length_reward"],
    "reward_weights": [1.0],
    "num_generations": 4,
    "max_completion_length": 8,
    "log_rollouts": 0,
    "loss": {"beta": 0.1},
}


class Full:
    """An objective without memory: of a forward of more than `rows` rows, or in its backward pass."""

    def __init__(self, module: Any, rows: int, *, backward: bool = False) -> None:
        name = f"{module.__name__.rpartition('.')[2]}_objective"
        self.objective, self.rows, self.backward = getattr(module, name), rows, backward
        setattr(module, name, self)

    def __call__(self, backbone: Any, hidden: torch.Tensor, batch: Any, **options: Any) -> Any:
        rows = batch["advantages"].shape[0] if "advantages" in batch else hidden.shape[0]
        if rows > self.rows and not self.backward:
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.\nAnd more.")
        loss, *others = self.objective(backbone, hidden, batch, **options)
        if rows > self.rows:
            loss = NoBackward.apply(loss)
        return loss, *others


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("Tried to allocate 3.00 GiB.")


def dift_weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    config = make_config(DiftConfig, DIFT | {"output_dir": str(folder)})
    train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 24))
    return {name: p.detach().clone() for name, p in checkpoint.backbone.named_parameters()}


def grpo_weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    config = make_config(GrpoConfig, GRPO | {"output_dir": str(folder)})
    train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 6))
    return {name: p.detach().clone() for name, p in checkpoint.backbone.named_parameters()}


def without_memory(rank: int, folder: Path) -> None:
    """Each trainer with memory; then without on the second rank alone; then without for single rows."""
    for module, weights, backward in ((dift, dift_weights, True), (grpo, grpo_weights, False)):
        name = module.__name__.rpartition(".")[2]
        objective = getattr(module, f"{name}_objective")
        plain = weights(folder / f"{name}-plain")
        if rank == 1:
            Full(module, 1, backward=backward)
        smaller = weights(folder / f"{name}-smaller")
        for key, value in plain.items():
            torch.testing.assert_close(smaller[key], value, rtol=1e-3, atol=2e-5)
        setattr(module, f"{name}_objective", objective)
    if rank == 1:
        Full(dift, 0)
    with pytest.raises(MemoryLimitError, match="lower max_tokens_per_forward"):
        dift_weights(folder / "none")
    (folder / f"done{rank}").touch()


def test_ranks_begin_again_together_or_end_together(tmp_path: Path) -> None:
    assert run_ranks(without_memory, tmp_path) == [0, 0]
    for name, halved in (("dift", 1), ("grpo", 2)):
        lines, plain = metrics(tmp_path / f"{name}-smaller"), metrics(tmp_path / f"{name}-plain")
        assert [line["out_of_memory"] for line in lines] == [halved] * 3
        for line, other in zip(lines, plain, strict=True):
            assert "out_of_memory" not in other
            for key in ("loss", "grad_norm"):
                assert line[key] == pytest.approx(other[key], rel=1e-3, abs=1e-6)
    assert {path.name for path in tmp_path.glob("done*")} == {"done0", "done1"}


def test_no_memory_to_reduce_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ranks are in collectives already, and would not begin the step again with this one."""

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 1.00 GiB.\nAnd more.")

    trainer = object.__new__(PassTrainer)
    gradients = SimpleNamespace(sync_gradients=True, _set_sync_gradients=lambda _: None)
    trainer.accelerator = SimpleNamespace(gradient_state=gradients)
    trainer.args, trainer.state = SimpleNamespace(device="cpu", world_size=2), SimpleNamespace(global_step=6)
    trainer._update, trainer._fitted, trainer.is_deepspeed_enabled = [[]], [], False
    trainer._failure, trainer._skip_update, trainer.is_fsdp_enabled = None, False, False
    for name, method in {
        "_enter": lambda *_: None,
        "_agree": lambda *_: True,
        "_reduce_gradients": full,
    }.items():
        monkeypatch.setattr(trainer, name, method)
    with pytest.raises(
        MemoryLimitError, match=r"step 7, while gradients were reduced: Tried .* 1\.00 GiB\.; lower"
    ):
        trainer._micro_batch(torch.nn.Linear(1, 1), 0)


def test_gradients_that_are_missing_are_made_before_the_ranks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nAnd more.")

    trainer, model = object.__new__(PassTrainer), torch.nn.Linear(1, 1)
    trainer.args, trainer._failure, trainer._skip_update = SimpleNamespace(world_size=2), None, False
    monkeypatch.setattr(torch, "zeros_like", full)
    trainer._fill_gradients(model)
    assert vars(trainer)["_failure"] == "Tried to allocate 2.00 GiB."
    model.weight.grad = torch.ones(1, 1)
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: SimpleNamespace(wait=lambda: None))
    trainer._reduce_gradients(model)  # which allocates none
    assert model.weight.grad.item() == 0.5


@pytest.mark.parametrize("together", [True, False])
def test_sums_that_find_no_room_to_be_rounded_wait_for_the_other_ranks(together: bool) -> None:
    """Those come to the agreement after the forward, and this rank must too."""

    def full() -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nAnd more.")

    trainer = object.__new__(PassTrainer)
    trainer.args, trainer._failure = SimpleNamespace(world_size=1 + together), None
    trainer.is_deepspeed_enabled = trainer.is_fsdp_enabled = False
    trainer.masters = SimpleNamespace(round_sums=full)  # type: ignore[assignment]
    with nullcontext() if together else pytest.raises(torch.OutOfMemoryError):
        trainer._sums(last=True)
    assert vars(trainer)["_failure"] == ("Tried to allocate 2.00 GiB." if together else None)


@pytest.mark.parametrize("failure", ["Tried to allocate 2.00 GiB.", None])
def test_a_batch_that_cannot_be_halved_for_lack_of_memory_ends_all_ranks(failure: str | None) -> None:
    """After all gradients are gone; also where the passes of this rank had room."""
    model, asked = torch.nn.Linear(1, 1), []
    model.weight.grad = torch.ones(1, 1)

    def full() -> bool:
        assert model.weight.grad is None
        raise torch.OutOfMemoryError("Tried to allocate 1.00 GiB.\nAnd more.")

    def any_rank(value: bool) -> bool:
        asked.append(value)
        return value

    trainer = object.__new__(PassTrainer)
    trainer.args = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    trainer.state, trainer._failure, trainer.masters = SimpleNamespace(global_step=6), failure, None
    trainer.is_deepspeed_enabled = trainer.is_fsdp_enabled = False
    trainer.halve, trainer.any_rank = full, any_rank  # type: ignore[method-assign]
    with pytest.raises(MemoryLimitError, match=r"step 7: Tried .* 3\.00 GiB"):
        trainer._begin_smaller(model, "Tried to allocate 3.00 GiB.")
    assert asked == [True]


def test_numbers_keep_their_type_on_the_way_to_the_device() -> None:
    """Trainer's own way rounds all that is float under DeepSpeed, to the type of its weights."""
    seen: dict[str, torch.dtype] = {}
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    trainer = object.__new__(PassTrainer)
    trainer.accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    trainer.args, trainer.is_deepspeed_enabled, trainer._failure = SimpleNamespace(device="cpu"), True, None
    trainer._enter, trainer.is_fsdp_enabled = lambda *_: None, False  # type: ignore[method-assign]
    trainer.compute_loss_context_manager, trainer.metric_sums = nullcontext, MetricSums()

    def model(batch: Any, objective: Any) -> Any:
        seen.update({name: value.dtype for name, value in batch.items()})
        return torch.ones(()), {}

    batch = {"old_logprobs": torch.ones(2), "rows": torch.ones(2, dtype=torch.long)}
    trainer._run_forward(model, Forward(batch, None, torch.zeros(1)))  # type: ignore[arg-type]
    assert seen == {"old_logprobs": torch.float32, "rows": torch.long}


def test_a_rank_that_hangs_in_the_reference_is_behind_those_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: list[tuple[int, ...]] = []
    orders: dict[str, tuple[int, ...]] = {}
    enter, logprobs, most = Watch.enter, GrpoTrainer._reference_outputs, PassTrainer.most_of_ranks

    def noted(self: Watch, phase: str, *order: int) -> None:
        phases.append(order)
        enter(self, phase, *order)

    def reference(self: Any, *arguments: Any) -> Any:
        orders["reference"] = phases[-1]
        return logprobs(self, *arguments)

    def waits(self: Any, values: list[int]) -> list[int]:
        orders.setdefault("wait", phases[-1])
        return most(self, values)

    monkeypatch.setattr(Watch, "enter", noted)
    monkeypatch.setattr(GrpoTrainer, "_reference_outputs", reference)
    monkeypatch.setattr(GrpoTrainer, "most_of_ranks", waits)
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    config = make_config(GrpoConfig, GRPO | {"output_dir": str(tmp_path / "run"), "max_steps": 1})
    train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 2))
    assert orders["reference"] < orders["wait"]
    assert phases == sorted(phases)


def one_dies(rank: int, folder: Path) -> None:
    """The second rank is killed while it samples in the second step."""
    sample = GrpoTrainer.sample

    def killed(self: GrpoTrainer, batches: Any) -> Any:
        if rank == 1 and self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return sample(self, batches)

    GrpoTrainer.sample = killed  # type: ignore[method-assign]
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    config = make_config(GrpoConfig, GRPO | {"output_dir": str(folder / "run"), "ddp_timeout": 10})
    with pytest.raises(RankLostError) as error:
        train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 6))
    (folder / "said").write_text(str(error.value))


def test_a_rank_that_dies_is_named_with_its_phase(tmp_path: Path) -> None:
    assert run_ranks(one_dies, tmp_path) == [0, -signal.SIGKILL]
    said = (tmp_path / "said").read_text()
    assert said.startswith("rank 1 ended in 'step 2: rollouts'; go on with resume_from_checkpoint=auto"), said
    assert "\n" not in said


def test_who_is_behind_and_who_beats() -> None:
    store = dist.HashStore()
    first, second = (Watch(store, rank, 2, timeout=0.2) for rank in range(2))
    first.enter("step 3: forward 1", 3, 0, 3)
    second.enter("step 3: forward 0", 3, 0, 0)
    assert first._behind() == [1]
    assert first._held_up() == "rank 1 in 'step 3: forward 0' does not answer"
    assert second._behind() == []
    store.set("beat0", "0")
    assert second._held_up() == "rank 0 in 'step 3: forward 1' gives no sign of life"
    store.set("beat1", "0")
    assert first._dead() == [1]
    with second:
        assert first._dead() == []
    store.set("phase1", json.dumps([[3, 0, 3], "step 3: forward 1"]))
    assert first._behind() == []


def test_a_heart_beats_while_the_main_thread_waits_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a communicator is set up: a client of the store does one thing after the other."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))
    group = dist.TCPStore("127.0.0.1", server.port, timeout=timedelta(seconds=20))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(watch, "_get_default_store", lambda: group)
    own = Watch.of_group(timeout=10)
    main = threading.Thread(target=lambda: group.get("late"))
    beat = threading.Thread(target=own._beat_once)
    main.start()
    time.sleep(0.3)  # until it waits
    beat.start()
    beat.join(3)
    blocked = beat.is_alive()
    server.set("late", "")
    main.join()
    beat.join()
    assert not blocked
