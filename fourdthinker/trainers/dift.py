"""DIFT: supervised fine-tuning on reasoning with imagery.

`torchrun -m fourdthinker.trainers.dift --config x.yaml key=value ...`
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from fourdthinker.backbones import Checkpoint
from fourdthinker.objectives import Batch, dift_objective
from fourdthinker.prompts import Sample
from fourdthinker.trainers.batches import DiftCollator, Items, ShardedBatches
from fourdthinker.trainers.common import LatentTrainer, process_group, start_logging
from fourdthinker.trainers.settings import DiftConfig
from fourdthinker.trainers.settings_files import parse_command_line
from fourdthinker.trainers.setup import (
    adapt,
    fill_cache,
    load_model,
    load_records,
    make_encoder,
    prepare_run,
    training_arguments,
)

logger = logging.getLogger(__name__)


class DiftTrainer(LatentTrainer):
    """Loss of an update: mean over its supervised tokens and mean over its latents, on all ranks together."""

    settings: DiftConfig

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator)]
        counts = [sum(batch[key].numel() for batch in batches) for key in ("rows", "latent_index")]
        return batches, self.sum_over_ranks(torch.tensor(counts, dtype=torch.float64, device=device))

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        num_tokens, num_latents = num_items_in_batch
        objective = functools.partial(
            dift_objective,
            num_tokens=num_tokens,
            num_latents=num_latents,
            ce_weight=self.settings.ce_loss_weight,
            sim_weight=self.settings.sim_loss_weight,
        )
        loss, metrics = model(inputs, objective)
        return (loss, metrics) if return_outputs else loss


def train_dift(
    config: DiftConfig,
    *,
    checkpoint: Checkpoint | None = None,
    samples: Sequence[Sample] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Fine-tune on imagery reasoning and return the folder of the final checkpoint, `output_dir`/final.

    Args:
        config: the settings.
        checkpoint: what to train, changed in place; None: loaded from `config.model`.
        samples: encoded samples in memory, all with `vision.features` (or patches) and `latents` (or
            imagery); None: made from the records of `config.data`.
        callbacks: of `transformers`, added to those of Trainer.

    Raises:
        FourdError: a record, a video, the checkpoint or a setting is wrong; before the first step.
        NonFiniteLossError: more than `max_bad_steps` steps without a finite loss.
    """
    args = training_arguments(config)
    resume = prepare_run(config, args)
    loaded = load_model(config, args, resume, checkpoint, latent_size=config.latent_size)
    backbone = loaded.backbone
    adapt(config, backbone)
    items: Items[Sample]
    if samples is not None:
        backbone.require_family(samples[0].family if samples else None, "samples[0]")
        items = Items(samples)
    else:
        encoder = make_encoder(loaded)
        # Filling the cache reads everything too, but cannot leave a record out.
        covered = config.cache_dir is not None and config.cache_video and config.on_bad_record == "raise"
        records = load_records(config, "dift", args, None if covered else encoder)
        if config.cache_dir is None:
            items = Items(records, encoder.sample)
        else:
            cache = fill_cache(
                config, args, backbone, encoder, records, clips=config.cache_video, imagery=True
            )
            items = Items(records, cache.sample)
    batches = ShardedBatches(
        len(items),
        config.per_device_train_batch_size,
        rank=args.process_index,
        world_size=args.world_size,
        seed=config.seed,
    )
    trainer = DiftTrainer(loaded, config, args, items, batches, DiftCollator(backbone.vision.pad_id))
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.weights_from = resume if checkpoint is None else None
    return trainer.run(resume)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: `[--config FILE] [key=value ...]`."""
    config = parse_command_line(
        DiftConfig,
        argv,
        program="torchrun -m fourdthinker.trainers.dift",
        description="Fine-tune a checkpoint on reasoning with imagery (DIFT).",
    )
    start_logging()
    with process_group():
        final = train_dift(config)
        logger.info("the checkpoint is in %s", final)


if __name__ == "__main__":
    main()
