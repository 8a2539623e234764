"""The GRPO family: its loss types and options, and the formulas of one token.

With A the advantage, r = exp(logprob - old), lo = 1 - epsilon, hi = 1 + epsilon_high, each counted token has

===========  =========================================================  ===============================
``term``     policy term                                                slope
===========  =========================================================  ===============================
``"clip"``   -min(min(r, delta) A, clamp(r, lo, hi) A)                  -r A where no bound holds r, in
                                                                        log r
``"cispo"``  -min(r, hi) A logprob, the first factor a constant         -min(r, hi) A, in logprob
``"sapo"``   -4/t s A, s = sigmoid(t (r - 1)), t = sapo_positive where  -4 s (1 - s) r A, in log r
             A > 0, else sapo_negative
``"vespo"``  -f A logprob, f = r^k exp(l (1 - r)) a constant, k and l   -f A, in logprob
             by the sign of A too (``vespo_k_positive`` and so on)
===========  =========================================================  ===============================

With ``ratio_level="sequence"`` the r of all tokens of a sequence is exp(mean of log r over the sequence):
GSPO is ``loss_type="grpo", ratio_level="sequence"``. In vespo it always is exp(sum of log r over the
sequence). To the policy term come beta times the KL estimate, with d = ref - logprob, k3 = exp(d) - d - 1 or
k2 = d^2 / 2, times r with ``kl_weighting="ratio"``. Subtracted from the loss is ``entropy_coef`` times the
mean entropy of all counted tokens; with ``entropy_norm="loss"`` it is a term of its token like the others.

With ``sampler_cap`` or ``sampler_floor`` the policy term has a constant weight w = exp(old - sampler), of its
token or of the sum over its sequence (``sampler_level``), which is held within the two bounds or is 0 outside
of them (``sampler_excess``). In vespo the r of a sequence is multiplied by the w of all its tokens instead.
With ``off_policy_bound`` the policy term is 0 in sequences with a negative advantage whose mean of
sampler - logprob is above the bound.

A loss type is an entry of ``LOSSES``: a policy term and what the sum over tokens is divided by. A new policy
term is a branch in ``policy_term`` and the same one in ``fused_policy_term``, both in ``_grpo_terms``.

Sources: see ``LOSSES``; GSPO arXiv 2507.18071; the KL estimators k2 and k3 are Schulman's
(joschu.net/blog/kl-approx.html); the dual clip (``delta``) is that of INTELLECT-2, arXiv 2505.07291;
``kl_weighting="ratio"`` and ``off_policy_bound`` are of DeepSeek-V3.2, arXiv 2512.02556.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from ._common import check_number, shown


class Loss(NamedTuple):
    """What a loss type stands for."""

    term: str  # "clip", "cispo", "sapo" or "vespo"
    # "lengths": the tokens of the sequence, then the sequences; "sequences"; "tokens"; "budget": sequences *
    # max_length
    divisor: str
    source: str


LOSSES = {
    "grpo": Loss("clip", "lengths", "arXiv 2402.03300"),
    "bnpo": Loss("clip", "tokens", "arXiv 2506.02864"),
    "dapo": Loss("clip", "tokens", "arXiv 2503.14476"),
    "luspo": Loss("clip", "sequences", "arXiv 2602.05261"),
    "sapo": Loss("sapo", "lengths", "arXiv 2511.20347"),
    "vespo": Loss("vespo", "tokens", "arXiv 2602.10693"),
    "dr_grpo": Loss("clip", "budget", "arXiv 2503.20783"),
    "cispo": Loss("cispo", "tokens", "arXiv 2506.13585"),
}
LOSS_TYPES = tuple(LOSSES)
_TERMS = {
    "clip": "clipped ratio",
    "cispo": "constant clipped ratio times log-prob",
    "sapo": "sigmoid of the ratio",
    "vespo": "constant weight, of the product of the ratios of a sequence, times log-prob",
}
_DIVISORS = {
    "lengths": "the tokens of each sequence, then the sequences",
    "sequences": "sequences",
    "tokens": "all tokens",
    "budget": "sequences times max_length",
}
RATIO_LEVELS = ("token", "sequence")
KL_ESTIMATES = ("k3", "k2")
KL_WEIGHTINGS = ("none", "ratio")
SAMPLER_EXCESSES = ("truncate", "mask")
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
        "policy term and what its sum is divided by: "
        + ", ".join(f"{name} ({_TERMS[it.term]}; {_DIVISORS[it.divisor]})" for name, it in LOSSES.items()),
        choices=LOSS_TYPES,
    )
    ratio_level: str = _option(
        "token",
        "whether each token has its own importance ratio or a sequence has one, their geometric mean "
        "(GSPO: loss_type grpo with ratio_level sequence)",
        choices=RATIO_LEVELS,
    )
    kl: str = _option("k3", "estimator of the KL divergence to the reference model", choices=KL_ESTIMATES)
    kl_weighting: str = _option(
        "none",
        "whether the KL estimate of a token is multiplied by its importance ratio, which makes it unbiased "
        "off policy (token level only)",
        choices=KL_WEIGHTINGS,
    )
    beta: float = _option(0.0, "weight of the KL divergence to the reference model", minimum=0)
    epsilon: float = _option(0.2, "ratios below 1 - epsilon are clipped", minimum=0)
    epsilon_high: float | None = _option(
        None, "ratios above 1 + epsilon_high are clipped; none: the same as epsilon", minimum=0
    )
    delta: float | None = _option(
        None, "bound of the ratio where the advantage is negative (dual clip); none: no bound", above=1
    )
    sapo_positive: float = _option(1.0, "temperature of sapo where the advantage is positive", above=0)
    sapo_negative: float = _option(1.05, "temperature of sapo where it is not", above=0)
    vespo_k_positive: float = _option(
        2.0, "power of the ratio in the weight of vespo where the advantage is positive", above=0
    )
    vespo_lambda_positive: float = _option(3.0, "decay of that weight in the ratio, likewise", above=0)
    vespo_k_negative: float = _option(3.0, "the power where the advantage is not positive", above=0)
    vespo_lambda_negative: float = _option(2.0, "the decay where it is not", above=0)
    sampler_cap: float | None = _option(
        None,
        "upper bound of exp(old - sampler log-prob), by which the policy term (in vespo the ratio) is "
        "multiplied (importance sampling on the difference of trainer and sampler); none, as sampler_floor: "
        "it is measured, not corrected",
        above=0,
    )
    sampler_floor: float | None = _option(None, "lower bound of the same", above=0)
    sampler_level: str = _option(
        "token",
        "whether each token has its own correction or a sequence has one, the product over its tokens",
        choices=RATIO_LEVELS,
    )
    sampler_excess: str = _option(
        "truncate",
        "what a correction beyond its bounds is: truncate (the bound), mask (0: it is left out)",
        choices=SAMPLER_EXCESSES,
    )
    off_policy_bound: float | None = _option(
        None,
        "sequences with a negative advantage are left out where the mean of sampler - policy log-prob is "
        "above this; none: all are kept",
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
        if self.delta is not None and self.term != "clip":
            raise ValueError(
                f"delta has no meaning for {self.loss_type}, whose ratio is bounded already; pass delta=None"
            )
        if self.delta is not None and self.delta <= self.high:
            raise ValueError(f"delta is {self.delta}; it must be above 1 + epsilon_high = {self.high}")
        if self.sampler_floor is not None and self.sampler_floor >= (self.sampler_cap or math.inf):
            raise ValueError(
                f"sampler_floor is {self.sampler_floor}; it must be below sampler_cap = {self.sampler_cap}"
            )
        if self.kl_weighting == "ratio" and self.per_sequence:
            raise ValueError(
                "kl_weighting='ratio' makes the KL term unbiased for ratios of tokens only; pass "
                "ratio_level='token' and another loss than vespo, or kl_weighting='none'"
            )
        if self.term == "vespo":
            for name in ("ratio_level", "sampler_level"):
                if getattr(self, name) != "token":
                    raise ValueError(
                        f"{name} is {getattr(self, name)!r}; vespo multiplies what the tokens of a sequence "
                        f"have each, so leave {name} at 'token'"
                    )
        if LOSSES[self.loss_type].divisor == "budget" and self.max_length is None:
            raise ValueError(f"max_length is None, but {self.loss_type} divides by it; pass the token budget")

    @property
    def term(self) -> str:
        """The policy term, ``"clip"``, ``"cispo"``, ``"sapo"`` or ``"vespo"``."""
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
        return self.ratio_level == "sequence" or self.multiplies_ratios

    @property
    def multiplies_ratios(self) -> bool:
        """Whether the ratio of a sequence is the product over its tokens; else it is their geometric mean."""
        return self.term == "vespo"

    @property
    def pools_slopes(self) -> bool:
        """Whether each token moves the ratio of all its sequence (in cispo and vespo it is a constant)."""
        return self.per_sequence and self.term not in ("cispo", "vespo")

    @property
    def corrected(self) -> bool:
        """Whether there is a weight for the difference of trainer and sampler."""
        return self.sampler_cap is not None or self.sampler_floor is not None

    @property
    def corrects_ratios(self) -> bool:
        """Whether that weight is a factor of the ratio."""
        return self.corrected and self.multiplies_ratios

    @property
    def corrects_terms(self) -> bool:
        """Whether it is a factor of the policy term."""
        return self.corrected and not self.multiplies_ratios

    @property
    def corrects_sequences(self) -> bool:
        """Whether that factor is one of the whole sequence."""
        return self.corrects_terms and self.sampler_level == "sequence"

    @property
    def needs_sequences(self) -> bool:
        """Whether all log-probabilities of a sequence must be known before the first gradient."""
        return self.per_sequence or self.corrects_sequences or self.off_policy_bound is not None

    @property
    def low(self) -> float:
        """The ratio below which a term is clipped; only the term ``"clip"`` has one."""
        return 1 - self.epsilon if self.term == "clip" else -math.inf

    @property
    def high(self) -> float:
        """The ratio above which a term is clipped; sapo and vespo have none."""
        if self.term in ("sapo", "vespo"):
            return math.inf
        return 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)

    @property
    def ratio_bound(self) -> float:
        """``delta``, or infinity."""
        return math.inf if self.delta is None else self.delta

    @property
    def shape(self) -> tuple[float, float, float, float]:
        """Numbers of the own term of sapo and vespo: two of positive advantages, then two of the others."""
        if self.term == "vespo":
            positive = self.vespo_lambda_positive, self.vespo_k_positive
            return *positive, self.vespo_lambda_negative, self.vespo_k_negative
        return self.sapo_positive, 0.0, self.sapo_negative, 0.0

    @property
    def sampler_bounds(self) -> tuple[float, float]:
        """``sampler_floor`` and ``sampler_cap``, or 0 and infinity."""
        return self.sampler_floor or 0.0, math.inf if self.sampler_cap is None else self.sampler_cap

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
