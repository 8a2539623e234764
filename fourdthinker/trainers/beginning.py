"""The beginning of a run, once everything is checked: its folder is made ready."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch.distributed as dist
from transformers import TrainingArguments

from fourdthinker.errors import CheckpointError
from fourdthinker.files import make_folder, parse_json, write_bytes
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
    newest checkpoint with the lines before it: newer ones are set aside before older ones, and lines are kept
    before any of them and cut after all.
    """
    own = resume is not None and is_of_run(resume, folder)
    auto = config.resume_from_checkpoint == "auto"
    goes_on = resume is not None and (own or auto)  # auto: or from where this run has begun
    updates = resumed_updates(resume) if resume is not None and goes_on else -1
    final = folder / FINAL
    finished = finished_updates(final)
    later = [path for path in checkpoints(folder) if not _is_before(path, updates)]
    if final.is_dir() and not (auto and finished is not None and finished <= updates):
        later.append(final)
    if not goes_on:
        remember_start(folder, resume)
    if later or not goes_on:
        for name in _LINES:
            _keep_lines(folder / name)
    for path in reversed(later):
        _set_aside(path)
    for name in _LINES:
        _cut_lines(folder / name, updates)
    if own:  # what a run left out that did not begin
        (folder / NEW_REJECTED).unlink(missing_ok=True)
    else:
        _take_rejected(folder)
    if not goes_on:
        _set_other_settings_aside(folder / RESOLVED_CONFIG, resolved(config))
    save_config(config, folder)


def _is_before(path: Path, updates: int) -> bool:
    try:
        return resumed_updates(path) <= updates
    except CheckpointError:
        return False


def _take_rejected(folder: Path) -> None:
    """What was left out while this run was checked, in place of what a former one left out."""
    if (folder / NEW_REJECTED).exists():
        if (folder / REJECTED).exists():
            _set_aside(folder / REJECTED)
        (folder / NEW_REJECTED).rename(folder / REJECTED)


def _set_other_settings_aside(path: Path, text: str) -> None:
    """What stands there may be a file that somebody wrote by hand and began this run with."""
    if path.is_file() and path.read_bytes() != text.encode():
        _set_aside(path)


def _set_aside(path: Path) -> None:
    path.rename(_former(path))


def _keep_lines(path: Path) -> None:
    """A copy of a file of lines under the name of what is set aside."""
    if path.exists():
        write_bytes(_former(path), path.read_bytes())


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
    kept = []
    for line in path.read_bytes().split(b"\n"):  # no other line ends: texts hold U+2028
        with contextlib.suppress(ValueError):  # the last line of a killed run may be cut off
            if parse_json(line, finite=False).get("step", 0) <= last_step:
                kept.append(line + b"\n")
    if kept:
        write_bytes(path, b"".join(kept))
    else:
        path.unlink()
