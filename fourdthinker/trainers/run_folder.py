"""The folder of a run: the names in it, its checkpoints, and what it began from."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from fourdthinker.errors import CheckpointError
from fourdthinker.files import parse_json, read_json_object, write_bytes, write_json
from fourdthinker.records import check_rejected, empty_rejected

METRICS = "metrics.jsonl"
REJECTED = "rejected.jsonl"
NEW_REJECTED = "rejected.new.jsonl"  # of a run that has not begun, beside that of a former one
ROLLOUTS = "rollouts.jsonl"
FINAL = "final"
START = "start.json"
STATE = "trainer_state.json"
_CHECKPOINT = "checkpoint-"
_UNFINISHED = re.compile(
    rf"\.({_CHECKPOINT}\d+|final)\.[a-z0-9_]{{8}}"
)  # what `save_checkpoint` writes first


def remove_unfinished(folder: Path) -> None:
    """Remove what saves that were killed have left; only for a process that holds the folder's lock."""
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def checkpoint_path(folder: str | Path, updates: int) -> Path:
    """The folder of a checkpoint of the run in `folder`."""
    return Path(folder) / f"{_CHECKPOINT}{updates}"


def checkpoint_number(path: Path) -> int:
    """The updates in the name of a checkpoint folder, whose state may be unreadable; -1: none."""
    digits = path.name.removeprefix(_CHECKPOINT)
    return int(digits) if digits.isdecimal() else -1


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, complete or not, the oldest first."""
    return sorted(folder.glob(f"{_CHECKPOINT}*"), key=checkpoint_number) if folder.is_dir() else []


def holds_run(folder: Path) -> bool:
    """Whether there is anything in a folder that a run wrote while it trained."""
    return bool(checkpoints(folder)) or (folder / METRICS).exists()


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


def remember_start(folder: Path, checkpoint: Path | None) -> None:
    """Write down which checkpoint of another folder a run begins from, for a kill before its first save.

    Args:
        folder: of the run.
        checkpoint: None: it begins from `model`.
    """
    if checkpoint is None:
        (folder / START).unlink(missing_ok=True)
    else:
        write_json(folder / START, {"checkpoint": os.path.realpath(checkpoint)})


def start_of(folder: Path) -> Path | None:
    """The checkpoint of another folder that the run in `folder` began from, if any.

    Raises:
        CheckpointError: the note of it cannot be read.
    """
    if not (folder / START).exists():
        return None
    remedy = "name the checkpoint that the run is to go on from"
    noted = read_json_object(folder / START, remedy, error=CheckpointError)
    return Path(str(noted.get("checkpoint")))


def begin_rejected(folder: Path) -> Path:
    """The file, without lines, for what a run leaves out that is being checked; a former run keeps its own.

    Raises:
        ConfigError: rejected.jsonl is somebody's file of other lines.
    """
    path, new = folder / REJECTED, folder / NEW_REJECTED
    new.unlink(missing_ok=True)
    if not holds_run(folder):
        empty_rejected(path)
        return path
    check_rejected(path)
    write_bytes(new, b"")
    return new
