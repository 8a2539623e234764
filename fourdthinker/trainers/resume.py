"""Where a run goes on: which checkpoint, and whether it is one of this run.

A checkpoint says in `run.json` what its optimizer state, its data order and its random numbers depend on. A
run that differs in that is refused, since the difference would be ignored; everything else may be changed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainingArguments

from fourdthinker.errors import CheckpointError, ConfigError, FourdError
from fourdthinker.files import check_folder, parse_json
from fourdthinker.trainers.file_digests import file_digest
from fourdthinker.trainers.fsdp import STATE_FILES
from fourdthinker.trainers.left_out import LEFT_OUT
from fourdthinker.trainers.run_folder import (
    FINAL,
    checkpoint_number,
    checkpoints,
    holds_run,
    is_of_run,
    resumed_updates,
    start_of,
)
from fourdthinker.trainers.run_state import RUN, RunState, rollouts_file, run_state
from fourdthinker.trainers.settings import TrainConfig
from fourdthinker.trainers.trainer_state import state_problem

logger = logging.getLogger(__name__)

_ANEW = "begin anew with overwrite_output_dir=true and resume_from_checkpoint=null"


def agreed_resume(config: TrainConfig, args: TrainingArguments) -> str | None:
    """What `find_resume` gives on every rank: the same, or the run does not begin. Collective.

    Raises:
        FourdError: as `find_resume`, on this rank or another.
        ConfigError: ranks found different checkpoints.
    """
    if args.world_size == 1:
        return find_resume(config, args)
    resume, error = None, None
    try:
        resume = find_resume(config, args)
    except FourdError as mine:
        error = mine
    found: list[Any] = [None] * args.world_size
    dist.all_gather_object(found, (str(error) if error else None, *_identity(config, resume)))
    if error is not None:
        raise error
    for rank, (said, name, state) in enumerate(found):
        if said is not None:
            raise ConfigError(f"rank {rank}: {said}")
        if state != found[0][2]:
            other = "another " if name == found[0][1] else ""
            raise ConfigError(
                f"resume_from_checkpoint={config.resume_from_checkpoint}: rank 0 found {found[0][1]}, and "
                f"rank {rank} {other}{name}; set output_dir to a folder that all machines share, with the "
                "checkpoint to go on from in it"
            )
    return resume


def _identity(config: TrainConfig, resume: str | None) -> tuple[str, RunState | None]:
    """What a rank goes on from, for messages, and what is the same on all ranks that found the same."""
    path = Path(resume or Path(config.output_dir) / FINAL)
    try:
        state = None if config.resume_from_checkpoint is None else RunState.read(path)
    except CheckpointError:  # nothing has ended here
        state = None
    return ("no checkpoint" if state is None else str(path)), state


def find_resume(config: TrainConfig, args: TrainingArguments) -> str | None:
    """The checkpoint folder that a run goes on from, or None to begin anew. Writes nothing.

    Raises:
        OutputError: the folder cannot be made or written to.
        ConfigError: the folder holds a former run, and neither going on with it nor overwriting was asked
            for; no checkpoint can be gone on from, though there are some; or the settings are not those of
            the run.
    """
    check_folder(config.output_dir)
    folder = Path(config.output_dir)
    if config.resume_from_checkpoint is None:
        _check_free(config)
        return None
    if config.resume_from_checkpoint == "auto":
        resume = _automatic(config, args)
        if resume is None:
            return None
    else:
        resume = Path(config.resume_from_checkpoint)
        if problem := _problem(resume):
            raise ConfigError(
                f"resume_from_checkpoint: {resume} {problem}; name another, or 'auto' for the newest "
                "complete one"
            )
        if not is_of_run(resume, folder):
            _check_free(config)
    _check_settings(config, args, resume)
    return str(resume)


def _automatic(config: TrainConfig, args: TrainingArguments) -> Path | None:
    """What `auto` goes on from; None where a run begins anew, or is finished, which its trainer sees."""
    if config.overwrite_output_dir:
        raise ConfigError(
            "overwrite_output_dir=true begins anew, and resume_from_checkpoint=auto goes on; leave out one"
        )
    folder = Path(config.output_dir)
    final = folder / FINAL
    newest = _newest(checkpoints(folder), says=args.process_index == 0)
    if newest is not None:
        return newest
    if (final / RUN).is_file():
        _check_settings(config, args, final)
        if problem := _damage(final, RunState.read(final)):
            raise ConfigError(
                f"resume_from_checkpoint=auto: {final} {problem}, and no checkpoint is there to go on from; "
                f"{_ANEW}"
            )
        return None
    start = start_of(folder)
    if start is not None and (problem := _problem(start)):
        raise ConfigError(
            f"resume_from_checkpoint=auto: {folder} has no checkpoint of its own, and {start}, which its run "
            f"began from, {problem}; {_ANEW}"
        )
    return start


def _check_free(config: TrainConfig) -> None:
    """ConfigError when a run that does not go on in `output_dir` finds another there."""
    folder = Path(config.output_dir)
    if holds_run(folder) and not config.overwrite_output_dir:
        raise ConfigError(
            f"output_dir {folder} holds a former run; choose another folder, "
            "resume_from_checkpoint=auto, or overwrite_output_dir=true"
        )


def _newest(former: Sequence[Path], *, says: bool) -> Path | None:
    """The newest checkpoint that can be gone on from; None where no whole one was ever written.

    Args:
        former: checkpoint folders.
        says: whether this process warns of newer ones that it leaves out.
    """
    problems: dict[Path, str] = {}
    for newest in sorted(former, key=_updates, reverse=True):
        problem = _problem(newest)
        if problem is not None:
            problems[newest] = problem
            continue
        for path, why in problems.items() if says else ():
            logger.warning("%s %s; the run goes on from %s", path, why, newest)
        return newest
    whole = {path: problem for path, problem in problems.items() if not _cut_off(path)}
    if whole:
        raise ConfigError(
            "resume_from_checkpoint=auto: no checkpoint can be gone on from: "
            f"{', '.join(f'{path} {problem}' for path, problem in whole.items())}; "
            f"name a complete one of another folder, or {_ANEW}"
        )
    if former and says:
        logger.warning("%s: saving was cut off; the run begins anew", ", ".join(map(str, former)))
    return None


def _updates(path: Path) -> int:
    """Of a checkpoint, by its state, or by its name where that cannot be read."""
    try:
        return resumed_updates(path)
    except CheckpointError:
        return checkpoint_number(path)


def _cut_off(path: Path) -> bool:
    """Whether a process was killed while it wrote the checkpoint: the state of Trainer is written last."""
    try:
        resumed_updates(path)
    except CheckpointError:
        return True
    return False


def incomplete(path: Path) -> str | None:
    """Why a folder is no whole checkpoint of this version (a run may still need more of it), or None."""
    if not (path / "config.json").is_file():
        return "has no config.json, so it is no complete checkpoint"
    if _cut_off(path):
        return "has no readable trainer_state.json, so it is no complete checkpoint of a run"
    try:
        state = RunState.read(path)
    except CheckpointError as error:
        return f"is of another version ({error})"
    return _damage(path, state) or state_problem(path, state.updates)


def _damage(path: Path, state: RunState) -> str | None:
    """Why the files of a checkpoint are not those that its state tells of, or None."""
    try:
        return _changed_file(path, state)
    except OSError as error:
        return f"has a file that cannot be read ({error})"


def _changed_file(path: Path, state: RunState) -> str | None:
    for name, size in state.files.items():
        file = path / name
        if not file.is_file():
            return f"has no {name}, so it is no complete checkpoint of a run"
        if file.suffix == ".json":  # another program may write the same with other spaces
            try:
                parse_json(file.read_bytes(), finite=False)
            except ValueError as error:
                return f"has a {name} that cannot be read ({error}), so it is no complete checkpoint of a run"
        elif (found := file.stat().st_size) != size:
            return f"has {found} of the {size} bytes of {name}, so it is no complete checkpoint of a run"
        elif name in state.digests and file_digest(file) != state.digests[name]:
            return f"has another content in {name} than its run wrote, so it is damaged"
    return None


def _problem(path: Path) -> str | None:
    """Why a run cannot go on from a checkpoint folder, or None."""
    if problem := incomplete(path):
        return problem
    state = RunState.read(path)
    if not state.resumable:
        return "was written with save_only_model=true, without the state of the optimizer"
    random = ["rng_state.pth"]
    if state.processes > 1:
        random = [f"rng_state_{rank}.pth" for rank in range(state.processes)]
    if state.within_iterations:
        random += [rollouts_file(rank) for rank in range(state.processes)]
    optimizer = {None: ("optimizer.pt",), "FSDP": STATE_FILES}.get(state.engine, ())
    needed = ["scheduler.pt", *random, *optimizer]
    missing = [name for name in needed if not (path / name).is_file()]
    return f"has no {', '.join(missing)}, so it is no complete checkpoint of a run" if missing else None


def _check_settings(config: TrainConfig, args: TrainingArguments, path: Path) -> None:
    """ConfigError when the run differs from that of a checkpoint in what the checkpoint holds."""
    old, new = RunState.read(path), run_state(config, args, 0, "")
    changed = [
        f"{name} is {new.settings.get(name)!r} and was {value!r}"
        for name, value in old.held.items()
        if new.settings.get(name) != value
    ]
    if changed:
        raise ConfigError(
            f"a run that goes on from {path} keeps its settings, but {', '.join(changed)}; set them back, or "
            f"begin a run of its own with model={path}"
        )
    zero = new.engine is not None and new.engine.startswith("ZeRO")
    if old.engine != new.engine or (zero and old.processes != new.processes):
        then, now = _under(old), _under(new)
        raise ConfigError(
            f"{path} was written by {old.processes} processes {then}, and this run has {new.processes} "
            f"{now}: each has its own form of optimizer state, and DeepSpeed's cannot be divided anew; start "
            f"as then, or begin a run of its own with model={path}"
        )
    if old.within_iterations and old.processes != new.processes:
        raise ConfigError(
            f"{path} stands between updates on the same rollouts, of which each of its {old.processes} "
            f"processes has its own, and this run has {new.processes}; start as then, or name a checkpoint "
            f"without {rollouts_file(0)}"
        )
    if old.records_per_update != new.records_per_update:
        each = config.per_device_train_batch_size * new.processes
        fits = old.records_per_update % each == 0
        remedy = f"gradient_accumulation_steps={old.records_per_update // each}" if fits else "them so"
        raise ConfigError(
            f"{path} was written with {old.records_per_update} records an update, and {new.processes} "
            f"processes * per_device_train_batch_size {config.per_device_train_batch_size} * "
            f"gradient_accumulation_steps {config.gradient_accumulation_steps} are "
            f"{new.records_per_update}; the order of the data would be another, so set {remedy}"
        )


def _under(state: RunState) -> str:
    return f"under {state.engine}" if state.engine else "without DeepSpeed and FSDP"


def finished_updates(final: Path) -> int | None:
    """How many updates the weights of a final checkpoint have seen; None where there is no whole one."""
    try:
        state = RunState.read(final)
    except CheckpointError:
        return None
    return None if _damage(final, state) else state.updates


def check_data(path: Path, data: str) -> None:
    """ConfigError when a checkpoint was trained on other records than those with the hash `data`."""
    if RunState.read(path).data != data:
        raise ConfigError(
            f"data: the records are not those that {path} was trained on (some were added, left out or "
            f"changed; {LEFT_OUT} in it says which were left out); give it its data, or "
            f"begin a run of its own with model={path}"
        )
