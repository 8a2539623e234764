"""The folder of a run: what stands in it when training begins."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

import torch.distributed as dist
from transformers import TrainingArguments

from fourdthinker.errors import CheckpointError
from fourdthinker.files import make_folder, parse_json, write_bytes
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.settings_files import RESOLVED_CONFIG, resolved, save_config

METRICS = "metrics.jsonl"
REJECTED = "rejected.jsonl"
ROLLOUTS = "rollouts.jsonl"
FINAL = "final"
STATE = "trainer_state.json"
_UNFINISHED = re.compile(r"\.(checkpoint-\d+|final)\.[a-z0-9_]{8}")  # what `save_checkpoint` writes first


def begin_run(config: TrainConfig, args: TrainingArguments, resume: str | None) -> None:
    """Make the folder ready: the resolved settings are in it, and nothing that this run will write again.

    What is not of this run is renamed: it could be taken for its own when it is resumed. Every rank calls it,
    once every rank has found where to go on.
    """
    folder = Path(config.output_dir)
    if args.world_size > 1:
        dist.barrier()  # every rank has looked before the first one writes
    if args.process_index == 0:
        make_folder(folder)
        goes_on = resume is not None and is_of_run(Path(resume), folder)
        if not goes_on:
            _set_other_settings_aside(folder / RESOLVED_CONFIG, resolved(config))
        save_config(config, folder)
        updates = resumed_updates(resume) if resume else 0
        for path in (folder / METRICS, folder / ROLLOUTS):
            if goes_on:
                _cut_lines(path, updates)
            elif path.exists():
                _set_aside(path)
        for path in checkpoints(folder):
            if not (goes_on and _is_before(path, updates)):
                _set_aside(path)
        is_newest = goes_on and config.resume_from_checkpoint == "auto"
        if not is_newest and (folder / FINAL).is_dir():
            _set_aside(folder / FINAL)
    if args.world_size > 1:
        dist.barrier()


def remove_unfinished(folder: Path) -> None:
    """Remove what saves that were killed have left; only for a process that holds the folder's lock."""
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _is_before(path: Path, updates: int) -> bool:
    try:
        return resumed_updates(path) <= updates
    except CheckpointError:
        return False


def _set_other_settings_aside(path: Path, text: str) -> None:
    """What stands there may be a file that somebody wrote by hand and began this run with."""
    if path.is_file() and path.read_bytes() != text.encode():
        _set_aside(path)


def _set_aside(path: Path) -> None:
    number, target = 1, path.with_name(f"former-{path.name}")
    while target.exists():
        number += 1
        target = path.with_name(f"former-{number}-{path.name}")
    path.rename(target)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, complete or not."""
    return sorted(folder.glob("checkpoint-*")) if folder.is_dir() else []


def is_of_run(checkpoint: Path, folder: Path) -> bool:
    """Whether a checkpoint is one of those that the run in `folder` has now, and not set aside."""
    return os.path.realpath(checkpoint) in [os.path.realpath(path) for path in checkpoints(folder)]


def resumed_updates(checkpoint: str | Path) -> int:
    """How many updates were made before a checkpoint.

    Raises:
        CheckpointError: its state cannot be read.
    """
    path = Path(checkpoint)
    try:
        return int(parse_json((path / STATE).read_bytes(), finite=False)["global_step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: {STATE} cannot be read ({error}); name another checkpoint") from error


def _cut_lines(path: Path, last_step: int) -> None:
    """Drop the lines after `last_step`, which the resumed run will write again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().split(b"\n"):  # no other line ends: texts hold U+2028
        with contextlib.suppress(ValueError):  # the last line of a killed run may be cut off
            if parse_json(line, finite=False).get("step", 0) <= last_step:
                kept.append(line + b"\n")
    write_bytes(path, b"".join(kept))
