"""The GRPO family of losses straight from hidden states: a chunk of logits lives from matmul to gradient.

The formulas are those of ``grpo_token_loss``; this op also does the head, ``linear_logprobs``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._common import NAMESPACE, accumulation_dtype, check_range
from ._head import (
    check_head,
    check_rows,
    chunk_size,
    full_precision,
    gather,
    gradients,
    hand_over,
    make_head,
)
from ._policy import (
    PER_LENGTH,
    SUMS,
    Policy,
    check_like,
    check_policy,
    metrics_of,
    policy_terms,
    sequence_sums,
    token_scale,
)


@torch.library.custom_op(f"{NAMESPACE}::linear_grpo_loss", mutates_args=())
def _loss_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    rows: Tensor,
    sequences: Tensor,
    counted: Tensor,
    lengths: Tensor,
    share: Tensor,
    advantages: Tensor,
    old: Tensor | None,
    ref: Tensor | None,
    sampler: Tensor | None,
    entropy_mask: Tensor | None,
    loss_type: str,
    kl: str,
    numbers: list[float],
    temperature: float,
    softcap: float | None,
    chunk: int,
    with_entropy: bool,
    need_dx: bool,
    need_dw: bool,
    need_db: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, log-probabilities of all rows, ``SUMS``, dx, dw, db.

    Everything from ``sequences`` to ``entropy_mask`` but ``lengths`` (per sequence) has one entry per listed
    row; ``share`` is what a row's term is multiplied by.
    """
    dx, dw, db = gradients(x, weight, bias, need_dx, need_dw, need_db)
    wide = accumulation_dtype(x, weight)
    logprobs = torch.zeros(target.shape, dtype=wide, device=x.device)
    loss = torch.zeros((), dtype=wide, device=x.device)
    sums = torch.zeros(len(SUMS), dtype=wide, device=x.device)
    policy = Policy(loss_type, kl, *numbers)
    named = {"advantages": advantages, "counted": counted, "ref": ref, "sampler": sampler}
    named["entropy_mask"] = entropy_mask
    chunks = [slice(start, start + chunk) for start in range(0, rows.numel(), chunk)]

    def terms(part: slice, current: Tensor, log_ratio: Tensor, before: Tensor, entropy: Tensor | None) -> Any:
        listed: dict[str, Any] = {k: None if v is None else v[part] for k, v in named.items()}
        return policy_terms(
            policy, logprobs=current, log_ratio=log_ratio, old=before, entropy=entropy, **listed
        )

    with full_precision(x.device):
        head = make_head(x, weight, bias, temperature, softcap, backend)
        mean_ratio = sequence_slope = torch.zeros_like(share)
        if loss_type == "gspo":
            # The ratio of a sequence needs all its log-probabilities before the first gradient.
            for part in chunks:
                hidden, label = gather(x, target, rows[part], counted[part])
                logprob = head.stats(head.logits(hidden), label, False)[0]
                logprobs.index_copy_(0, rows[part], torch.where(counted[part], logprob, 0.0))
            current = logprobs[rows]

            def per_sequence(values: Tensor) -> Tensor:
                kept = torch.where(counted, values, 0.0)
                return (sequence_sums(kept, sequences, lengths.shape[0]) / lengths)[sequences]

            before = current if old is None else old
            mean_ratio = per_sequence(current - before)
            slope = terms(slice(None), current, mean_ratio, before, None)[1]
            sequence_slope = per_sequence(slope)
        for part in chunks:
            chosen = rows[part]
            hidden, label = gather(x, target, chosen, counted[part])
            z = head.logits(hidden)
            logprob, normaliser, entropy = head.stats(z, label, with_entropy)
            logprob = torch.where(counted[part], logprob, 0.0)
            logprobs.index_copy_(0, chosen, logprob)
            before = logprob if old is None else old[part]
            log_ratio = mean_ratio[part] if loss_type == "gspo" else logprob - before
            term, slope, away, added = terms(part, logprob, log_ratio, before, entropy)
            loss += (term * share[part]).sum()
            sums[:-1] += added[:-1]
            sums[-1] = torch.maximum(sums[-1], added[-1])
            if need_dx or need_dw or need_db:
                if loss_type == "gspo":
                    slope = sequence_slope[part]
                bonus = share[part] * -policy.entropy_coef if policy.entropy_coef else None
                z = head.grad_(z, label, normaliser, entropy, (slope + away) * share[part], bonus)
                rows_dx = torch.empty_like(hidden) if need_dx else None
                head.consume(z, hidden, rows_dx, dw if need_dw else None, db if need_db else None)
                if rows_dx is not None:
                    dx.index_copy_(0, chosen, rows_dx)
    return loss, logprobs, sums, dx, dw, db


@_loss_op.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, rows: Tensor, sequences: Tensor,
    counted: Tensor, lengths: Tensor, share: Tensor, advantages: Tensor, old: Tensor | None,
    ref: Tensor | None, sampler: Tensor | None, entropy_mask: Tensor | None, loss_type: str, kl: str,
    numbers: list[float], temperature: float, softcap: float | None, chunk: int, with_entropy: bool,
    need_dx: bool, need_dw: bool, need_db: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    loss = share.new_empty(())
    return (
        loss, loss.new_empty(target.shape), loss.new_empty(len(SUMS)),
        *gradients(x, weight, bias, need_dx, need_dw, need_db),
    )  # fmt: skip


class _LinearGrpoLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tensors: tuple[Tensor | None, ...],
        options: tuple[Any, ...],
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        need = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        loss, logprobs, sums, dx, dw, db = _loss_op(x, weight, bias, *tensors, *options, *need, backend)
        ctx.save_for_backward(x, weight, bias, *tensors)
        ctx.grads, ctx.options = (dx, dw, db), (*options, *need, backend)
        ctx.dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(logprobs, sums)
        return loss, logprobs, sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads = hand_over(ctx, upstream, ctx.dtypes, lambda: _loss_op(*ctx.saved_tensors, *ctx.options)[3:])
        return (*grads, None, None, None)


def linear_grpo_loss(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    advantages: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    entropy_mask: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    group_size: int | None = None,
    rows: Tensor | None = None,
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
    temperature: float = 1.0,
    softcap: float | None = None,
    return_entropy: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """``grpo_token_loss`` of ``linear_logprobs(input, weight, target)``, in three matmuls for the whole step.

    ``input`` [R, T, H] with ``target``, ``mask`` and the log-probabilities [R, T] and ``advantages`` [R] or
    [R, T]; or packed, ``input`` [N, H] with all those [N], ``advantages`` [R], and ``sequence_ids`` [N]
    int64 naming each position's sequence. Entry i of ``target`` is what row i predicts. Only rows where
    ``mask`` is true are computed; ``rows`` [M] int64, their flat indices, spares finding them (which
    synchronises on CUDA). ``group_size``, when given, is only checked: the R sequences must be whole groups
    of that many, as those are whose rewards became ``advantages``. All other options are those of
    ``grpo_token_loss`` and ``linear_cross_entropy``.

    Logits exist for ``chunk_rows`` rows at a time and become their gradient in place; nothing is recomputed,
    but for ``gspo``, whose ratios need a first pass over all rows. The entropy is computed only when
    ``entropy_coef`` is not 0 or ``return_entropy`` asks for its mean among the metrics. dW is accumulated in
    float32.

    Returns the loss, the log-probabilities (detached, shaped as ``target``, 0 where masked) and the metrics
    of ``grpo_token_loss``. Without rows the loss is 0, part of the graph, with zero gradients. Raises
    ``ValueError`` for shapes, dtypes, devices and options that do not fit, and for k1; indices are
    range-checked only with ``FOURDTHINKER_DEBUG=1`` because that synchronises.
    """
    check_head(input, weight, target, bias, temperature, softcap)
    policy = check_policy(
        loss_type=loss_type, kl=kl, beta=beta, epsilon=epsilon, epsilon_high=epsilon_high, delta=delta,
        sampler_cap=sampler_cap, entropy_coef=entropy_coef, max_length=max_length,
    )  # fmt: skip
    if beta and ref_logprobs is None:
        raise ValueError(f"beta is {beta}, but there are no ref_logprobs; pass them or beta=0")
    check_like(
        target, mask, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs,
        sampler_logprobs=sampler_logprobs, entropy_mask=entropy_mask, sequence_ids=sequence_ids,
    )  # fmt: skip
    packed = input.dim() == 2
    if packed != (sequence_ids is not None):
        raise ValueError("sequence_ids is needed with a packed input [N, H], and only with one")
    count = advantages.numel() if packed else input.shape[0]
    per_token = not packed and advantages.shape == target.shape
    if not per_token and tuple(advantages.shape) != (count,):
        raise ValueError(f"advantages is {tuple(advantages.shape)}; it must be one number a sequence")
    if group_size is not None and (group_size < 1 or count % group_size):
        raise ValueError(f"group_size {group_size} does not divide the {count} sequences")
    if rows is None:
        rows = mask.reshape(-1).nonzero()[:, 0]
    check_rows(rows, target)
    dtype = accumulation_dtype(input, weight)
    x = input.reshape(-1, input.shape[-1])
    if sequence_ids is None:
        ids = torch.arange(count, device=input.device).repeat_interleave(target.shape[1])
    else:
        ids = sequence_ids.reshape(-1).long()
    sequences = ids[rows]
    counted = mask.reshape(-1)[rows]
    check_range("target", target.reshape(-1), 0, weight.shape[0], at=rows, where=counted)
    check_range("sequence_ids", sequences, 0, count)

    def listed(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        chosen = values.detach().reshape(-1)[rows]
        return chosen if chosen.dtype == torch.bool else torch.where(counted, chosen.to(dtype), 0.0)

    lengths = sequence_sums(counted.to(dtype), sequences, count).clamp_(min=1)
    scale = token_scale(policy, num_items, count, counted, max_length, dtype)
    share = torch.where(counted, scale, 0.0)
    if loss_type in PER_LENGTH:
        share = share / lengths[sequences]
    with_entropy = return_entropy or policy.entropy_coef != 0
    spread = advantages.detach().reshape(-1)
    spread = torch.where(counted, spread[rows] if per_token else spread[sequences], 0.0).to(dtype)
    loss, logprobs, sums = _LinearGrpoLoss.apply(
        x, weight, bias,
        (target.reshape(-1), rows, sequences, counted, lengths, share, spread, listed(old_logprobs),
         listed(ref_logprobs), listed(sampler_logprobs), listed(entropy_mask)),
        (loss_type, kl, policy.numbers(), temperature, softcap,
         chunk_size(rows.shape[0], weight.shape[0], chunk_rows, on_cpu=x.device.type == "cpu"),
         with_entropy),
        backend,
    )  # fmt: skip
    metrics = metrics_of(policy, sums, ref=ref_logprobs, entropy=with_entropy, sampler=sampler_logprobs)
    return loss, logprobs.reshape(target.shape), metrics
