"""The half of 4DRL before the update: rollouts, their rewards, and what other passes say of them."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from fourdthinker.backbones.gathering import gathered
from fourdthinker.files import append_lines
from fourdthinker.integrations.trackers import show_rollouts
from fourdthinker.objectives import Metrics
from fourdthinker.reward_calls import Reward
from fourdthinker.sampler import LatentSampler, Rollout
from fourdthinker.samples import Prompt
from fourdthinker.trainers.advantages import equal_groups, rounding
from fourdthinker.trainers.batches import ShardedBatches
from fourdthinker.trainers.experience import (
    Experience,
    Scored,
    compared,
    completions_of,
    load_rewards,
    patience_with,
    rollout_metrics,
    rollout_seeds,
    sampling_config,
    score,
    scored_metrics,
    update_slots,
    with_advantages,
)
from fourdthinker.trainers.other_passes import OtherPassesTrainer
from fourdthinker.trainers.packing import counts_of
from fourdthinker.trainers.passes import ADVANTAGES, OTHER_PASSES, REWARD_KL
from fourdthinker.trainers.refill import other_prompt, to_replace, with_groups, without_variance
from fourdthinker.trainers.rollout_lines import rollout_lines
from fourdthinker.trainers.rollout_workers import Job, RolloutWorkers, Sampled, structure
from fourdthinker.trainers.run_folder import ROLLOUTS
from fourdthinker.trainers.sampled_rows import sampled_rows
from fourdthinker.trainers.settings import GrpoConfig
from fourdthinker.trainers.update import Parts

_LARGEST_EXPONENT = 20.0  # of k3: one token that the reference thinks impossible shall not be infinite


class RolloutTrainer(OtherPassesTrainer):
    """Samples and scores; `GrpoTrainer` is complete.

    Args:
        config: the settings.
        parts: what is trained, on which prompts.
        batches: which of the prompts this rank sees when.
        rewards: the reward functions, one for each weight.
    """

    settings: GrpoConfig

    def __init__(
        self, config: GrpoConfig, parts: Parts, batches: ShardedBatches, rewards: Sequence[Reward]
    ) -> None:
        # Of the model as it is before Trainer wraps it; actors make theirs from this.
        self._structure = structure(parts.checkpoint.backbone) if config.rollout_workers else None
        super().__init__(config, parts, batches)
        if config.rollout_staleness:
            self._ahead.depth = (1 + config.rollout_staleness) * self.args.gradient_accumulation_steps
        self._workers: RolloutWorkers | None = None
        self._behind = 0  # updates between the weights that sampled the last rollouts and those then
        self._begun: dict[int, list[Job]] = {}  # by update: rollouts that workers sample already
        self.rewards, self.reference = rewards, parts.reference
        # Instances of their own: what the rewards of the training remember stays as it is.
        self._own_rewards = load_rewards(config) if parts.held_out is not None else []
        self._patience = patience_with(config)
        if self.reference is not None:
            self.reference.to(self.args.device)
        self.sampler = LatentSampler(self.checkpoint.backbone, self.checkpoint.tokenizer)
        self._unchecked = self.settings.share_prompt  # until shared and plain forward were compared

    def run(
        self, resume: str | None, *, weights_loaded: bool = False, callbacks: Sequence[TrainerCallback] = ()
    ) -> Path:
        """As `LatentTrainer.run`, beside the workers that sample, if there are any.

        Args:
            resume: as there.
            weights_loaded: as there.
            callbacks: as there.
        """
        run = functools.partial(super().run, resume, weights_loaded=weights_loaded, callbacks=callbacks)
        if self._structure is None:
            return run()
        workers = RolloutWorkers(
            self._structure,
            self.settings,
            self.args,
            autocast=self.accelerator.native_amp,
            tokenizer=self.checkpoint.tokenizer,
        )
        with closing(workers) as self._workers:
            return run()

    @torch.no_grad()
    def sample(self, batches: list[Any]) -> list[Experience]:
        """Rollouts of prompts for one update or several, with advantages and what the loss needs of them.

        Args:
            batches: of each micro-batch the indices and the prompts.
        """
        started = time.perf_counter()
        self._patience.renew()
        self.speed.enter("rollouts")
        config, step = self.settings, self.state.global_step + 1
        size, rank = config.per_device_train_batch_size, self.args.process_index
        slots = update_slots(len(batches), size, rank, self.args.world_size)
        scored = []
        # Workers are sent whole weights, whenever one takes the place of another.
        weights = self.gathered_to_run if self._workers is None else gathered
        with self.accelerator.autocast(), weights(self.checkpoint.backbone):
            sampled = self._sampled_by_workers([list(prompts) for _, prompts in batches])
            for (batch, prompts), given in zip(batches, sampled, strict=True):
                mine, slots = slots[: len(batch)], slots[len(batch) :]
                scored.append(self._varied(list(batch), list(prompts), mine, given))
            if config.refill_rounds:
                self._begin_ahead()
        known: list[Tensor | None] = [None] * len(scored)
        if config.reward_kl_weight:
            self._enter("log-probs of the reference for the rewards", REWARD_KL)
            self.speed.enter("reference")
            with self._reference() as reference:
                known = [self._reference_outputs(reference, s, range(len(s.rewards)))[0] for s in scored]
            scored = [self._with_kl(s, ref) for s, ref in zip(scored, known, strict=True) if ref is not None]
        self.speed.enter("preparing")
        # What comes now waits for the other ranks; one that still samples or scores is behind.
        self._enter("advantages of all rollouts", ADVANTAGES)
        experiences = with_advantages(scored, config, self.args)
        self._enter("passes without gradient", OTHER_PASSES)
        experiences = [replace(e, ref_logprobs=ref) for e, ref in zip(experiences, known, strict=True)]
        shown = config.log_rollouts > 0 and (step - 1) % config.log_rollouts_steps == 0
        if shown and self.is_world_process_zero():
            self._show_rollouts(step, experiences[0])
        if self._unchecked:
            with self.gathered_to_run(self.checkpoint.backbone):
                self._unchecked = not self._check_sharing(experiences[0])
        self.speed.enter("reference")
        experiences = self._with_other_passes(experiences)
        self.speed.enter("preparing")
        for experience in experiences:
            spec = self.checkpoint.backbone.latents
            shown_of = rollout_metrics(experience, config.num_generations, spec, config.max_blocks)
            self.metric_sums.add(shown_of)
        hanging = sum(reward.calls.hanging for reward in (*self.rewards, *self._own_rewards))
        elapsed, held = (torch.tensor(v) for v in (time.perf_counter() - started, float(hanging)))
        one = torch.ones(())
        self.metric_sums.add({"sampling_seconds": (elapsed, one), "hanging_rewards": (held, one)})
        return experiences

    def _show_rollouts(self, step: int, experience: Experience) -> None:
        """Write rollouts down, and show them to the trackers."""
        config = self.settings
        lines = rollout_lines(step, experience, config.log_rollouts, self.checkpoint)
        append_lines(Path(config.output_dir) / ROLLOUTS, lines)
        if self.args.report_to:  # where transformers has put names for `all`
            records = dict(zip(experience.indices, (p.record for p in experience.prompts), strict=True))
            show_rollouts(self.args.report_to, self.callback_handler.callbacks, step, lines, records)

    # ---- evaluation

    judged_by, greater_is_better = "reward", True

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """As `LatentTrainer.evaluate`.

        Args:
            arguments: as there.
            options: as there.
        """
        self._patience.renew()
        return super().evaluate(*arguments, **options)

    def evaluate_batch(self, batch: list[Any]) -> Metrics:
        """Rewards of rollouts of held-out prompts: `num_generations_eval` sampled ones each, or one greedy.

        Args:
            batch: (index, prompt) pairs.
        """
        indices, prompts = [index for index, _ in batch], [prompt for _, prompt in batch]
        options, samples = sampling_config(self.settings), self.settings.num_generations_eval
        if samples is None:
            options, samples = replace(options, temperature=0.0), 1
        # The same in every evaluation; updates have numbers from 1 on.
        seeds = rollout_seeds(self.settings.seed, 0, indices, samples)
        with self.accelerator.autocast(), self.gathered_to_run(self.checkpoint.backbone):
            rollout, features = sampled_rows(self.sampler, prompts, options, seeds, self.by_halves)
        return scored_metrics(self._scored(indices, prompts, rollout, features, self._own_rewards))

    # ---- rollouts

    def _sampled_by_workers(self, prompts: list[list[Prompt]]) -> list[Sampled | None]:
        """The rollouts of each micro-batch; None without workers, when each is sampled in its turn."""
        if self._workers is None:
            return [None] * len(prompts)
        updates = self.state.global_step
        self._workers.send(self.checkpoint.backbone, updates)
        jobs = self._begun.pop(updates + 1, None)
        if jobs is None:
            jobs = self._begin(updates + 1, [prompt for batch in prompts for prompt in batch])
        if not self.settings.refill_rounds:  # whose rollouts would wait behind those of later updates
            self._begin_ahead()
        sampled = self._workers.collect(jobs)
        self._behind = updates - sampled.updates
        sizes = [len(batch) for batch in prompts]
        return list(sampled.split(sizes, self.checkpoint.backbone.vision.pad_id))

    def _begin_ahead(self) -> None:
        """Let workers sample the prompts of the next updates, as many as may be behind."""
        each, now = self.args.gradient_accumulation_steps, self.state.global_step + 1
        for later in range(self.settings.rollout_staleness):
            step = now + 1 + later
            if step in self._begun or step > self.state.max_steps:
                continue
            batches = self._ahead.peek(later * each, each)
            if len(batches) == each:  # else the epoch ends, and the order of the next one is not known yet
                self._begun[step] = self._begin(step, [prompt for batch in batches for _, prompt in batch])

    def _begin(self, step: int, prompts: list[Prompt]) -> list[Job]:
        assert self._workers is not None
        args, config, size = self.args, self.settings, self.settings.per_device_train_batch_size
        slots = update_slots(len(prompts) // size, size, args.process_index, args.world_size)
        return self._workers.begin(
            prompts, rollout_seeds(config.seed, step, slots, samples=config.num_generations)
        )

    def _sample(self, prompts: list[Prompt], seeds: list[int]) -> Sampled:
        """Rollouts by the current weights."""
        if self._workers is not None:
            return self._workers.collect(self._workers.begin(prompts, seeds))
        options = sampling_config(self.settings)
        rollout, features = sampled_rows(self.sampler, prompts, options, seeds, self.by_halves)
        return Sampled(rollout, features, self.state.global_step)

    def _varied(
        self, indices: list[int], prompts: list[Prompt], slots: list[int], sampled: Sampled | None
    ) -> Scored:
        """Rollouts of prompts, or of others where those teach nothing, as far as the rounds go."""
        config, step = self.settings, self.state.global_step + 1
        size, group, replaced = len(self.items), config.num_generations, 0
        seeds = functools.partial(rollout_seeds, config.seed, step, samples=group)
        scored = self._roll_out(indices, prompts, seeds(slots=slots), sampled)
        seen = [{index} for index in indices]
        for attempt in range(1, config.refill_rounds + 1):
            if not (missing := to_replace(scored, group)):
                break
            tried = [other_prompt(config.seed, step, attempt, slots[i], size, seen[i]) for i in missing]
            for i, index in zip(missing, tried, strict=True):
                seen[i].add(index)
            found: list[tuple[int, Any]] = [self.items[index] for index in tried]
            other = self._roll_out(
                [index for index, _ in found],
                [prompt for _, prompt in found],
                seeds(slots=[slots[i] for i in missing], attempt=attempt),
            )
            pad_id = self.checkpoint.backbone.vision.pad_id
            scored = with_groups(scored, missing, other, group, pad_id)
            replaced += len(missing) - len(without_variance(other, group))
        if config.refill_rounds:
            count = torch.tensor(float(len(indices)))
            self.metric_sums.add({"refilled_groups": (torch.tensor(float(replaced)), count)})
        return scored

    def _roll_out(
        self, indices: list[int], prompts: list[Prompt], seeds: list[int], sampled: Sampled | None = None
    ) -> Scored:
        config = self.settings
        sampled = self._sample(prompts, seeds) if sampled is None else sampled
        rollout, features = sampled.rollout, sampled.features
        self.speed.enter("rewards")
        # An open tower needs its pictures in the training forward, where gradients flow through it. One pass
        # with gradient for both would keep its activations while rollouts are decoded (docs/training.md).
        kept = features if config.freeze_vision else None
        scored = self._scored(indices, prompts, rollout, kept, self.rewards)
        self.speed.enter("rollouts")
        counts = counts_of(scored, range(len(scored.rewards)), share=True)
        counts = replace(counts, logits=int(rollout.lengths.sum()))  # also where the grammar chooses
        operations = self.costs.inference(counts) if self._workers is None else 0.0
        self.speed.add(rollouts=len(scored.rewards), operations=operations)
        return scored

    def _scored(
        self,
        indices: list[int],
        prompts: list[Prompt],
        rollout: Rollout,
        features: list[Tensor | None] | None,
        functions: Sequence[Reward],
    ) -> Scored:
        mine = [prompts[i] for i in rollout.group.tolist()]
        written = rollout.texts(self.checkpoint.tokenizer)
        texts = [prompt.assistant_prefix + text for prompt, text in zip(mine, written, strict=True)]
        completions = completions_of(rollout, prompts, texts, self.settings.max_completion_length)
        judged = score(completions, functions, self.settings, self._patience)
        size = len(judged.rewards) // len(prompts)
        gdpo = self.settings.aggregate_rewards == "normalised"
        within = rounding(self.settings.reward_weights) if gdpo else 0.0
        equal = equal_groups(compared(judged.rewards, judged.parts, size, self.settings), size, within)
        return Scored(indices, prompts, rollout, features, texts, equal=equal, **vars(judged))

    def _with_kl(self, scored: Scored, ref: Tensor) -> Scored:
        """The rewards less the weighted KL estimate, summed over the tokens of each rollout."""
        rollout, kind = scored.rollout, self.settings.reward_kl
        difference = torch.where(rollout.policy_mask, rollout.logprobs - ref, 0.0)
        kinds = {
            "k1": difference,
            "k2": 0.5 * difference.square(),
            "k3": (-difference).clamp(max=_LARGEST_EXPONENT).exp() + difference - 1,
        }
        kl = kinds[kind].sum(1).cpu()
        rewards = scored.rewards - self.settings.reward_kl_weight * kl
        return replace(scored, rewards=rewards, parts=scored.parts | {"kl": kl})
