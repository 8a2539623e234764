"""Advantages of GRPO: each reward relative to the other rollouts of its prompt."""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import NAMESPACE, check_integer, check_number, check_tensors, shown, use_triton
from ._gpu_architectures import launching

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


@triton.jit(do_not_specialize=["rewards", "group_size"])
def group_advantages_kernel(
    rewards_ptr,
    output_ptr,
    rewards,
    group_size,
    eps,
    SCALE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Program: one group, whose rewards fit into BLOCK_G."""
    members = tl.arange(0, BLOCK_G)
    inside = members < group_size
    first = tl.program_id(0).to(tl.int64) * group_size
    values = tl.load(rewards_ptr + first + members, mask=inside, other=0.0)
    centred = tl.where(inside, values - tl.sum(values, axis=0) / group_size, 0.0)
    result = centred
    if SCALE == "group":
        deviation = tl.sqrt(tl.sum(centred * centred, axis=0) / (group_size - 1))
        result = centred / (deviation + eps)
    elif SCALE == "leave_one_out":
        result = centred * group_size / (group_size - 1)
    elif SCALE == "batch":
        # Every program walks over all rewards: there are few of them, and it spares a second launch.
        lanes = tl.arange(0, BLOCK_R)
        total = tl.zeros([BLOCK_R], tl.float32)
        for start in range(0, rewards, BLOCK_R):
            total += tl.load(rewards_ptr + start + lanes, mask=start + lanes < rewards, other=0.0)
        mean = tl.sum(total, axis=0) / rewards
        total = tl.zeros([BLOCK_R], tl.float32)
        for start in range(0, rewards, BLOCK_R):
            part = tl.load(rewards_ptr + start + lanes, mask=start + lanes < rewards, other=0.0) - mean
            total += tl.where(start + lanes < rewards, part * part, 0.0)
        result = centred / (tl.sqrt(tl.sum(total, axis=0) / (rewards - 1)) + eps)
    # Not the largest against the smallest: a GPU's max and min drop NaN, which differs from all.
    differ = tl.sum((inside & (values != tl.load(rewards_ptr + first))).to(tl.int32), axis=0)
    tl.store(output_ptr + first + members, tl.where(differ == 0, 0.0, result), mask=inside)


@torch.library.custom_op(f"{NAMESPACE}::group_advantages", mutates_args=())
def _advantages_op(rewards: Tensor, group_size: int, scale: str, eps: float, backend: str) -> Tensor:
    if not use_triton(backend, rewards):
        return _reference(rewards, group_size, scale, eps)
    output = torch.empty_like(rewards)
    with launching("group_advantages", rewards) as launch:
        group_advantages_kernel[(rewards.numel() // group_size,)](
            rewards, output, rewards.numel(), group_size, eps, SCALE=scale,
            BLOCK_G=triton.next_power_of_2(group_size), BLOCK_R=launch.block, **launch.options,
        )  # fmt: skip
    return output


@_advantages_op.register_fake
def _(rewards: Tensor, group_size: int, scale: str, eps: float, backend: str) -> Tensor:
    return torch.empty_like(rewards)


def group_advantages(
    rewards: Tensor, group_size: int, *, scale: str = "group", eps: float = 1e-4, backend: str = "auto"
) -> Tensor:
    """How much better each rollout is than its group, from the rewards. One launch.

    Args:
        rewards: [R], groups one after the other.
        group_size: consecutive entries that make a group; divides R.
        scale: ``"group"`` (r - mean) / (std + eps) of the group (GRPO, arXiv 2402.03300); ``"none"`` r - mean
            (Dr. GRPO, arXiv 2503.20783); ``"batch"`` (r - group mean) / (std of all rewards + eps);
            ``"leave_one_out"`` r - mean of the others (RLOO, arXiv 2402.14740). Deviations are unbiased.
        eps: added to a deviation; 0 or more.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        Advantages [R], float32 (float64 for float64 rewards), detached. A group whose rewards are all equal
        gets exactly 0.

    Raises:
        ValueError: an unknown scale, a group size that does not divide R, or fewer than 2 rewards where a
            deviation or the others are needed.
    """
    check_tensors(rewards=rewards)
    check_number("eps", eps, minimum=0)  # a negative one would turn signs around
    check_integer("group_size", group_size, least=1)
    if not isinstance(scale, str) or scale not in SCALES:
        raise ValueError(f"scale is {shown(scale)}; use one of {SCALES}")
    if rewards.is_complex():
        raise ValueError(f"rewards is {rewards.dtype}; it must hold real numbers")
    if rewards.dim() != 1:
        raise ValueError(f"rewards is {tuple(rewards.shape)}; it must be [R], groups one after the other")
    if rewards.shape[0] % group_size:
        raise ValueError(f"group_size {group_size} does not divide the {rewards.shape[0]} rewards")
    if group_size < 2 and scale in ("group", "leave_one_out"):
        raise ValueError(f"group_size is {group_size}, but scale={scale!r} needs 2 or more rollouts a prompt")
    if scale == "batch" and rewards.shape[0] == 1:
        raise ValueError("a single reward has no standard deviation; scale='batch' needs 2 or more")
    values = rewards.detach()
    values = values if values.dtype == torch.float64 else values.float()
    if values.numel() == 0:
        return values.clone()
    return _advantages_op(values.contiguous(), group_size, scale, eps, backend)
