"""Passes over rollouts without gradient: of the reference model, and of the policy before it is updated."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fourdthinker.backbones.common import Backbone, Objective
from fourdthinker.errors import ConfigError
from fourdthinker.kernels import top_entropy_mask
from fourdthinker.objectives import policy_entropies, policy_logprobs, reference_outputs
from fourdthinker.sampler import replay_batch
from fourdthinker.samples import Batch
from fourdthinker.trainers.budget import halves
from fourdthinker.trainers.experience import Experience, Scored
from fourdthinker.trainers.packing import counts_of, cut_rows
from fourdthinker.trainers.settings import GrpoConfig
from fourdthinker.trainers.trainer import LatentTrainer
from fourdthinker.trainers.update import MemoryLimitError

logger = logging.getLogger(__name__)


class OtherPassesTrainer(LatentTrainer):
    """What the loss needs to know of rollouts beforehand. `GrpoTrainer` is complete."""

    settings: GrpoConfig
    reference: Backbone | None

    @contextmanager
    def _reference(self) -> Iterator[Backbone]:
        """The reference model, with whole weights: a frozen copy, or the policy without its adapter."""
        own = self.checkpoint.backbone
        reference = own if self.reference is None else self.reference
        below = own.without_adapter() if reference is own else nullcontext()
        with self.gathered_to_run(reference), below:
            yield reference

    def _with_other_passes(self, experiences: list[Experience]) -> list[Experience]:
        """What the loss needs of the reference model, and which tokens have the highest entropy."""
        config = self.settings
        anchored = config.latent_term == "cosine"
        if anchored or (config.loss.beta and not config.reward_kl_weight):
            with self._reference() as reference:
                told = [self._reference_outputs(reference, e, e.rows) for e in experiences]
            experiences = [
                replace(e, ref_logprobs=logprobs, anchors=anchors if anchored else None)
                for e, (logprobs, anchors) in zip(experiences, told, strict=True)
            ]
        each = config.gradient_accumulation_steps
        updates = [experiences[first : first + each] for first in range(0, len(experiences), each)]
        if config.top_entropy < 1:
            updates = [self._with_entropy_masks(update) for update in updates]
        # In the first update the policy is still the one that sampled, and its passes with a loss tell this.
        updates[1:] = [self._before_updates(update) for update in updates[1:]]
        return list(itertools.chain(*updates))

    def _reference_outputs(
        self, reference: Backbone, scored: Scored, rows: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Log-probs [R, T] and, at each latent, what the model thinks [N, H]; 0 for other rows."""
        logprobs = torch.zeros_like(scored.rollout.logprobs)
        anchors = torch.zeros_like(scored.rollout.latents)
        objective = functools.partial(reference_outputs, temperature=self.settings.temperature)
        for part, (found, thought) in self._passes(reference, scored, rows, objective):
            logprobs[part] = found
            anchors[torch.isin(scored.rollout.latent_rows, part)] = thought.to(anchors.dtype)
        return logprobs, anchors

    def _of_policy(self, experiences: list[Experience], objective: Objective) -> list[Tensor]:
        """Of every token what an objective gives with the current weights, [R, T] each; 0 for other rows."""
        told = []
        with self.gathered_to_run(self.checkpoint.backbone):
            for e in experiences:
                told.append(torch.zeros_like(e.rollout.logprobs))
                for part, found in self._passes(self.checkpoint.backbone, e, e.rows, objective):
                    told[-1][part] = found
        return told

    def _before_updates(self, experiences: list[Experience]) -> list[Experience]:
        """The log-probs of the policy that sampled."""
        objective = functools.partial(policy_logprobs, temperature=self.settings.temperature)
        told = self._of_policy(experiences, objective)
        return [replace(e, old_logprobs=old) for e, old in zip(experiences, told, strict=True)]

    def _with_entropy_masks(self, experiences: list[Experience]) -> list[Experience]:
        """The tokens of the highest entropy, of all ranks together."""
        objective = functools.partial(policy_entropies, temperature=self.settings.temperature)
        masks, values = [], []
        for e, entropies in zip(experiences, self._of_policy(experiences, objective), strict=True):
            masks.append(e.rollout.policy_mask & e.trained.to(entropies.device)[:, None])
            values.append(entropies[masks[-1]].cpu())
        everywhere: list[Any] = [torch.cat(values)]
        if self.args.world_size > 1:
            everywhere = [None] * self.args.world_size
            dist.all_gather_object(everywhere, torch.cat(values))
        joined = torch.cat(everywhere)[None]
        chosen = top_entropy_mask(
            joined, torch.ones_like(joined, dtype=torch.bool), self.settings.top_entropy
        )
        before = sum(len(part) for part in everywhere[: self.args.process_index])
        own = chosen[0, before:].split(
            [len(v) for v in values] + [joined.numel() - before - sum(map(len, values))]
        )
        made = []
        for e, mask, mine in zip(experiences, masks, own, strict=False):
            kept = torch.zeros_like(mask)
            kept[mask] = mine.to(mask.device)
            made.append(replace(e, entropy_mask=kept))
        return made

    def _passes(
        self, backbone: Backbone, scored: Scored, rows: Sequence[int], objective: Objective
    ) -> Iterator[tuple[Tensor, Any]]:
        """Rows and what the objective gives of them, within the budget of a forward."""
        rollout, share = scored.rollout, self.settings.share_prompt
        parts = cut_rows(scored, rows, self.settings.max_tokens_per_forward, share=share) if rows else []
        for _ in range(self.divisions):
            parts = [half for part in parts for half in halves(part)]
        pad_id = self.checkpoint.backbone.vision.pad_id

        def run(some: Sequence[int]) -> tuple[Tensor, Any]:
            batch = replay_batch(rollout, scored.prompts, some, pad_id, features=scored.features, share=share)
            return torch.tensor(some, device=rollout.tokens.device), self._run(backbone, batch, objective)

        for part in parts:
            counts = replace(counts_of(scored, part, share=share), patches=0)
            self.speed.add(operations=self.costs.inference(counts))
            yield from self.by_halves("passes without gradient")(run, part)

    def _run(self, backbone: Backbone, batch: Batch, objective: Objective) -> Any:
        """Outside the engine nothing gathers the head's weight, which is read, not called: see `gathered`."""
        with self.accelerator.autocast():
            return backbone.eval()(batch, objective)  # the next training step sets the mode back

    def _check_sharing(self, experience: Experience) -> bool:
        """Compare two completions of one prompt, behind one copy of it, with each in a sequence of its own.

        ConfigError when their log-probabilities differ by more than rounding: some part of this model does
        not keep to the mask or the positions it is given. False where memory does not suffice for both.
        """
        backbone, halved = self.checkpoint.backbone, self.by_halves("check of share_prompt")
        objective = functools.partial(policy_logprobs, temperature=self.settings.temperature)

        def run(rows: Sequence[int], share: bool) -> Tensor:
            given, pad_id = (experience.rollout, experience.prompts, rows), backbone.vision.pad_id
            batch = replay_batch(*given, pad_id, features=experience.features, share=share)
            return torch.as_tensor(self._run(backbone, batch, objective))

        try:
            plain = torch.cat(halved(functools.partial(run, share=False), [0, 1]))
            (shared,) = halved(lambda _: run([0, 1], True), ["both"])
        except MemoryLimitError as error:
            if not halved.alone:
                raise
            logger.warning("share_prompt is checked after a later update, not after this one: %s", error)
            return False
        exact = backbone.dtype == torch.float32 and not self.args.bf16
        difference, bound = float((shared - plain).abs().max()), 1e-3 if exact else 0.5
        if difference > bound:
            raise ConfigError(
                f"share_prompt: log-probabilities of completions behind one prompt are off by "
                f"{difference:.2g} (at most {bound} is rounding); set share_prompt=false"
            )
        return True
