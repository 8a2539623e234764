"""The GRPO family of losses from per-token log-probabilities; ``_grpo_losses`` has the formulas."""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    NAMESPACE,
    accumulation_dtype,
    check_floating,
    check_number,
    check_tensors,
    once_differentiable,
    use_triton,
)
from ._gpu_architectures import launching
from ._grpo_losses import DEFAULTS, GrpoOptions, check_options
from ._grpo_metrics import LARGEST, METRICS, add_metrics, join, no_metrics, store_metrics
from ._grpo_reference import (
    check_like,
    check_reference,
    check_sampler,
    entropy_share,
    metrics_of,
    token_scale,
    token_terms,
)
from ._grpo_terms import (
    fused_kl_term,
    fused_log_sampler_weight,
    fused_policy_term,
    fused_sampler_weight,
    fused_weighted,
    log_sampler_weight,
)


def top_entropy_mask(entropy: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """The ``fraction`` of the counted tokens with the highest entropy, without a host synchronisation.

    Args:
        entropy: [R, T] in nats.
        mask: [R, T] bool, the tokens that count.
        fraction: above 0, at most 1.

    Returns:
        [R, T] bool, a part of ``mask``: the entropies of at least the (1 - fraction) quantile, as in TRL;
        ties at the border are all kept, and so is NaN, which makes the loss NaN.

    Raises:
        ValueError: shapes or dtypes do not fit, or the fraction is out of range.
    """
    check_tensors(entropy=entropy, mask=mask)
    check_floating(entropy=entropy)
    check_like(entropy, mask)
    check_number("fraction", fraction)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it must be above 0 and at most 1")
    values = entropy.detach().nan_to_num(math.inf, math.inf, -math.inf).masked_fill(~mask, -math.inf)
    if values.numel() == 0:
        return mask.clone()
    last = ((mask.sum() - 1).clamp(min=0) * fraction).floor().long()  # of those above the quantile
    return mask & (values >= values.flatten().sort(descending=True).values[last])


def _reference(
    options: GrpoOptions, logprobs: Tensor, advantages: Tensor, mask: Tensor, old: Tensor | None,
    ref: Tensor | None, sampler: Tensor | None, entropy: Tensor | None, entropy_mask: Tensor | None,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    wide = accumulation_dtype(logprobs)

    def counted(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.where(mask, values.to(wide), 0.0)

    current, before = counted(logprobs), counted(logprobs if old is None else old)
    spread = counted(advantages if advantages.dim() == 2 else advantages[:, None])
    assert current is not None and before is not None and spread is not None  # noqa: PT018
    share, bonus = torch.where(mask, scale[0], 0.0), torch.where(mask, -options.entropy_coef * scale[1], 0.0)
    log_ratio = current - before
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    if options.per_length:
        share = share / lengths
        bonus = bonus if options.averages_entropy else bonus / lengths
    surprise, drawn, log_weight = counted(entropy), counted(sampler), None
    if options.corrects_ratios and drawn is not None:
        log_ratio = log_ratio + torch.where(mask, log_sampler_weight(options, before - drawn), 0.0)
    if options.per_sequence:
        whole = log_ratio.sum(dim=1, keepdim=True)
        log_ratio = (whole if options.multiplies_ratios else whole / lengths).expand_as(current)
    if options.corrects_sequences and drawn is not None:
        log_weight = (before - drawn).sum(dim=1, keepdim=True).expand_as(current)
    if options.off_policy_bound is not None:
        drift = ((before if drawn is None else drawn) - current).sum(dim=1, keepdim=True) / lengths
        near = (spread >= 0) | (drift <= options.off_policy_bound)
        entropy_mask = near if entropy_mask is None else entropy_mask & near
    term, slope, kl_slope, sums = token_terms(
        options, logprobs=current, log_ratio=log_ratio, old=before, advantages=spread, counted=mask,
        ref=counted(ref), sampler=drawn, entropy=surprise, kept=entropy_mask, log_weight=log_weight,
    )  # fmt: skip
    if options.pools_slopes:  # the ratio of a sequence moves with each of its tokens
        slope = slope.sum(dim=1, keepdim=True) / lengths
    loss = (term * share).sum()
    if surprise is not None and options.entropy_coef:
        loss = loss + (surprise * bonus).sum()
    entropy_grad = bonus if options.entropy_coef else share.new_empty(0)
    return loss, (slope + kl_slope) * share, entropy_grad, sums


@triton.jit
def _load(pointer, offsets, counted):
    return tl.load(pointer + offsets, mask=counted, other=0.0).to(tl.float32)


@triton.jit
def _load_old(lp, old_ptr, offsets, counted):
    """The log-probabilities before the first update: at that update ``lp``, those of the policy."""
    if old_ptr is not None:
        return _load(old_ptr, offsets, counted)
    return lp


@triton.jit(do_not_specialize=["length", "advantage_stride", "advantage_step"])
def grpo_token_loss_kernel(
    logprobs_ptr, advantages_ptr, mask_ptr, old_ptr, ref_ptr, sampler_ptr, entropy_ptr, entropy_mask_ptr,
    scale_ptr, loss_ptr, grad_ptr, entropy_grad_ptr, sums_ptr, length, advantage_stride, advantage_step,
    beta, low, high, delta, rate, power, other_rate, other_power, sampler_floor, sampler_cap,
    off_policy_bound, entropy_coef, TERM: tl.constexpr, KL: tl.constexpr, KL_RATIO: tl.constexpr,
    PER_SEQUENCE: tl.constexpr, MULTIPLIES_RATIOS: tl.constexpr, POOLS_SLOPES: tl.constexpr,
    PER_LENGTH: tl.constexpr, MEAN_ENTROPY: tl.constexpr, CORRECTS_RATIOS: tl.constexpr,
    CORRECTS_TERMS: tl.constexpr, CORRECTS_SEQUENCES: tl.constexpr, MASKED: tl.constexpr,
    OFF_POLICY: tl.constexpr, METRICS: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program: one sequence. Its share of the loss and of the metrics, and the gradients of its tokens."""
    row = tl.program_id(0).to(tl.int64)
    base = row * length
    advantages_ptr += row * advantage_stride
    lanes = tl.arange(0, BLOCK)

    share = tl.load(scale_ptr)
    items = 1.0
    whole_ratio = 0.0
    log_weight = 0.0
    drift = 0.0
    if PER_LENGTH or PER_SEQUENCE or CORRECTS_SEQUENCES or OFF_POLICY:
        counts = tl.zeros([BLOCK], tl.float32)
        ratios = tl.zeros([BLOCK], tl.float32)
        weights = tl.zeros([BLOCK], tl.float32)
        drifts = tl.zeros([BLOCK], tl.float32)
        for start in range(0, length, BLOCK):
            offsets = base + start + lanes
            counted = tl.load(mask_ptr + offsets, mask=start + lanes < length, other=0) != 0
            counts += counted.to(tl.float32)
            if PER_SEQUENCE and old_ptr is not None:
                ratios += _load(logprobs_ptr, offsets, counted) - _load(old_ptr, offsets, counted)
            if CORRECTS_RATIOS:
                lp = _load(logprobs_ptr, offsets, counted)
                difference = _load_old(lp, old_ptr, offsets, counted) - _load(sampler_ptr, offsets, counted)
                weight = fused_log_sampler_weight(difference, sampler_floor, sampler_cap, MASKED)
                ratios += tl.where(counted, weight, 0.0)
            if CORRECTS_SEQUENCES or OFF_POLICY:
                lp = _load(logprobs_ptr, offsets, counted)
                drawn = _load_old(lp, old_ptr, offsets, counted)
                weights += drawn
                if sampler_ptr is not None:
                    drawn = _load(sampler_ptr, offsets, counted)
                    weights -= drawn
                drifts += drawn - lp
        items = tl.maximum(tl.sum(counts, axis=0), 1.0)
        whole_ratio = tl.sum(ratios, axis=0)
        if not MULTIPLIES_RATIOS:
            whole_ratio /= items
        log_weight = tl.sum(weights, axis=0)
        drift = tl.sum(drifts, axis=0) / items
        if PER_LENGTH:
            share = share / items

    bonus = -entropy_coef * share
    if MEAN_ENTROPY:
        bonus = -entropy_coef * tl.load(scale_ptr + 1)

    # A sequence-level ratio moves with every token: sum its slopes before any gradient can be written.
    slopes = tl.zeros([BLOCK], tl.float32)
    if POOLS_SLOPES:
        for start in range(0, length, BLOCK):
            offsets = base + start + lanes
            counted = tl.load(mask_ptr + offsets, mask=start + lanes < length, other=0) != 0
            lp = _load(logprobs_ptr, offsets, counted)
            advantage = _load(advantages_ptr, (start + lanes) * advantage_step, counted)
            ratio = tl.exp(whole_ratio + lanes * 0.0)
            _, slope = fused_policy_term(
                lp, ratio, advantage, low, high, delta, rate, power, other_rate, other_power, TERM
            )
            if entropy_mask_ptr is not None:
                slope = tl.where(tl.load(entropy_mask_ptr + offsets, mask=counted, other=0) != 0, slope, 0.0)
            if OFF_POLICY:
                slope = tl.where((advantage >= 0.0) | (drift + lanes * 0.0 <= off_policy_bound), slope, 0.0)
            if CORRECTS_TERMS:
                difference = log_weight + lanes * 0.0
                if not CORRECTS_SEQUENCES:
                    old = _load_old(lp, old_ptr, offsets, counted)
                    difference = old - _load(sampler_ptr, offsets, counted)
                weight = fused_sampler_weight(difference, sampler_floor, sampler_cap, MASKED)
                slope = fused_weighted(weight, slope)
            slopes += tl.where(counted, slope, 0.0)
    sequence_slope = tl.sum(slopes, axis=0) / items

    loss = tl.zeros([BLOCK], tl.float32)
    bonuses = tl.zeros([BLOCK], tl.float32)
    nothing = tl.zeros([BLOCK], tl.float32)
    sums = no_metrics(BLOCK)
    for start in range(0, length, BLOCK):
        inside = start + lanes < length
        offsets = base + start + lanes
        counted = tl.load(mask_ptr + offsets, mask=inside, other=0) != 0
        lp = _load(logprobs_ptr, offsets, counted)
        old = _load_old(lp, old_ptr, offsets, counted)
        advantage = _load(advantages_ptr, (start + lanes) * advantage_step, counted)
        log_ratio = lp - old
        if PER_SEQUENCE:
            log_ratio = whole_ratio + lanes * 0.0
        ratio = tl.exp(log_ratio)
        term, slope = fused_policy_term(
            lp, ratio, advantage, low, high, delta, rate, power, other_rate, other_power, TERM
        )
        difference = nothing
        divergence = nothing
        entropy = nothing
        if entropy_mask_ptr is not None:
            kept = tl.load(entropy_mask_ptr + offsets, mask=counted, other=0) != 0
            term = tl.where(kept, term, 0.0)
            slope = tl.where(kept, slope, 0.0)
        if OFF_POLICY:
            near = (advantage >= 0.0) | (drift + lanes * 0.0 <= off_policy_bound)
            term = tl.where(near, term, 0.0)
            slope = tl.where(near, slope, 0.0)
        if sampler_ptr is not None:
            difference = old - _load(sampler_ptr, offsets, counted)
            if CORRECTS_TERMS:
                exponent = difference
                if CORRECTS_SEQUENCES:
                    exponent = log_weight + lanes * 0.0
                weight = fused_sampler_weight(exponent, sampler_floor, sampler_cap, MASKED)
                term = fused_weighted(weight, term)
                slope = fused_weighted(weight, slope)
            difference = tl.abs(difference)
        if POOLS_SLOPES:
            slope = sequence_slope + lanes * 0.0
        policy_loss = term
        if ref_ptr is not None:
            divergence, kl_slope = fused_kl_term(lp, _load(ref_ptr, offsets, counted), KL)
            cost = divergence
            if KL_RATIO:
                cost = fused_weighted(ratio, divergence)
                kl_slope = fused_weighted(ratio, divergence + kl_slope)
            # With beta 0 it is a metric alone, and may be infinite.
            slope += tl.where(beta == 0.0, 0.0, beta * kl_slope)
            term += tl.where(beta == 0.0, 0.0, beta * cost)
        if entropy_ptr is not None:
            entropy = _load(entropy_ptr, offsets, counted)
            if entropy_grad_ptr is not None:
                bonuses += bonus * entropy
                tl.store(entropy_grad_ptr + offsets, tl.where(counted, bonus, 0.0), mask=inside)
        loss += tl.where(counted, term, 0.0)
        sums = add_metrics(
            sums, counted, ratio, advantage, low, high, delta, policy_loss, divergence, entropy, difference
        )
        tl.store(grad_ptr + offsets, tl.where(counted, slope * share, 0.0), mask=inside)
    tl.store(loss_ptr + row, tl.sum(loss, axis=0) * share + tl.sum(bonuses, axis=0))
    store_metrics(sums_ptr + row * METRICS, sums, METRICS, LARGEST)


def _fused(
    options: GrpoOptions, logprobs: Tensor, advantages: Tensor, mask: Tensor, old: Tensor | None,
    ref: Tensor | None, sampler: Tensor | None, entropy: Tensor | None, entropy_mask: Tensor | None,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows, length = logprobs.shape
    losses = torch.zeros(rows, dtype=torch.float32, device=logprobs.device)
    grad = torch.empty(rows, length, dtype=torch.float32, device=logprobs.device)
    entropy_grad = torch.empty_like(grad) if options.entropy_coef else None
    sums = torch.zeros(rows, len(METRICS), dtype=torch.float32, device=logprobs.device)
    if rows and length:
        step = 1 if advantages.dim() == 2 else 0
        bytes_ = [None if t is None else t.contiguous().view(torch.uint8) for t in (mask, entropy_mask)]
        dense = [None if t is None else t.contiguous() for t in (old, ref, sampler, entropy)]
        advantages = advantages.contiguous()
        with launching("grpo_token_loss", logprobs) as launch:
            grpo_token_loss_kernel[(rows,)](
                logprobs.contiguous(), advantages, bytes_[0], *dense, bytes_[1], scale, losses, grad,
                entropy_grad, sums, length, advantages.stride(0), step, options.beta, options.low,
                options.high, options.ratio_bound, *options.shape, *options.sampler_bounds,
                options.off_policy_bound or 0.0, options.entropy_coef, TERM=options.term, KL=options.kl,
                KL_RATIO=options.kl_weighting == "ratio", PER_SEQUENCE=options.per_sequence,
                MULTIPLIES_RATIOS=options.multiplies_ratios, POOLS_SLOPES=options.pools_slopes,
                PER_LENGTH=options.per_length, MEAN_ENTROPY=options.averages_entropy,
                CORRECTS_RATIOS=options.corrects_ratios, CORRECTS_TERMS=options.corrects_terms,
                CORRECTS_SEQUENCES=options.corrects_sequences,
                MASKED=options.sampler_excess == "mask", OFF_POLICY=options.off_policy_bound is not None,
                METRICS=len(METRICS), LARGEST=LARGEST, BLOCK=launch.block, **launch.options,
            )  # fmt: skip
    return losses.sum(), grad, grad.new_empty(0) if entropy_grad is None else entropy_grad, join(sums)


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
    options: list[float],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, its gradients in ``logprobs`` and (if it has a weight) ``entropy``, the vector of ``METRICS``."""
    run = _fused if use_triton(backend, logprobs) else _reference
    decoded = GrpoOptions.decode(options)
    return run(decoded, logprobs, advantages, mask, old, ref, sampler, entropy, entropy_mask, scale)


@_loss_op.register_fake
def _(
    logprobs: Tensor, advantages: Tensor, mask: Tensor, old: Tensor | None, ref: Tensor | None,
    sampler: Tensor | None, entropy: Tensor | None, entropy_mask: Tensor | None, scale: Tensor,
    options: list[float], backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad = torch.empty(logprobs.shape, dtype=accumulation_dtype(logprobs), device=logprobs.device)
    entropy_grad = torch.empty_like(grad) if GrpoOptions.decode(options).entropy_coef else grad.new_empty(0)
    return grad.new_empty(()), grad, entropy_grad, grad.new_empty(len(METRICS))


class _GrpoTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logprobs: Tensor,
        entropy: Tensor | None,
        tensors: tuple[Tensor | None, ...],
        options: list[float],
        with_entropy_grad: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        advantages, mask, old, ref, sampler, entropy_mask, scale = tensors
        loss, grad, entropy_grad, sums = _loss_op(
            logprobs, advantages, mask, old, ref, sampler, entropy, entropy_mask, scale, options, backend
        )
        ctx.save_for_backward(grad, entropy_grad)
        ctx.dtype = logprobs.dtype
        ctx.entropy_dtype = entropy.dtype if entropy is not None and with_entropy_grad else None
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad, entropy_grad = ctx.saved_tensors
        for_entropy = None if ctx.entropy_dtype is None else (entropy_grad * upstream).to(ctx.entropy_dtype)
        return (grad * upstream).to(ctx.dtype), for_entropy, None, None, None, None


def grpo_token_loss(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    options: GrpoOptions = DEFAULTS,
    *,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
    entropy_mask: Tensor | None = None,
    num_items: Tensor | float | None = None,
    num_tokens: Tensor | float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss of ``logprobs`` and its metrics; ``_grpo_losses`` has the formulas.

    On CUDA one launch computes the loss, its gradients and the sums behind the metrics.

    Args:
        logprobs: [R, T] floating, the log-probability of each token under the policy.
        advantages: [R] or [R, T] floating.
        mask: [R, T] bool, true where the policy chose the token. All else, NaN included, is ignored and gets
            gradient 0. A sequence without counted tokens counts as a sequence and adds 0.
        options: loss type, ratio level, clipping, KL, entropy.
        old_logprobs: [R, T], those before the first update on this batch. None: this is the first update, the
            ratio is 1 with gradient.
        ref_logprobs: [R, T], those of the reference model, for the KL term and its metric.
        sampler_logprobs: [R, T], those of the sampler, for the metric ``sampler_gap``; needed with
            ``options.sampler_cap`` or ``sampler_floor``.
        entropy: [R, T] in nats, differentiable; needed with ``options.entropy_coef``.
        entropy_mask: [R, T] bool, keeps the policy term only where it is true (see ``top_entropy_mask``).
        num_items: the global normaliser, a number or a scalar tensor, 0 or more: sequences for grpo,
            luspo, sapo and dr_grpo (which divides by ``num_items * max_length``), tokens for bnpo, dapo,
            cispo and vespo. None: this batch's own.
        num_tokens: the tokens of the same update, by which grpo and dr_grpo divide the entropy bonus (with
            ``options.entropy_norm="tokens"``). None: this batch's own.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        The loss in float32 (float64 for float64 ``logprobs``) and the metrics of ``_grpo_metrics`` that
        apply, by name, detached: means over the counted tokens (``_max``: the largest value).

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or an option lacks its input.
    """
    check_options(options)
    check_tensors(logprobs=logprobs, advantages=advantages)
    if logprobs.dim() != 2:
        raise ValueError(f"logprobs is {tuple(logprobs.shape)}; it must be [R, T]")
    rows = logprobs.shape[0]
    if advantages.shape not in ((rows,), logprobs.shape):
        raise ValueError(
            f"advantages is {tuple(advantages.shape)}; it must be ({rows},) or {tuple(logprobs.shape)}"
        )
    check_floating(logprobs=logprobs, advantages=advantages)
    check_like(
        logprobs, mask, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs,
        sampler_logprobs=sampler_logprobs, entropy=entropy, entropy_mask=entropy_mask,
    )  # fmt: skip
    check_reference(options, ref_logprobs)
    check_sampler(options, sampler_logprobs)
    if options.entropy_coef and entropy is None:
        raise ValueError(
            f"entropy_coef is {options.entropy_coef}, but there is no entropy; pass it or entropy_coef=0"
        )
    share = token_scale(options, num_items, rows, mask, accumulation_dtype(logprobs))
    scale = torch.stack((share, entropy_share(options, share, num_tokens, mask)))
    loss, sums = _GrpoTokenLoss.apply(
        logprobs, entropy,
        (advantages.detach(), mask, old_logprobs, ref_logprobs, sampler_logprobs, entropy_mask, scale),
        options.encode(), options.entropy_coef != 0, backend,
    )  # fmt: skip
    return loss, metrics_of(
        options, sums, ref=ref_logprobs, entropy=entropy is not None, sampler=sampler_logprobs
    )
