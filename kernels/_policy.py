"""The policy term, the KL term and the metrics of the GRPO family, in plain PyTorch, with their slopes.

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

To it come beta times the KL estimate, with d = ref - logprob, k3 = exp(d) - d - 1 or k2 = d^2 / 2, and minus
``entropy_coef`` times the entropy. With a dual clip the first r is at most delta.

Sources: GRPO arXiv 2402.03300, Dr. GRPO 2503.20783, DAPO 2503.14476, GSPO 2507.18071, CISPO 2506.13585; the
KL estimators k2 and k3 are Schulman's, the dual clip that of INTELLECT-2 (2505.07291).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ._common import check_finite, reciprocal

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo")
PER_SEQUENCE = ("grpo", "gspo", "dr_grpo")  # num_items counts sequences; tokens for the others
PER_LENGTH = ("grpo", "gspo")  # a token's share is divided by the tokens of its sequence
SUMS = ("tokens", "ratio", "clip_low", "clip_high", "clip_delta", "kl", "entropy", "sampler_gap",
        "sampler_gap_max")  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """What the terms depend on, checked and filled in; what is absent is infinite."""

    loss_type: str
    kl: str
    beta: float
    low: float  # ratios below are clipped
    high: float
    delta: float
    sampler_cap: float
    entropy_coef: float

    def numbers(self) -> list[float]:
        """All but the two names: a custom op takes (loss_type, kl, numbers) and makes a ``Policy`` of it."""
        return [self.beta, self.low, self.high, self.delta, self.sampler_cap, self.entropy_coef]


def check_policy(
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
) -> Policy:
    """Raise ``ValueError`` for options that do not fit together."""
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
    above = epsilon if epsilon_high is None else epsilon_high
    if epsilon < 0 or above < 0:
        raise ValueError(f"epsilon is {epsilon} and epsilon_high {above}; both must be 0 or more")
    if beta < 0:
        raise ValueError(f"beta is {beta}; it must be 0 or more")
    if delta is not None and delta <= 1 + above:
        raise ValueError(f"delta is {delta}; it must be above 1 + epsilon_high = {1 + above}")
    if delta is not None and loss_type == "cispo":
        raise ValueError("delta has no meaning for cispo, whose ratio is capped already; pass delta=None")
    if sampler_cap <= 0:
        raise ValueError(f"sampler_cap is {sampler_cap}; it must be above 0")
    if loss_type == "dr_grpo" and (max_length is None or max_length < 1):
        raise ValueError(f"max_length is {max_length}, but dr_grpo divides by it; pass the completion budget")
    return Policy(
        loss_type,
        kl,
        beta,
        low=-math.inf if loss_type == "cispo" else 1 - epsilon,  # its ratio is only capped from above
        high=1 + above,
        delta=math.inf if delta is None else delta,
        sampler_cap=sampler_cap,
        entropy_coef=entropy_coef,
    )


def check_like(target: Tensor, mask: Tensor, **others: Tensor | None) -> None:
    """Raise ``ValueError`` unless all have the shape and device of ``target`` and the masks are bool."""
    for name, value in {"mask": mask, **others}.items():
        if value is not None and (value.shape != target.shape or value.device != target.device):
            raise ValueError(
                f"{name} is {tuple(value.shape)} on {value.device}; it must be {tuple(target.shape)} on "
                f"{target.device}"
            )
    for name, value in (("mask", mask), ("entropy_mask", others.get("entropy_mask"))):
        if value is not None and value.dtype != torch.bool:
            raise ValueError(f"{name} is {value.dtype}; it must be torch.bool")


def token_scale(
    policy: Policy, num_items: Tensor | float | None, sequences: int, counted: Tensor,
    max_length: int | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """What a token's term is multiplied by, a scalar; ``PER_LENGTH`` divides it by the length besides."""
    if num_items is None:
        num_items = float(sequences) if policy.loss_type in PER_SEQUENCE else counted.sum()
    scale = reciprocal(num_items, counted, dtype)
    return scale / max_length if policy.loss_type == "dr_grpo" and max_length is not None else scale


def sequence_sums(values: Tensor, sequences: Tensor, count: int) -> Tensor:
    """[count] sums of ``values`` [M] by ``sequences`` [M], the same in every run."""
    sums = torch.zeros(count, dtype=values.dtype, device=values.device)
    if values.is_cuda:  # sorts, where index_add_ would add in any order
        return sums.index_put_((sequences,), values, accumulate=True)
    return sums.index_add_(0, sequences, values)


def policy_terms(
    policy: Policy,
    *,
    logprobs: Tensor,
    log_ratio: Tensor,
    old: Tensor,
    advantages: Tensor,
    counted: Tensor,
    ref: Tensor | None,
    sampler: Tensor | None,
    entropy: Tensor | None,
    entropy_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token by token the term, its slope in the log ratio and its slope through the KL term; the ``SUMS``.

    All tensors have one shape; entries that are not ``counted`` must be finite and their terms are rubbish.
    For cispo the first slope is the one in the log-probability.
    """
    ratio = log_ratio.exp()
    if policy.loss_type == "cispo":
        slope = -ratio.clamp(max=policy.high) * advantages
        term = slope * logprobs
    else:
        free = ratio.clamp(max=policy.delta) * advantages
        clipped = ratio.clamp(policy.low, policy.high) * advantages
        inside = (ratio >= policy.low) & (ratio <= policy.high)
        moves = torch.where(free <= clipped, ratio <= policy.delta, inside)
        term, slope = -torch.minimum(free, clipped), torch.where(moves, -ratio * advantages, 0.0)
    nothing = torch.zeros_like(term)
    gap, divergence, away = nothing, nothing, nothing
    if entropy_mask is not None:
        term, slope = torch.where(entropy_mask, term, 0.0), torch.where(entropy_mask, slope, 0.0)
    if sampler is not None:
        gap = old - sampler
        weight = gap.exp().clamp(max=policy.sampler_cap)
        term, slope, gap = term * weight, slope * weight, gap.abs()
    if ref is not None:
        difference = ref - logprobs
        divergence = difference.exp() - difference - 1 if policy.kl == "k3" else 0.5 * difference.square()
        away = policy.beta * (1 - difference.exp() if policy.kl == "k3" else -difference)
        term = term + policy.beta * divergence
    if entropy is not None and policy.entropy_coef:
        term = term - policy.entropy_coef * entropy
    negative, positive = advantages < 0, advantages > 0
    sums = [counted, ratio, negative & (ratio < policy.low), positive & (ratio > policy.high),
            negative & (ratio > policy.delta), divergence, nothing if entropy is None else entropy,
            gap]  # fmt: skip
    totals = [torch.where(counted, value.to(term.dtype), 0.0).sum() for value in sums]
    largest = torch.cat((torch.where(counted, gap, 0.0).flatten(), gap.new_zeros(1))).amax()
    return term, slope, away, torch.stack([*totals, largest])


def metrics_of(
    policy: Policy, sums: Tensor, *, ref: Tensor | None, entropy: bool, sampler: Tensor | None
) -> dict[str, Tensor]:
    """The token means behind ``SUMS`` that say something here."""
    means = sums / sums[0].clamp(min=1)
    present = {
        "tokens": False, "clip_delta": policy.delta < math.inf, "kl": ref is not None, "entropy": entropy,
        "sampler_gap": sampler is not None, "sampler_gap_max": sampler is not None,
    }  # fmt: skip
    return {
        name: sums[at] if name == "sampler_gap_max" else means[at]
        for at, name in enumerate(SUMS)
        if present.get(name, True)
    }
