"""Which rollouts go through one training forward: completions of a prompt together, equally long ones too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fourdthinker.sampler import replay_batch
from fourdthinker.samples import Batch
from fourdthinker.trainers.budget import cut, halves
from fourdthinker.trainers.experience import Experience, Scored
from fourdthinker.trainers.operations import Counts, patches_of


@dataclass(frozen=True)
class Chunk:
    """Rollouts of one training forward.

    Attributes:
        experience: what they are part of.
        rows: their numbers in it; where there are none, the first row fills up and nothing of it counts.
        batch: of `replay_batch`, with `advantages` [R] float32 and what is known of the rows:
            `ref_logprobs` [R, T], `entropy_mask` [R, T], `anchors` [N, H]; `old_logprobs` [R, T], of some
            chunks later only.
        items: [R] indices of the prompts in the data set.
    """

    experience: Experience
    rows: list[int]
    batch: Batch
    items: Tensor


def cut_rows(experience: Scored, rows: Sequence[int], budget: int | None, *, share: bool) -> list[list[int]]:
    """Rows of rollouts, cut into forwards of at most `budget` positions.

    Completions of a prompt stay together as far as they fit, and what is about as long stands together.

    Args:
        experience: the rollouts of a micro-batch.
        rows: which of them.
        budget: positions of a forward, padding included; a row that has more goes alone. None: no limit.
        share: whether the completions of a prompt stand behind one copy of it.
    """
    group, lengths = experience.rollout.group.tolist(), experience.rollout.lengths.tolist()
    prompts = [prompt.input_ids.numel() for prompt in experience.prompts]

    def cost(rows: Sequence[int]) -> int:
        if not share:
            return len(rows) * max(prompts[group[row]] + lengths[row] for row in rows)
        sizes = {group[row]: prompts[group[row]] for row in rows}
        for row in rows:
            sizes[group[row]] += lengths[row]
        return len(sizes) * max(sizes.values())

    if share:
        mine = {g: cost([row for row in rows if group[row] == g]) for g in {group[row] for row in rows}}
        order = sorted(rows, key=lambda row: (-mine[group[row]], group[row], -lengths[row]))
    else:
        order = sorted(rows, key=lambda row: -prompts[group[row]] - lengths[row])
    return cut(order, cost, budget)


def counts_of(scored: Scored, rows: Sequence[int], *, share: bool) -> Counts:
    """What goes through the model with some rows, each run once, behind its prompt.

    Args:
        scored: the rollouts.
        rows: which of them.
        share: whether each prompt is run once for all its rows.

    Returns:
        The counts; logits are those of the tokens that the policy chose.
    """
    group, lengths = scored.rollout.group.tolist(), scored.rollout.lengths.tolist()
    chosen = scored.rollout.policy_mask.sum(1).tolist()
    prompts = [prompt.input_ids.numel() for prompt in scored.prompts]
    run = {group[row] for row in rows} if share else [group[row] for row in rows]
    return Counts(
        tokens=sum(prompts[p] for p in run) + sum(lengths[row] for row in rows),
        pairs=sum(prompts[p] ** 2 / 2 for p in run)
        + sum(lengths[row] * (prompts[group[row]] + lengths[row] / 2) for row in rows),
        logits=sum(chosen[row] for row in rows),
        patches=sum(patches_of(scored.prompts[p].vision) for p in run),
    )


def make_chunk(experience: Experience, rows: list[int], pad_id: int, *, share: bool) -> Chunk:
    """The training forward of some rows.

    Args:
        experience: the rollouts of a micro-batch.
        rows: of it; none: a forward of which nothing counts.
        pad_id: fills up sequences.
        share: whether the completions of a prompt stand behind one copy of it.
    """
    rollout, run = experience.rollout, torch.tensor(rows or [0])
    batch = replay_batch(rollout, experience.prompts, run, pad_id, features=experience.features, share=share)
    device = rollout.tokens.device
    batch |= {"advantages": experience.advantages[run].to(device)}
    for name in ("ref_logprobs", "old_logprobs", "entropy_mask"):
        if (values := getattr(experience, name)) is not None:
            batch[name] = values[run.to(values.device)].to(device)
    if experience.anchors is not None:
        batch["anchors"] = experience.anchors[torch.isin(rollout.latent_rows, run.to(device))]
    if not rows:
        nothing = ("source_index", "chosen_ids", "completion_index")
        batch |= {name: batch[name][:0] for name in nothing}
        batch |= {"policy_mask": torch.zeros_like(batch["policy_mask"])}
        batch |= {"latent_rows": torch.full_like(batch["latent_rows"], -1)}
    return Chunk(experience, rows, batch, torch.tensor(experience.indices)[rollout.group.cpu()[run]])


def halved(chunk: Chunk, pad_id: int, *, share: bool) -> list[Chunk]:
    """A chunk in two, with the log-probs that are known of it; one of fewer than two rows stays as it is."""
    if len(chunk.rows) < 2:
        return [chunk]
    made, first = [], 0
    for rows in halves(chunk.rows):
        half = make_chunk(chunk.experience, rows, pad_id, share=share)
        if "old_logprobs" in chunk.batch:
            known = chunk.batch["old_logprobs"][first : first + len(rows)]
            half = replace(half, batch=half.batch | {"old_logprobs": known})
        made.append(half)
        first += len(rows)
    return made


def filled_up(chunks: Sequence[Chunk], count: int, pad_id: int, *, share: bool) -> list[Chunk]:
    """Exactly `count` chunks of some that are at most as many: the largest are halved, then empty ones added.

    Every rank runs as many forwards, or collectives would hang.
    """
    made = list(chunks)
    while len(made) < count:
        largest = max(range(len(made)), key=lambda i: len(made[i].rows))
        if len(made[largest].rows) > 1:
            made[largest : largest + 1] = halved(made[largest], pad_id, share=share)
            continue
        made.append(make_chunk(made[0].experience, [], pad_id, share=share))
    return made
