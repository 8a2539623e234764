"""The beginning of a run, once everything is checked: its folder is made ready."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import torch.distributed as dist
from transformers import TrainingArguments

from fourdthinker.errors import CheckpointError
from fourdthinker.files import atomic_writer, make_folder, parse_json
from fourdthinker.trainers.resume import finished_updates
from fourdthinker.trainers.run_folder import (
    FINAL,
    METRICS,
    NEW_REJECTED,
    REJECTED,
    ROLLOUTS,
    checkpoints,
    is_of_run,
    remember_start,
    resumed_updates,
)
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.settings_files import RESOLVED_CONFIG, resolved, save_config

_LINES = (METRICS, ROLLOUTS)


def begin_run(config: TrainConfig, args: TrainingArguments, resume: str | None) -> None:
    """Make the folder ready: the resolved settings are in it, and nothing that this run will write again.

    What is not of this run is renamed: it could be taken for its own when it is resumed. Every rank calls it,
    once every rank has found where to go on.
    """
    folder = Path(config.output_dir)
    if args.world_size > 1:
        dist.barrier()  # every rank has looked before the first one writes
    if args.process_index == 0:
        _make_ready(config, make_folder(folder), None if resume is None else Path(resume))
    if args.world_size > 1:
        dist.barrier()


def _make_ready(config: TrainConfig, folder: Path, resume: Path | None) -> None:
    """Whatever a kill between two steps leaves goes on rightly, as the former run or as this one.

    A run counts as finished by its final checkpoint, which is therefore set aside first, and goes on from its
    newest checkpoint with the lines before it: newer ones are set aside before older ones, and lines are
    copied before any of them and cut after all. A run without a checkpoint of its own has no lines to keep:
    those that are there are of a former one, or it writes them again.
    """
    own = resume is not None and is_of_run(resume, folder)
    updates = resumed_updates(resume) if resume is not None and own else -1
    final, rejected, new_rejected = folder / FINAL, folder / REJECTED, folder / NEW_REJECTED
    finished, auto = finished_updates(final), config.resume_from_checkpoint == "auto"
    later = [path for path in checkpoints(folder) if not _is_before(path, updates)]
    if final.is_dir() and not (auto and finished is not None and finished <= updates):
        later.append(final)
    if own:
        new_rejected.unlink(missing_ok=True)  # of a run that did not begin
    if not own:
        remember_start(folder, resume)
    if later or not own:
        for name in _LINES:
            _copy_aside(folder / name)
    if new_rejected.exists():
        _copy_aside(rejected)  # the next start empties it if it finds no run
    for path in reversed(later):
        _set_aside(path)
    for name in _LINES:
        if own:
            _cut_lines(folder / name, updates)
        else:
            (folder / name).unlink(missing_ok=True)
    if new_rejected.exists():
        new_rejected.replace(rejected)
    if not own:
        _set_other_settings_aside(folder / RESOLVED_CONFIG, resolved(config))
    save_config(config, folder)


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
    path.rename(_former(path))


def _copy_aside(path: Path) -> None:
    """Piece by piece: rollouts may be larger than memory."""
    if path.exists():
        with path.open("rb") as lines, atomic_writer(_former(path)) as copy:
            shutil.copyfileobj(lines, copy)


def _former(path: Path) -> Path:
    number, target = 1, path.with_name(f"former-{path.name}")
    while target.exists():
        number += 1
        target = path.with_name(f"former-{number}-{path.name}")
    return target


def _cut_lines(path: Path, last_step: int) -> None:
    """Drop the lines after `last_step`, which the resumed run will write again."""
    if not path.exists():
        return
    with path.open("rb") as lines, atomic_writer(path) as kept:
        for line in lines:
            with contextlib.suppress(ValueError):  # the last line of a killed run may be cut off
                entry = parse_json(line, finite=False)
                step = entry.get("step") if isinstance(entry, dict) else None
                if not isinstance(step, int) or step <= last_step:  # of what is no line of a run nothing goes
                    kept.write(line.removesuffix(b"\n") + b"\n")
