"""The terms of one token in the GRPO family, in PyTorch and in Triton; ``_grpo_losses`` has the formulas."""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._grpo_losses import GrpoOptions

# The weight of vespo is 0 for larger ratios; infinity would make it the difference of two. A weight for the
# sampler beyond it would make 0 NaN.
_LARGEST_RATIO: tl.constexpr = tl.constexpr(1e30)
_LEAST_WEIGHT: tl.constexpr = tl.constexpr(1e-30)


def policy_term(
    options: GrpoOptions, logprobs: Tensor, ratio: Tensor, advantages: Tensor
) -> tuple[Tensor, Tensor]:
    """The policy term of each token and its slope (see ``_grpo_losses``), all tensors of one shape.

    An advantage of 0 gives 0 and slope 0, for an infinite ratio too (their product is NaN). A ratio that is
    NaN gives NaN.
    """
    idle = (advantages == 0) & ~ratio.isnan()
    if options.term == "cispo":
        slope = torch.where(idle, 0.0, -ratio.clamp(max=options.high) * advantages)
        return torch.where(idle, 0.0, slope * logprobs), slope
    if options.term == "sapo":
        heat = torch.full_like(ratio, options.sapo_negative)
        heat = heat.masked_fill(advantages > 0, options.sapo_positive)
        soft = torch.sigmoid(heat * (ratio - 1))
        rise = torch.where(soft == 1, 0.0, soft * (1 - soft) * ratio)  # far above, where r may be infinite
        term = torch.where(idle, 0.0, -4 / heat * soft * advantages)
        return term, torch.where(idle, 0.0, -4 * rise * advantages)
    if options.term == "vespo":
        rate, power, other_rate, other_power = options.shape
        rates = torch.full_like(ratio, other_rate).masked_fill(advantages > 0, rate)
        powers = torch.full_like(ratio, other_power).masked_fill(advantages > 0, power)
        held = ratio.clamp(max=_LARGEST_RATIO.value)
        weight = (rates * (1 - held) + powers * held.log()).exp()
        slope = torch.where(idle, 0.0, -weight * advantages)
        return torch.where(idle, 0.0, slope * logprobs), slope
    free = ratio.clamp(max=options.ratio_bound) * advantages
    clipped = ratio.clamp(options.low, options.high) * advantages
    outside = (ratio < options.low) | (ratio > options.high)
    held = torch.where(free <= clipped, ratio > options.ratio_bound, outside)
    term = torch.where(idle, 0.0, -torch.minimum(free, clipped))
    return term, torch.where(held | idle, 0.0, -ratio * advantages)


@triton.jit
def smaller(a, b):
    """min(a, b), NaN where one of them is NaN: ``tl.minimum`` would drop it."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def fused_policy_term(
    lp, ratio, advantage, low, high, delta, rate, power, other_rate, other_power, TERM: tl.constexpr
):
    """``policy_term`` in a kernel; the four numbers before the term are its ``shape``."""
    idle = (advantage == 0.0) & (ratio == ratio)
    if TERM == "cispo":
        slope = tl.where(idle, 0.0, -smaller(ratio, high) * advantage)
        term = tl.where(idle, 0.0, slope * lp)
    elif TERM == "sapo":
        heat = tl.where(advantage > 0.0, rate, other_rate)
        soft = 1.0 / (1.0 + tl.exp(heat * (1.0 - ratio)))
        term = tl.where(idle, 0.0, -4.0 / heat * soft * advantage)
        slope = tl.where(idle | (soft == 1.0), 0.0, -4.0 * soft * (1.0 - soft) * ratio * advantage)
    elif TERM == "vespo":
        held = smaller(ratio, _LARGEST_RATIO)
        exponent = tl.where(advantage > 0.0, rate, other_rate) * (1.0 - held)
        exponent += tl.where(advantage > 0.0, power, other_power) * tl.log(held)
        slope = tl.where(idle, 0.0, -tl.exp(exponent) * advantage)
        term = tl.where(idle, 0.0, slope * lp)
    else:
        clipped = smaller(larger(ratio, low), high) * advantage
        free = smaller(ratio, delta) * advantage
        held = tl.where(free <= clipped, ratio > delta, (ratio < low) | (ratio > high))
        term = tl.where(idle, 0.0, -smaller(free, clipped))
        slope = tl.where(held | idle, 0.0, -ratio * advantage)
    return term, slope


def kl_term(options: GrpoOptions, logprobs: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
    """The KL estimate of each token and its slope in the log-probability."""
    difference = ref - logprobs
    if options.kl == "k2":
        return 0.5 * difference.square(), -difference
    return difference.exp() - difference - 1, 1 - difference.exp()


def sampler_weight(options: GrpoOptions, log_weight: Tensor) -> Tensor:
    """The weight of the policy term, from the log-prob difference of trainer and sampler. NaN stays NaN."""
    floor, cap = options.sampler_bounds
    weight = log_weight.exp().clamp(max=_LARGEST_RATIO.value)
    if options.sampler_excess == "mask":
        return torch.where((weight < floor) | (weight > cap), 0.0, weight)
    return weight.clamp(floor, cap)


def weighted(weight: Tensor, value: Tensor) -> Tensor:
    """Their product; 0 where either is 0, also with an infinite other. NaN stays NaN."""
    is_zero = ((weight == 0) & ~value.isnan()) | ((value == 0) & ~weight.isnan())
    return torch.where(is_zero, 0.0, weight * value)


def log_sampler_weight(options: GrpoOptions, log_weight: Tensor) -> Tensor:
    """The logarithm of ``sampler_weight``; of 0 that of a number that leaves nothing of a sequence."""
    return sampler_weight(options, log_weight).clamp(min=_LEAST_WEIGHT.value).log()


@triton.jit
def fused_log_sampler_weight(log_weight, floor, cap, MASKED: tl.constexpr):
    """``log_sampler_weight`` in a kernel."""
    return tl.log(larger(fused_sampler_weight(log_weight, floor, cap, MASKED), _LEAST_WEIGHT))


@triton.jit
def fused_sampler_weight(log_weight, floor, cap, MASKED: tl.constexpr):
    """``sampler_weight`` in a kernel."""
    weight = smaller(tl.exp(log_weight), _LARGEST_RATIO)
    if MASKED:
        return tl.where((weight < floor) | (weight > cap), 0.0, weight)
    return smaller(larger(weight, floor), cap)


@triton.jit
def fused_weighted(weight, value):
    """``weighted`` in a kernel."""
    is_zero = ((weight == 0.0) & (value == value)) | ((value == 0.0) & (weight == weight))
    return tl.where(is_zero, 0.0, weight * value)


@triton.jit
def fused_kl_term(lp, ref, KL: tl.constexpr):
    """``kl_term`` in a kernel."""
    difference = ref - lp
    if KL == "k2":
        divergence = 0.5 * difference * difference
        slope = -difference
    else:
        divergence = tl.exp(difference) - difference - 1.0
        slope = 1.0 - tl.exp(difference)
    return divergence, slope
