"""The GRPO family of losses from per-token log-probabilities; ``_policy`` has the formulas."""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import NAMESPACE, accumulation_dtype, use_triton
from ._policy import (
    LOSS_TYPES,
    PER_LENGTH,
    PER_SEQUENCE,
    SUMS,
    Policy,
    check_like,
    check_policy,
    metrics_of,
    policy_terms,
    token_scale,
)

__all__ = ["LOSS_TYPES", "PER_SEQUENCE", "grpo_token_loss", "top_entropy_mask"]


def top_entropy_mask(entropy: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """The ``fraction`` of the tokens in ``mask`` with the highest entropy (ties kept), without a sync."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it must be above 0 and at most 1")
    values = entropy.detach().masked_fill(~mask, -math.inf).flatten()
    if values.numel() == 0:
        return mask.clone()
    count = (mask.sum() * fraction).ceil().long().clamp(min=1)
    return mask & (entropy >= values.sort(descending=True).values[count - 1])


def _reference(
    policy: Policy, logprobs: Tensor, advantages: Tensor, mask: Tensor, old: Tensor | None,
    ref: Tensor | None, sampler: Tensor | None, entropy: Tensor | None, entropy_mask: Tensor | None,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    wide = accumulation_dtype(logprobs)

    def counted(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.where(mask, values.to(wide), 0.0)

    current, before = counted(logprobs), counted(logprobs if old is None else old)
    spread = counted(advantages if advantages.dim() == 2 else advantages[:, None])
    assert current is not None and before is not None and spread is not None  # noqa: PT018
    share = torch.where(mask, scale, 0.0)
    log_ratio = current - before
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    if policy.loss_type in PER_LENGTH:
        share = share / lengths
    if policy.loss_type == "gspo":
        log_ratio = (log_ratio.sum(dim=1, keepdim=True) / lengths).expand_as(current)
    term, slope, away, sums = policy_terms(
        policy, logprobs=current, log_ratio=log_ratio, old=before, advantages=spread, counted=mask,
        ref=counted(ref), sampler=counted(sampler), entropy=counted(entropy), entropy_mask=entropy_mask,
    )  # fmt: skip
    if policy.loss_type == "gspo":  # the ratio of a sequence moves with each of its tokens
        slope = slope.sum(dim=1, keepdim=True) / lengths
    entropy_grad = share * -policy.entropy_coef if policy.entropy_coef else share.new_empty(0)
    return (term * share).sum(), (slope + away) * share, entropy_grad, sums


@triton.jit
def _load(pointer, offsets, counted):
    return tl.load(pointer + offsets, mask=counted, other=0.0).to(tl.float32)


@triton.jit
def _policy(lp, log_ratio, advantage, low, high, delta, CISPO: tl.constexpr):
    """The policy term and its derivative in the log-probability, which for cispo is not that of the ratio."""
    ratio = tl.exp(log_ratio)
    term = ratio
    slope = ratio
    if CISPO:
        slope = -tl.minimum(ratio, high) * advantage
        term = slope * lp
    else:
        clipped = tl.minimum(tl.maximum(ratio, low), high) * advantage
        free = tl.minimum(ratio, delta) * advantage
        moves = tl.where(free <= clipped, ratio <= delta, (ratio >= low) & (ratio <= high))
        term = -tl.minimum(free, clipped)
        slope = tl.where(moves, -ratio * advantage, 0.0)
    return term, slope


@triton.jit(do_not_specialize=["length", "advantage_stride", "advantage_step"])
def _kernel(
    logprobs_ptr, advantages_ptr, mask_ptr, old_ptr, ref_ptr, sampler_ptr, entropy_ptr, entropy_mask_ptr,
    scale_ptr, loss_ptr, grad_ptr, entropy_grad_ptr, sums_ptr, length, advantage_stride, advantage_step,
    beta, low, high, delta, sampler_cap, entropy_coef,
    SEQUENCE: tl.constexpr, CISPO: tl.constexpr, PER_LENGTH: tl.constexpr, K2: tl.constexpr,
    SUMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    base = row * length
    advantages_ptr += row * advantage_stride
    lanes = tl.arange(0, BLOCK)

    share = tl.load(scale_ptr)
    counts = tl.zeros([BLOCK], tl.float32)
    items = 1.0
    mean_ratio = 0.0
    if PER_LENGTH:
        ratios = tl.zeros([BLOCK], tl.float32)
        for start in range(0, length, BLOCK):
            offsets = base + start + lanes
            counted = tl.load(mask_ptr + offsets, mask=start + lanes < length, other=0) != 0
            counts += counted.to(tl.float32)
            if SEQUENCE and old_ptr is not None:
                ratios += _load(logprobs_ptr, offsets, counted) - _load(old_ptr, offsets, counted)
        items = tl.maximum(tl.sum(counts, axis=0), 1.0)
        mean_ratio = tl.sum(ratios, axis=0) / items
        share = share / items

    # A sequence-level ratio moves with every token: sum its slopes before any gradient can be written.
    slopes = tl.zeros([BLOCK], tl.float32)
    if SEQUENCE:
        for start in range(0, length, BLOCK):
            offsets = base + start + lanes
            counted = tl.load(mask_ptr + offsets, mask=start + lanes < length, other=0) != 0
            lp = _load(logprobs_ptr, offsets, counted)
            advantage = _load(advantages_ptr, (start + lanes) * advantage_step, counted)
            _, slope = _policy(lp, mean_ratio + lanes * 0.0, advantage, low, high, delta, CISPO)
            if entropy_mask_ptr is not None:
                slope = tl.where(tl.load(entropy_mask_ptr + offsets, mask=counted, other=0) != 0, slope, 0.0)
            if sampler_ptr is not None:
                old = lp
                if old_ptr is not None:
                    old = _load(old_ptr, offsets, counted)
                slope *= tl.minimum(tl.exp(old - _load(sampler_ptr, offsets, counted)), sampler_cap)
            slopes += slope
    sequence_slope = tl.sum(slopes, axis=0) / items

    loss = tl.zeros([BLOCK], tl.float32)
    sum_ratio = tl.zeros([BLOCK], tl.float32)
    sum_low = tl.zeros([BLOCK], tl.float32)
    sum_high = tl.zeros([BLOCK], tl.float32)
    sum_delta = tl.zeros([BLOCK], tl.float32)
    sum_kl = tl.zeros([BLOCK], tl.float32)
    sum_entropy = tl.zeros([BLOCK], tl.float32)
    sum_gap = tl.zeros([BLOCK], tl.float32)
    max_gap = tl.zeros([BLOCK], tl.float32)
    for start in range(0, length, BLOCK):
        inside = start + lanes < length
        offsets = base + start + lanes
        counted = tl.load(mask_ptr + offsets, mask=inside, other=0) != 0
        lp = _load(logprobs_ptr, offsets, counted)
        old = lp
        if old_ptr is not None:
            old = _load(old_ptr, offsets, counted)
        advantage = _load(advantages_ptr, (start + lanes) * advantage_step, counted)
        log_ratio = lp - old
        if SEQUENCE:
            log_ratio = mean_ratio + lanes * 0.0
        term, slope = _policy(lp, log_ratio, advantage, low, high, delta, CISPO)
        ratio = tl.exp(log_ratio)
        if not PER_LENGTH:
            counts += counted.to(tl.float32)
        sum_ratio += tl.where(counted, ratio, 0.0)
        sum_high += (counted & (ratio > high) & (advantage > 0)).to(tl.float32)
        sum_low += (counted & (ratio < low) & (advantage < 0)).to(tl.float32)
        sum_delta += (counted & (ratio > delta) & (advantage < 0)).to(tl.float32)
        if entropy_mask_ptr is not None:
            kept = tl.load(entropy_mask_ptr + offsets, mask=counted, other=0) != 0
            term = tl.where(kept, term, 0.0)
            slope = tl.where(kept, slope, 0.0)
        if sampler_ptr is not None:
            gap = old - _load(sampler_ptr, offsets, counted)
            weight = tl.minimum(tl.exp(gap), sampler_cap)
            term *= weight
            slope *= weight
            sum_gap += tl.abs(gap)
            max_gap = tl.maximum(max_gap, tl.abs(gap))
        if SEQUENCE:
            slope = sequence_slope + lanes * 0.0
        if ref_ptr is not None:
            difference = _load(ref_ptr, offsets, counted) - lp
            if K2:
                divergence = 0.5 * difference * difference
                slope -= beta * difference
            else:
                divergence = tl.exp(difference) - difference - 1.0
                slope += beta * (1.0 - tl.exp(difference))
            term += beta * divergence
            sum_kl += divergence
        if entropy_ptr is not None:
            entropy = _load(entropy_ptr, offsets, counted)
            term -= entropy_coef * entropy
            sum_entropy += entropy
            if entropy_grad_ptr is not None:
                entropy_slope = tl.where(counted, -entropy_coef * share, 0.0)
                tl.store(entropy_grad_ptr + offsets, entropy_slope, mask=inside)
        loss += tl.where(counted, term, 0.0)
        tl.store(grad_ptr + offsets, tl.where(counted, slope * share, 0.0), mask=inside)
    tl.store(loss_ptr + row, tl.sum(loss, axis=0) * share)
    sums_ptr += row * SUMS
    tl.store(sums_ptr, tl.sum(counts, axis=0))
    tl.store(sums_ptr + 1, tl.sum(sum_ratio, axis=0))
    tl.store(sums_ptr + 2, tl.sum(sum_low, axis=0))
    tl.store(sums_ptr + 3, tl.sum(sum_high, axis=0))
    tl.store(sums_ptr + 4, tl.sum(sum_delta, axis=0))
    tl.store(sums_ptr + 5, tl.sum(sum_kl, axis=0))
    tl.store(sums_ptr + 6, tl.sum(sum_entropy, axis=0))
    tl.store(sums_ptr + 7, tl.sum(sum_gap, axis=0))
    tl.store(sums_ptr + 8, tl.max(max_gap, axis=0))


def _fused(
    policy: Policy, logprobs: Tensor, advantages: Tensor, mask: Tensor, old: Tensor | None,
    ref: Tensor | None, sampler: Tensor | None, entropy: Tensor | None, entropy_mask: Tensor | None,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows, length = logprobs.shape
    losses = torch.zeros(rows, dtype=torch.float32, device=logprobs.device)
    grad = torch.empty(rows, length, dtype=torch.float32, device=logprobs.device)
    entropy_grad = torch.empty_like(grad) if policy.entropy_coef else None
    sums = torch.zeros(rows, len(SUMS), dtype=torch.float32, device=logprobs.device)
    if rows and length:
        step = 1 if advantages.dim() == 2 else 0
        bytes_ = [None if t is None else t.contiguous().view(torch.uint8) for t in (mask, entropy_mask)]
        dense = [None if t is None else t.contiguous() for t in (old, ref, sampler, entropy)]
        advantages = advantages.contiguous()
        _kernel[(rows,)](
            logprobs.contiguous(), advantages, bytes_[0], *dense, bytes_[1], scale, losses, grad,
            entropy_grad, sums, length, advantages.stride(0), step, *policy.numbers(),
            SEQUENCE=policy.loss_type == "gspo", CISPO=policy.loss_type == "cispo",
            PER_LENGTH=policy.loss_type in PER_LENGTH, K2=policy.kl == "k2", SUMS=len(SUMS),
            BLOCK=512, num_warps=4,
        )  # fmt: skip
    largest = torch.cat((sums[:, -1], sums.new_zeros(1))).amax()
    totals = torch.cat((sums[:, :-1].sum(dim=0), largest[None]))
    return losses.sum(), grad, grad.new_empty(0) if entropy_grad is None else entropy_grad, totals


@torch.library.custom_op(f"{NAMESPACE}::grpo_token_loss", mutates_args=())
def _loss_op(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    old: Tensor | None,
    ref: Tensor | None,
    sampler: Tensor | None,
    entropy: Tensor | None,
    entropy_mask: Tensor | None,
    scale: Tensor,
    loss_type: str,
    kl: str,
    numbers: list[float],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, its gradients in ``logprobs`` and (if it has a weight) ``entropy``, and the ``SUMS``."""
    run = _fused if use_triton(backend, logprobs) else _reference
    return run(
        Policy(loss_type, kl, *numbers), logprobs, advantages, mask, old, ref, sampler, entropy, entropy_mask,
        scale,
    )  # fmt: skip


@_loss_op.register_fake
def _(
    logprobs: Tensor, advantages: Tensor, mask: Tensor, old: Tensor | None, ref: Tensor | None,
    sampler: Tensor | None, entropy: Tensor | None, entropy_mask: Tensor | None, scale: Tensor,
    loss_type: str, kl: str, numbers: list[float], backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad = torch.empty(logprobs.shape, dtype=accumulation_dtype(logprobs), device=logprobs.device)
    entropy_grad = torch.empty_like(grad) if numbers[-1] else grad.new_empty(0)
    return grad.new_empty(()), grad, entropy_grad, grad.new_empty(len(SUMS))


class _GrpoTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logprobs: Tensor,
        entropy: Tensor | None,
        tensors: tuple[Tensor | None, ...],
        policy: Policy,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        advantages, mask, old, ref, sampler, entropy_mask, scale = tensors
        loss, grad, entropy_grad, sums = _loss_op(
            logprobs, advantages, mask, old, ref, sampler, entropy, entropy_mask, scale, policy.loss_type,
            policy.kl, policy.numbers(), backend,
        )  # fmt: skip
        ctx.save_for_backward(grad, entropy_grad)
        ctx.dtype = logprobs.dtype
        ctx.entropy_dtype = entropy.dtype if entropy is not None and policy.entropy_coef else None
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad, entropy_grad = ctx.saved_tensors
        for_entropy = None if ctx.entropy_dtype is None else (entropy_grad * upstream).to(ctx.entropy_dtype)
        return (grad * upstream).to(ctx.dtype), for_entropy, None, None, None


def grpo_token_loss(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
    entropy_mask: Tensor | None = None,
    loss_type: str = "grpo",
    kl: str = "k3",
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    sampler_cap: float = 2.0,
    entropy_coef: float = 0.0,
    max_length: int | None = None,
    num_items: Tensor | float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Scalar loss of ``logprobs`` [R, T] and metrics; see ``_policy`` for the formulas.

    ``advantages`` [R] or [R, T]; ``mask`` [R, T] bool, true where the policy chose the token: all else,
    NaN included, is ignored and gets gradient 0. ``old_logprobs`` [R, T] are those before the first update
    on this batch (None: this is the first update, the ratio is 1 with gradient). ``beta`` weighs the KL to
    ``ref_logprobs`` by estimator ``kl``. With ``sampler_logprobs`` the policy term is multiplied by
    min(exp(old - sampler), ``sampler_cap``), truncated importance sampling on the gap between sampler and
    trainer. ``entropy_coef`` times ``entropy`` is subtracted; ``entropy_mask`` [R, T] bool (see
    ``top_entropy_mask``) keeps the policy term only where it is true. ``epsilon_high`` defaults to
    ``epsilon``; ``delta`` bounds the ratio for negative advantages (dual clip).

    ``num_items`` is the global normaliser, a number or a scalar tensor: sequences for grpo, gspo and dr_grpo
    (which divides by ``num_items * max_length``), tokens for bnpo, dapo and cispo. By default this batch's
    own. A sequence without counted tokens counts as a sequence and adds 0.

    On CUDA one launch computes loss, gradients and the sums behind the metrics.

    Returns the loss in float32 (float64 for float64 ``logprobs``) and token means, detached, of ``ratio``,
    ``clip_low``, ``clip_high``, and where they apply ``clip_delta``, ``kl``, ``entropy``, ``sampler_gap``
    (with ``sampler_gap_max``). Raises ``ValueError`` for shapes or options that do not fit, and for k1.
    """
    policy = check_policy(
        loss_type=loss_type, kl=kl, beta=beta, epsilon=epsilon, epsilon_high=epsilon_high, delta=delta,
        sampler_cap=sampler_cap, entropy_coef=entropy_coef, max_length=max_length,
    )  # fmt: skip
    if logprobs.dim() != 2:
        raise ValueError(f"logprobs is {tuple(logprobs.shape)}; it must be [R, T]")
    rows = logprobs.shape[0]
    if advantages.shape not in ((rows,), logprobs.shape):
        raise ValueError(
            f"advantages is {tuple(advantages.shape)}; it must be ({rows},) or {tuple(logprobs.shape)}"
        )
    check_like(
        logprobs, mask, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs,
        sampler_logprobs=sampler_logprobs, entropy=entropy, entropy_mask=entropy_mask,
    )  # fmt: skip
    if beta and ref_logprobs is None:
        raise ValueError(f"beta is {beta}, but there are no ref_logprobs; pass them or beta=0")
    if entropy_coef and entropy is None:
        raise ValueError(
            f"entropy_coef is {entropy_coef}, but there is no entropy; pass it or entropy_coef=0"
        )
    scale = token_scale(policy, num_items, rows, mask, max_length, accumulation_dtype(logprobs))
    loss, sums = _GrpoTokenLoss.apply(
        logprobs, entropy,
        (advantages.detach(), mask, old_logprobs, ref_logprobs, sampler_logprobs, entropy_mask, scale),
        policy, backend,
    )  # fmt: skip
    return loss, metrics_of(
        policy, sums, ref=ref_logprobs, entropy=entropy is not None, sampler=sampler_logprobs
    )
