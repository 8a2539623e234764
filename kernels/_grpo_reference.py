"""What the ops of the GRPO family share: checks, normalisers, the terms of all tokens in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import check_floating, check_tensors, reciprocal
from ._grpo_losses import LOSSES, GrpoOptions
from ._grpo_metrics import named_metrics, sum_tokens, token_values
from ._grpo_terms import kl_term, policy_term, sampler_weight, weighted


def check_like(target: Tensor, mask: Tensor, **others: Tensor | None) -> None:
    """Raise ``ValueError`` unless all are tensors of ``target``'s shape and device and of their dtype.

    Masks are bool; entropies and log-probabilities are floating.
    """
    check_tensors(*others, mask=mask, **others)
    check_floating(**{name: v for name, v in others.items() if name.endswith(("logprobs", "entropy"))})
    for name, value in {"mask": mask, **others}.items():
        if value is not None and (value.shape != target.shape or value.device != target.device):
            raise ValueError(
                f"{name} is {tuple(value.shape)} on {value.device}; it must be {tuple(target.shape)} on "
                f"{target.device}"
            )
    for name, value in (("mask", mask), ("entropy_mask", others.get("entropy_mask"))):
        if value is not None and value.dtype != torch.bool:
            raise ValueError(f"{name} is {value.dtype}; it must be torch.bool")


def check_sampler(options: GrpoOptions, sampler_logprobs: Tensor | None) -> None:
    """Raise ``ValueError`` where a correction for the sampler is asked for and its log-probs are missing."""
    if options.corrected and sampler_logprobs is None:
        raise ValueError(
            f"sampler_floor is {options.sampler_floor} and sampler_cap {options.sampler_cap}, but there are "
            "no sampler_logprobs; pass them, or leave both None"
        )


def check_reference(options: GrpoOptions, ref_logprobs: Tensor | None) -> None:
    """Raise ``ValueError`` where a KL term is asked for and there is nothing to compare with."""
    if options.beta and ref_logprobs is None:
        raise ValueError(f"beta is {options.beta}, but there are no ref_logprobs; pass them or beta=0")


def token_scale(
    options: GrpoOptions,
    num_items: Tensor | float | None,
    sequences: int,
    counted: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """What a token's term is multiplied by, a scalar; ``per_length`` divides it by the length besides.

    Args:
        options: say what is counted.
        num_items: the global normaliser, or None for this batch's own.
        sequences: the sequences of this batch.
        counted: bool, any shape: the tokens of this batch that count.
        dtype: of the result.
    """
    if num_items is None:
        num_items = float(sequences) if options.counts_sequences else counted.sum()
    scale = reciprocal(num_items, counted, dtype)
    return scale / (options.max_length or 1) if LOSSES[options.loss_type].divisor == "budget" else scale


def entropy_share(
    options: GrpoOptions, share: Tensor, num_tokens: Tensor | float | None, counted: Tensor
) -> Tensor:
    """What the entropy of a token is multiplied by, besides ``entropy_coef``.

    Args:
        options: say how the bonus is normalised.
        share: what its other terms are multiplied by; any shape.
        num_tokens: the tokens of the whole update, or None for those of this batch.
        counted: bool, any shape: the tokens of this batch that count.

    Returns:
        ``share``, or one number for all tokens, a scalar.
    """
    if not options.averages_entropy:
        return share
    tokens = counted.sum() if num_tokens is None else num_tokens
    return reciprocal(tokens, counted, share.dtype, "num_tokens")


def sequence_sums(values: Tensor, sequences: Tensor, count: int) -> Tensor:
    """[count] sums of ``values`` [M] by ``sequences`` [M], the same in every run."""
    sums = torch.zeros(count, dtype=values.dtype, device=values.device)
    if values.is_cuda:  # sorts, where index_add_ would add in any order
        return sums.index_put_((sequences,), values, accumulate=True)
    return sums.index_add_(0, sequences, values)


def token_terms(
    options: GrpoOptions,
    *,
    logprobs: Tensor,
    log_ratio: Tensor,
    old: Tensor,
    advantages: Tensor,
    counted: Tensor,
    ref: Tensor | None,
    sampler: Tensor | None,
    entropy: Tensor | None,
    kept: Tensor | None,
    log_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The terms of all tokens and their slopes, before any normaliser; without the entropy bonus.

    Args:
        options: the formulas, see ``_grpo_losses``.
        logprobs: log-probabilities of the policy. All tensors have this shape and the accumulation dtype.
        log_ratio: ``logprobs - old``, or its mean (sum, with ``multiplies_ratios``) over the sequence.
        old: log-probabilities before the first update.
        advantages: spread over the tokens.
        counted: bool. Other entries must be finite everywhere; their terms are rubbish.
        ref: log-probabilities of the reference model.
        sampler: log-probabilities of the sampler.
        entropy: of the policy, for its metric.
        kept: bool, where the policy term is kept.
        log_weight: the sum of ``old - sampler`` over the sequence, with ``corrects_sequences``.

    Returns:
        The term; the slope of its policy term, in the log ratio (cispo, vespo: in the log-probability); the
        slope of its KL term in the log-probability, beta included; the vector of ``METRICS``.
    """
    ratio = log_ratio.exp()
    term, slope = policy_term(options, logprobs, ratio, advantages)
    nothing = torch.zeros_like(term)
    difference, divergence, kl_slope = nothing, nothing, nothing
    if kept is not None:
        term, slope = torch.where(kept, term, 0.0), torch.where(kept, slope, 0.0)
    if sampler is not None:
        difference = old - sampler
        if options.corrects_terms:
            weight = sampler_weight(options, difference if log_weight is None else log_weight)
            term, slope = weighted(weight, term), weighted(weight, slope)
        difference = difference.abs()
    cost = nothing
    if ref is not None:
        divergence, slope_of_kl = kl_term(options, logprobs, ref)
        if options.beta:  # else it is a metric alone, and may be infinite
            cost = divergence
            if options.kl_weighting == "ratio":
                slope_of_kl = weighted(ratio, divergence + slope_of_kl)
                cost = weighted(ratio, divergence)
            cost, kl_slope = options.beta * cost, options.beta * slope_of_kl
    values = token_values(
        options, ratio=ratio, advantages=advantages, term=term, kl=divergence,
        entropy=nothing if entropy is None else entropy, difference=difference,
    )  # fmt: skip
    return term + cost, slope, kl_slope, sum_tokens(values, counted)


def metrics_of(
    options: GrpoOptions, sums: Tensor, *, ref: Tensor | None, entropy: bool, sampler: Tensor | None
) -> dict[str, Tensor]:
    """The metrics behind the vector ``sums`` of an op, by name."""
    present = {
        "delta": options.delta is not None, "ref": ref is not None, "entropy": entropy,
        "sampler": sampler is not None,
    }  # fmt: skip
    return named_metrics(sums, present=present)
