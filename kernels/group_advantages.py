"""Advantages of GRPO: each reward relative to the other rollouts of its prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import check_finite

SCALES = ("group", "none", "batch", "leave_one_out")


def _reference(rewards: Tensor, group_size: int, scale: str, eps: float) -> Tensor:
    grouped = rewards.reshape(-1, group_size)
    centred = grouped - grouped.mean(dim=1, keepdim=True)
    if scale == "group":
        centred = centred / (grouped.std(dim=1, keepdim=True) + eps)
    elif scale == "batch":
        centred = centred / (rewards.std() + eps)
    elif scale == "leave_one_out":
        centred = centred * (group_size / (group_size - 1))
    # By equality, because a rounded mean leaves a residue that 1 / (std + eps) blows up to 1e-3.
    equal = (grouped == grouped[:, :1]).all(dim=1, keepdim=True)
    return torch.where(equal, torch.zeros_like(centred), centred).reshape(-1)


def group_advantages(rewards: Tensor, group_size: int, *, scale: str = "group", eps: float = 1e-4) -> Tensor:
    """Advantages [R] of ``rewards`` [R], whose groups are ``group_size`` consecutive entries.

    ``scale``: ``"group"`` (r - mean) / (std + eps) of the group (GRPO, arXiv 2402.03300); ``"none"``
    r - mean (Dr. GRPO, arXiv 2503.20783); ``"batch"`` (r - group mean) / (std of all rewards + eps);
    ``"leave_one_out"`` r - mean of the others (RLOO, arXiv 2402.14740). Standard deviations are unbiased. A
    group whose rewards are all equal gets exactly 0.

    Returns float32 (float64 for float64 rewards), detached. Raises ``ValueError`` for an unknown scale, a
    group size that does not divide R, or fewer than 2 rewards where a deviation or the others are needed.
    """
    check_finite(eps=eps)
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; use one of {SCALES}")
    if rewards.dim() != 1:
        raise ValueError(f"rewards is {tuple(rewards.shape)}; it must be [R], groups one after the other")
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(f"group_size {group_size} does not divide the {rewards.shape[0]} rewards")
    if group_size < 2 and scale in ("group", "leave_one_out"):
        raise ValueError(f"group_size is {group_size}, but scale={scale!r} needs 2 or more rollouts a prompt")
    if scale == "batch" and rewards.shape[0] == 1:
        raise ValueError("a single reward has no standard deviation; scale='batch' needs 2 or more")
    values = rewards.detach()
    values = values if values.dtype == torch.float64 else values.float()
    if values.numel() == 0:
        return values.clone()
    return _reference(values, group_size, scale, eps)
