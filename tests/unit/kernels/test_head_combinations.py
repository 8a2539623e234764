"""linear_grpo_loss and linear_cross_entropy under drawn combinations of all that they take, in float64.

The formulas stand here once more, as plain sums of whole tensors, and autograd differentiates them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fourdthinker.kernels import GrpoOptions, linear_cross_entropy, linear_grpo_loss
from tests.unit.kernels.options import KINDS

ROWS, LENGTH, WIDTH, VOCAB = 3, 5, 6, 37
EXACT = torch.float64
TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-5, torch.bfloat16: 3e-2}  # of gradients


@dataclass(frozen=True)
class Combination:
    """What a call is given; ``trained`` names the leaves with a gradient: hidden states, head, bias."""

    kind: str
    dtype: torch.dtype
    softcap: float | None
    temperature: float
    entropy_coef: float
    mask: str
    trained: str
    strided: bool
    has_old: bool
    bias: bool


def draw(each: int, dtypes: tuple[torch.dtype, ...]) -> list[Combination]:
    """``each`` combinations of every kind of loss, the same in every run."""
    chance = random.Random(19)
    return [
        Combination(
            kind, chance.choice(dtypes), chance.choice((None, 3.0, 300.0)), chance.choice((1.0, 0.6)),
            chance.choice((0.0, 0.07)), chance.choice(("all", "part", "one", "none")),
            trained := chance.choice(("xwb", "xw", "x", "w", "b")), chance.random() < 0.5,
            chance.random() < 0.5, "b" in trained or chance.random() < 0.3,
        )
        for kind in KINDS
        for _ in range(each)
    ]  # fmt: skip


def mask_of(name: str) -> Tensor:
    """[ROWS, LENGTH]; of a part one whole sequence is left out."""
    mask = torch.full((ROWS, LENGTH), name == "all")
    if name == "part":
        mask[0, 1:], mask[1, ::2] = True, True
    if name == "one":
        mask[1, 2] = True
    return mask


def scores(case: Combination, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    z = x @ weight.T + (bias if case.bias else 0.0)
    return (case.softcap * (z / case.softcap).tanh() if case.softcap else z) / case.temperature


def mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def policy_terms(options: GrpoOptions, logp: Tensor, old: Tensor, gain: Tensor, mask: Tensor) -> Tensor:
    """[ROWS, LENGTH], without KL and entropy."""
    log_ratio = torch.where(mask, logp - old, 0.0)
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    if options.loss_type == "vespo":
        log_ratio = log_ratio.sum(1, keepdim=True).expand_as(logp)
    elif options.ratio_level == "sequence":
        log_ratio = (log_ratio.sum(1, keepdim=True) / lengths).expand_as(logp)
    ratio = log_ratio.exp()
    if options.loss_type == "cispo":
        return -ratio.detach().clamp(max=options.high) * gain * logp
    if options.loss_type == "sapo":
        heat = torch.where(gain > 0, 1.0, 1.05).to(EXACT)
        return -4 / heat * torch.sigmoid(heat * (ratio - 1)) * gain
    if options.loss_type == "vespo":
        power, decay = torch.where(gain > 0, 2.0, 3.0), torch.where(gain > 0, 3.0, 2.0)
        return -(ratio**power * torch.exp(decay * (1 - ratio))).detach() * gain * logp
    return -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)


def exact_loss(
    options: GrpoOptions, logp: Tensor, entropy: Tensor, old: Tensor, ref: Tensor, gain: Tensor, mask: Tensor
) -> Tensor:
    difference = ref - logp
    terms = policy_terms(options, logp, old, gain, mask) + options.beta * (difference.exp() - difference - 1)
    terms = torch.where(mask, terms, 0.0)
    kind = options.loss_type
    if kind in ("grpo", "sapo"):
        loss = (terms.sum(1) / mask.sum(1).clamp(min=1)).mean()
    elif kind in ("bnpo", "dapo", "cispo", "vespo"):
        loss = terms.sum() / mask.sum().clamp(min=1)
    else:
        loss = terms.sum() / ROWS / (1 if kind == "luspo" else options.max_length or 1)
    return loss - options.entropy_coef * mean(entropy, mask)


def apart(tensor: Tensor) -> Tensor:
    """The same numbers, every second of a larger tensor."""
    return torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)[..., ::2].copy_(tensor)


def check(case: Combination, backend: str) -> None:
    """Loss, log-probabilities, statistics and gradients of both losses."""
    generator = torch.Generator().manual_seed(7)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=EXACT)

    given = [each.to(case.dtype) for each in (randn(ROWS, LENGTH, WIDTH), randn(VOCAB, WIDTH), randn(VOCAB))]
    target, mask = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator), mask_of(case.mask)
    gain, moved, ref = randn(ROWS), 0.3 * randn(ROWS, LENGTH), 0.3 * randn(ROWS, LENGTH)
    wide = EXACT if case.dtype == EXACT else torch.float32

    exact = [each.to(EXACT, copy=True).requires_grad_() for each in given]
    z = scores(case, exact[0], exact[1], exact[2])
    log_p = z.log_softmax(-1)
    logp, entropy = log_p.gather(-1, target[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)
    ref, old = (ref + logp).detach(), (moved * case.has_old + logp).detach()
    loss_type, level = case.kind.split()
    options = GrpoOptions(
        loss_type=loss_type, ratio_level=level, beta=0.1, entropy_coef=case.entropy_coef, max_length=9
    )
    statistics = {
        "entropy": entropy, "top1": (logp >= log_p.amax(-1)).double(),
        "sum_p2": log_p.exp().square().sum(-1), "mean_logit": z.mean(-1),
    }  # fmt: skip
    gains = gain[:, None].expand_as(logp)
    want = {
        "grpo": exact_loss(options, logp, entropy, old, ref, gains, mask), "cross entropy": -mean(logp, mask),
    }  # fmt: skip
    for op, right in want.items():
        own = [
            (apart(each) if case.strided else each.clone()).requires_grad_(name in case.trained)
            for name, each in zip("xwb", given, strict=True)
        ]
        more: dict[str, Any] = {
            "bias": own[2] if case.bias else None, "temperature": case.temperature, "softcap": case.softcap,
            "chunk_rows": 4, "backend": backend,
        }  # fmt: skip
        if op == "grpo":
            loss, current, found = linear_grpo_loss(
                own[0], own[1], target, options, advantages=gain.to(wide), mask=mask,
                old_logprobs=old.to(wide) if case.has_old else None, ref_logprobs=ref.to(wide),
                return_statistics=True, **more,
            )  # fmt: skip
            torch.testing.assert_close(
                current.to(EXACT), torch.where(mask, logp.detach(), 0.0), rtol=0, atol=1e-5
            )
        else:
            labels = torch.where(mask, target, -100)
            loss, means = linear_cross_entropy(own[0], own[1], labels, return_statistics=True, **more)
            found = means._asdict()
        torch.testing.assert_close(loss.detach().to(EXACT), right.detach(), rtol=3e-5, atol=3e-5)
        for name, values in statistics.items():
            torch.testing.assert_close(
                found[name].to(EXACT), mean(values, mask).detach(), rtol=1e-5, atol=1e-5
            )
        (1.5 * loss).backward()
        grads = torch.autograd.grad(1.5 * right, exact, retain_graph=True, allow_unused=True)
        for mine, gradient in zip(own, grads, strict=True):
            if mine.requires_grad:
                assert mine.grad is not None
                gradient = torch.zeros_like(mine, dtype=EXACT) if gradient is None else gradient
                size = max(1.0, float(gradient.abs().max()))
                error = float((mine.grad.to(EXACT) - gradient).abs().max()) / size
                assert error <= TOLERANCE[case.dtype], f"{op}: a gradient of {size} is off by {error}"


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_combinations_against_float64(kind):
    cases = [one for one in draw(12, (torch.float64, torch.float32, torch.bfloat16)) if one.kind == kind]
    assert len(cases) == 12
    for case in cases:
        check(case, "torch")
