"""The GRPO family of losses straight from hidden states: a chunk of logits lives from matmul to gradient.

The formulas are those of ``grpo_token_loss``; this op also does the head, ``linear_logprobs``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._common import (
    NAMESPACE,
    accumulation_dtype,
    check_flags,
    check_floating,
    check_range,
    check_tensors,
    once_differentiable,
)
from ._grpo_losses import DEFAULTS, GrpoOptions, check_options
from ._grpo_metrics import METRICS, join
from ._grpo_reference import (
    check_like,
    check_reference,
    check_sampler,
    entropy_share,
    metrics_of,
    sequence_sums,
    token_scale,
    token_terms,
)
from ._grpo_terms import log_sampler_weight
from ._head import Head, full_precision, gradients, make_head, power_of_two, scaled_gradients
from ._head_arguments import check_head, check_rows, chunk_size, gather, matmul_rows, whole_head
from ._logits import MORE


class _Rows(NamedTuple):
    """The M rows that are computed, of N in all. Everything but ``target`` and ``lengths`` is [M]."""

    target: Tensor  # [N] int64
    rows: Tensor  # int64, indices into the N rows
    sequences: Tensor  # int64, the sequence of each
    counted: Tensor  # bool
    lengths: Tensor  # [R] counted rows of each sequence, at least 1
    share: Tensor  # what a row's term is multiplied by
    bonus: Tensor  # what its entropy is multiplied by, ``entropy_coef`` included
    advantages: Tensor
    old: Tensor | None
    ref: Tensor | None
    sampler: Tensor | None
    entropy_mask: Tensor | None

    def terms(
        self,
        options: GrpoOptions,
        part: slice,
        logprobs: Tensor,
        whole: _Whole,
        entropy: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``token_terms`` of some of the rows; what their sequences do not tell each row tells itself."""

        def of(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[part]

        old = logprobs if self.old is None else self.old[part]
        log_ratio, kept = of(whole.log_ratio), of(whole.kept)
        return token_terms(
            options, logprobs=logprobs, log_ratio=logprobs - old if log_ratio is None else log_ratio, old=old,
            advantages=self.advantages[part], counted=self.counted[part], ref=of(self.ref),
            sampler=of(self.sampler), entropy=entropy,
            kept=of(self.entropy_mask) if kept is None else kept, log_weight=of(whole.log_weight),
        )  # fmt: skip

    def of_sequences(self, values: Tensor, *, mean: bool = True) -> Tensor:
        """[M] of ``values`` [M]: each row gets the mean (sum) over the counted rows of its sequence."""
        kept = torch.where(self.counted, values, 0.0)
        sums = sequence_sums(kept, self.sequences, self.lengths.shape[0])
        return (sums / self.lengths if mean else sums)[self.sequences]


class _Whole(NamedTuple):
    """What each row is told by its whole sequence, [M] each; None where every row tells it itself."""

    log_ratio: Tensor | None = None
    log_weight: Tensor | None = None  # of the correction for the sampler
    kept: Tensor | None = None  # bool: by the bound on what is off policy, and ``entropy_mask``
    slope: Tensor | None = None  # what each row gets through the ratio of its sequence


def _whole_sequences(
    options: GrpoOptions, head: Head, x: Tensor, listed: _Rows, chunks: list[slice], logprobs: Tensor
) -> _Whole:
    """What needs all log-probabilities before the first gradient, hence a pass of its own."""
    for part in chunks:
        chosen, counted = listed.rows[part], listed.counted[part]
        hidden, label = gather(x, listed.target, chosen, counted)
        logprob = head.stats(head.logits(hidden), label).logprob
        logprobs.index_copy_(0, chosen, torch.where(counted, logprob, 0.0))
    current = logprobs[listed.rows]
    old = current if listed.old is None else listed.old
    whole = _Whole()
    if options.per_sequence:
        log_ratio = current - old
        if options.corrects_ratios and listed.sampler is not None:
            log_ratio = log_ratio + log_sampler_weight(options, old - listed.sampler)
        mean = not options.multiplies_ratios
        whole = whole._replace(log_ratio=listed.of_sequences(log_ratio, mean=mean))
    if options.corrects_sequences and listed.sampler is not None:
        whole = whole._replace(log_weight=listed.of_sequences(old - listed.sampler, mean=False))
    if options.off_policy_bound is not None:
        drift = listed.of_sequences((old if listed.sampler is None else listed.sampler) - current)
        near = (listed.advantages >= 0) | (drift <= options.off_policy_bound)
        whole = whole._replace(kept=near if listed.entropy_mask is None else near & listed.entropy_mask)
    if options.pools_slopes:
        slope = listed.terms(options, slice(None), current, whole, None)[1]
        whole = whole._replace(slope=listed.of_sequences(slope))
    return whole


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
    bonus: Tensor,
    advantages: Tensor,
    old: Tensor | None,
    ref: Tensor | None,
    sampler: Tensor | None,
    entropy_mask: Tensor | None,
    options: list[float],
    temperature: float,
    softcap: float | None,
    chunk: int,
    with_entropy: bool,
    with_more: bool,
    need_dx: bool,
    need_dw: bool,
    need_db: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, log-probabilities of all rows, vector of ``METRICS``, sums of ``MORE`` (or empty), dx, dw, db."""
    listed = _Rows(
        target, rows, sequences, counted, lengths, share, bonus, advantages, old, ref, sampler, entropy_mask
    )
    grads = gradients(x, weight, bias, rows.numel(), need_dx, need_dw, need_db)
    with full_precision(x.device):
        head = make_head(x, weight, bias, temperature, softcap, backend)
        needs = (need_dx, need_dw, need_db)
        decoded = GrpoOptions.decode(options)
        spread = share.new_zeros(len(MORE)) if with_more else None
        out = _loss_and_gradients(decoded, head, x, listed, chunk, with_entropy, spread, grads, needs)
        return (*out, share.new_empty(0) if spread is None else spread, *grads)


def _loss_and_gradients(
    options: GrpoOptions,
    head: Head,
    x: Tensor,
    listed: _Rows,
    chunk: int,
    with_entropy: bool,
    spread: Tensor | None,
    grads: tuple[Tensor, Tensor, Tensor],
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, log-probabilities of all rows [N], ``METRICS``; writes ``grads``, adds to ``spread``."""
    wide = listed.share.dtype
    logprobs = torch.zeros(listed.target.shape, dtype=wide, device=x.device)
    loss = torch.zeros((), dtype=wide, device=x.device)
    sums = torch.zeros(len(METRICS), dtype=wide, device=x.device)
    dx, dw, db = (grad if needed else None for grad, needed in zip(grads, needs))
    count = listed.rows.numel()
    chunks = [slice(start, start + chunk) for start in range(0, count, chunk)]
    whole = _Whole()
    if options.needs_sequences:
        whole = _whole_sequences(options, head, x, listed, chunks, logprobs)
    for part in chunks:
        chosen, counted, share = listed.rows[part], listed.counted[part], listed.share[part]
        hidden, label = gather(x, listed.target, chosen, counted)
        z = head.logits(hidden)
        logprob, normaliser, entropy, more = head.stats(
            z, label, with_entropy=with_entropy, with_more=spread is not None
        )  # fmt: skip
        logprob = torch.where(counted, logprob, 0.0)
        logprobs.index_copy_(0, chosen, logprob)
        term, slope, kl_slope, added = listed.terms(options, part, logprob, whole, entropy)
        loss += (term * share).sum()
        bonus = listed.bonus[part] if options.entropy_coef else None
        if bonus is not None and entropy is not None:
            loss += (torch.where(counted, entropy, 0.0) * bonus).sum()
        sums = join(torch.stack((sums, added)))
        if spread is not None and more is not None:
            spread += torch.where(counted, more, 0.0).sum(dim=1)
        if any(needs):
            if whole.slope is not None:
                slope = whole.slope[part]
            z = head.grad_(z, label, normaliser, entropy, (slope + kl_slope) * share, bonus)
            rows_dx = torch.empty_like(hidden) if dx is not None else None
            head.backward_matmuls(z, hidden, rows_dx, dw, db)
            if dx is not None and rows_dx is not None:
                dx.index_copy_(0, chosen, rows_dx)
    return loss, logprobs, sums


@_loss_op.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, rows: Tensor, sequences: Tensor,
    counted: Tensor, lengths: Tensor, share: Tensor, bonus: Tensor, advantages: Tensor, old: Tensor | None,
    ref: Tensor | None, sampler: Tensor | None, entropy_mask: Tensor | None, options: list[float],
    temperature: float, softcap: float | None, chunk: int, with_entropy: bool, with_more: bool, need_dx: bool,
    need_dw: bool, need_db: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    loss = share.new_empty(())
    return (
        loss, loss.new_empty(target.shape), loss.new_empty(len(METRICS)),
        loss.new_empty(len(MORE) if with_more else 0),
        *gradients(x, weight, bias, rows.numel(), need_dx, need_dw, need_db),
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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        need = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        listed = _Rows(*tensors)  # type: ignore[arg-type]
        ctx.unit = power_of_two(listed.share, listed.bonus)
        listed = listed._replace(share=listed.share / ctx.unit, bonus=listed.bonus / ctx.unit)
        loss, logprobs, sums, spread, dx, dw, db = _loss_op(
            x, weight, bias, *listed, *options, *need, backend
        )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, *listed)
        ctx.grads, ctx.options = (dx, dw, db), (*options, *need, backend)
        ctx.dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(logprobs, sums, spread)
        return loss * ctx.unit, logprobs, sums, spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads = scaled_gradients(
            ctx, upstream * ctx.unit, ctx.dtypes, lambda: _loss_op(*ctx.saved_tensors, *ctx.options)[4:]
        )
        return (*grads, None, None, None)


def _list_rows(
    options: GrpoOptions,
    target: Tensor,
    mask: Tensor,
    advantages: Tensor,
    rows: Tensor,
    ids: Tensor,
    count: int,
    num_items: Tensor | float | None,
    num_tokens: Tensor | float | None,
    others: tuple[Tensor | None, ...],
    dtype: torch.dtype,
) -> _Rows:
    """The chosen ``rows`` of everything, 0 where masked; ``ids`` [N] names each position's sequence."""
    sequences, counted = ids[rows], mask.reshape(-1)[rows]
    check_range("sequence_ids", sequences, 0, count)

    def listed(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        chosen = values.detach().reshape(-1)[rows]
        return chosen if chosen.dtype == torch.bool else torch.where(counted, chosen.to(dtype), 0.0)

    lengths = sequence_sums(counted.to(dtype), sequences, count).clamp_(min=1)
    share = torch.where(counted, token_scale(options, num_items, count, counted, dtype), 0.0)
    if options.per_length:
        share = share / lengths[sequences]
    bonus = torch.where(
        counted, -options.entropy_coef * entropy_share(options, share, num_tokens, counted), 0.0
    )
    per_token = advantages.shape == mask.shape and mask.dim() == 2
    gains = advantages.detach().reshape(-1)[rows if per_token else sequences]
    gains = torch.where(counted, gains, 0.0).to(dtype)
    return _Rows(
        target.reshape(-1),
        rows,
        sequences,
        counted,
        lengths,
        share,
        bonus,
        gains,
        *(listed(v) for v in others),
    )


def _count_sequences(input: Tensor, target: Tensor, advantages: Tensor, sequence_ids: Tensor | None) -> int:
    """How many sequences there are; ``ValueError`` where the tensors that say so do not fit together."""
    packed = input.dim() == 2
    if sequence_ids is not None and sequence_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"sequence_ids is {sequence_ids.dtype}; it must be torch.int64")
    if packed != (sequence_ids is not None):
        raise ValueError("sequence_ids is needed with a packed input [N, H], and only with one")
    count = advantages.numel() if packed else input.shape[0]
    if tuple(advantages.shape) != (count,) and (packed or advantages.shape != target.shape):
        raise ValueError(f"advantages is {tuple(advantages.shape)}; it must be one number a sequence")
    return count


def linear_grpo_loss(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    options: GrpoOptions = DEFAULTS,
    *,
    advantages: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    entropy_mask: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    rows: Tensor | None = None,
    num_items: Tensor | float | None = None,
    num_tokens: Tensor | float | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    return_entropy: bool = False,
    return_statistics: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """``grpo_token_loss`` of ``linear_logprobs(input, weight, target)``, in three matmuls for the whole step.

    Logits exist for ``chunk_rows`` rows at a time and become their gradient in place; nothing is recomputed,
    but for what is one of a sequence (ratio, correction, bound), which needs a first pass over
    all rows. dW is accumulated in float32.

    Args:
        input: hidden states, [R, T, H], or packed [N, H].
        weight: [V, H], the output matrix. A ``DTensor``, as FSDP2 leaves it, is gathered, and its gradient is
            the mean over ranks, in slices.
        target: [R, T] or [N] int64; entry i is what row i predicts.
        options: as in ``grpo_token_loss``. The entropy is computed only when ``entropy_coef`` is not 0
            or with ``return_entropy``.
        advantages: [R] or, unless packed, [R, T].
        mask: bool, shaped as ``target``. Only rows where it is true are computed.
        bias: [V], added to the logits; likewise.
        old_logprobs: as in ``grpo_token_loss``, shaped as ``target``.
        ref_logprobs: as in ``grpo_token_loss``, shaped as ``target``.
        sampler_logprobs: as in ``grpo_token_loss``, shaped as ``target``.
        entropy_mask: as in ``grpo_token_loss``, shaped as ``target``.
        sequence_ids: [N] int64, the sequence of each position; needed with a packed input, and only with one.
        rows: [M] int64, flat indices of the rows where ``mask`` is true. Finding them synchronises on CUDA.
        num_items: as in ``grpo_token_loss``.
        num_tokens: as in ``grpo_token_loss``.
        temperature: the one that the tokens were sampled at.
        softcap: logits are capped to ``softcap * tanh(logits / softcap)``.
        return_entropy: whether the mean entropy is among the metrics.
        return_statistics: whether the means of all ``TokenStatistics`` are, without another read.
        chunk_rows: rows of logits that exist at a time; None: a fixed rule.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        The loss, the log-probabilities (detached, shaped as ``target``, 0 where masked) and the metrics of
        ``grpo_token_loss``. Without rows the loss is 0, part of the graph, with zero gradients.

    Raises:
        ValueError: shapes, dtypes, devices or options do not fit. Indices are range-checked on the
            CPU, and on CUDA with ``FOURDTHINKER_DEBUG=1`` because that synchronises.
    """
    check_options(options)
    check_flags(return_entropy=return_entropy, return_statistics=return_statistics)
    check_tensors(input=input, advantages=advantages)
    check_floating(advantages=advantages)
    weight, bias = whole_head(weight, bias)
    check_head(input, weight, target, bias, temperature, softcap)
    check_reference(options, ref_logprobs)
    check_sampler(options, sampler_logprobs)
    check_like(
        target, mask, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs,
        sampler_logprobs=sampler_logprobs, entropy_mask=entropy_mask, sequence_ids=sequence_ids,
    )  # fmt: skip
    count = _count_sequences(input, target, advantages, sequence_ids)
    if rows is None:
        rows = mask.reshape(-1).nonzero()[:, 0]
    check_rows(rows, target)
    check_range("target", target.reshape(-1), 0, weight.shape[0], rows=rows, where=mask.reshape(-1)[rows])
    if sequence_ids is None:
        ids = torch.arange(count, device=input.device).repeat_interleave(target.shape[1])
    else:
        ids = sequence_ids.reshape(-1).long()
    listed = _list_rows(
        options, target, mask, advantages, rows, ids, count, num_items, num_tokens,
        (old_logprobs, ref_logprobs, sampler_logprobs, entropy_mask), accumulation_dtype(input, weight),
    )  # fmt: skip
    with_entropy = return_entropy or return_statistics or options.entropy_coef != 0
    chunk = chunk_size(rows.shape[0], weight.shape[0], chunk_rows, on_cpu=input.device.type == "cpu")
    loss, logprobs, sums, spread = _LinearGrpoLoss.apply(
        matmul_rows(input, backend), weight, bias, tuple(listed),
        (options.encode(), temperature, softcap, chunk, with_entropy, return_statistics), backend,
    )  # fmt: skip
    metrics = metrics_of(options, sums, ref=ref_logprobs, entropy=with_entropy, sampler=sampler_logprobs)
    if return_statistics:
        metrics |= zip(MORE, spread / sums[0].clamp(min=1))
    return loss, logprobs.reshape(target.shape), metrics
