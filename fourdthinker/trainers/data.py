"""The data of a run: records, read and checked, with their vision features where the settings keep those."""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from transformers import TrainingArguments

from fourdthinker.backbones import Checkpoint
from fourdthinker.backbones.gathering import gathered
from fourdthinker.errors import ConfigError, RecordError, VideoError
from fourdthinker.files import append_lines, make_folder
from fourdthinker.prompts import Encoder
from fourdthinker.records import Record, read_records
from fourdthinker.samples import Prompt, Sample, Vision
from fourdthinker.trainers.batches import Items
from fourdthinker.trainers.left_out import DataSetting, LeftOut, read_left_out
from fourdthinker.trainers.lengths import Lengths
from fourdthinker.trainers.resume import finished_updates
from fourdthinker.trainers.run_folder import FINAL, NEW_REJECTED, REJECTED, begin_rejected, is_of_run
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.vision_cache import VisionCache

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """What a cache keeps: features of the clips that are asked about, latent targets of the overlays."""

    clips: bool
    imagery: bool


def load_items(
    config: TrainConfig,
    args: TrainingArguments,
    checkpoint: Checkpoint,
    kind: Literal["dift", "rl"],
    kept: Kept,
    *,
    resume: str | None = None,
    held_out: bool = False,
) -> Items[Any]:
    """The records of `config.data` or `config.eval_data` as items that encode themselves on access.

    They become samples or prompts.

    Every record is validated, and with `config.check_media` every clip and picture read once and every record
    measured. With `config.cache_dir` the vision features in `kept` are computed.

    Args:
        config: the settings.
        args: of Trainer, for the rank and the number of processes.
        checkpoint: of the model; its encoder makes the items.
        kind: "dift" for samples, "rl" for prompts.
        kept: what a cache keeps.
        resume: the checkpoint folder that the run goes on from; with on_bad_record=skip its records are those
            that the run began with, and are not checked once more.
        held_out: the records to evaluate on; to be loaded after the others.

    Returns:
        The items, in the order of the files.

    Raises:
        RecordError: a record that cannot be used, with on_bad_record=raise; or none is left.
        ConfigError: no data is named.
    """
    encoder = checkpoint.encoder()
    checks = Checks(encoder, Lengths.of(config, checkpoint.backbone.max_positions), kind)
    # Filling the cache reads everything too, but cannot leave a record out.
    covered = config.cache_dir is not None and kept.clips and config.on_bad_record == "raise"
    wanted = checks if config.check_media and not covered else None
    goes_on_from = _goes_on_from(config, resume)
    records, left_out = load_records(config, args, kind, wanted, goes_on_from=goes_on_from, held_out=held_out)
    source: Encoder | VisionCache = encoder
    if config.cache_dir is not None:
        source = cache = _filled_cache(config, args, checkpoint, encoder, records, kept)
        if config.check_media and covered:
            for problem in _checked(args, records, lambda r: checks.length(r, cache.outline(r))):
                if problem is not None:
                    raise RecordError(problem)
    encode: Callable[[Record], Any] = source.sample if kind == "dift" else source.prompt
    skipping = config.on_bad_record == "skip"
    return Items(records, encode, Path(config.output_dir) / REJECTED if skipping else None, left_out)


class Finding(NamedTuple):
    """Of a record that was looked at: what is wrong with it, and how the times of its clip were learnt."""

    problem: str | None
    times_from: str = "container"


@dataclass(frozen=True)
class Checks:
    """What is looked at in a record beyond its line: its texts, its media, its length.

    Attributes:
        encoder: of the model.
        lengths: the limits of the run.
        kind: whether it becomes a sample or a prompt.
    """

    encoder: Encoder
    lengths: Lengths
    kind: Literal["dift", "rl"]

    def media(self, record: Record) -> Finding:
        """Look at the texts, clip, pictures and length of a record."""
        try:
            self.encoder.check_text(record)
            vision = self.encoder.read(record)
            if record.kind == "dift" and record.images:
                self.encoder.overlays(record)
        except VideoError as error:
            return Finding(f"{record.where}: {error}")
        except RecordError as error:
            return Finding(str(error))
        return self.length(record, vision)

    def length(self, record: Record, vision: Vision | None) -> Finding:
        """Look at the length of a record whose clip is `vision`, with or without its pixels."""
        times_from = "container" if vision is None else vision.times_from
        item: Prompt | Sample
        try:
            if self.kind == "rl":
                item = self.encoder.prompt(record, vision)
            else:
                # Their number is all that matters of the latents.
                latents = torch.zeros(len(record.images) * self.encoder.latents.latent_size, 1)
                item = self.encoder.sample(record, vision, latents)
        except RecordError as error:
            return Finding(str(error), times_from)
        problem = self.lengths.problem(item)
        return Finding(None if problem is None else f"{record.where}: {problem}", times_from)


def load_records(
    config: TrainConfig,
    args: TrainingArguments,
    kind: Literal["dift", "rl"],
    checks: Checks | None,
    *,
    goes_on_from: Path | None = None,
    held_out: bool = False,
) -> tuple[list[Record], list[LeftOut]]:
    """All records of `config.data` or `config.eval_data`, validated, and the lines that are none.

    Those skipped are in `output_dir`/rejected.jsonl; beside that of a former run in rejected.new.jsonl, until
    the run begins.

    Args:
        config: the settings.
        args: of Trainer, for the rank and the number of processes.
        kind: which records are read.
        checks: reads every clip and picture once too, the ranks sharing the work, so that what cannot be
            decoded, is too small or too long shows before the first step; None: media are not read.
        goes_on_from: the checkpoint of the run that goes on. With on_bad_record=skip the lines left
            out are those that it holds and no others: what broke since then stays a record.
        held_out: the records to evaluate on. What is skipped of them joins what is there of the others.

    Returns:
        The records, in the order of the files, and the lines left out.

    Raises:
        RecordError: a record that cannot be used, with on_bad_record=raise; or none is left.
        ConfigError: no data is named, or rejected.jsonl is somebody's file of other lines.
        CheckpointError: what `goes_on_from` left out cannot be read.
    """
    setting: DataSetting = "eval_data" if held_out else "data"
    files: list[str] = getattr(config, setting)
    if not files:
        raise ConfigError("data is empty; name one or more record files (JSONL)")
    known = goes_on_from is not None and config.on_bad_record == "skip"
    former = read_left_out(goes_on_from) if known and goes_on_from is not None else []
    left_out = [line for line in former if line.setting == setting]
    rejected = _rejected_file(config, goes_on_from, held_out) if args.process_index == 0 else None
    check = None if checks is None or known else functools.partial(_checked, args, find=checks.media)
    records: list[Record] = []
    found: list[list[dict[str, str]]] = [[] for _ in files]
    try:
        for number, path in enumerate(files):
            records += read_records(
                path,
                media_root=config.media_root,
                kind=kind,
                on_bad_record=config.on_bad_record,
                rejected=found[number],
                check=check,
                left_out={line.line for line in left_out if line.file == number} if known else None,
            )
    finally:
        for number, bad in enumerate(found):
            left_out += [LeftOut(**entry, setting=setting, file=number) for entry in bad]
        if rejected is not None and left_out:
            append_lines(rejected, [line.rejected() for line in left_out])
    if left_out and args.process_index == 0 and not held_out:
        counts, where = (len(left_out), len(records)), Path(config.output_dir) / REJECTED
        logger.warning("%d records skipped, %d left; the reasons are in %s", *counts, where)
    logger.info("%d records from %s", len(records), ", ".join(files))
    return records, left_out


def _rejected_file(config: TrainConfig, goes_on_from: Path | None, held_out: bool) -> Path | None:
    """The file for what is left out; None where the run goes on in its folder, and its own file is right."""
    folder = make_folder(config.output_dir)
    if goes_on_from is not None and (is_of_run(goes_on_from, folder) or goes_on_from == folder / FINAL):
        return None
    if not held_out:
        return begin_rejected(folder)
    new = folder / NEW_REJECTED
    return new if new.exists() else folder / REJECTED


def _goes_on_from(config: TrainConfig, resume: str | None) -> Path | None:
    """The checkpoint of the run that goes on, or that is finished already; None for a new one."""
    if resume is not None:
        return Path(resume)
    final = Path(config.output_dir) / FINAL
    finished = config.resume_from_checkpoint is not None and finished_updates(final) is not None
    return final if finished else None


def _checked(
    args: TrainingArguments, records: list[Record], find: Callable[[Record], Finding]
) -> list[str | None]:
    """For every record what is wrong with it, or None; the ranks share the work.

    Clips whose times are not the container's are counted on the log, several of one question once.
    """
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        found = list(pool.map(find, records[args.process_index :: args.world_size]))
    finally:  # a signal may end the run, which does not wait for the records that are left
        pool.shutdown(wait=False, cancel_futures=True)
    shares: list[list[Finding]] = [found]
    if args.world_size > 1:
        shares = [[] for _ in range(args.world_size)]
        dist.all_gather_object(shares, found)
    every = [shares[i % args.world_size][i // args.world_size] for i in range(len(records))]
    videos = [tuple(path for kind, path in record.shown if kind == "video") for record in records]
    clips = {paths: f.times_from for paths, f in zip(videos, every, strict=True) if paths}
    others = Counter(how for how in clips.values() if how != "container")
    if others and args.process_index == 0:
        told = ", ".join(f"{how} {count}" for how, count in sorted(others.items()))
        logger.warning(
            "times of %d of %d clips are not their containers': %s (fourdthinker probe tells of which)",
            others.total(),
            len(clips),
            told,
        )
    return [finding.problem for finding in every]


def _filled_cache(
    config: TrainConfig,
    args: TrainingArguments,
    checkpoint: Checkpoint,
    encoder: Encoder,
    records: list[Record],
    kept: Kept,
) -> VisionCache:
    """The cache in `config.cache_dir`, complete for `records`; the ranks share the work.

    What broke since a run began that goes on with on_bad_record=skip is left out when it comes up.
    """
    backbone = checkpoint.backbone
    with gathered(backbone.visual):  # of which ranks have different numbers of batches
        cache = VisionCache(config.cache_dir or "", backbone, encoder, clips=kept.clips, imagery=kept.imagery)
        cache.fill(
            backbone,
            records,
            rank=args.process_index,
            world_size=args.world_size,
            workers=config.dataloader_num_workers,
            skip=config.on_bad_record == "skip",
        )
    if args.world_size > 1:
        dist.barrier()
    return cache
