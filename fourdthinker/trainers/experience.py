"""What rollouts are worth: rewards and advantages, the metrics of both, and the lines of rollouts.jsonl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainingArguments

from fourdthinker.errors import ConfigError
from fourdthinker.files import append_lines
from fourdthinker.kernels import group_advantages
from fourdthinker.objectives import Metrics
from fourdthinker.rewards import Completion, Reward, call_reward
from fourdthinker.sampler import Rollout, SamplingConfig, row_seed
from fourdthinker.samples import Prompt
from fourdthinker.trainers.settings import GrpoConfig

FINISH_REASONS = ("eos", "length", "stop")


@dataclass(frozen=True)
class Scored:
    """The rollouts of one micro-batch of prompts, R rows, with their rewards.

    Attributes:
        indices: of the prompts in the data set.
        prompts: what was sampled from.
        rollout: what was sampled.
        features: of every prompt, those of a frozen tower; None: the training forward needs the patches.
        texts: of every row the whole answer.
        rewards: [R] float32, the weighted sums.
        parts: every function's own rewards, [R] float32, by its name.
    """

    indices: list[int]
    prompts: list[Prompt]
    rollout: Rollout
    features: list[Tensor | None] | None
    texts: list[str]
    rewards: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Experience(Scored):
    """Scored rollouts with what they teach.

    Attributes:
        advantages: [R] float32.
        kept: [R] bool, whether the row takes part in the loss.
    """

    advantages: Tensor
    kept: Tensor

    @property
    def num_sequences(self) -> int:
        """Rows that take part in the loss."""
        return int(self.kept.sum())

    @property
    def num_tokens(self) -> int:
        """Tokens that the policy chose in them."""
        return int(self.rollout.policy_mask.cpu()[self.kept].sum())


def sampling_config(config: GrpoConfig) -> SamplingConfig:
    """How rollouts are sampled."""
    return SamplingConfig(
        max_new_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        max_blocks=config.max_blocks,
        train_start=config.train_start,
    )


def rollout_seeds(seed: int, step: int, slots: Sequence[int], samples: int) -> list[int]:
    """One seed for every rollout, a hash of (seed, step, slot, sample).

    A slot is the position of a prompt in the update of all ranks, so that rollouts do not depend on how many
    ranks share the update, and a prompt that is there twice draws twice.

    Args:
        seed: of the run.
        step: updates made so far.
        slots: of the prompts, from `update_slots`.
        samples: rollouts of a prompt.

    Returns:
        len(slots) * samples seeds, those of a prompt together.
    """
    base = row_seed(seed, step, 0)
    return [row_seed(base, slot, sample) for slot in slots for sample in range(samples)]


def update_slots(batches: int, batch_size: int, rank: int, world_size: int) -> list[int]:
    """The positions in the update of all ranks of one rank's prompts, batch after batch.

    Args:
        batches: micro-batches of an update on a rank.
        batch_size: prompts of a micro-batch on a rank.
        rank: of this process.
        world_size: number of processes.
    """
    return [
        (batch * world_size + rank) * batch_size + position
        for batch in range(batches)
        for position in range(batch_size)
    ]


def completions_of(rollout: Rollout, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Completion]:
    """What reward functions can be told about each of R rows; tensors on the CPU.

    Args:
        rollout: the rows.
        prompts: what they were sampled from.
        texts: [R] their decoded answers.

    Raises:
        ConfigError: a prompt without a record.
    """
    tokens, latents, rows = rollout.tokens.cpu(), rollout.latents.cpu(), rollout.latent_rows.cpu()
    found = []
    for row, (prompt, length) in enumerate(
        zip(rollout.group.tolist(), rollout.lengths.tolist(), strict=True)
    ):
        record = prompts[prompt].record
        if record is None:
            raise ConfigError("a prompt has no record, so there is nothing to reward its completions by")
        reason = rollout.finish_reason[row]
        mine = latents[rows == row]
        found.append(Completion(texts[row], record, length, reason, tokens[row, :length], mine))
    return found


def score(
    completions: Sequence[Completion],
    rewards: dict[str, Reward],
    weights: Sequence[float],
    timeout: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Rewards of R completions.

    Args:
        completions: [R].
        rewards: the functions, by name.
        weights: of each function.
        timeout: seconds that a function may take for one completion; None: any time.

    Returns:
        The weighted sums, [R] float32, and each function's own rewards, [R] float32.

    Raises:
        ConfigError: as `call_reward`.
    """
    parts = {
        name: torch.tensor([call_reward(name, reward, completion, timeout) for completion in completions])
        for name, reward in rewards.items()
    }
    total = torch.stack([weight * part for weight, part in zip(weights, parts.values(), strict=True)]).sum(0)
    return total, parts


def equal_groups(rewards: Tensor, group_size: int) -> Tensor:
    """[R] bool: whether the rewards of the row's group are equal. Their rounded deviations would not tell."""
    grouped = rewards.view(-1, group_size)
    return (grouped == grouped[:, :1]).all(1).repeat_interleave(group_size)


def with_advantages(
    scored: Sequence[Scored], config: GrpoConfig, args: TrainingArguments
) -> list[Experience]:
    """The rollouts of all micro-batches of an update with their advantages.

    Groups never span ranks, but with scale_rewards=batch the standard deviation is that of all ranks.
    """
    size = config.num_generations
    rewards = torch.cat([s.rewards for s in scored])
    everywhere, before = rewards, 0
    if config.scale_rewards == "batch" and args.world_size > 1:
        gathered: list[Any] = [None] * args.world_size
        dist.all_gather_object(gathered, rewards)
        before = sum(len(part) for part in gathered[: args.process_index])
        everywhere = torch.cat(gathered)
    advantages = group_advantages(everywhere, size, scale=config.scale_rewards)
    parts = advantages[before : before + len(rewards)].split([len(s.rewards) for s in scored])
    return [
        Experience(**vars(s), advantages=part, kept=_kept(s.rewards, config))
        for s, part in zip(scored, parts, strict=True)
    ]


def _kept(rewards: Tensor, config: GrpoConfig) -> Tensor:
    if config.drop_equal_groups:
        return ~equal_groups(rewards, config.num_generations)
    return torch.ones(len(rewards), dtype=torch.bool)


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
    """Append rollouts to a JSONL file, one a line.

    Args:
        path: the file.
        step: updates made so far.
        experience: the rollouts.
        limit: only the first so many.
    """
    samples: Counter[int] = Counter()
    lines = []
    for row, prompt in enumerate(experience.rollout.group.tolist()[:limit]):
        lines.append({"step": step} | _described(experience, row, prompt, samples[prompt]))
        samples[prompt] += 1
    append_lines(path, lines)


def _described(experience: Experience, row: int, prompt: int, sample: int) -> dict[str, Any]:
    record, rollout = experience.prompts[prompt].record, experience.rollout
    asked = ("id", "question", "options", "answer", "video", "start", "end", "frames")
    return {
        "prompt": experience.indices[prompt],
        **{name: None if record is None else getattr(record, name) for name in asked},
        "sample": sample,
        "text": experience.texts[row],
        "reward": experience.rewards[row].item(),
        "rewards": {name: part[row].item() for name, part in experience.parts.items()},
        "advantage": experience.advantages[row].item(),
        "length": int(rollout.lengths[row]),
        "finish_reason": rollout.finish_reason[row],
    }
