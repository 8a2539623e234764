"""The GRPO family: its loss types, its options and the formulas of one token, in PyTorch and in Triton.

With A the advantage, r = exp(logprob - old), lo = 1 - epsilon, hi = 1 + epsilon_high, each counted token has

===========  =========================================================  ===============================
``term``     policy term                                                slope
===========  =========================================================  ===============================
``"clip"``   -min(min(r, delta) A, clamp(r, lo, hi) A)                  -r A where no bound holds r, in
                                                                        log r
``"cispo"``  -min(r, hi) A logprob, the first factor a constant         -min(r, hi) A, in logprob
===========  =========================================================  ===============================

With ``ratio_level="sequence"`` the r of all tokens of a sequence is exp(mean of log r over the sequence):
GSPO is ``loss_type="grpo", ratio_level="sequence"``. To the policy term come beta times the KL estimate, with
d = ref - logprob, k3 = exp(d) - d - 1 or k2 = d^2 / 2. Subtracted from the loss is ``entropy_coef`` times the
mean entropy of all counted tokens; with ``entropy_norm="loss"`` it is a term of its token like the others.

A loss type is an entry of ``LOSSES``: a policy term and what the sum over tokens is divided by. A new policy
term is a branch in ``policy_term`` and the same one in ``fused_policy_term``.

Sources: see ``LOSSES``; GSPO arXiv 2507.18071; the KL estimators k2 and k3 are Schulman's
(joschu.net/blog/kl-approx.html); the dual clip (``delta``) is that of INTELLECT-2, arXiv 2505.07291.
"""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import check_number, shown


class Loss(NamedTuple):
    """What a loss type stands for."""

    term: str  # "clip" or "cispo"
    divisor: (
        str  # "lengths": the tokens of the sequence, then the sequences; "tokens"; "budget": R * max_length
    )
    source: str


LOSSES = {
    "grpo": Loss("clip", "lengths", "arXiv 2402.03300"),
    "bnpo": Loss("clip", "tokens", "arXiv 2506.02864"),
    "dapo": Loss("clip", "tokens", "arXiv 2503.14476"),
    "dr_grpo": Loss("clip", "budget", "arXiv 2503.20783"),
    "cispo": Loss("cispo", "tokens", "arXiv 2506.13585"),
}
LOSS_TYPES = tuple(LOSSES)
RATIO_LEVELS = ("token", "sequence")
KL_ESTIMATES = ("k3", "k2")
ENTROPY_NORMS = ("tokens", "loss")
REFUSED = {
    ("loss_type", "gspo"): "GSPO is loss_type='grpo' with ratio_level='sequence'",
    ("kl", "k1"): "as a loss it has a zero-mean gradient on policy; use k3 or k2, or k1 in the reward",
}


def _option(default: Any, help: str, **limits: Any) -> Any:
    """A field with its help text and limits: ``choices``, ``minimum`` (itself allowed) or ``above``."""
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True, kw_only=True)
class GrpoOptions:
    """The options of the GRPO family, checked when they are made.

    A field's metadata holds its ``help`` and limits (``choices``, ``minimum``, ``above``, ``integer``),
    from which settings and documentation can be made.

    Raises:
        ValueError: an option has a value that is not allowed, or two do not fit together.
    """

    loss_type: str = _option(
        "grpo",
        "policy term and what its sum is divided by: grpo (the tokens of each sequence, then the sequences), "
        "bnpo and dapo (all tokens), dr_grpo (sequences times max_length), cispo (its own term; all tokens)",
        choices=LOSS_TYPES,
    )
    ratio_level: str = _option(
        "token",
        "whether each token has its own importance ratio or a sequence has one, their geometric mean "
        "(GSPO: loss_type grpo with ratio_level sequence)",
        choices=RATIO_LEVELS,
    )
    kl: str = _option("k3", "estimator of the KL divergence to the reference model", choices=KL_ESTIMATES)
    beta: float = _option(0.0, "weight of the KL divergence to the reference model", minimum=0)
    epsilon: float = _option(0.2, "ratios below 1 - epsilon are clipped", minimum=0)
    epsilon_high: float | None = _option(
        None, "ratios above 1 + epsilon_high are clipped; none: the same as epsilon", minimum=0
    )
    delta: float | None = _option(
        None, "bound of the ratio where the advantage is negative (dual clip); none: no bound", above=1
    )
    sampler_cap: float | None = _option(
        None,
        "the policy term is multiplied by min(exp(old - sampler log-prob), sampler_cap) (truncated "
        "importance sampling); none: the difference is measured, not corrected",
        above=0,
    )
    entropy_coef: float = _option(0.0, "weight of the entropy bonus")
    entropy_norm: str = _option(
        "tokens",
        "what the entropy bonus is divided by: tokens (a mean over tokens for every loss type), loss (what "
        "the policy term of the token is divided by)",
        choices=ENTROPY_NORMS,
    )
    max_length: int | None = _option(
        None, "tokens that a completion may have; dr_grpo divides by it", minimum=1, integer=True
    )

    def __post_init__(self) -> None:
        for name, limits in LIMITS.items():
            _check(name, getattr(self, name), **limits)
        if self.delta is not None and self.delta <= self.high:
            raise ValueError(f"delta is {self.delta}; it must be above 1 + epsilon_high = {self.high}")
        if self.delta is not None and self.term == "cispo":
            raise ValueError("delta has no meaning for cispo, whose ratio is capped already; pass delta=None")
        if LOSSES[self.loss_type].divisor == "budget" and self.max_length is None:
            raise ValueError(f"max_length is None, but {self.loss_type} divides by it; pass the token budget")

    @property
    def term(self) -> str:
        """The policy term, ``"clip"`` or ``"cispo"``."""
        return LOSSES[self.loss_type].term

    @property
    def per_length(self) -> bool:
        """Whether a token's share is divided by the tokens of its sequence."""
        return LOSSES[self.loss_type].divisor == "lengths"

    @property
    def counts_sequences(self) -> bool:
        """Whether ``num_items`` counts sequences; else it counts tokens."""
        return LOSSES[self.loss_type].divisor != "tokens"

    @property
    def averages_entropy(self) -> bool:
        """Whether the entropy bonus is divided by another number, the tokens, than the other terms are."""
        return self.entropy_coef != 0 and self.counts_sequences and self.entropy_norm == "tokens"

    @property
    def per_sequence(self) -> bool:
        """Whether a sequence has one ratio."""
        return self.ratio_level == "sequence"

    @property
    def pools_slopes(self) -> bool:
        """Whether each token moves the ratio of all its sequence (in cispo the ratio is a constant)."""
        return self.per_sequence and self.term != "cispo"

    @property
    def low(self) -> float:
        """The ratio below which a term is clipped; cispo has none."""
        return -math.inf if self.term == "cispo" else 1 - self.epsilon

    @property
    def high(self) -> float:
        """The ratio above which a term is clipped."""
        return 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)

    @property
    def ratio_bound(self) -> float:
        """``delta``, or infinity."""
        return math.inf if self.delta is None else self.delta

    def encode(self) -> list[float]:
        """All options as numbers, since a custom op takes no objects: choices by index, None as NaN."""
        return [_encode(getattr(self, name), limits.get("choices")) for name, limits in LIMITS.items()]

    @classmethod
    def decode(cls, numbers: Sequence[float]) -> GrpoOptions:
        """The options that ``encode`` made numbers of."""
        values: dict[str, Any] = {}
        for (name, limits), number in zip(LIMITS.items(), numbers, strict=True):
            choices = limits.get("choices")
            values[name] = choices[int(number)] if choices else None if math.isnan(number) else number
            if limits.get("integer") and values[name] is not None:
                values[name] = int(number)
        return cls(**values)


LIMITS: dict[str, dict[str, Any]] = {
    option.name: {
        **{key: limit for key, limit in option.metadata.items() if key != "help"},
        "optional": option.default is None,
    }
    for option in fields(GrpoOptions)
}


def _encode(value: Any, choices: tuple[str, ...] | None) -> float:
    if choices is not None:
        return float(choices.index(value))
    return math.nan if value is None else value


def _check(
    name: str,
    value: Any,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    above: float | None = None,
    integer: bool = False,
    optional: bool = False,
) -> None:
    """Raise ``ValueError`` unless ``value`` is within the limits of the option ``name``."""
    if choices is not None:
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; {REFUSED.get((name, value), f'use one of {choices}')}")
    else:
        check_number(name, value, minimum=minimum, above=above, integer=integer, optional=optional)


DEFAULTS = GrpoOptions()


def check_options(options: object) -> None:
    """Raise ``ValueError`` for what is no ``GrpoOptions``."""
    if not isinstance(options, GrpoOptions):
        raise ValueError(f"options is {shown(options)}; pass GrpoOptions(loss_type=..., ...)")


def policy_term(
    options: GrpoOptions, logprobs: Tensor, ratio: Tensor, advantages: Tensor
) -> tuple[Tensor, Tensor]:
    """The policy term of each token and its slope (see the table above), all tensors of one shape.

    An advantage of 0 gives 0 and slope 0, for an infinite ratio too (their product is NaN). A ratio that is
    NaN gives NaN.
    """
    idle = (advantages == 0) & ~ratio.isnan()
    if options.term == "cispo":
        slope = torch.where(idle, 0.0, -ratio.clamp(max=options.high) * advantages)
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
def fused_policy_term(lp, ratio, advantage, low, high, delta, TERM: tl.constexpr):
    """``policy_term`` in a kernel."""
    idle = (advantage == 0.0) & (ratio == ratio)
    if TERM == "cispo":
        slope = tl.where(idle, 0.0, -smaller(ratio, high) * advantage)
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
