"""Rollouts back through the training forward: prompt and completion of every row, with the latents it
thought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourdthinker.errors import ConfigError
from fourdthinker.kernels.linear_logprobs import linear_logprobs
from fourdthinker.sampler.prefill import check_prompts, describe, vision_index
from fourdthinker.sampler.rollout import Rollout

if TYPE_CHECKING:
    from fourdthinker.backbones.qwen2_5_vl import Qwen2_5_VL
    from fourdthinker.prompts import Prompt

Batch = dict[str, Any]
IGNORE = -100


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
        ConfigError: rows that do not exist or repeat, prompts that do not belong to the rollout.
    """
    device, (total, length) = rollout.tokens.device, tuple(rollout.tokens.shape)
    chosen = _rows(rows, total)
    group = rollout.group.tolist()
    used = sorted({group[row] for row in chosen})
    if used and used[-1] >= len(prompts):
        raise ConfigError(f"the rollout has rows of prompt {used[-1]}, but {len(prompts)} prompts were given")
    index = torch.tensor(chosen, dtype=torch.long)
    tokens, lengths = rollout.tokens.cpu()[index], rollout.lengths.cpu()[index]
    policy_mask = rollout.policy_mask.cpu()[index]
    completion_target = torch.where(policy_mask, tokens, IGNORE)
    starts = torch.tensor([prompts[group[row]].input_ids.numel() for row in chosen], dtype=torch.long)
    width = int((starts + lengths).max()) if chosen else 0

    input_ids = torch.full((len(chosen), width), pad_id, dtype=torch.long)
    labels = torch.full((len(chosen), width), IGNORE, dtype=torch.long)
    position_ids = torch.zeros(3, len(chosen), width, dtype=torch.long)
    places = torch.arange(length)
    spans = zip(chosen, starts.tolist(), lengths.tolist(), strict=True)
    for b, (row, start, count) in enumerate(spans):
        prompt = prompts[group[row]]
        input_ids[b, :start] = prompt.input_ids
        input_ids[b, start : start + count] = tokens[b, :count]
        labels[b, start : start + count] = completion_target[b, :count]
        position_ids[:, b, :start] = prompt.position_ids
        position_ids[:, b, start : start + count] = prompt.next_position + places[:count]
    target = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
    batch: Batch = {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(width)[None, :] < (starts + lengths)[:, None]).long(),
        "position_ids": position_ids,
        "labels": labels,
        "target": target,
        "rows": (target.flatten() != IGNORE).nonzero()[:, 0],
        "policy_mask": policy_mask,
        "completion_target": completion_target,
        "completion_index": policy_mask.flatten().nonzero()[:, 0],
    }
    batch |= _vision(rollout, prompts, [group[row] for row in chosen], width, features)
    batch = {name: value.to(device) for name, value in batch.items()}

    place = torch.full((total,), -1, dtype=torch.long, device=device)
    place[index.to(device)] = torch.arange(len(chosen), device=device)
    mine = place[rollout.latent_rows]
    flat = mine * width + starts.to(device)[mine] + rollout.latent_steps if chosen else mine
    here = (mine >= 0).nonzero()[:, 0]
    here = here[flat[here].argsort()]
    return batch | {"latent_index": flat[here], "latents": rollout.latents[here]}


def replay_logprobs(backbone: Qwen2_5_VL, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [B, T] float32 of a `replay_batch`, as the training forward sees them, 0 where not
    chosen.

    `temperature` is the one sampled with (1 for greedy rows). Differentiable; wants the backbone in eval mode
    when compared with what the sampler recorded.
    """
    hidden = backbone.decode(backbone.embed_inputs(batch), batch["position_ids"], batch["attention_mask"])
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


def _vision(
    rollout: Rollout,
    prompts: Sequence[Prompt],
    group: list[int],
    width: int,
    features: Sequence[Tensor | None] | None,
) -> Batch:
    """Vision entries of a batch whose row b continues prompt `group[b]`."""
    if features is None:
        features = [None if prompt.vision is None else prompt.vision.features for prompt in prompts]
    with_pictures = [p for p in group if prompts[p].vision is not None]
    if not with_pictures:
        return {}
    if not rollout.vision_ids:
        raise ConfigError("the rollout does not say which ids stand for pictures; set rollout.vision_ids")
    index = {p: vision_index(prompts[p], rollout.vision_ids).cpu() for p in set(group)}
    batch: Batch = {"vision_index": torch.cat([b * width + index[p] for b, p in enumerate(group)])}
    lacking = [p for p in with_pictures if features[p] is None]
    if not lacking:
        check_prompts([prompts[p] for p in group], [features[p] for p in group], rollout.vision_ids)
        batch["vision_features"] = torch.cat([features[p] for p in with_pictures])  # type: ignore[misc]
        return batch
    visions = [prompts[p].vision for p in with_pictures]
    if len(lacking) < len(with_pictures) or any(v is None or v.patches is None for v in visions):
        name = describe(prompts[lacking[0]], lacking[0])
        raise ConfigError(
            f"{name} has no vision features while others have, or no patches either; "
            "pass features=encode_prompts(backbone, prompts)"
        )
    batch["patches"] = torch.cat([v.patches for v in visions])  # type: ignore[union-attr, misc]
    batch["grid_thw"] = torch.cat([v.grid_thw for v in visions])  # type: ignore[union-attr]
    return batch
