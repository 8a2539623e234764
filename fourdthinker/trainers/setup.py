"""From settings to a run: arguments of Trainer, the run folder, the model, the records."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from transformers import TrainingArguments

from fourdthinker.backbones import Checkpoint, init_checkpoint, load_checkpoint
from fourdthinker.backbones.adapters import add_lora
from fourdthinker.errors import CheckpointError, ConfigError, RecordError, VideoError
from fourdthinker.prompts import Encoder
from fourdthinker.records import read_records
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.settings_files import save_config
from fourdthinker.trainers.vision_cache import VisionCache

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.records import Record

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
REJECTED = "rejected.jsonl"
ROLLOUTS = "rollouts.jsonl"
_STATE = "trainer_state.json"


def load_model(
    config: TrainConfig,
    args: TrainingArguments,
    resume: str | None,
    checkpoint: Checkpoint | None,
    *,
    latent_size: int | None = None,
) -> Checkpoint:
    """The checkpoint to train, on the device of this rank.

    A given one is used as it is; otherwise that of `config.model`, or when resuming the one that training
    stopped at (with an adapter the one that it started from, since the adapter alone is loaded later). With
    `latent_size` a base model without latent tokens gets them.
    """
    if config.lora is not None:
        resume = None
    if checkpoint is None:
        source = resume or config.model
        if not source:
            raise ConfigError("model is empty; give the folder of a checkpoint, or pass a loaded one")
        subfolder = None if resume else config.subfolder
        dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
        if latent_size is not None and not resume:
            checkpoint = init_checkpoint(
                source,
                subfolder,
                dtype=dtype,
                policy=config.frames,
                latent_size=latent_size,
                override_policy=config.override_policy,
            )
        else:
            checkpoint = load_checkpoint(
                source, subfolder, dtype=dtype, policy=config.frames, override_policy=config.override_policy
            )
    elif config.frames is not None and config.frames != checkpoint.policy:
        raise ConfigError("frames differs from the policy of the checkpoint that was passed; change it there")
    checkpoint.backbone.to(args.device)
    return checkpoint


def adapt(config: TrainConfig, backbone: Backbone) -> None:
    """Put the adapter of `config.lora` on the model, if the settings ask for one.

    ConfigError for latent tokens that were never trained and would not be now: all three rows of the output
    matrix are the mean of the others then, so that START can never be the likeliest token.
    """
    if config.lora is None:
        return
    head, latents = backbone.head_weight, backbone.latents
    if not config.lora.train_embeddings and torch.equal(head[latents.start_id], head[latents.end_id]):
        raise ConfigError(
            "the latent tokens of this model are new (all have the same weights), and an adapter leaves them "
            "as they are, so that no block would ever begin; set lora.train_embeddings=true"
        )
    settings = config.lora
    torch.manual_seed(config.seed)  # Trainer does so later, and the adapter begins at random
    add_lora(
        backbone,
        r=settings.r,
        alpha=settings.alpha,
        dropout=settings.dropout,
        target_modules=settings.target_modules,
    )
    if settings.train_embeddings:
        backbone.embedding_weight.requires_grad_(True)
        backbone.head_weight.requires_grad_(True)


def load_reference(
    config: TrainConfig, args: TrainingArguments, resume: str | None, checkpoint: Checkpoint | None
) -> Backbone | None:
    """The model that a resumed run started from. None when that is the one which is about to be trained."""
    if checkpoint is not None or resume is None:
        return None
    return load_model(config, args, None, None).backbone.eval().requires_grad_(False)


def load_records(
    config: TrainConfig, kind: Literal["dift", "rl"], args: TrainingArguments, encoder: Encoder | None
) -> list[Record]:
    """All records of `config.data`, validated; those skipped are in `output_dir`/rejected.jsonl.

    With an encoder (and `config.check_media`) every clip and picture is read once too, the ranks sharing the
    work, so that what cannot be decoded or is too small shows before the first step.
    """
    if not config.data:
        raise ConfigError("data is empty; name one or more record files (JSONL)")
    rejected = Path(config.output_dir) / REJECTED if args.process_index == 0 else None
    if rejected is not None:
        rejected.unlink(missing_ok=True)
    records: list[Record] = []
    for path in config.data:
        records += read_records(
            path,
            media_root=config.media_root,
            kind=kind,
            on_bad_record=config.on_bad_record,
            rejected=rejected,
        )
    if encoder is not None and config.check_media:
        records = _readable(records, encoder, config, args, rejected)
    logger.info("%d records from %s", len(records), ", ".join(config.data))
    return records


def _readable(
    records: list[Record],
    encoder: Encoder,
    config: TrainConfig,
    args: TrainingArguments,
    rejected: Path | None,
) -> list[Record]:
    """The records whose media can be read; with on_bad_record=raise RecordError for the first other one."""

    def problem(record: Record) -> str | None:
        try:
            encoder.read(record)
            if record.kind == "dift" and record.images:
                encoder.overlays(record)
        except VideoError as error:
            return f"{record.where}: {error}"
        except RecordError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(problem, records[args.process_index :: args.world_size]))
    shares: list[list[str | None]] = [found]
    if args.world_size > 1:
        shares = [[] for _ in range(args.world_size)]
        dist.all_gather_object(shares, found)
    problems = [shares[i % args.world_size][i // args.world_size] for i in range(len(records))]
    bad = [(record, text) for record, text in zip(records, problems, strict=True) if text is not None]
    if bad and config.on_bad_record == "raise":
        raise RecordError(bad[0][1])
    for _, text in bad:
        logger.warning("skipped: %s", text)
    if bad and rejected is not None:
        with rejected.open("a", encoding="utf-8") as file:
            for record, text in bad:
                file.write(json.dumps({"where": record.where, "reason": text}, ensure_ascii=False) + "\n")
    if len(bad) == len(records):
        raise RecordError(f"{', '.join(config.data)}: no record is left: {bad[0][1]}")
    return [record for record, text in zip(records, problems, strict=True) if text is None]


def make_encoder(checkpoint: Checkpoint) -> Encoder:
    backbone = checkpoint.backbone
    return Encoder(
        checkpoint.tokenizer, backbone.vision, backbone.latents, checkpoint.policy, checkpoint.style
    )


def fill_cache(
    config: TrainConfig,
    args: TrainingArguments,
    backbone: Backbone,
    encoder: Encoder,
    records: list[Record],
    *,
    clips: bool,
    imagery: bool,
) -> VisionCache:
    """The cache in `config.cache_dir`, complete for `records`; the ranks share the work."""
    cache = VisionCache(config.cache_dir or "", backbone, encoder, clips=clips, imagery=imagery)
    cache.fill(
        backbone,
        records,
        rank=args.process_index,
        world_size=args.world_size,
        workers=config.dataloader_num_workers,
    )
    if args.world_size > 1:
        dist.barrier()
    return cache


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """The `TrainingArguments` of a config: fields of the same name are passed on, the rest is fixed here."""
    names = {f.name for f in dataclasses.fields(TrainingArguments)}
    shared = {name: getattr(config, name) for name in type(config).model_fields if name in names}
    for name in ("resume_from_checkpoint", "gradient_checkpointing"):  # done here, not by Trainer
        shared.pop(name)
    shared["save_strategy"] = "steps" if config.save_steps else "no"
    shared["save_steps"] = config.save_steps or 1
    try:
        args = TrainingArguments(
            **shared,
            logging_nan_inf_filter=False,  # non-finite losses are handled here
            remove_unused_columns=False,
            # With a frozen tower every trainable parameter is used by every batch; an open tower may meet a
            # batch of text.
            ddp_find_unused_parameters=not config.freeze_vision,
            disable_tqdm=not sys.stderr.isatty(),
            log_level="warning",
        )
    except ValueError as error:  # an optimizer or a schedule that there is not
        raise ConfigError(f"a setting that is passed on to transformers is wrong: {error}") from error
    _ = args.n_gpu  # sets devices up
    args._n_gpu = min(
        args._n_gpu, 1
    )  # one process a GPU: torchrun starts the others, nn.DataParallel is never wanted
    return args


def prepare_run(config: TrainConfig, args: TrainingArguments) -> str | None:
    """Make or check the run folder and write the resolved config. Returns the checkpoint folder to resume
    from.

    Raises:
        ConfigError: the folder holds a former run and neither resuming nor overwriting was asked for, or the
            named checkpoint is missing or incomplete.
    """
    folder = Path(config.output_dir)
    resume: Path | None = None
    former = sorted(folder.glob("checkpoint-*")) if folder.is_dir() else []
    if config.resume_from_checkpoint == "auto":
        complete = [path for path in former if _incomplete(path, args) is None]
        resume = max(complete, key=_step, default=None)
    elif config.resume_from_checkpoint is not None:
        resume = Path(config.resume_from_checkpoint)
        if missing := _incomplete(resume, args):
            raise ConfigError(
                f"resume_from_checkpoint: {resume} has no {missing}, so it is no complete checkpoint of a "
                f"run with {args.world_size} processes; name another, or 'auto' for the newest complete one"
            )
    elif (former or (folder / METRICS).exists()) and not config.overwrite_output_dir:
        raise ConfigError(
            f"output_dir {folder} holds a former run; choose another folder, resume_from_checkpoint=auto, "
            "or overwrite_output_dir=true"
        )
    if args.world_size > 1:
        dist.barrier()  # every rank has looked before the first one writes
    if args.process_index == 0:
        folder.mkdir(parents=True, exist_ok=True)
        save_config(config, folder)
        for name in (METRICS, ROLLOUTS):
            _cut_lines(folder / name, _step(resume) if resume else 0)
        if config.overwrite_output_dir and resume is None:
            for path in former:  # an old checkpoint-N would be taken for one of this run when it is resumed
                path.rename(path.with_name(f"former-{path.name}"))
    if args.world_size > 1:
        dist.barrier()
    return str(resume) if resume else None


def _step(path: Path) -> int:
    try:
        return int(json.loads((path / _STATE).read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: {_STATE} cannot be read ({error}); name another checkpoint"
        ) from error


def _incomplete(path: Path, args: TrainingArguments) -> str | None:
    """What a checkpoint folder lacks to be resumed from, or None. A killed process leaves halves of them."""
    rng = [f"rng_state_{i}.pth" for i in range(args.world_size)] if args.world_size > 1 else ["rng_state.pth"]
    needed = ["config.json", "scheduler.pt", *rng] + ([] if args.deepspeed else ["optimizer.pt"])
    for name in needed:
        if not (path / name).is_file():
            return name
    try:
        _step(path)  # written last
    except CheckpointError:
        return f"readable {_STATE}"
    return None


def _cut_lines(path: Path, last_step: int) -> None:
    """Drop the lines after `last_step`, which the resumed run will write again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # the last line of a killed run may be cut off
            if json.loads(line).get("step", 0) <= last_step:
                kept.append(line)
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
