"""Which rollouts go through one training forward: completions of a prompt together, equally long ones too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fourdthinker.sampler import replay_batch
from fourdthinker.samples import Batch
from fourdthinker.trainers.experience import Experience


@dataclass(frozen=True)
class Chunk:
    """Rollouts of one training forward.

    Attributes:
        batch: of `replay_batch`, with `advantages` [R] float32; later also `ref_logprobs` [R, T].
        items: [R] indices of the prompts in the data set.
    """

    batch: Batch
    items: Tensor


def replay_chunks(experience: Experience, count: int, pad_id: int, *, share: bool) -> list[Chunk]:
    """The rows that take part in the loss, cut into `count` forwards.

    Where there are not enough rows, one of which no token is counted fills up: every rank runs as many
    forwards.

    Args:
        experience: the rollouts of a micro-batch.
        count: how many forwards.
        pad_id: fills up sequences.
        share: whether the completions of a prompt stand behind one copy of it.
    """
    rollout = experience.rollout
    group, lengths = rollout.group.cpu(), rollout.lengths.cpu()
    prompt_lengths = torch.tensor([p.input_ids.numel() for p in experience.prompts])
    if share:
        totals = torch.zeros(len(prompt_lengths), dtype=torch.long).index_add(0, group, lengths)
        size = (totals + prompt_lengths)[group] * len(prompt_lengths) + group  # groups stay together
    else:
        size = lengths + prompt_lengths[group]
    kept = experience.kept.nonzero()[:, 0]
    order = kept[size[kept].argsort(descending=True, stable=True)]
    return [_chunk(experience, rows, pad_id, share) for rows in order.tensor_split(count)]


def _chunk(experience: Experience, rows: Tensor, pad_id: int, share: bool) -> Chunk:
    empty = rows.numel() == 0
    if empty:
        rows = torch.zeros(1, dtype=torch.long)
    rollout = experience.rollout
    batch = replay_batch(rollout, experience.prompts, rows, pad_id, features=experience.features, share=share)
    batch |= {"advantages": experience.advantages[rows].to(rollout.tokens.device)}
    if empty:
        nothing = ("source_index", "chosen_ids", "completion_index")
        batch |= {name: batch[name][:0] for name in nothing}
        batch |= {"policy_mask": torch.zeros_like(batch["policy_mask"])}
    return Chunk(batch, torch.tensor(experience.indices)[rollout.group.cpu()[rows]])
