"""Training in bfloat16 learns what training in float32 learns, and goes on exactly where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.backbones import load_checkpoint
from fourdthinker.errors import CheckpointError, ConfigError
from fourdthinker.settings import make_config
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.master_weights import MASTERS, MasterWeights, check_float16
from fourdthinker.trainers.run_state import RunState
from fourdthinker.trainers.settings import DiftConfig
from tests.e2e.gradients_worker import KeepGradients
from tests.e2e.training import metrics, samples
from tests.processes import run_ranks
from tests.tiny import tiny_checkpoint
from tests.unit.trainers.gradient_sums import added, difference

BASE: dict[str, Any] = {
    "use_cpu": True,
    "report_to": [],
    "logging_steps": 1,
    "warmup_steps": 0,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 2,
    "save_steps": 2,
    "save_total_limit": None,
}


def half(dtype: torch.dtype = torch.bfloat16) -> Any:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    checkpoint.backbone.to(dtype)
    return checkpoint


def train(folder: Path, checkpoint: Any, **extra: Any) -> None:
    items = samples(checkpoint, 6)
    config = make_config(DiftConfig, BASE | {"output_dir": str(folder)} | extra)
    train_dift(config, checkpoint=checkpoint, samples=items)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """The share of weights that differ."""
    differing = sum(int((before[name].float() != after[name].float()).sum()) for name in after)
    return differing / sum(value.numel() for value in after.values())


def test_small_updates_of_bfloat16_weights_are_not_lost() -> None:
    """Every weight has a gradient, as in a large model: 20 updates of 1e-6."""
    torch.manual_seed(0)
    shares = {}
    for kept in (False, True):
        layer = torch.nn.Linear(256, 256, bias=False).bfloat16()
        masters, before = MasterWeights(layer), layer.weight.detach().clone()
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-6)
        if kept:
            masters.attach(optimizer)
        for _ in range(20):
            layer.weight.grad = torch.randn_like(layer.weight) + 1
            optimizer.step()
            optimizer.zero_grad()
        after = masters.wide["weight"] if kept else layer.weight
        shares[kept] = changed({"": before}, {"": after.detach()})
        assert torch.equal(layer.weight, after.bfloat16())
    assert shares[False] < 0.05, "what is measured here no longer shows the fault"
    assert shares[True] > 0.999


def test_a_run_in_bfloat16_updates_as_one_in_float32(tmp_path: Path) -> None:
    """20 updates at 1e-6: the float32 weights of the checkpoint, against where training started."""
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        checkpoint = half(dtype)
        before = {n: p.detach().float().clone() for n, p in checkpoint.backbone.named_parameters()}
        folder = tmp_path / str(dtype)
        train(folder, checkpoint, learning_rate=1e-6, max_steps=20, save_steps=20)
        if dtype == torch.bfloat16:
            masters = MasterWeights(checkpoint.backbone)
            masters.load(folder / "checkpoint-20")
            after = {name: p.detach() for name, p in masters.wide.items()}
        else:
            after = {n: p.detach() for n, p in checkpoint.backbone.named_parameters() if p.requires_grad}
        moved[dtype] = torch.cat([(after[n] - before[n]).flatten() for n in sorted(after)])
    wide, narrow = moved[torch.float32], moved[torch.bfloat16]
    assert (narrow != 0).sum() > 0.99 * (wide != 0).sum()
    assert torch.cosine_similarity(wide, narrow, dim=0) > 0.9


def test_a_resumed_run_in_bfloat16_is_the_unbroken_one(tmp_path: Path) -> None:
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    one, two = half(), half()
    train(whole, one, learning_rate=1e-4, max_steps=4)
    train(rest, two, learning_rate=1e-4, max_steps=4, resume_from_checkpoint=str(whole / "checkpoint-2"))
    assert [line["loss"] for line in metrics(rest)] == [line["loss"] for line in metrics(whole)][2:]
    for a, b in zip(one.backbone.parameters(), two.backbone.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (whole / "checkpoint-4" / MASTERS).is_file()
    assert not (whole / "final" / MASTERS).exists()
    assert load_checkpoint(whole / "final").backbone.dtype == torch.bfloat16


def test_without_its_float32_weights_a_checkpoint_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "run", half(), learning_rate=1e-4, max_steps=2)
    path = tmp_path / "run" / "checkpoint-2" / MASTERS
    resume = {"resume_from_checkpoint": str(tmp_path / "run" / "checkpoint-2")}
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ConfigError, match=r"checkpoint-2 has another content in masters\.safetensors"):
        train(tmp_path / "rest", half(), learning_rate=1e-4, max_steps=4, **resume)
    state = vars(RunState.read(path.parent))
    RunState(**state | {"digests": {}}).write(path.parent)  # as where the damage is between what is read
    with pytest.raises(CheckpointError, match=r"masters\.safetensors: the float32 weights cannot be read"):
        train(tmp_path / "rest", half(), learning_rate=1e-4, max_steps=4, **resume)
    path.unlink()
    with pytest.raises(ConfigError, match=r"checkpoint-2 has no masters\.safetensors"):
        train(tmp_path / "other", half(), learning_rate=1e-4, max_steps=4, **resume)


def update(folder: Path, number: int, each: int, accumulation: int) -> dict[str, torch.Tensor]:
    """The gradients of an update in bfloat16, of one forward for each sample."""
    checkpoint, keep = half(), KeepGradients()
    sizes = {"per_device_train_batch_size": each, "gradient_accumulation_steps": accumulation}
    values = (
        BASE | sizes | {"max_tokens_per_forward": 1, "max_steps": 1, "max_grad_norm": 0.0, "save_steps": 0}
    )
    config = make_config(DiftConfig, values | {"output_dir": str(folder)})
    train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, number), callbacks=[keep])
    return {name: gradient.double() for name, gradient in keep.gradients.items()}


def test_gradients_of_many_forwards_add_up_in_float32(tmp_path: Path) -> None:
    """Against the exact sum of what the forwards give, which in bfloat16 is off by more with every one."""
    checkpoint = half()
    right, narrow = added(checkpoint, samples(checkpoint, 64))
    ours = update(tmp_path, 64, 32, 2)
    assert ours.keys() == right.keys()
    assert difference(narrow, right) > 0.008
    assert difference(ours, right) < 0.003  # of two roundings to 8 bits


def on_two_ranks(rank: int, folder: Path) -> None:
    torch.save(update(folder / "two", 16, 4, 2), folder / f"two{rank}")


def test_ranks_reduce_the_sums(tmp_path: Path) -> None:
    assert run_ranks(on_two_ranks, tmp_path) == [0, 0]
    one = update(tmp_path / "one", 16, 8, 2)
    two = [torch.load(tmp_path / f"two{rank}") for rank in (0, 1)]
    assert all(torch.equal(two[0][name], two[1][name]) for name in one)
    assert difference(two[0], one) < 0.01


def test_an_update_that_begins_anew_keeps_nothing_of_its_sums() -> None:
    layer = torch.nn.Linear(4, 4, bias=False).bfloat16()
    masters = MasterWeights(layer)
    for _ in range(2):
        with masters.sums():
            layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        assert layer.weight.grad is None
    masters.drop_sums()
    with masters.sums():
        layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    masters.round_sums()
    layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.full_like(layer.weight, 2.0))


def test_state_that_an_optimizer_has_before_its_first_step_goes_with_the_copies() -> None:
    layer = torch.nn.Linear(4, 4, bias=False).bfloat16()
    wide = torch.nn.Parameter(layer.weight.detach().float())
    masters, plain = MasterWeights(layer), torch.optim.Adagrad([wide], lr=0.1)
    optimizer = torch.optim.Adagrad(layer.parameters(), lr=0.1)
    masters.attach(optimizer)
    wide.grad = torch.full((4, 4), 0.5)
    layer.weight.grad = wide.grad.bfloat16()
    plain.step()
    optimizer.step()
    assert torch.equal(masters.wide["weight"], wide)
    assert optimizer.state[masters.wide["weight"]]["sum"].dtype == torch.float32


def test_float16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dtype: the weights are float16.*set dtype=bfloat16"):
        train(tmp_path / "run", half(torch.float16))


def test_float16_is_refused_under_deepspeed_without_bf16() -> None:
    """Nothing scales the loss there either."""
    layer = torch.nn.Linear(2, 2).half()
    with pytest.raises(ConfigError, match=r"dtype: the weights are float16 \(weight\).* or bf16=true"):
        check_float16(layer, divided=True, bf16=False)
    with pytest.raises(ConfigError, match=r"dtype: the weights are float16 \(weight\)"):
        check_float16(layer, divided=False, bf16=True)
    check_float16(layer, divided=True, bf16=True)
    check_float16(layer.requires_grad_(False), divided=True, bf16=False)
