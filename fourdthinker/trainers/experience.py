"""From prompts to what an update of 4DRL trains on: rollouts, rewards, advantages, replay batches."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourdthinker.errors import ConfigError
from fourdthinker.objectives import Batch, Metrics
from fourdthinker.prompts import Prompt
from fourdthinker.rewards import Reward
from fourdthinker.sampler import Rollout, SamplingConfig, row_seed
from fourdthinker.trainers.packing import pack
from fourdthinker.trainers.settings import GrpoConfig

if TYPE_CHECKING:
    from fourdthinker.records import Record

FINISH_REASONS = ("eos", "length", "stop")


@dataclass
class Experience:
    """The rollouts of one micro-batch of prompts.

    indices: of the prompts in the data set. rewards [R] float32: the weighted sums; parts: every function's
    own, [R]. advantages [R] float32; kept [R] bool: whether the row takes part in the loss.
    """

    indices: list[int]
    prompts: list[Prompt]
    rollout: Rollout
    features: list[Tensor | None] | None
    texts: list[str]
    rewards: Tensor
    parts: dict[str, Tensor]
    advantages: Tensor
    kept: Tensor

    @property
    def num_sequences(self) -> int:
        return int(self.kept.sum())

    @property
    def num_tokens(self) -> int:
        return int(self.rollout.policy_mask.cpu()[self.kept].sum())


def sampling_config(config: GrpoConfig) -> SamplingConfig:
    return SamplingConfig(
        max_new_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        max_blocks=config.max_blocks,
        train_start=config.train_start,
    )


def rollout_seeds(seed: int, step: int, rank: int, indices: Sequence[int], samples: int) -> list[int]:
    """One seed for every rollout, a hash of (seed, step, rank, prompt, sample).

    A prompt that is there twice, as in a data set smaller than an update, counts its samples on.
    """
    base = row_seed(seed, step, rank)
    seen: Counter[int] = Counter()
    seeds = []
    for index in indices:
        seeds += [row_seed(base, index, seen[index] * samples + sample) for sample in range(samples)]
        seen[index] += 1
    return seeds


def score(
    texts: Sequence[str],
    records: Sequence[Record | None],
    rewards: dict[str, Reward],
    weights: Sequence[float],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted rewards [R] float32 and each function's own. ConfigError for one that is no number."""
    parts: dict[str, Tensor] = {}
    for name, reward in rewards.items():
        values = []
        for text, record in zip(texts, records, strict=True):
            if record is None:
                raise ConfigError("a prompt has no record, so there is nothing to reward its completions by")
            value = float(reward(text, record))
            if not math.isfinite(value):
                raise ConfigError(f"reward {name} is {value} for {record.where}; it must be a finite number")
            values.append(value)
        parts[name] = torch.tensor(values)
    total = torch.stack([weight * part for weight, part in zip(weights, parts.values(), strict=True)]).sum(0)
    return total, parts


def equal_groups(rewards: Tensor, group_size: int) -> Tensor:
    """[R] bool: whether the rewards of the row's group are equal. Their rounded deviations would not tell."""
    grouped = rewards.view(-1, group_size)
    return (grouped == grouped[:, :1]).all(1).repeat_interleave(group_size)


def replay_chunks(experience: Experience, count: int, pad_id: int, *, share: bool) -> list[Batch]:
    """The rows that take part in the loss as `count` batches: completions of a prompt together, similar
    lengths too.

    Where there are not enough rows, one that no token is counted of fills up: every rank runs as many
    forwards.
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
    return [_replay_chunk(experience, rows, pad_id, share) for rows in order.tensor_split(count)]


def _replay_chunk(experience: Experience, rows: Tensor, pad_id: int, share: bool) -> Batch:
    empty = rows.numel() == 0
    if empty:
        rows = torch.zeros(1, dtype=torch.long)
    rollout = experience.rollout
    batch = pack(rollout, experience.prompts, rows, pad_id, features=experience.features, share=share)
    batch["advantages"] = experience.advantages[rows].to(batch["input_ids"].device)
    batch["sample_index"] = torch.tensor(experience.indices)[rollout.group.cpu()[rows]]
    if empty:
        for name in ("source", "token", "place"):
            batch[name] = batch[name][:0]
        batch["policy_mask"] = torch.zeros_like(batch["policy_mask"])
    return batch


def rollout_metrics(experience: Experience, group_size: int) -> Metrics:
    """What is shown of the rollouts, as (sum, weight)."""

    def mean(values: Tensor) -> tuple[Tensor, Tensor]:
        return values.double().sum(), torch.tensor(float(values.numel()))

    rollout, rewards = experience.rollout, experience.rewards
    grouped = rewards.view(-1, group_size)
    lengths = rollout.lengths.cpu()
    metrics: Metrics = {
        "reward": mean(rewards),
        "reward_std": mean(grouped.std(1)),
        "equal_groups": mean(equal_groups(rewards, group_size)),
        "completion_length": mean(lengths),
        "latents": (torch.tensor(float(rollout.latents.shape[0])), torch.tensor(float(len(rewards)))),
    }
    for name, part in experience.parts.items():
        metrics[f"reward_{name}"] = mean(part)
    for reason in FINISH_REASONS:
        metrics[f"finish_{reason}"] = mean(torch.tensor([r == reason for r in rollout.finish_reason]))
    for name, seconds in rollout.timing.items():
        metrics[f"sampling_{name}"] = mean(torch.tensor([seconds]))
    return metrics


def write_rollouts(path: Path, step: int, experience: Experience, limit: int) -> None:
    """Append the first `limit` rollouts, one JSON object a line."""
    group = experience.rollout.group.tolist()
    lengths = experience.rollout.lengths.tolist()
    samples: Counter[int] = Counter()
    with path.open("a", encoding="utf-8") as file:
        for row in range(min(limit, len(group))):
            prompt = group[row]
            record = experience.prompts[prompt].record
            line: dict[str, Any] = {
                "step": step,
                "prompt": experience.indices[prompt],
                "id": None if record is None else record.id,
                "question": None if record is None else record.question,
                "options": None if record is None else record.options,
                "answer": None if record is None else record.answer,
                "video": None if record is None else record.video,
                "start": None if record is None else record.start,
                "end": None if record is None else record.end,
                "frames": None if record is None else record.frames,
                "sample": samples[prompt],
                "text": experience.texts[row],
                "reward": experience.rewards[row].item(),
                "rewards": {name: part[row].item() for name, part in experience.parts.items()},
                "advantage": experience.advantages[row].item(),
                "length": lengths[row],
                "finish_reason": experience.rollout.finish_reason[row],
            }
            samples[prompt] += 1
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
