"""Rollouts back through the training forward: prompt and completion of every row, with the latents it
thought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourdthinker.errors import ConfigError
from fourdthinker.kernels.linear_logprobs import linear_logprobs
from fourdthinker.prompts import IGNORE, Sample, collate
from fourdthinker.sampler.prefill import vision_index
from fourdthinker.sampler.rollout import Rollout

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.prompts import Prompt, Vision

Batch = dict[str, Any]


def replay_batch(
    rollout: Rollout,
    prompts: Sequence[Prompt],
    rows: Sequence[int] | Tensor | None = None,
    pad_id: int = 0,
    *,
    features: Sequence[Tensor | None] | None = None,
) -> Batch:
    """A teacher-forced batch of rollout rows, right-padded, on the device of the rollout.

    At latent pads the input is the latent that the row fed back, never the embedding of the pad.

    Args:
        rollout, prompts: a result of the sampler and what it was sampled from.
        rows: which rows, each at most once, in this order; None: all.
        pad_id: fills up `input_ids`; it is masked and has no effect.
        features: of every prompt, as `encode_prompts` returns, so that a clip is encoded once for all its
            rows. None: those the prompts bring along, else the batch holds the patches of every row and the
            forward encodes them.

    Returns:
        With B rows of at most S positions, T that of the rollout and M ids chosen by the policy:
        input_ids, attention_mask, labels, target [B, S] long, position_ids [3, B, S] long; labels hold the
        chosen ids, -100 elsewhere, target is labels shifted left by one; rows [M] long, flat positions b * S
        + p with a target; latent_index [N] long, flat positions of latents, latents [N, H];
        vision_index [Mv] long with vision_features [Mv, H], or with patches [P, 1176] and grid_thw [n, 3];
        policy_mask [B, T] bool and completion_target [B, T] long (-100 where not chosen), the rollout's;
        completion_index [M] long: entry i of `rows` belongs at flat place b * T + t of these two.

    Raises:
        ConfigError: no rows, rows that do not exist or repeat, prompts that do not belong to the rollout,
            features for some prompts and none for others.
    """
    device, total = rollout.tokens.device, rollout.tokens.shape[0]
    chosen = _rows(rows, total)
    group = rollout.group.tolist()
    used = sorted({group[row] for row in chosen})
    if used and used[-1] >= len(prompts):
        raise ConfigError(f"the rollout has rows of prompt {used[-1]}, but {len(prompts)} prompts were given")
    visions = _visions(rollout, prompts, used, features)
    tokens, lengths, policy_mask = rollout.tokens.cpu(), rollout.lengths.tolist(), rollout.policy_mask.cpu()
    target = torch.where(policy_mask, tokens, IGNORE)
    steps = rollout.latent_steps.cpu()
    first = torch.searchsorted(rollout.latent_rows.cpu(), torch.arange(total + 1)).tolist()

    samples = []
    for row in chosen:
        prompt, count = prompts[group[row]], lengths[row]
        start = prompt.input_ids.numel()
        mine = slice(first[row], first[row + 1])
        after = (prompt.next_position + torch.arange(count)).expand(3, -1)
        vision, index = visions[group[row]]
        samples.append(
            Sample(
                input_ids=torch.cat([prompt.input_ids, tokens[row, :count]]),
                position_ids=torch.cat([prompt.position_ids, after], dim=1),
                labels=torch.cat([torch.full((start,), IGNORE), target[row, :count]]),
                vision=vision,
                latents=rollout.latents[mine],
                vision_index=index,
                latent_index=start + steps[mine],
            )
        )
    batch: Batch = dict(collate(samples, pad_id))
    batch["policy_mask"] = policy_mask[chosen]
    batch["completion_target"] = target[chosen]
    batch["completion_index"] = batch["policy_mask"].flatten().nonzero()[:, 0]
    return {name: value.to(device) for name, value in batch.items()}


def replay_logprobs(backbone: Backbone, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [B, T] float32 of a `replay_batch`, as the training forward sees them, 0 where not
    chosen.

    `temperature` is the one sampled with (1 for greedy rows). Differentiable; wants the backbone in eval mode
    when compared with what the sampler recorded.
    """
    embeds, deepstack = backbone.embed_inputs(batch), batch.pop("deepstack")
    hidden = backbone.decode(embeds, batch["position_ids"], batch["attention_mask"], deepstack=deepstack)
    logprobs = linear_logprobs(
        hidden,
        backbone.head_weight,
        batch["target"],
        bias=backbone.head_bias,
        rows=batch["rows"],
        temperature=temperature,
    )
    chosen = logprobs.flatten()[batch["rows"]]  # type: ignore[union-attr]
    whole = chosen.new_zeros(batch["policy_mask"].numel())
    return whole.index_put((batch["completion_index"],), chosen).view_as(batch["policy_mask"])


def _rows(rows: Sequence[int] | Tensor | None, total: int) -> list[int]:
    if rows is None:
        return list(range(total))
    chosen = [int(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows)]
    if len(set(chosen)) != len(chosen) or any(not 0 <= row < total for row in chosen):
        raise ConfigError(
            f"rows {chosen} of a rollout of {total} rows; name each row at most once, from 0 on"
        )
    return chosen


def _visions(
    rollout: Rollout,
    prompts: Sequence[Prompt],
    used: Sequence[int],
    features: Sequence[Tensor | None] | None,
) -> dict[int, tuple[Vision | None, Tensor]]:
    """For every prompt in `used` its pictures, with features when there are any, and where they stand."""
    visions: dict[int, tuple[Vision | None, Tensor]] = {}
    for p in used:
        vision = prompts[p].vision
        if vision is not None and not rollout.vision_ids:
            raise ConfigError("the rollout does not say which ids stand for pictures; set rollout.vision_ids")
        if vision is not None and features is not None:
            vision = replace(vision, features=features[p])
        visions[p] = vision, vision_index(prompts[p], rollout.vision_ids)
    return visions
