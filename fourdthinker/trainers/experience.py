"""What rollouts are worth: rewards and advantages, and the metrics of both."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainingArguments

from fourdthinker.errors import ConfigError
from fourdthinker.latents import LatentSpec
from fourdthinker.objectives import Metrics, mean_direction
from fourdthinker.reward_calls import (
    LARGEST,
    Reward,
    RewardFailedError,
    call_reward,
    described,
    load_reward,
    reward_name,
)
from fourdthinker.reward_runs import PATIENCE, NoAnswerError, Patience
from fourdthinker.rewards import Completion
from fourdthinker.sampler import Rollout, SamplingConfig, row_seed
from fourdthinker.samples import Prompt
from fourdthinker.trainers.advantages import advantages_of, normalised, normalised_sum
from fourdthinker.trainers.settings import GrpoConfig

logger = logging.getLogger(__name__)

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
        rewards: [R] float32, the weighted sums; NaN: the row has no reward, and takes no part in anything.
        parts: every function's own rewards, [R] float32, by its name; NaN: none.
        failed: [R] bool, whether a reward function failed for the row. Where no function had an opinion there
            is no reward either, but nothing failed.
        failure: what failed first; "": nothing.
        late: whether calls for some of the rows gave no answer in time, or were not made after such ones.
        equal: [R] bool, whether the row's group teaches nothing: what is compared within it (`compared`) is
            equal, apart from the KL in the rewards, by which rollouts always differ.
    """

    indices: list[int]
    prompts: list[Prompt]
    rollout: Rollout
    features: list[Tensor | None] | None
    texts: list[str]
    rewards: Tensor
    parts: dict[str, Tensor]
    failed: Tensor
    failure: str
    late: bool
    equal: Tensor


@dataclass(frozen=True)
class Experience(Scored):
    """Scored rollouts with what they teach.

    Attributes:
        advantages: [R] float32.
        kept: [R] bool, whether the row counts as a sequence of the update.
        trained: [R] bool, whether its tokens take part in the loss too.
        ref_logprobs: [R, T] float32, log-probs of the reference model, where the loss needs them.
        old_logprobs: [R, T] float32, those of the policy that sampled, where other updates come before the
            first one on these rollouts; None: its own passes tell them.
        entropy_mask: [R, T] bool, the tokens whose policy term is kept; None: all.
        anchors: [N, H], what the reference model thinks at each latent, where the loss needs it.
    """

    advantages: Tensor
    kept: Tensor
    trained: Tensor
    ref_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    entropy_mask: Tensor | None = None
    anchors: Tensor | None = None

    @property
    def rows(self) -> list[int]:
        """Those that are trained."""
        found: list[int] = self.trained.nonzero()[:, 0].tolist()
        return found

    @property
    def counts(self) -> list[int]:
        """Rows that count as sequences; of rows that are trained the policy's tokens, and the latents."""
        tokens = self.rollout.policy_mask.cpu()[self.trained].sum()
        latents = self.trained[self.rollout.latent_rows.cpu()].sum()
        return [int(self.kept.sum()), int(tokens), int(latents)]

    @property
    def num_tokens(self) -> int:
        """Tokens that the policy chose in rows that are trained."""
        return self.counts[1]


def load_rewards(config: GrpoConfig) -> list[Reward]:
    """The reward functions of the settings, with their arguments.

    Raises:
        ConfigError: as `load_reward`.
    """
    return [load_reward(path, config.reward_arguments.get(reward_name(path))) for path in config.rewards]


def sampling_config(config: GrpoConfig) -> SamplingConfig:
    """How rollouts are sampled."""
    return SamplingConfig(
        max_new_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        presence_penalty=config.presence_penalty,
        stop_strings=tuple(config.stop_strings),
        max_blocks=config.max_blocks,
        train_start=config.train_start,
    )


def rollout_seeds(seed: int, step: int, slots: Sequence[int], samples: int, *, attempt: int = 0) -> list[int]:
    """One seed for every rollout, a hash of (seed, step, slot, sample).

    A slot is the position of a prompt among those that all ranks sample together, so that rollouts do not
    depend on how many ranks share them, and a prompt that is there twice draws twice.

    Args:
        seed: of the run.
        step: updates made so far.
        slots: of the prompts, from `update_slots`.
        samples: rollouts of a prompt.
        attempt: which round of dynamic sampling this is.

    Returns:
        len(slots) * samples seeds, those of a prompt together.
    """
    base = row_seed(seed, step, attempt)
    return [row_seed(base, slot, sample) for slot in slots for sample in range(samples)]


def update_slots(batches: int, batch_size: int, rank: int, world_size: int) -> list[int]:
    """The positions among those of all ranks of one rank's prompts, batch after batch.

    Args:
        batches: micro-batches on a rank that are sampled together.
        batch_size: prompts of a micro-batch on a rank.
        rank: of this process.
        world_size: number of processes.
    """
    return [
        (batch * world_size + rank) * batch_size + position
        for batch in range(batches)
        for position in range(batch_size)
    ]


def completions_of(
    rollout: Rollout, prompts: Sequence[Prompt], texts: Sequence[str], max_length: int
) -> list[Completion]:
    """What reward functions can be told about each of R rows; tensors on the CPU.

    Args:
        rollout: the rows.
        prompts: what they were sampled from.
        texts: [R] their decoded answers.
        max_length: ids that each could have had.

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
        found.append(Completion(texts[row], record, length, reason, tokens[row, :length], mine, max_length))
    return found


def patience_with(config: GrpoConfig) -> Patience:
    """What calls without an answer may take in an update: well below the time that other processes wait."""
    if config.reward_timeout is None:
        return Patience()
    return Patience(min(PATIENCE * config.reward_timeout, config.ddp_timeout / 3))


@dataclass(frozen=True)
class Judged:
    """What all reward functions together say of R completions: the `Scored` attributes of these names."""

    rewards: Tensor
    parts: dict[str, Tensor]
    failed: Tensor
    failure: str
    late: bool


def score(
    completions: Sequence[Completion], rewards: Sequence[Reward], config: GrpoConfig, patience: Patience
) -> Judged:
    """Rewards of R completions.

    Args:
        completions: [R].
        rewards: the functions.
        config: their weights, time and concurrency, and what to do where one fails.
        patience: what calls without an answer may still take in this update.

    Returns:
        The rewards; NaN in a function's own where it failed or had no opinion.

    Raises:
        ConfigError: a plain function failed and `on_reward_error` is raise. Async ones ask a model or a
            service that may be away: their failures are counted.
    """
    parts: dict[str, Tensor] = {}
    failed, failure, late = torch.zeros(len(completions), dtype=torch.bool), "", False
    for reward, weight in zip(rewards, config.reward_weights, strict=True):
        ends = config.on_reward_error == "raise" and not reward.is_async
        scores = call_reward(
            reward,
            completions,
            timeout=config.reward_timeout,
            concurrency=config.reward_concurrency,
            patience=Patience(0.0) if ends else patience,
            largest=LARGEST / max(1.0, abs(weight) * len(rewards)),  # so that no sum is above LARGEST
        )
        said = _report(reward.name, completions, scores.failures, ends=ends)
        failed[list(scores.failures)] = True
        failure = failure or said
        late = late or any(isinstance(error, NoAnswerError) for error in scores.failures.values())
        parts[reward.name] = torch.tensor([math.nan if v is None else v for v in scores.values])
    weights = zip(config.reward_weights, parts.values(), strict=True)
    weighted = torch.stack([weight * part.double() for weight, part in weights])
    total = weighted.nansum(0).masked_fill(failed | weighted.isnan().all(0), math.nan)
    return Judged(total.float(), parts, failed, failure, late)


def _report(
    name: str, completions: Sequence[Completion], failures: dict[int, Exception], *, ends: bool
) -> str:
    """Warn of what failed, or where it `ends` the run raise it; the first failure, "" for none."""
    said = [described(name, completions[row], error) for row, error in failures.items()]
    for text, error in zip(said, failures.values(), strict=True):
        if ends and not isinstance(error, RewardFailedError):
            raise ConfigError(f"{text}; on_reward_error=skip would leave it out") from error
    if said:
        logger.warning("%d of %d rollouts have no reward: %s", len(said), len(completions), said[0])
    return said[0] if said else ""


def with_advantages(
    scored: Sequence[Scored], config: GrpoConfig, args: TrainingArguments
) -> list[Experience]:
    """The rollouts of all micro-batches that were sampled together with their advantages.

    Groups never span ranks, but with scale_rewards=batch and aggregate_rewards=normalised the standard
    deviation is that of all ranks.
    """
    size, gdpo = config.num_generations, config.aggregate_rewards == "normalised"
    rewards = torch.cat([compared(s.rewards, s.parts, size, config) for s in scored])
    everywhere, before = rewards, 0
    if (config.scale_rewards == "batch" or gdpo) and args.world_size > 1:
        gathered: list[Any] = [None] * args.world_size
        dist.all_gather_object(gathered, rewards)
        before = sum(len(part) for part in gathered[: args.process_index])
        everywhere = torch.cat(gathered)
    advantages = normalised(everywhere) if gdpo else advantages_of(everywhere, size, config.scale_rewards)
    parts = advantages[before : before + len(rewards)].split([len(s.rewards) for s in scored])
    made = []
    for s, part in zip(scored, parts, strict=True):
        kept = _kept(s, config)
        made.append(Experience(**vars(s), advantages=part, kept=kept, trained=kept & ~_masked(s, config)))
    return made


def compared(rewards: Tensor, parts: dict[str, Tensor], group_size: int, config: GrpoConfig) -> Tensor:
    """What is compared within the groups: the rewards, or with GDPO the weighted sums of their advantages.

    Args:
        rewards: [R], the weighted sums; NaN: none.
        parts: every function's own, [R], by name; NaN: none.
        group_size: rows of a group.
        config: how they are put together.

    Returns:
        [R] float32, NaN where there is no reward.
    """
    if config.aggregate_rewards == "sum" or group_size == 1:
        return rewards
    without = rewards.isnan()
    known = [part.masked_fill(without, math.nan) for part in parts.values()]
    return normalised_sum(known, config.reward_weights, group_size)


def _kept(scored: Scored, config: GrpoConfig) -> Tensor:
    known = ~scored.rewards.isnan()
    if config.drop_equal_groups or config.refill_rounds:
        return known & ~scored.equal
    return known


def _masked(scored: Scored, config: GrpoConfig) -> Tensor:
    cut_off = torch.tensor([reason == "length" for reason in scored.rollout.finish_reason])
    return cut_off if config.mask_overlong else torch.zeros_like(cut_off)


def _mean(values: Tensor) -> tuple[Tensor, Tensor]:
    known = values[~values.isnan()]
    return known.double().sum(), torch.tensor(float(known.numel()))


def scored_metrics(scored: Scored) -> Metrics:
    """What is shown of rollouts and rewards wherever they are from, as (sum, weight)."""
    rollout, rewards = scored.rollout, scored.rewards
    rows = torch.tensor(float(len(rewards)))
    prompts = torch.tensor([prompt.input_ids.numel() for prompt in scored.prompts])
    metrics: Metrics = {
        "reward": _mean(rewards),
        "failed_rewards": _mean(scored.failed.double()),
        "prompt_length": _mean(prompts.double()),
        "completion_length": _mean(rollout.lengths.cpu().double()),
        "latents": (torch.tensor(float(rollout.latents.shape[0])), rows),
    }
    for name, part in scored.parts.items():
        metrics[f"reward_{name}"] = _mean(part)
    for reason in FINISH_REASONS:
        metrics[f"finish_{reason}"] = _mean(torch.tensor([float(r == reason) for r in rollout.finish_reason]))
    return metrics


def rollout_metrics(experience: Experience, group_size: int, latents: LatentSpec, max_blocks: int) -> Metrics:
    """What is shown of the rollouts of an update, as (sum, weight)."""
    rollout = experience.rollout
    metrics = scored_metrics(experience) | {
        "reward_std": _mean(_deviations(experience.rewards, group_size)),
        "equal_groups": _mean(experience.equal.double()),
        "blocks_allowed": _mean(torch.tensor([0.0 if latents.absent else float(max_blocks)])),
        "empty_blocks": _mean(_empty_blocks(rollout.tokens.cpu(), latents)),
        "latent_direction": _mean(mean_direction(rollout.latents).cpu()),
    }
    for name, seconds in rollout.timing.items():
        metrics[f"sampling_{name}"] = _mean(torch.tensor([seconds]))
    return metrics


def _deviations(rewards: Tensor, group_size: int) -> Tensor:
    """Of each group with two rewards at least; float32 could not hold the squares of the largest ones."""
    grouped = rewards.double().view(-1, group_size)
    known = ~grouped.isnan()
    centred = torch.where(known, grouped - grouped.nanmean(1, keepdim=True), 0.0)
    return (centred.square().sum(1) / (known.sum(1) - 1)).sqrt()[known.sum(1) > 1]


def _empty_blocks(tokens: Tensor, latents: LatentSpec) -> Tensor:
    """Of every START [n], whether END is right behind it."""
    opened = tokens[:, :-1] == latents.start_id
    return (tokens[:, 1:] == latents.end_id)[opened].double()
