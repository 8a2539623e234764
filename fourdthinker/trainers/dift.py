"""DIFT: supervised fine-tuning on reasoning with imagery.

`torchrun -m fourdthinker.trainers.dift --config x.yaml key=value ...`
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from fourdthinker.backbones import Checkpoint
from fourdthinker.backbones.common import MASKED, Objective
from fourdthinker.backbones.gathering import gathered, is_sharded
from fourdthinker.backbones.pictures import with_features
from fourdthinker.backbones.self_feed import with_own_latents
from fourdthinker.errors import ConfigError
from fourdthinker.objectives import Metrics, dift_objective, normed_dift_objective
from fourdthinker.samples import IGNORE, Batch, Sample, collate
from fourdthinker.trainers.batches import ShardedBatches
from fourdthinker.trainers.budget import cut, cut_into, halves
from fourdthinker.trainers.data import Kept
from fourdthinker.trainers.driver import Recipe, run_command, train
from fourdthinker.trainers.operations import Counts, patches_of, self_fed
from fourdthinker.trainers.settings import DiftConfig
from fourdthinker.trainers.trainer import LatentTrainer
from fourdthinker.trainers.update import Forward, Parts

_KEPT = 0.99  # of the running norm of targets, an update


class DiftTrainer(LatentTrainer):
    """Loss of an update: mean over its supervised tokens and mean over its latents, on all ranks together."""

    settings: DiftConfig
    _samples: list[tuple[int, Sample]]  # of the update, with their indices in the data set
    _parts: list[list[list[int]]]  # of each micro-batch its forwards, each a list of positions in `_samples`
    _log_norms: Tensor  # [2] of the targets of the update, see `normed_dift_objective`

    def prepare_update(self, batches: list[list[tuple[int, Sample]]]) -> None:
        """Divide the samples of the update into forwards.

        With a budget the samples of all micro-batches are sorted by length and cut anew, and all forwards
        stand in the last one.
        """
        self._samples = [item for batch in batches for item in batch]
        ends = torch.tensor([len(batch) for batch in batches]).cumsum(0).tolist()
        positions = list(range(len(self._samples)))
        self._parts = [[positions[end - len(batch) : end]] for batch, end in zip(batches, ends, strict=True)]
        if self.settings.max_tokens_per_forward is not None:
            self._parts = [*([] for _ in batches[1:]), self._by_budget(self.settings.max_tokens_per_forward)]
        for _ in range(self.divisions):
            self.halve()
        lengths = torch.tensor([sample.input_ids.numel() for _, sample in self._samples])
        number = torch.tensor(len(lengths))
        self.metric_sums.add({"sample_length": (lengths.sum(), number)})
        self.speed.add(tokens=int(lengths.sum()), operations=self._operations())

    def _operations(self) -> float:
        """Of the update; the tower's passes over frozen pictures are without gradient."""
        counts, alone = Counts(), 0
        for _, sample in self._samples:
            length = sample.input_ids.numel()
            logits = int((sample.labels[1:] != IGNORE).sum())
            counts += Counts(length, length**2 / 2, logits, patches_of(sample.vision))
            alone += 0 if sample.latents is not None else patches_of(sample.imagery)
        fed = Counts()
        if self._feeds_itself:
            size, parts = self.checkpoint.backbone.latents.latent_size, itertools.chain(*self._parts)
            for part in filter(None, parts):
                fed += self_fed([self._samples[i][1] for i in part], size)
        # Passes without gradient: of a frozen tower the only one, of another the one before its own latents.
        if self.settings.freeze_vision or self._feeds_itself:
            alone += int(counts.patches)
        return (
            self.costs.inference(fed) + self.costs.training(counts, self.settings) + self.costs.patch * alone
        )

    def halve(self) -> bool:
        """Cut the update into forwards of half the samples; False where each has one already."""
        before = sum(map(len, self._parts))
        self._parts = [[half for part in parts for half in halves(part)] for parts in self._parts]
        return sum(map(len, self._parts)) > before

    # ---- beyond the published recipe

    @property
    def _feeds_itself(self) -> bool:
        return self.state.global_step >= (1 - self.settings.self_feed) * self.state.max_steps

    def prepare_batch(self, batch: Batch) -> Batch:
        """In the last part of training, the model's own latents at the pads."""
        if not self._feeds_itself:
            return self._with_features(batch)
        backbone = self.checkpoint.backbone
        # FSDP gathers weights for a call of the whole model alone, and ZeRO-3 for every call of the tower.
        with self.gathered_to_run(backbone):
            return with_own_latents(backbone, batch)

    def _with_features(self, batch: Batch) -> Batch:
        """Under ZeRO-3, where a call of the tower is collective: features instead of pixels.

        Ranks whose batches have no pictures, or no imagery, would not call it. (One that is trained is called
        once in every pass that has gradients.)
        """
        backbone = self.checkpoint.backbone
        if not (self.is_deepspeed_enabled and is_sharded(backbone)):
            return batch
        if not self.any_rank("patches" in batch or "imagery_patches" in batch):
            return batch
        with gathered(backbone.visual):
            return with_features(backbone, batch)

    def after_forward(self, forward: Forward, *outputs: Any) -> None:
        """Add up the norms of the targets.

        Args:
            forward: the one that was run.
            outputs: of its objective: with `latent_norm` the sum and number of the norms' logarithms, [2].
        """
        for log_norms in outputs:
            self._log_norms += log_norms

    def after_update(self) -> None:
        """Move the norm that is given to latents towards that of the targets of the update, on all ranks."""
        if not self.settings.latent_norm:
            return
        total, number = self.sum_over_ranks(self._log_norms).tolist()
        backbone = self.checkpoint.backbone
        if number and math.isfinite(total):  # targets of a void update may be anything
            old, new = backbone.latents.latent_norm, total / number
            mixed = new if old is None else _KEPT * math.log(old) + (1 - _KEPT) * new
            backbone.latents = replace(backbone.latents, latent_norm=math.exp(mixed))

    # ---- evaluation

    judged_by, greater_is_better = "loss", False

    def evaluate_batch(self, batch: list[Any]) -> Metrics:
        """The parts of the loss of held-out samples, with the targets as latents.

        Args:
            batch: (index, sample) pairs.
        """
        pad_id, bottleneck = self.checkpoint.backbone.vision.pad_id, self.settings.latent_bottleneck
        tensors = collate([sample for _, sample in batch], pad_id, bottleneck=bottleneck)
        tensors = {name: value.to(self.args.device) for name, value in tensors.items()}
        objective = self._objective(tensors["rows"].numel(), tensors["latent_index"].numel())
        with self.accelerator.autocast():
            _, metrics, *_ = self.model_wrapped(self._with_features(tensors), objective)
        return metrics

    def evaluated(self, means: dict[str, float]) -> dict[str, float]:
        """The parts, and the loss that an update on all held-out samples would have."""
        spec, config = self.checkpoint.backbone.latents, self.settings
        weights = {
            "ce": spec.ce_loss_weight if config.ce_loss_weight is None else config.ce_loss_weight,
            "cosine": spec.sim_loss_weight if config.sim_loss_weight is None else config.sim_loss_weight,
            "latent_norm_loss": config.latent_norm,
        }
        loss = sum(weight * means[name] for name, weight in weights.items() if name in means)
        return {"loss": loss} | means

    # ---- the division into forwards

    @property
    def _packed(self) -> bool:
        """Whether samples stand behind each other: where attention skips what they do not see."""
        alone = self.args.device.type != "cuda" or self._feeds_itself
        return not alone and self.checkpoint.backbone.attention == "sdpa"

    def _by_budget(self, budget: int) -> list[list[int]]:
        lengths = [sample.input_ids.numel() for _, sample in self._samples]
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])

        def cost(part: Sequence[int]) -> int:
            return sum(lengths[i] for i in part) if self._packed else len(part) * lengths[part[0]]

        return cut(order, cost, budget)

    def forwards(self) -> list[list[Forward]]:
        """The forwards of each micro-batch, with the numbers of tokens and latents of the whole update."""
        most = self.most_of_ranks([len(parts) for parts in self._parts])
        self._parts = [cut_into(parts, number) for parts, number in zip(self._parts, most, strict=True)]
        made = [[self._collate(part) for part in parts] for parts in self._parts]
        counts = [
            sum(batch[key].numel() for batches in made for batch in batches)
            for key in ("rows", "latent_index")
        ]
        numbers = torch.tensor(counts, dtype=torch.float64, device=self.args.device)
        num_tokens, num_latents = self.sum_over_ranks(numbers)
        self._log_norms = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        objective = self._objective(num_tokens, num_latents)
        numbered = itertools.count()
        return [
            [
                Forward(batch, objective, torch.tensor([self._samples[i][0] for i in part]), next(numbered))
                for part, batch in zip(parts, batches, strict=True)
            ]
            for parts, batches in zip(self._parts, made, strict=True)
        ]

    def _objective(self, num_tokens: Tensor | float, num_latents: Tensor | float) -> Objective:
        options: dict[str, Any] = {
            "num_tokens": num_tokens,
            "num_latents": num_latents,
            "ce_weight": self.settings.ce_loss_weight,
            "sim_weight": self.settings.sim_loss_weight,
        }
        if weight := self.settings.latent_norm:
            return functools.partial(normed_dift_objective, norm_weight=weight, **options)
        return functools.partial(dift_objective, **options)

    def _collate(self, part: list[int]) -> Batch:
        """A batch of some samples; of none, one in which the shortest is run and nothing of it counts."""
        pad_id, packed = self.checkpoint.backbone.vision.pad_id, self._packed and len(part) > 1
        bottleneck = self.settings.latent_bottleneck
        if part:
            chosen = [self._samples[i][1] for i in part]
            return collate(chosen, pad_id, packed=packed, bottleneck=bottleneck)
        shortest = min((sample for _, sample in self._samples), key=lambda sample: sample.input_ids.numel())
        batch = collate([shortest], pad_id, bottleneck=bottleneck)
        return batch | {name: batch[name][:0] for name in ("rows", "latent_index")}


def train_dift(
    config: DiftConfig,
    *,
    checkpoint: Checkpoint | None = None,
    samples: Sequence[Sample] | None = None,
    held_out: Sequence[Sample] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Fine-tune on imagery reasoning.

    Args:
        config: the settings.
        checkpoint: what to train, changed in place; None: loaded from `config.model`.
        samples: encoded samples in memory, all with `vision.features` (or patches, which a tower that is
            trained needs) and `latents` (or imagery); None: made from the records of `config.data`.
        held_out: samples likewise, to evaluate on every `eval_steps` updates; None: made from the records of
            `config.eval_data`, if any.
        callbacks: of `transformers`, added to those of Trainer.

    Returns:
        The folder of the final checkpoint, `output_dir`/final.

    Raises:
        FourdError: a record, a video, the checkpoint or a setting is wrong; before the first step.
        NonFiniteLossError: more than `max_bad_steps` steps without a finite loss.
    """

    def check(loaded: Checkpoint) -> None:
        if samples:  # the others may be made on access
            loaded.backbone.require_family(samples[0].family, "samples[0]")
        attention = loaded.backbone.attention
        if config.latent_bottleneck and attention not in MASKED:
            raise ConfigError(
                f"latent_bottleneck needs sdpa or eager attention, which take a mask; the model has "
                f"{attention}; set latent_bottleneck=false"
            )

    recipe = Recipe(
        kind="dift",
        kept=Kept(clips=config.cache_video, imagery=True),
        check=check,
        wants_reference=False,
        make_trainer=functools.partial(make_trainer, config),
    )
    return train(config, recipe, given=checkpoint, items=samples, held_out=held_out, callbacks=callbacks)


def make_trainer(config: DiftConfig, parts: Parts) -> DiftTrainer:
    """The trainer of DIFT, with batches that use up every epoch.

    Args:
        config: the settings.
        parts: what it is made of.

    Returns:
        A trainer that has not begun.
    """
    batches = ShardedBatches(
        len(parts.items),
        config.per_device_train_batch_size,
        rank=parts.args.process_index,
        world_size=parts.args.world_size,
        seed=config.seed,
        shuffle=config.shuffle_dataset,
    )
    return DiftTrainer(config, parts, batches)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: `[--config FILE] [key=value ...]`."""
    run_command(
        train_dift,
        DiftConfig,
        argv,
        program="torchrun -m fourdthinker.trainers.dift",
        description="Fine-tune a checkpoint on reasoning with imagery (DIFT).",
    )


if __name__ == "__main__":
    main()
