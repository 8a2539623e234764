"""The driver of both trainers: from settings to the final checkpoint, read from top to bottom.

What differs between DIFT and 4DRL is in a `Recipe`, which `dift.py` and `grpo.py` fill in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainingArguments

from fourdthinker.backbones import Checkpoint
from fourdthinker.backbones.liger import use_liger
from fourdthinker.errors import ConfigError, FourdError
from fourdthinker.files import check_folder, locked_folder, make_folder
from fourdthinker.trainers.arguments import environment_kept, training_arguments
from fourdthinker.trainers.batches import Items
from fourdthinker.trainers.data import Kept, load_items
from fourdthinker.trainers.lengths import Lengths
from fourdthinker.trainers.model import add_adapter, load_model, reference_model, start_of_run
from fourdthinker.trainers.plan_text import plan_text
from fourdthinker.trainers.resume import agreed_resume
from fourdthinker.trainers.run_folder import remove_unfinished
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.settings_files import parse_command_line
from fourdthinker.trainers.settings_needs import check_evaluation
from fourdthinker.trainers.stopping import StopOnSignal
from fourdthinker.trainers.trainer import LatentTrainer
from fourdthinker.trainers.update import (
    LoaderWorkerError,
    MemoryLimitError,
    NonFiniteLossError,
    NoRewardsError,
    Parts,
    RolloutWorkerError,
)
from fourdthinker.trainers.watch import RankLostError, Watch

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=TrainConfig)


@dataclass(frozen=True)
class Recipe:
    """What one way of training does differently from another.

    Attributes:
        kind: the records it reads.
        kept: what its cache keeps.
        check: raises a FourdError for a loaded checkpoint that cannot be trained this way.
        wants_reference: whether it needs the frozen model that training started from.
        make_trainer: the trainer, of its parts.
    """

    kind: Literal["dift", "rl"]
    kept: Kept
    check: Callable[[Checkpoint], None]
    wants_reference: bool
    make_trainer: Callable[[Parts], LatentTrainer]


@environment_kept()
def train(
    config: TrainConfig,
    recipe: Recipe,
    *,
    given: Checkpoint | None = None,
    items: Sequence[Any] | None = None,
    held_out: Sequence[Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Train, and return the folder of the final checkpoint, `output_dir`/final.

    Args:
        config: the settings.
        recipe: what is particular to this way of training.
        given: what to train, changed in place; None: loaded from `config.model`.
        items: encoded samples or prompts in memory; None: made from the records of `config.data`.
        held_out: what to evaluate on, likewise of `config.eval_data`.
        callbacks: of `transformers`, added to those of Trainer.

    Raises:
        FourdError: a record, a video, the checkpoint or a setting is wrong, or another process trains in
            `output_dir`; before the first step.
        NonFiniteLossError: more than `max_bad_steps` steps without a finite loss.
        NoRewardsError: in several updates in a row all rewards, of plain functions, failed.
        MemoryLimitError: memory ran out, and smaller forwards would not help.
        LoaderWorkerError: a process of the loader was killed.
        RankLostError: another process has died.
        RolloutWorkerError: several actors of `rollout_workers` died over the same rollouts.
        EndBeforeTraining: SIGTERM or SIGUSR1 before training began, which ends the process with status 0.
    """
    if held_out is None:
        check_evaluation(config)
    stopping = StopOnSignal()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping.listening())
        with stopping.meeting():
            args = training_arguments(config)
            watch = stack.enter_context(Watch.of_group(config.ddp_timeout))
        stopping.interrupt()
        watch.enter("choosing the checkpoint", 0, 0)
        locked = _locked(stack, config, args)  # a run that is ending may write a newer one until then
        resume = agreed_resume(config, args)
        if config.cache_dir is not None:
            check_folder(config.cache_dir)
        if locked:
            remove_unfinished(Path(config.output_dir))
        loaded = resume is not None and given is None
        try:
            parts = _parts(config, recipe, args, resume, given, items, held_out, watch)
            trainer = recipe.make_trainer(dataclasses.replace(parts, stopping=stopping))
            return trainer.run(resume, weights_loaded=loaded, callbacks=callbacks)
        except torch.OutOfMemoryError as error:  # outside of all that can be made smaller
            raise MemoryLimitError(str(error).partition("\n")[0]) from error
        except RuntimeError as error:  # torch has no type for it, and raises it wherever the main thread is
            if "DataLoader worker" not in str(error):
                raise
            raise LoaderWorkerError(str(error).partition("\n")[0].strip(" .")) from error


def _locked(stack: contextlib.ExitStack, config: TrainConfig, args: TrainingArguments) -> bool:
    """Lock the folder of a run from the first rank, for as long as `stack` lasts. Collective.

    Returns:
        Whether this rank holds the lock.

    Raises:
        FourdError: the folder cannot be made or written, or another process has the lock.
    """
    held, error = False, None
    if args.process_index == 0:
        try:
            check_folder(config.output_dir)
            held = stack.enter_context(locked_folder(make_folder(config.output_dir).absolute()))
        except FourdError as mine:
            error = mine
    told = [None if error is None else str(error)]
    if args.world_size > 1:
        dist.broadcast_object_list(told)
    if error is not None:
        raise error
    if told[0] is not None:
        raise ConfigError(f"rank 0: {told[0]}")
    return held


def _parts(
    config: TrainConfig,
    recipe: Recipe,
    args: TrainingArguments,
    resume: str | None,
    given: Checkpoint | None,
    items: Sequence[Any] | None,
    held_out: Sequence[Any] | None,
    watch: Watch,
) -> Parts:
    """Model, reference and data of a run; everything is checked."""
    watch.enter("loading the model", 0, 1)
    checkpoint = load_model(config, args, resume, given)
    recipe.check(checkpoint)
    reference = None
    if recipe.wants_reference:  # before the adapter is there
        reference = reference_model(config, args, resume, given, checkpoint)
    start = None
    if recipe.kind == "rl":
        start = start_of_run(config, None if resume is None else Path(resume), checkpoint.backbone, reference)
    add_adapter(config, checkpoint.backbone)
    if config.liger is not False and use_liger(checkpoint.backbone, required=config.liger is True):
        logger.info("RMSNorm and SwiGLU run by Liger")
    watch.enter("reading the data", 0, 2)
    load = functools.partial(load_items, config, args, checkpoint, recipe.kind, recipe.kept, resume=resume)
    data = load() if items is None else _given(config, checkpoint, items)
    others = None if held_out is None else _given(config, checkpoint, held_out)
    if held_out is None and config.eval_data:
        others = load(held_out=True)
    watch.enter("preparing the run", 0, 3)
    return Parts(args, checkpoint, data, reference, watch, others, start)


def _given(config: TrainConfig, checkpoint: Checkpoint, items: Sequence[Any]) -> Items[Any]:
    """Items in memory."""
    if isinstance(items, list):  # others may be made on access
        Lengths.of(config, checkpoint.backbone.max_positions).check(items)
    return Items(items)


def run_command(
    train_with: Callable[[C], Path],
    settings: type[C],
    argv: Sequence[str] | None,
    *,
    program: str,
    description: str,
) -> None:
    """A command: `[--config FILE] [--dry-run] [key=value ...]`.

    A mistake ends it with one line on stderr and status 2.

    Args:
        train_with: trains by settings.
        settings: their class.
        argv: the arguments; None: those of the process.
        program: how the command is called, for `--help`.
        description: what it does, for `--help`.
    """
    start_logging()
    try:
        config, dry_run = parse_command_line(settings, argv, program=program, description=description)
        if dry_run:
            sys.stdout.write(plan_text(config))
            return
        with process_group():
            final = train_with(config)
    except (
        FourdError, NonFiniteLossError, NoRewardsError, MemoryLimitError, LoaderWorkerError, RankLostError,
        RolloutWorkerError, OSError,
    ) as error:  # fmt: skip
        rank = f" (rank {os.environ['RANK']})" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        sys.stderr.write(f"error{rank}: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from error
    logging.getLogger(__name__).info("the checkpoint is in %s", final)


def start_logging() -> None:
    """Log lines of this package to stderr, from the first process only; warnings from all."""
    first = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("fourdthinker").setLevel(logging.INFO if first else logging.WARNING)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Takes the process group down at the end, so that torchrun does not warn about a leak."""
    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
