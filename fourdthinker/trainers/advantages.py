"""Advantages of rollouts, some of which may have no reward (NaN): they are no part of their group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fourdthinker.kernels import group_advantages

_EPS = 1e-4  # as in `group_advantages`


def rounding(weights: Sequence[float]) -> float:
    """Up to which difference sums of `normalised_sum` are equal: parts that cancel leave what was rounded."""
    return 1e-5 * sum(map(abs, weights))


def equal_groups(rewards: Tensor, group_size: int, within: float = 0.0) -> Tensor:
    """Whether nothing can be learnt from the row's group: its rewards are equal, or there is one at most.

    Args:
        rewards: [R], groups one after the other; NaN: none.
        group_size: rows of a group.
        within: the largest difference of equal ones; 0 for rewards, `rounding` for weighted sums.

    Returns:
        [R] bool. By the extremes; rounded deviations would not tell.
    """
    grouped = rewards.view(-1, group_size)
    highest = grouped.nan_to_num(nan=-torch.inf).amax(1, keepdim=True)
    lowest = grouped.nan_to_num(nan=torch.inf).amin(1, keepdim=True)
    return (highest <= lowest + within).expand_as(grouped).reshape(-1)


def advantages_of(rewards: Tensor, group_size: int, scale: str) -> Tensor:
    """`group_advantages`, where rows without a reward (NaN) get 0 and the others are compared without them.

    Args:
        rewards: [R], groups one after the other; NaN: none.
        group_size: rows of a group.
        scale: as in `group_advantages`.

    Returns:
        [R] float32.
    """
    known = ~rewards.isnan()
    if bool(known.all()):
        return group_advantages(rewards, group_size, scale=scale)
    grouped, counted = rewards.view(-1, group_size), known.view(-1, group_size)
    number = counted.sum(1, keepdim=True)
    centred = torch.where(counted, grouped - grouped.nansum(1, keepdim=True) / number.clamp(min=1), 0.0)
    if scale == "group":
        centred = centred / (
            (centred.square().sum(1, keepdim=True) / (number - 1).clamp(min=1)).sqrt() + _EPS
        )
    elif scale == "batch" and bool(known.any()):
        centred = centred / (_deviation(rewards[known]) + _EPS)
    elif scale == "leave_one_out":
        centred = centred * number / (number - 1).clamp(min=1)
    return torch.where(equal_groups(rewards, group_size), 0.0, centred.reshape(-1))


def normalised_sum(parts: Sequence[Tensor], weights: Sequence[float], group_size: int) -> Tensor:
    """What GDPO (arXiv 2601.05242) compares over the update: the weighted sum of each reward's advantages.

    Args:
        parts: of each function [R], groups one after the other; NaN: none.
        weights: of each function.
        group_size: rows of a group.

    Returns:
        [R] float32, NaN where no function gave a reward.
    """
    own = [advantages_of(part, group_size, "group") for part in parts]
    total = torch.stack([weight * part for weight, part in zip(weights, own, strict=True)]).sum(0)
    nothing = torch.stack([part.isnan() for part in parts]).all(0)
    return total.masked_fill(nothing, torch.nan)


def normalised(values: Tensor) -> Tensor:
    """(value - mean) / standard deviation over all that are no NaN; these are 0."""
    known = values[~values.isnan()]
    if known.numel() < 2:
        return torch.zeros_like(values)
    return ((values - known.mean()) / (_deviation(known) + _EPS)).nan_to_num(nan=0.0)


def _deviation(values: Tensor) -> Tensor:
    return values.std() if values.numel() > 1 else torch.zeros((), dtype=values.dtype)
