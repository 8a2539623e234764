"""Rollouts back through the training forward: prompts and completions, with the latents they thought.

With `share`, one sequence holds a prompt and all its completions: for G completions of length C after a
prompt of length P that is P + G * C positions instead of G * (P + C). A block mask lets every completion see
the prompt and itself, and positions restart after the prompt, so that nothing but the cost changes.

The prompt's last position predicts the first token of every completion. Hidden states are therefore gathered
before the output head, once for each token that the policy chose.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fourdthinker.errors import ConfigError
from fourdthinker.objectives import policy_logprobs
from fourdthinker.sampler.rollout import Rollout
from fourdthinker.sampler.vision import vision_index
from fourdthinker.samples import moved

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.samples import Batch, Prompt


def replay_batch(
    rollout: Rollout,
    prompts: Sequence[Prompt],
    rows: Sequence[int] | Tensor | None = None,
    pad_id: int = 0,
    *,
    features: Sequence[Tensor | None] | None = None,
    share: bool = False,
) -> Batch:
    """A teacher-forced batch of rollout rows, padded on the right, on the device of the rollout.

    At latent pads the input is the latent that the row fed back, never the embedding of the pad.

    Args:
        rollout: a result of the sampler.
        prompts: what it was sampled from.
        rows: which rows, each at most once, in this order; None: all.
        pad_id: fills up `input_ids`; it is masked and has no effect.
        features: of every prompt, as `encode_prompts` returns, so that a clip is encoded once for all its
            rows. None: those the prompts bring along, else the batch holds patches and the forward encodes
            them.
        share: whether the completions of a prompt stand in one sequence, behind one copy of it.

    Returns:
        With B sequences of at most S positions (one a row, or with `share` one a prompt), R rows, T that of
        the rollout and M tokens chosen by the policy:
        input_ids [B, S] long; position_ids [3, B, S] long; attention_mask [B, S] long, or with `share`
        segments [B, S] int32 (see `packed_mask`);
        latent_index [N] long, flat positions b * S + p of latent pads, latents [N, H] and latent_rows [N]
        long, which of the R rows each belongs to;
        vision_index [Mv] long, and of each prompt in turn its vision_features [m, (1 + D) * H] or, where they
        are, its patches [p, patch_dim], no copies, with grid_thw [n, 3]; only where there are pictures;
        source_index [M] long, the flat position whose hidden state predicts a chosen token; chosen_ids [M]
        long, that token; completion_index [M] long, its flat index r * T + t in the next two;
        policy_mask [R, T] bool and rollout_logprobs [R, T] float32, the rollout's.

    Raises:
        ConfigError: no rows, rows that do not exist or repeat, prompts that do not belong to the rollout,
            features for some prompts and none for others.
    """
    chosen = torch.tensor(_rows(rows, rollout.tokens.shape[0]), dtype=torch.long)
    layout = _lay_out(rollout, prompts, chosen, share)
    steps = torch.arange(rollout.tokens.shape[1])
    inside = steps < layout.lengths[:, None]
    flat = layout.starts[:, None] + steps  # [R, T]: where each completion token stands
    tokens, mask = rollout.tokens.cpu()[chosen], rollout.policy_mask.cpu()[chosen]

    ids = torch.full(layout.shape, pad_id)
    positions = torch.ones(3, *layout.shape, dtype=torch.long)
    part = torch.full(layout.shape, -1)  # 0: the prompt, 1 + r: the completion of row r, -1: padding
    for b, p in enumerate(layout.prompt_of):
        count = prompts[p].input_ids.numel()
        ids[b, :count] = prompts[p].input_ids
        positions[:, b, :count] = prompts[p].position_ids
        part[b, :count] = 0
    where = flat[inside]
    ids.view(-1)[where] = tokens[inside]
    following = torch.tensor([prompts[p].next_position for p in layout.group])
    positions.view(3, -1)[:, where] = (following[:, None] + steps)[inside]
    part.view(-1)[where] = torch.arange(1, len(chosen) + 1)[:, None].expand_as(flat)[inside]

    row_of = torch.full((rollout.tokens.shape[0],), -1)
    row_of[chosen] = torch.arange(len(chosen))
    owner = row_of[rollout.latent_rows.cpu()]
    kept = owner >= 0
    batch: Batch = {
        "input_ids": ids,
        "position_ids": positions,
        **({"segments": part.int()} if share else {"attention_mask": (part >= 0).long()}),
        "latent_index": flat[owner[kept], rollout.latent_steps.cpu()[kept]],
        "latents": rollout.latents[kept.to(rollout.latents.device)],
        "latent_rows": owner[kept],
        "source_index": torch.where(steps == 0, layout.before[:, None], flat - 1)[mask],
        "chosen_ids": tokens[mask],
        "completion_index": mask.flatten().nonzero()[:, 0],
        "policy_mask": mask,
        "rollout_logprobs": rollout.logprobs.cpu()[chosen],
    }
    places, pictures = _pictures(rollout, prompts, layout, features)
    return moved(batch | places, rollout.tokens.device) | pictures


def replay_logprobs(backbone: Backbone, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of a rollout as the training forward sees them.

    Args:
        backbone: in eval mode, when the result is compared with what the sampler recorded.
        batch: of `replay_batch`.
        temperature: the one sampled with; 1 for greedy rows.

    Returns:
        [R, T] float32, 0 where the policy did not choose the token.
    """
    return backbone(batch, functools.partial(policy_logprobs, temperature=temperature))


@dataclass(frozen=True)
class _Layout:
    """Where rows stand in the sequences of a batch.

    Attributes:
        shape: (B, S).
        prompt_of: of each sequence, the prompt that it begins with.
        group: of each row, its prompt.
        lengths: [R] of each row's completion.
        starts: [R] flat position of each completion's first token.
        before: [R] flat position of the last token of its prompt, which predicts that first token.
    """

    shape: tuple[int, int]
    prompt_of: list[int]
    group: list[int]
    lengths: Tensor
    starts: Tensor
    before: Tensor


def _lay_out(rollout: Rollout, prompts: Sequence[Prompt], rows: Tensor, share: bool) -> _Layout:
    group, lengths = rollout.group.cpu()[rows].tolist(), rollout.lengths.cpu()[rows].tolist()
    if max(group) >= len(prompts):
        raise ConfigError(
            f"the rollout has rows of prompt {max(group)}, but {len(prompts)} prompts were given"
        )
    prompt_of = sorted(set(group)) if share else group
    sequence_of = {p: b for b, p in enumerate(prompt_of)}
    sequences = [sequence_of[p] for p in group] if share else list(range(len(group)))
    filled = [prompts[p].input_ids.numel() for p in prompt_of]  # positions of each sequence taken so far
    starts = []
    for b, length in zip(sequences, lengths, strict=True):
        starts.append(filled[b])
        filled[b] += length
    span = max(filled)
    offsets = torch.tensor(sequences) * span
    ends = torch.tensor([prompts[p].input_ids.numel() for p in group])
    return _Layout(
        (len(prompt_of), span),
        prompt_of,
        group,
        torch.tensor(lengths),
        offsets + torch.tensor(starts),
        offsets + ends - 1,
    )


def _rows(rows: Sequence[int] | Tensor | None, total: int) -> list[int]:
    if rows is None:
        return list(range(total))
    chosen = [int(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows)]
    if not chosen:
        raise ConfigError("a batch of no rows cannot be made; name at least one")
    if len(set(chosen)) != len(chosen) or any(not 0 <= row < total for row in chosen):
        raise ConfigError(
            f"rows {chosen} of a rollout of {total} rows; name each row at most once, from 0 on"
        )
    return chosen


def _pictures(
    rollout: Rollout,
    prompts: Sequence[Prompt],
    layout: _Layout,
    features: Sequence[Tensor | None] | None,
) -> tuple[Batch, Batch]:
    """vision_index, and what stands there, of every sequence whose prompt has pictures."""
    index, values, patches, grids = [], [], [], []
    for b, p in enumerate(layout.prompt_of):
        vision = prompts[p].vision
        if vision is None:
            continue
        if not rollout.vision_ids:
            raise ConfigError("the rollout does not say which ids stand for pictures; set rollout.vision_ids")
        index.append(b * layout.shape[1] + vision_index(prompts[p], rollout.vision_ids))
        known = vision.features if features is None else features[p]
        if known is not None:
            values.append(known.to(rollout.tokens.device))
        elif vision.patches is not None:
            patches.append(vision.patches)
            grids.append(vision.grid_thw)
        else:
            raise ConfigError(f"the pictures of prompt {p} have neither features nor patches; give one kind")
    if values and patches:
        raise ConfigError("a batch mixes cached vision features and patches; give all prompts one kind")
    if not index:
        return {}, {}
    places: Batch = {"vision_index": torch.cat(index)}
    if values:
        return places, {"vision_features": values}
    return places, {"patches": patches, "grid_thw": torch.cat(grids)}
