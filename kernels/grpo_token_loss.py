"""The GRPO family of losses from per-token log-probabilities.

With A the advantage, r = exp(logprob - old), lo = 1 - epsilon, hi = 1 + epsilon_high, each counted token has

==============  ===================================================  ==============================
``loss_type``   policy term                                          normalised by
==============  ===================================================  ==============================
``"grpo"``      -min(r A, clamp(r, lo, hi) A)                        its sequence's length, then R
``"bnpo"``      the same                                             tokens
``"dapo"``      the same                                             tokens
``"dr_grpo"``   the same                                             R * max_length
``"gspo"``      the same with r = exp(mean of log r over the         its sequence's length, then R
                sequence)
``"cispo"``     -min(r, hi) A logprob, the first factor a constant   tokens
==============  ===================================================  ==============================

Sources: GRPO arXiv 2402.03300, Dr. GRPO 2503.20783, DAPO 2503.14476, GSPO 2507.18071, CISPO 2506.13585; the
KL estimators k2 and k3 are Schulman's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._common import accumulation_dtype, check_finite, reciprocal

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo")
PER_SEQUENCE = ("grpo", "gspo", "dr_grpo")  # num_items counts sequences; tokens for the others


def check_options(
    *,
    loss_type: str,
    kl: str,
    beta: float,
    epsilon: float,
    epsilon_high: float | None,
    delta: float | None,
    sampler_cap: float,
    entropy_coef: float,
    max_length: int | None,
) -> float:
    """Raise ``ValueError`` for options that do not fit together; return ``epsilon_high`` filled in."""
    check_finite(beta=beta, epsilon=epsilon, epsilon_high=epsilon_high, delta=delta, sampler_cap=sampler_cap)
    check_finite(entropy_coef=entropy_coef)
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type is {loss_type!r}; use one of {LOSS_TYPES}")
    if kl == "k1":
        raise ValueError(
            "kl=k1 as a loss has a zero-mean gradient on policy; use k3 or k2, or k1 in the reward"
        )
    if kl not in ("k2", "k3"):
        raise ValueError(f"kl is {kl!r}; use 'k2' or 'k3'")
    high = epsilon if epsilon_high is None else epsilon_high
    if epsilon < 0 or high < 0:
        raise ValueError(f"epsilon is {epsilon} and epsilon_high {high}; both must be 0 or more")
    if beta < 0:
        raise ValueError(f"beta is {beta}; it must be 0 or more")
    if delta is not None and delta <= 1 + high:
        raise ValueError(f"delta is {delta}; it must be above 1 + epsilon_high = {1 + high}")
    if delta is not None and loss_type == "cispo":
        raise ValueError("delta has no meaning for cispo, whose ratio is capped already; pass delta=None")
    if sampler_cap <= 0:
        raise ValueError(f"sampler_cap is {sampler_cap}; it must be above 0")
    if loss_type == "dr_grpo" and (max_length is None or max_length < 1):
        raise ValueError(f"max_length is {max_length}, but dr_grpo divides by it; pass the completion budget")
    return high


def policy_term(
    logprobs: Tensor,
    log_ratio: Tensor,
    advantages: Tensor,
    *,
    loss_type: str,
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
) -> Tensor:
    """The policy term of the table, element by element; differentiable in the first two arguments."""
    ratio = log_ratio.exp()
    if loss_type == "cispo":
        return -ratio.clamp(max=1 + epsilon_high).detach() * advantages * logprobs
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    if delta is not None:
        ratio = ratio.clamp(max=delta)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def kl_term(logprobs: Tensor, ref_logprobs: Tensor, kl: str) -> Tensor:
    """k3 = exp(d) - d - 1 with d = ref - logprob, or k2 = d^2 / 2."""
    difference = ref_logprobs - logprobs
    return difference.exp() - difference - 1 if kl == "k3" else 0.5 * difference.square()


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
    logprobs: Tensor, advantages: Tensor, mask: Tensor, old: Tensor, ref: Tensor | None,
    sampler: Tensor | None, entropy: Tensor | None, entropy_mask: Tensor | None, scale: Tensor,
    loss_type: str, kl: str, beta: float, epsilon: float, epsilon_high: float, delta: float | None,
    sampler_cap: float, entropy_coef: float,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    log_ratio = logprobs - old
    if loss_type == "gspo":
        log_ratio = (log_ratio.sum(dim=1, keepdim=True) / lengths).expand_as(logprobs)
    term = policy_term(
        logprobs, log_ratio, advantages,
        loss_type=loss_type, epsilon=epsilon, epsilon_high=epsilon_high, delta=delta,
    )  # fmt: skip
    metrics: dict[str, Tensor] = {}
    tokens = mask.sum().clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return torch.where(mask, values.detach(), 0.0).sum() / tokens

    ratio = log_ratio.detach().exp()
    metrics["ratio"] = mean(ratio)
    metrics["clip_high"] = mean(((ratio > 1 + epsilon_high) & (advantages > 0)).to(logprobs.dtype))
    # The ratio of cispo is only capped from above.
    low = (ratio < 1 - epsilon) & (advantages < 0) & (loss_type != "cispo")
    metrics["clip_low"] = mean(low.to(logprobs.dtype))
    if delta is not None:
        metrics["clip_delta"] = mean(((ratio > delta) & (advantages < 0)).to(logprobs.dtype))
    if entropy_mask is not None:
        term = torch.where(entropy_mask, term, 0.0)
    if sampler is not None:
        gap = old - sampler
        term = term * gap.exp().clamp(max=sampler_cap)
        metrics["sampler_gap"] = mean(gap.abs())
        # Masked gaps are 0 already; the extra 0 lets an empty batch have a largest.
        metrics["sampler_gap_max"] = torch.cat((gap.abs().flatten(), gap.new_zeros(1))).amax()
    if ref is not None:
        divergence = kl_term(logprobs, ref, kl)
        metrics["kl"] = mean(divergence)
        if beta:
            term = term + beta * divergence
    if entropy is not None:
        metrics["entropy"] = mean(entropy)
        if entropy_coef:
            term = term - entropy_coef * entropy
    term = torch.where(mask, term, 0.0)
    if loss_type in ("grpo", "gspo"):
        term = term / lengths
    return term.sum() * scale, metrics


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
) -> tuple[Tensor, dict[str, Tensor]]:
    """Scalar loss of ``logprobs`` [R, T] and metrics; see the module for the formulas.

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

    Returns the loss in float32 (float64 for float64 ``logprobs``) and token means, detached, of ``ratio``,
    ``clip_low``, ``clip_high``, and where they apply ``clip_delta``, ``kl``, ``entropy``, ``sampler_gap``
    (with ``sampler_gap_max``). Raises ``ValueError`` for shapes or options that do not fit, and for k1.
    """
    high = check_options(
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
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}; it must be torch.bool")
    if beta and ref_logprobs is None:
        raise ValueError(f"beta is {beta}, but there are no ref_logprobs; pass them or beta=0")
    if entropy_coef and entropy is None:
        raise ValueError(
            f"entropy_coef is {entropy_coef}, but there is no entropy; pass it or entropy_coef=0"
        )
    like = {
        "mask": mask, "old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs,
        "sampler_logprobs": sampler_logprobs, "entropy": entropy, "entropy_mask": entropy_mask,
    }  # fmt: skip
    for name, value in like.items():
        if value is not None and (value.shape != logprobs.shape or value.device != logprobs.device):
            raise ValueError(
                f"{name} is {tuple(value.shape)} on {value.device}; it must be {tuple(logprobs.shape)} on "
                f"{logprobs.device}"
            )
    dtype = accumulation_dtype(logprobs)

    def counted(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.where(mask, values.to(dtype), 0.0)

    def constant(values: Tensor | None) -> Tensor | None:
        return None if values is None else counted(values.detach())

    current = torch.where(mask, logprobs.to(dtype), 0.0)
    old = constant(old_logprobs)
    per_token = advantages.detach().to(dtype)
    per_token = torch.where(mask, per_token if per_token.dim() == 2 else per_token[:, None], 0.0)
    if num_items is None:
        num_items = float(rows) if loss_type in PER_SEQUENCE else mask.sum()
    scale = reciprocal(num_items, logprobs, dtype)
    if loss_type == "dr_grpo" and max_length is not None:
        scale = scale / max_length
    return _reference(
        current, per_token, mask, current.detach() if old is None else old, constant(ref_logprobs),
        constant(sampler_logprobs), counted(entropy), entropy_mask, scale,
        loss_type, kl, beta, epsilon, high, delta, sampler_cap, entropy_coef,
    )  # fmt: skip
