"""DIFT: supervised fine-tuning on reasoning with imagery.

`torchrun -m fourdthinker.trainers.dift --config x.yaml key=value ...`
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import TrainerCallback

from fourdthinker.backbones import Checkpoint
from fourdthinker.objectives import dift_objective
from fourdthinker.samples import Batch, Sample
from fourdthinker.trainers.batches import DiftCollator, ShardedBatches
from fourdthinker.trainers.data import Kept
from fourdthinker.trainers.driver import Recipe, run_command, train
from fourdthinker.trainers.settings import DiftConfig
from fourdthinker.trainers.trainer import Forward, LatentTrainer, Parts


class DiftTrainer(LatentTrainer):
    """Loss of an update: mean over its supervised tokens and mean over its latents, on all ranks together."""

    settings: DiftConfig

    def make_update(self, batches: list[Batch]) -> list[list[Forward]]:
        """One forward for each micro-batch, with the numbers of tokens and latents of the whole update."""
        counts = [sum(batch[key].numel() for batch in batches) for key in ("rows", "latent_index")]
        numbers = torch.tensor(counts, dtype=torch.float64, device=self.args.device)
        num_tokens, num_latents = self.sum_over_ranks(numbers)
        objective = functools.partial(
            dift_objective,
            num_tokens=num_tokens,
            num_latents=num_latents,
            ce_weight=self.settings.ce_loss_weight,
            sim_weight=self.settings.sim_loss_weight,
        )
        return [[Forward(batch, objective, batch["sample_index"])] for batch in batches]


def train_dift(
    config: DiftConfig,
    *,
    checkpoint: Checkpoint | None = None,
    samples: Sequence[Sample] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Fine-tune on imagery reasoning.

    Args:
        config: the settings.
        checkpoint: what to train, changed in place; None: loaded from `config.model`.
        samples: encoded samples in memory, all with `vision.features` (or patches) and `latents` (or
            imagery); None: made from the records of `config.data`.
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

    recipe = Recipe(
        kind="dift",
        kept=Kept(clips=config.cache_video, imagery=True),
        check=check,
        wants_reference=False,
        make_trainer=functools.partial(make_trainer, config),
    )
    return train(config, recipe, given=checkpoint, items=samples, callbacks=callbacks)


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
    )
    collator = DiftCollator(parts.checkpoint.backbone.vision.pad_id)
    return DiftTrainer(config, parts, batches, collator)


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
