"""Heads whose weights are sliced over ranks, given to the ops as FSDP2 and ZeRO-3 leave them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DeviceMesh, DTensor, Shard, distribute_tensor, init_device_mesh

from fourdthinker.kernels import GrpoOptions, linear_cross_entropy, linear_grpo_loss, linear_logprobs
from tests.processes import run_ranks

RANKS, WIDTH, VOCAB = 2, 5, 7  # 7 ids do not divide between two ranks


def data(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    target = torch.randint(0, VOCAB, (2, 3), generator=generator)
    return torch.randn(2, 3, WIDTH, generator=generator, dtype=torch.float64), target


def head() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64)
    return weight, torch.randn(VOCAB, generator=generator, dtype=torch.float64)


def grpo(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
    advantages = torch.tensor([0.5, -1.0], dtype=torch.float64)
    mask = torch.ones_like(target, dtype=torch.bool)
    options = GrpoOptions(entropy_coef=0.1)
    return linear_grpo_loss(
        hidden, weight, target, options, advantages=advantages, mask=mask, bias=bias, softcap=3.0
    )[0]  # fmt: skip


OPS: list[Callable[..., Tensor]] = [
    lambda x, w, t, b: linear_cross_entropy(x, w, t, bias=b, softcap=3.0),
    lambda x, w, t, b: linear_logprobs(x, w, t, bias=b, softcap=3.0, return_entropy=True)[1].sum(),
    grpo,
]


def plain(op: Callable[..., Tensor], rank: int) -> tuple[Tensor, ...]:
    """Loss, gradient of the hidden states, of the weight and of the bias on one rank."""
    hidden, target = data(rank)
    leaves = [leaf.requires_grad_() for leaf in (hidden, *head())]
    loss = op(leaves[0], leaves[1], target, leaves[2])
    loss.backward()
    return loss.detach(), *(leaf.grad for leaf in leaves)  # type: ignore[misc]


class Tied(nn.Module):
    """Hidden states from the rows of the very matrix that the head multiplies with."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(head()[0], freeze=False)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.table(ids))


def tied_loss(op: Callable[..., Tensor], module: Tied, rank: int) -> Tensor:
    target = data(rank)[1]
    return op(module(target.flip(1)), module.table.weight, target, None)


def tied(op: Callable[..., Tensor], rank: int, mesh: DeviceMesh) -> None:
    """The gradient of a tied head is the mean over ranks of both parts, of the embedding and of the head."""
    whole = Tied()
    for other in range(RANKS):
        (tied_loss(op, whole, other) / RANKS).backward()
    sliced = Tied()
    fully_shard(sliced, mesh=mesh)
    tied_loss(op, sliced, rank).backward()
    found, want = sliced.table.weight.grad, whole.table.weight.grad
    assert isinstance(found, DTensor)
    assert want is not None
    torch.testing.assert_close(found.full_tensor(), want)


def one_rank(rank: int, folder: Path) -> None:
    """In each of two processes: the ops on the weights of a sharded module, and on sliced columns."""
    mesh = init_device_mesh("cpu", (RANKS,))
    for op in OPS:
        module = nn.Linear(WIDTH, VOCAB, dtype=torch.float64)
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), head(), strict=True):
                parameter.copy_(value)
        fully_shard(module, mesh=mesh)
        hidden, target = data(rank)
        loss = op(hidden.requires_grad_(), module.weight, target, module.bias)
        loss.backward()
        want = [plain(op, other) for other in range(RANKS)]
        torch.testing.assert_close(loss, want[rank][0])
        torch.testing.assert_close(hidden.grad, want[rank][1])
        for parameter, ours in ((module.weight, 2), (module.bias, 3)):
            assert isinstance(parameter.grad, DTensor)
            assert parameter.grad.placements == (Shard(0),)
            mean = torch.stack([other[ours] for other in want]).mean(0)
            torch.testing.assert_close(parameter.grad.full_tensor(), mean)
        frozen = distribute_tensor(head()[0], mesh, [Shard(1)])
        torch.testing.assert_close(op(hidden, frozen, target, head()[1]), want[rank][0])
        tied(op, rank, mesh)
    with pytest.raises(ValueError, match=r"input is a DTensor; pass input.to_local\(\)"):
        linear_logprobs(distribute_tensor(hidden.detach(), mesh, [Shard(0)]), head()[0], target)


def test_weights_of_fsdp2_are_gathered_and_their_gradients_are_the_mean(tmp_path: Path) -> None:
    assert run_ranks(one_rank, tmp_path) == [0] * RANKS


@pytest.mark.parametrize("op", OPS)
def test_zero3_weights_work_within_gathered_parameters_and_are_refused_outside(op: Any) -> None:
    """As DeepSpeed does: the data is empty, whole within the block, and empty again after it."""
    want = plain(op, 0)
    hidden, target = data(0)
    weight, bias = (nn.Parameter(value) for value in head())
    whole = weight.data
    weight.ds_shape, weight.data = weight.shape, torch.empty(0, dtype=torch.float64)  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match=r"weight \(7, 5\) is sliced over ranks by ZeRO-3; .*GatheredParameters"
    ):
        op(hidden, weight, target, bias)
    weight.data = whole
    op(hidden, weight, target, bias).backward()
    torch.testing.assert_close(weight.grad, want[2])
    torch.testing.assert_close(bias.grad, want[3])
