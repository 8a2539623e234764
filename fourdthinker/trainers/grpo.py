"""4DRL: reinforcement learning by GRPO, with the latents of the rollouts replayed in the training forward.

`torchrun -m fourdthinker.trainers.grpo --config x.yaml key=value ...`
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from fourdthinker.backbones import Checkpoint
from fourdthinker.backbones.common import MASKED
from fourdthinker.backbones.gathering import gathered
from fourdthinker.errors import ConfigError
from fourdthinker.objectives import LatentTerm, grpo_objective
from fourdthinker.ray_cluster import import_ray
from fourdthinker.reward_calls import Reward
from fourdthinker.rewards import Completion, accuracy_reward, soft_overlong_reward, st_reward
from fourdthinker.sampler import encode_prompts
from fourdthinker.samples import Batch, Prompt
from fourdthinker.trainers.batches import REPEAT, Items, ShardedBatches
from fourdthinker.trainers.data import Kept
from fourdthinker.trainers.driver import Recipe, run_command, train
from fourdthinker.trainers.entropy_control import EntropyControl
from fourdthinker.trainers.experience import Experience, load_rewards
from fourdthinker.trainers.model import copies_reference
from fourdthinker.trainers.moving_reference import MovingReference
from fourdthinker.trainers.packing import Chunk, counts_of, cut_rows, filled_up, halved, make_chunk
from fourdthinker.trainers.passes import NORMALISERS
from fourdthinker.trainers.replay import Replay, load_replay, save_replay
from fourdthinker.trainers.rollout_workers import OPTION
from fourdthinker.trainers.rollouts import RolloutTrainer
from fourdthinker.trainers.run_state import rollouts_file
from fourdthinker.trainers.settings import GrpoConfig
from fourdthinker.trainers.update import Forward, NoRewardsError, Parts

logger = logging.getLogger(__name__)

MOST_WITHOUT_REWARDS = 3  # updates in a row whose rewards, all of plain functions, failed, until the run ends


class GrpoTrainer(RolloutTrainer):
    """Each update (or each `updates_on_rollouts` of them): sample, reward, replay."""

    settings: GrpoConfig

    def __init__(
        self, config: GrpoConfig, parts: Parts, batches: ShardedBatches, rewards: Sequence[Reward]
    ) -> None:
        super().__init__(config, parts, batches, rewards)
        self._replay: Replay | None = None
        self._without_rewards = 0  # updates in a row whose rewards all failed
        # Of each forward of the replay, the log-probs [R, T] of the policy before its first update.
        self._old_logprobs: dict[int, Tensor] = {}
        self._moving: MovingReference | None = None
        if config.sync_ref_model and self.reference is not None:
            self._moving = MovingReference(self.reference, self.checkpoint.backbone)
        self._entropy: EntropyControl | None = None
        if config.entropy_target is not None:
            start = config.loss.entropy_coef
            self._entropy = EntropyControl(
                start, config.entropy_target, config.entropy_step, config.entropy_coef_max
            )

    # ---- an update

    def prepare_update(self, batches: list[Any]) -> None:
        """Sample for one update or several, or go on with the last rollouts."""
        if self._entropy is not None and self._entropy.last is None and self.resumed_from is not None:
            self._entropy.load(self.resumed_from)
        if batches[0][0][0] != REPEAT:
            size, given = self.settings.per_device_train_batch_size, list(itertools.chain(*batches))
            parts = [given[first : first + size] for first in range(0, len(given), size)]
            made = self.sample([list(zip(*part, strict=True)) for part in parts])
            self._replay = self._make_replay(made)
            self._old_logprobs = {}
        elif self._replay is None:
            self._replay = self._restored()
        staleness = self._behind + self.state.global_step % self.settings.updates_on_rollouts
        shown = {"staleness": float(staleness)}
        if self._entropy is not None:
            shown["entropy_coef"] = self._entropy.applied
        self.metric_sums.add({name: (torch.tensor(value), torch.ones(())) for name, value in shown.items()})
        self._count(self._replay)

    @property
    def _now(self) -> slice:
        """The micro-batches of the current update among those that were sampled together."""
        each = self.settings.gradient_accumulation_steps
        first = self.state.global_step % self.settings.shares * each
        return slice(first, first + each)

    def _count(self, replay: Replay) -> None:
        """What the passes with a loss are about to do."""
        share = self.settings.share_prompt
        for chunk in itertools.chain.from_iterable(replay.micro_batches[self._now]):
            counts = counts_of(chunk.experience, chunk.rows, share=share)
            self.speed.add(tokens=int(counts.tokens), operations=self.costs.training(counts, self.settings))

    def halve(self) -> bool:
        """Cut the update into forwards of half the rollouts; False where each has one already."""
        # Also where nothing is halved: other ranks may be, and then forwards change their numbers here too.
        self._replay, self._old_logprobs = self._with_old_logprobs(), {}
        if all(len(c.rows) < 2 for chunks in self._replay.micro_batches[self._now] for c in chunks):
            return False
        micro_batches = [self._halves(chunks) for chunks in self._replay.micro_batches]
        self._replay = replace(self._replay, micro_batches=micro_batches)
        return True

    def _with_old_logprobs(self) -> Replay:
        """The replay, with the log-probs that are known of it in its chunks."""
        assert self._replay is not None
        numbers = itertools.count()
        micro_batches = [
            [replace(chunk, batch=chunk.batch | self._known(next(numbers))) for chunk in chunks]
            for chunks in self._replay.micro_batches
        ]
        return replace(self._replay, micro_batches=micro_batches)

    def _halves(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        pad_id, share = self.checkpoint.backbone.vision.pad_id, self.settings.share_prompt
        return [half for chunk in chunks for half in halved(chunk, pad_id, share=share)]

    def forwards(self) -> list[list[Forward]]:
        """The forwards of each micro-batch of the update, as many on every rank."""
        replay = self._replay
        assert replay is not None
        most = self.most_of_ranks([len(chunks) for chunks in replay.micro_batches])
        pad_id, share = self.checkpoint.backbone.vision.pad_id, self.settings.share_prompt
        filled = [
            filled_up(chunks, number, pad_id, share=share)
            for chunks, number in zip(replay.micro_batches, most, strict=True)
        ]
        self._replay, numbers = replace(replay, micro_batches=filled), itertools.count()
        forwards = [
            [self._forward(chunk, self._objective(replay, which), next(numbers)) for chunk in chunks]
            for which, chunks in enumerate(filled)
        ]
        return forwards[self._now]

    @property
    def trains(self) -> bool:
        """Whether any rollout of the update is trained: all may have failed, or be equal, or cut off."""
        return self._replay is None or bool(self._replay.num_tokens[self._now][0] > 0)

    def _objective(self, replay: Replay, which: int) -> Any:
        config, term, options = self.settings, None, self.settings.loss
        if self._entropy is not None:
            options = replace(options, entropy_coef=self._entropy.applied)
        if config.latent_term != "none":
            term = LatentTerm(config.latent_term, config.latent_weight, config.latent_sigma)
        return functools.partial(
            grpo_objective,
            options=options,
            num_items=replay.num_items[which],
            num_tokens=replay.num_tokens[which],
            temperature=config.temperature,
            latent_term=term,
            num_latents=replay.num_latents[which].clamp(min=1),
        )

    def _forward(self, chunk: Chunk, objective: Any, number: int) -> Forward:
        return Forward(chunk.batch | self._known(number), objective, chunk.items, number)

    def _known(self, number: int) -> Batch:
        """The log-probs of a forward before the first update, once they are known."""
        return {"old_logprobs": self._old_logprobs[number]} if number in self._old_logprobs else {}

    def after_forward(self, forward: Forward, *outputs: Any) -> None:
        """Keep the log-probs of the policy that is about to be updated for the first time, if needed.

        Args:
            forward: the one that was run.
            outputs: of its objective: the log-probs.
        """
        (logprobs,) = outputs
        if self.settings.num_iterations > 1 and "old_logprobs" not in forward.batch:
            self._old_logprobs[forward.number] = logprobs

    def after_update(self) -> None:
        """Move the weight of the entropy bonus and the reference model, on all ranks alike."""
        if self._entropy is not None:
            added = self.metric_sums.since_mark("entropy").to(self.args.device)
            total, weight = self.sum_over_ranks(added).tolist()
            if weight:
                self._entropy.update(total / weight)
        if self._moving is not None and self.state.global_step % self.settings.ref_model_sync_steps == 0:
            policy, masters = self.checkpoint.backbone, self.masters
            with gathered(policy):
                wide = None if masters is None else masters.wide
                self._moving.mix(policy, self.settings.ref_model_mixup_alpha, wide)

    def take_run_state(self, folder: Path) -> None:
        """As any trainer does, and the reference model where it follows the policy."""
        super().take_run_state(folder)
        if self._moving is not None:
            self._moving.load(folder)

    # ---- checkpoints between updates on the same rollouts

    def save_rank_state(self, folder: Path) -> None:
        """Write the rollouts of this rank, if the next update is on them, and what all ranks share."""
        if self._moving is not None and self.args.process_index == 0:
            self._moving.save(folder)
        if self._entropy is not None and self.args.process_index == 0:
            self._entropy.save(folder)
        if self.state.global_step % self.settings.updates_on_rollouts:
            path = folder / rollouts_file(self.args.process_index)
            save_replay(path, self._with_old_logprobs(), self._held())

    def _held(self) -> dict[str, Any]:
        """What the stored log-probs, normalisers and micro-batches depend on."""
        settings = self.settings
        loss = {f"loss.{name}": value for name, value in asdict(settings.loss).items()}
        names = ("temperature", "gradient_accumulation_steps", "top_entropy", "latent_term")
        own = {name: getattr(settings, name) for name in names}
        return loss | own

    @torch.no_grad()
    def _restored(self) -> Replay:
        assert self.resumed_from is not None
        backbone, settings = self.checkpoint.backbone, self.settings
        with self.accelerator.autocast(), self.gathered_to_run(backbone):
            return load_replay(
                self.resumed_from / rollouts_file(self.args.process_index),
                self._held(),
                self._prompts_of,
                lambda prompts: encode_prompts(backbone, prompts) if settings.freeze_vision else None,
                pad_id=backbone.vision.pad_id,
                share=settings.share_prompt,
                device=self.args.device,
            )

    def _prompts_of(self, indices: list[int]) -> list[Prompt]:
        found: list[tuple[int, Any]] = [self.items[index] for index in indices]
        for index, (mine, _) in zip(indices, found, strict=True):
            if mine != index:
                raise ConfigError(
                    f"{self.items.describe(index)} cannot be read any more, and the checkpoint has rollouts "
                    "of it; mend its media, or resume from an earlier checkpoint"
                )
        return [prompt for _, prompt in found]

    # ---- what is trained

    def _make_replay(self, experiences: list[Experience]) -> Replay:
        config, pad_id = self.settings, self.checkpoint.backbone.vision.pad_id
        each = config.gradient_accumulation_steps
        numbers = [[*e.counts, int((~e.failed).sum())] for e in experiences]
        counts = torch.tensor(numbers, dtype=torch.float64, device=self.args.device)
        self._enter("normalisers of the loss", NORMALISERS)
        sums = self.sum_over_ranks(counts.view(-1, each, 4).sum(1))  # of each update
        self._check_rewards(experiences, failed=sums[:, 3].sum().item() == 0)
        of_each = sums.repeat_interleave(each, dim=0)  # of each micro-batch those of its update
        sequences, tokens, latents, _ = (list(column) for column in of_each.unbind(1))
        share, budget = config.share_prompt, config.max_tokens_per_forward
        micro_batches = [
            [make_chunk(e, rows, pad_id, share=share) for rows in cut_rows(e, e.rows, budget, share=share)]
            for e in experiences
        ]
        for _ in range(self.divisions):
            micro_batches = [self._halves(chunks) for chunks in micro_batches]
        num_items = sequences if config.loss.counts_sequences else tokens
        if config.loss.loss_type == "bnpo":  # as in TRL, where batches of unequal length weigh the same
            weight = each * self.args.world_size
            num_items = [sums.new_tensor(max(e.num_tokens, 1) * weight) for e in experiences]
        return Replay(micro_batches, num_items, tokens, latents)

    def _check_rewards(self, experiences: list[Experience], *, failed: bool) -> None:
        """End a run that trains nothing any more, on all ranks at a time: not one that waits for a judge."""
        if any(reward.is_async for reward in self.rewards):
            return
        self._without_rewards = self._without_rewards + 1 if failed else 0
        if self._without_rewards >= MOST_WITHOUT_REWARDS:
            raise NoRewardsError(
                f"the rewards of all rollouts failed in {self._without_rewards} updates in a row, at last: "
                f"{experiences[0].failure}; see to that function; "
                "resume_from_checkpoint=auto goes on from the last checkpoint"
            )


def train_grpo(
    config: GrpoConfig,
    *,
    checkpoint: Checkpoint | None = None,
    prompts: Sequence[Prompt] | None = None,
    held_out: Sequence[Prompt] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Reinforce by GRPO.

    Args:
        config: the settings.
        checkpoint: what to train, changed in place; None: loaded from `config.model`.
        prompts: encoded prompts in memory, with their records (and `vision.features`, if the tower shall not
            run); None: made from the records of `config.data`.
        held_out: prompts likewise, to evaluate on every `eval_steps` updates; None: made from the records of
            `config.eval_data`, if any.
        callbacks: of `transformers`, added to those of Trainer.

    Returns:
        The folder of the final checkpoint, `output_dir`/final.

    Raises:
        FourdError: a record, a video, the checkpoint or a setting is wrong; before the first step.
        NonFiniteLossError: more than `max_bad_steps` steps without a finite loss.
        NoRewardsError: in `MOST_WITHOUT_REWARDS` updates in a row the rewards of all rollouts failed, and
            none of the functions is async.
        RolloutWorkerError: several actors of `rollout_workers` died over the same rollouts.
    """
    if config.rollout_workers:
        import_ray(OPTION)  # said now, not once the model is loaded
    rewards = load_rewards(config)

    def check(loaded: Checkpoint) -> None:
        attention = loaded.backbone.attention
        if config.share_prompt and attention not in MASKED:
            raise ConfigError(
                f"share_prompt needs sdpa or eager attention, which take a mask; the model has {attention}; "
                "set share_prompt=false"
            )
        for index, prompt in enumerate(prompts or ()):
            loaded.backbone.require_family(prompt.family, f"prompt {index}")

    recipe = Recipe(
        kind="rl",
        kept=Kept(clips=True, imagery=False),
        check=check,
        wants_reference=config.needs_reference and copies_reference(config),
        make_trainer=functools.partial(make_trainer, config, rewards),
    )
    return train(config, recipe, given=checkpoint, items=prompts, held_out=held_out, callbacks=callbacks)


def make_trainer(config: GrpoConfig, rewards: Sequence[Reward], parts: Parts) -> GrpoTrainer:
    """The trainer of 4DRL, with batches that fill whole updates.

    Args:
        config: the settings.
        rewards: the reward functions.
        parts: what it is made of.

    Returns:
        A trainer that has not begun.

    Raises:
        ConfigError: a record, or an argument, that one of this package's rewards can do nothing with.
    """
    if parts.args.process_index == 0:
        _warn_of_sampling(config)
    for items in filter(None, (parts.items, parts.held_out)):
        for reward in rewards:
            _check_reward(reward, items, config.max_completion_length)
    batches = ShardedBatches(
        len(parts.items),
        config.per_device_train_batch_size,
        rank=parts.args.process_index,
        world_size=parts.args.world_size,
        seed=config.seed,
        shuffle=config.shuffle_dataset,
        accumulation=config.gradient_accumulation_steps,
        together=config.shares,
        repeats=config.num_iterations,
        whole_updates=True,
    )
    return GrpoTrainer(config, parts, batches, rewards)


def _warn_of_sampling(config: GrpoConfig) -> None:
    """Say that importance sampling does not know what the sampler leaves out or makes less likely."""
    names = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")
    usual = GrpoConfig.model_fields
    changed = {name: value for name in names if (value := getattr(config, name)) != usual[name].default}
    if changed and config.loss.corrected:
        logger.warning(
            "%s: loss.sampler_cap and sampler_floor weigh tokens by the model's distribution, and these are "
            "drawn from another one; leave the former or the latter out",
            ", ".join(f"{name}={value}" for name, value in changed.items()),
        )


def _check_reward(reward: Reward, items: Items[Any], max_length: int) -> None:
    """What one of this package's rewards can do nothing with is found now, not after the first rollouts."""
    if reward.function not in (accuracy_reward, st_reward, soft_overlong_reward):
        return
    for item in items.items:
        record = item.record if isinstance(item, Prompt) else item
        if record is None:
            continue
        nothing = Completion("", record, 0, "eos", torch.zeros(0), torch.zeros(0, 1), max_length)
        try:
            reward.call([nothing])
        except TypeError as error:
            raise ConfigError(f"reward_arguments.{reward.name}: {error}; give numbers") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: `[--config FILE] [key=value ...]`."""
    run_command(
        train_grpo,
        GrpoConfig,
        argv,
        program="torchrun -m fourdthinker.trainers.grpo",
        description="Reinforce a checkpoint by GRPO, with its latents replayed (4DRL).",
    )


if __name__ == "__main__":
    main()
