"""The folder of a run: where a run goes on, and what stands in it when training begins."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import torch.distributed as dist
from transformers import TrainingArguments

from fourdthinker.errors import CheckpointError, ConfigError
from fourdthinker.files import make_folder, write_text
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.settings_files import save_config

METRICS = "metrics.jsonl"
REJECTED = "rejected.jsonl"
ROLLOUTS = "rollouts.jsonl"
FINAL = "final"
FINISHED = "finished.json"  # in `final`: how many updates its weights have seen
_STATE = "trainer_state.json"


def find_resume(config: TrainConfig, args: TrainingArguments) -> str | None:
    """The checkpoint folder that a run goes on from, or None to begin anew. Writes nothing.

    Raises:
        ConfigError: the folder holds a former run and neither resuming nor overwriting was asked for, or the
            named checkpoint is missing or incomplete.
    """
    folder = Path(config.output_dir)
    former = _checkpoints(folder)
    if config.resume_from_checkpoint == "auto":
        complete = [path for path in former if _incomplete(path, args) is None]
        newest = max(complete, key=resumed_updates, default=None)
        return str(newest) if newest else None
    if config.resume_from_checkpoint is not None:
        resume = Path(config.resume_from_checkpoint)
        if missing := _incomplete(resume, args):
            raise ConfigError(
                f"resume_from_checkpoint: {resume} has no {missing}, so it is no complete checkpoint of a "
                f"run with {args.world_size} processes; name another, or 'auto' for the newest complete one"
            )
        return str(resume)
    if (former or (folder / METRICS).exists()) and not config.overwrite_output_dir:
        raise ConfigError(
            f"output_dir {folder} holds a former run; choose another folder, resume_from_checkpoint=auto, "
            "or overwrite_output_dir=true"
        )
    return None


def begin_run(config: TrainConfig, args: TrainingArguments, resume: str | None) -> None:
    """Make the folder ready: the resolved settings are in it, and nothing that this run will write again.

    Every rank calls it, once every rank has found where to go on.
    """
    folder = Path(config.output_dir)
    if args.world_size > 1:
        dist.barrier()  # every rank has looked before the first one writes
    if args.process_index == 0:
        make_folder(folder)
        save_config(config, folder)
        for name in (METRICS, ROLLOUTS):
            _cut_lines(folder / name, resumed_updates(resume) if resume else 0)
        if config.overwrite_output_dir and resume is None:
            for path in _checkpoints(folder):
                # An old checkpoint-N would be taken for one of this run when it is resumed.
                path.rename(path.with_name(f"former-{path.name}"))
    if args.world_size > 1:
        dist.barrier()


def resumed_updates(checkpoint: str | Path) -> int:
    """How many updates were made before a checkpoint.

    Raises:
        CheckpointError: its state cannot be read.
    """
    path = Path(checkpoint)
    try:
        return int(json.loads((path / _STATE).read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: {_STATE} cannot be read ({error}); name another checkpoint"
        ) from error


def finished_updates(final: Path) -> int | None:
    """How many updates the weights of a final checkpoint have seen; None where there is none."""
    try:
        return int(json.loads((final / FINISHED).read_text(encoding="utf-8"))["updates"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*")) if folder.is_dir() else []


def _incomplete(path: Path, args: TrainingArguments) -> str | None:
    """What a checkpoint folder lacks to be resumed from, or None. A killed process leaves halves of them."""
    rng = [f"rng_state_{i}.pth" for i in range(args.world_size)] if args.world_size > 1 else ["rng_state.pth"]
    needed = ["config.json", "scheduler.pt", *rng] + ([] if args.deepspeed else ["optimizer.pt"])
    for name in needed:
        if not (path / name).is_file():
            return name
    try:
        resumed_updates(path)  # written last
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
    write_text(path, "".join(line + "\n" for line in kept))
