"""Rollouts as training batches in which the completions of a prompt share it.

For G completions of length C after a prompt of length P, one sequence of P + G*C positions is trained on
instead of G sequences of P + C. A block mask lets every completion see the prompt and itself, and positions
restart after the prompt, so that nothing but the cost changes. The prompt's last position predicts the first
token of every completion, so hidden states are gathered, once for each token that the policy chose, before
the output head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fourdthinker.objectives import Batch
from fourdthinker.prompts import Prompt
from fourdthinker.sampler import Rollout


def pack(
    rollout: Rollout,
    prompts: Sequence[Prompt],
    rows: Tensor,
    pad_id: int,
    *,
    features: Sequence[Tensor | None] | None = None,
    share: bool = True,
) -> Batch:
    """A teacher-forced batch of the rollout's rows `rows` [R], with the latents that they fed back.

    Args:
        rollout, prompts: a result of the sampler and what it was sampled from.
        rows: which rows, each once, on the CPU.
        pad_id: fills up `input_ids`.
        features: vision features of every prompt; None: those the prompts bring along, else the batch holds
            patches.
        share: whether the completions of a prompt stand in one sequence, behind one copy of it.

    Returns:
        With B sequences of at most S positions, T the longest completion and M tokens chosen by the policy:
        input_ids [B, S], position_ids [3, B, S], attention_mask ([B, 1, S, S] bool, true where position q
        sees position k; or [B, S] long without sharing), latent_index and latents, vision_index with
        vision_features or patches and grid_thw; source [M]: flat position b*S + p whose hidden state predicts
        a token, token [M]: that token, place [M]: where it stands in [R, T], flat; policy_mask [R, T] bool
        and rollout_logprobs [R, T], the sampler's.
    """
    device = rollout.tokens.device
    group = rollout.group.cpu()[rows]
    lengths = rollout.lengths.cpu()[rows]
    width = int(lengths.max())
    used, member = torch.unique(group, return_inverse=True)
    mine = [prompts[p] for p in used.tolist()]
    prompt_lengths = torch.tensor([p.input_ids.numel() for p in mine])[member]
    if share:
        order = torch.argsort(member, stable=True)
        before = torch.zeros(
            len(rows), dtype=torch.long
        )  # positions of completions before it in its sequence
        ends = lengths[order].cumsum(0)
        first = torch.searchsorted(member[order].contiguous(), torch.arange(len(mine)))
        before[order] = ends - lengths[order] - (ends - lengths[order])[first][member[order]]
        sequence, heads = member, list(enumerate(mine))
    else:
        before = torch.zeros(len(rows), dtype=torch.long)
        sequence, heads = torch.arange(len(rows)), [(r, mine[m]) for r, m in enumerate(member.tolist())]
    starts = prompt_lengths + before
    span = int((starts + lengths).max())

    step = torch.arange(width)
    inside = step < lengths[:, None]
    flat = (sequence * span + starts)[:, None] + step  # [R, T] where each completion token stands
    shape = len(heads), span
    ids = torch.full(shape, pad_id)
    positions = torch.ones(3, *shape, dtype=torch.long)
    segment = torch.full(shape, -1)  # 0: the prompt, 1 + r: the completion of row r, -1: padding
    vision_index = []
    for b, prompt in heads:
        count = prompt.input_ids.numel()
        ids[b, :count] = prompt.input_ids
        positions[:, b, :count] = prompt.position_ids
        segment[b, :count] = 0
        if prompt.vision is not None:
            pads = torch.isin(prompt.input_ids, torch.tensor(rollout.vision_ids))
            vision_index.append(b * span + pads.nonzero()[:, 0])
    where = flat[inside]
    tokens = rollout.tokens.cpu()[rows, :width]
    ids.view(-1)[where] = tokens[inside]
    following = torch.tensor([p.next_position for p in mine])[member]
    positions.view(3, -1)[:, where] = (following[:, None] + step)[inside]
    segment.view(-1)[where] = torch.arange(1, len(rows) + 1)[:, None].expand_as(flat)[inside]

    mask = rollout.policy_mask.cpu()[rows, :width]
    source = torch.where(step == 0, (sequence * span + prompt_lengths - 1)[:, None], flat - 1)
    batch: Batch = {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": _block_mask(segment) if share else (segment >= 0).long(),
        "source": source[mask],
        "token": tokens[mask],
        "place": mask.flatten().nonzero()[:, 0],
        "policy_mask": mask,
        "rollout_logprobs": rollout.logprobs.cpu()[rows, :width],
    }
    row_of = torch.full((rollout.tokens.shape[0],), -1)
    row_of[rows] = torch.arange(len(rows))
    owner = row_of[rollout.latent_rows.cpu()]
    batch["latent_index"] = flat[owner, rollout.latent_steps.cpu().clamp(max=width - 1)][owner >= 0]
    batch["latents"] = rollout.latents[(owner >= 0).to(device)]
    if vision_index:
        batch["vision_index"] = torch.cat(vision_index)
        batch |= _pictures(heads, used.tolist(), member.tolist(), share, features)
    return {name: value.to(device) for name, value in batch.items()}


def _block_mask(segment: Tensor) -> Tensor:
    """[B, 1, S, S] bool. Padding sees itself, because a softmax over nothing is not a number."""
    query, key = segment[:, :, None], segment[:, None, :]
    causal = torch.ones(segment.shape[1], segment.shape[1], dtype=torch.bool).tril()
    itself = torch.eye(segment.shape[1], dtype=torch.bool)
    return ((causal & (query >= 0) & ((key == 0) | (key == query))) | itself)[:, None]


def _pictures(
    heads: list[tuple[int, Prompt]],
    used: list[int],
    member: list[int],
    share: bool,
    features: Sequence[Tensor | None] | None,
) -> dict[str, Any]:
    values, patches, grids = [], [], []
    for b, prompt in heads:
        if prompt.vision is None:
            continue
        known = prompt.vision.features
        if features is not None:
            known = features[used[b if share else member[b]]]
        if known is not None:
            values.append(known)
        else:
            if prompt.vision.patches is None:
                raise ValueError(
                    "the pictures of a prompt have neither features nor patches; give one of them"
                )
            patches.append(prompt.vision.patches)
            grids.append(prompt.vision.grid_thw)
    if values and patches:
        raise ValueError("some prompts bring vision features and others patches; give all of them one kind")
    if values:
        return {"vision_features": torch.cat(values)}
    return {"patches": torch.cat(patches), "grid_thw": torch.cat(grids)}
