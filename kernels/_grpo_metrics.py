"""The metrics of the GRPO family: sums over tokens, in PyTorch and in Triton.

A metric is an entry of ``METRICS``, its value in ``token_values`` and the same in ``add_metrics`` and
``no_metrics``, all in one order. Ops return one vector of them; nothing else counts them.
"""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._grpo_losses import GrpoOptions
from ._grpo_terms import larger, smaller

# What a token adds at most to a mean, so that one of them leaves a finite number: exp(20).
_LARGEST_VALUE: tl.constexpr = tl.constexpr(4.85165195e8)


class Metric(NamedTuple):
    """A number about the tokens of a batch."""

    name: str
    help: str
    needs: str = ""  # the input without which it says nothing: "delta", "ref", "entropy" or "sampler"
    largest: bool = False  # the largest of the tokens' values; else their mean


# Means first: the kernel sums all but the last ``LARGEST``. Ratio, policy term and KL of a token, which grow
# as an exponential, enter with at most exp(20) in size; NaN stays NaN.
METRICS = (
    Metric("tokens", "tokens that the policy chose; divides the others and is not shown"),
    Metric("ratio", "importance ratio"),
    Metric("clip_low", "share of tokens with a negative advantage and a ratio below 1 - epsilon"),
    Metric("clip_high", "share of tokens with a positive advantage and a ratio above 1 + epsilon_high"),
    Metric("clip_delta", "share of tokens with a negative advantage and a ratio above delta", "delta"),
    Metric("policy_loss", "policy term of the loss, with its weights and masks"),
    Metric("kl", "KL estimate to the reference model", "ref"),
    Metric("entropy", "entropy of the next token, in nats", "entropy"),
    Metric("sampler_gap", "|old - sampler log-prob|, in nats", "sampler"),
    Metric("sampler_gap_max", "the largest of these", "sampler", largest=True),
)
LARGEST = sum(metric.largest for metric in METRICS)


def token_values(
    options: GrpoOptions, *, ratio: Tensor, advantages: Tensor, term: Tensor, kl: Tensor, entropy: Tensor,
    difference: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Each metric's value of each token; all tensors have one shape.

    Args:
        options: of the loss: its bounds of the ratio.
        ratio: importance ratios.
        advantages: of the tokens.
        term: policy terms, with weights and masks.
        kl: estimates of the KL divergence from the reference model.
        entropy: of the distributions that the tokens come from.
        difference: log-prob differences between trainer and sampler.

    Returns:
        A tensor a metric, in the order of ``METRICS``.
    """
    negative, positive, most = advantages < 0, advantages > 0, _LARGEST_VALUE.value
    return [
        torch.ones_like(ratio), ratio.clamp(max=most),
        negative & (ratio < options.low), positive & (ratio > options.high),
        negative & (ratio > options.ratio_bound),
        term.clamp(-most, most), kl.clamp(max=most), entropy, difference, difference,
    ]  # fmt: skip


@triton.jit
def no_metrics(BLOCK: tl.constexpr):
    """Zeros to add to, one block a metric."""
    zero = tl.zeros([BLOCK], tl.float32)
    return zero, zero, zero, zero, zero, zero, zero, zero, zero, zero


@triton.jit
def add_metrics(sums, counted, ratio, advantage, low, high, delta, term, kl, entropy, difference):
    """``sums`` and the values of another block of tokens; those that are not ``counted`` add nothing."""
    return (
        sums[0] + counted.to(tl.float32),
        sums[1] + tl.where(counted, smaller(ratio, _LARGEST_VALUE), 0.0),
        sums[2] + (counted & (ratio < low) & (advantage < 0)).to(tl.float32),
        sums[3] + (counted & (ratio > high) & (advantage > 0)).to(tl.float32),
        sums[4] + (counted & (ratio > delta) & (advantage < 0)).to(tl.float32),
        sums[5] + tl.where(counted, larger(smaller(term, _LARGEST_VALUE), -_LARGEST_VALUE), 0.0),
        sums[6] + tl.where(counted, smaller(kl, _LARGEST_VALUE), 0.0),
        sums[7] + tl.where(counted, entropy, 0.0),
        sums[8] + tl.where(counted, difference, 0.0),
        larger(sums[9], tl.where(counted, difference, 0.0)),
    )


@triton.jit
def store_metrics(pointer, sums, COUNT: tl.constexpr, LARGEST: tl.constexpr):
    """Write the ``COUNT`` metrics of a row; the last ``LARGEST`` are maxima."""
    for index in tl.static_range(COUNT):
        if index < COUNT - LARGEST:
            tl.store(pointer + index, tl.sum(sums[index], axis=0))
        else:
            # Not tl.max, which drops NaN on a GPU.
            tl.store(pointer + index, tl.reduce(sums[index], 0, larger))


def sum_tokens(values: list[Tensor], counted: Tensor) -> Tensor:
    """The vector of metrics of tokens that are ``counted``, from ``token_values``."""
    dtype = values[0].dtype
    kept = [torch.where(counted, value.to(dtype), 0.0).flatten() for value in values]
    means, maxima = kept[: len(kept) - LARGEST], kept[len(kept) - LARGEST :]
    zero = values[0].new_zeros(1)  # there may be no tokens
    return torch.stack([*(value.sum() for value in means), *(torch.cat((v, zero)).amax() for v in maxima)])


def join(parts: Tensor) -> Tensor:
    """[n, metrics] vectors of disjoint tokens to the vector of all of them."""
    means, maxima = parts[:, : parts.shape[1] - LARGEST], parts[:, parts.shape[1] - LARGEST :]
    padded = torch.cat((maxima, maxima.new_zeros(1, LARGEST)))  # there may be no parts
    return torch.cat((means.sum(dim=0), padded.amax(dim=0)))


def named_metrics(sums: Tensor, *, present: dict[str, bool]) -> dict[str, Tensor]:
    """The metrics that say something here, by name: token means, or the largest value.

    Args:
        sums: the vector of an op.
        present: for every ``needs`` of ``METRICS`` whether it was given.
    """
    means = sums / sums[0].clamp(min=1)
    return {
        metric.name: sums[index] if metric.largest else means[index]
        for index, metric in enumerate(METRICS)
        if index and present.get(metric.needs, True)
    }
