"""Trackers of experiments (TensorBoard, W&B, trackio): their packages, and rollouts as tables with frames."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fourdthinker.errors import ConfigError, VideoError, install
from fourdthinker.frames import FramePolicy, resize
from fourdthinker.records import Record, read_media

logger = logging.getLogger(__name__)

# Tracker -> the packages any of which will do, and how one is installed.
_PACKAGES = {
    "tensorboard": (("tensorboard", "tensorboardX"), install("train")),
    "wandb": (("wandb",), install("track")),
    "trackio": (("trackio",), install("track")),
}
_FRAMES, _HEIGHT = 4, 112  # of the clip in a table
_COLUMNS = ("id", "question", "answer", "text", "reward", "rewards", "advantage", "length", "finish_reason")

Strip = npt.NDArray[np.uint8]


def require_trackers(names: Sequence[str]) -> None:
    """Find out whether the packages of trackers are installed.

    Args:
        names: of trackers; of those that are not listed here nothing is asked.

    Raises:
        ConfigError: one is missing; says how it is installed.
    """
    for name in names:
        packages, remedy = _PACKAGES.get(name, ((), ""))
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise ConfigError(
                f"report_to names {name}, but the package {packages[0]} is not installed; {remedy}, "
                "or leave it out of report_to"
            )


def show_rollouts(
    trackers: Sequence[str],
    callbacks: Sequence[Any],
    step: int,
    lines: Sequence[Mapping[str, Any]],
    records: Mapping[int, Record | None],
) -> None:
    """Give rollouts to trackers: a table with the frames of their clips, in TensorBoard text and pictures.

    Args:
        trackers: their names.
        callbacks: of Trainer; among them that of TensorBoard.
        step: the update.
        lines: of rollouts.jsonl.
        records: of the prompts, by the `prompt` of a line.
    """
    named = {line["prompt"] for line in lines}
    strips = {number: film_strip(record) for number, record in records.items() if number in named}
    shows: dict[str, Callable[[], None]] = {
        "tensorboard": lambda: _to_tensorboard(callbacks, step, lines, strips),
        "wandb": lambda: _to_wandb(step, lines, strips),
        "trackio": lambda: _to_trackio(step, lines, strips),
    }
    for name, show in shows.items():
        if name in trackers:
            try:
                show()
            except Exception as error:  # noqa: BLE001  # the training is worth more than its table
                logger.warning(
                    "%s took no rollouts of step %d (%s: %s); they are in rollouts.jsonl. Leave %s out of "
                    "report_to if it stays so", name, step, type(error).__name__, error, name,
                )  # fmt: skip


def film_strip(record: Record | None) -> Strip | None:
    """Some frames of a record beside each other.

    Args:
        record: names the clip.

    Returns:
        [H, W, 3] uint8; None without pictures, and where they cannot be read, which is warned of.
    """
    if record is None:
        return None
    try:
        frames = read_media(
            record, FramePolicy(fps=8.0, max_frames=_FRAMES, max_pixels=_HEIGHT * _HEIGHT * 2), out="uint8"
        )
    except VideoError as error:
        logger.warning("no frames for the trackers: %s", error)
        return None
    if frames is None:
        return None
    pixels = np.asarray(frames.pixels)[:_FRAMES]
    height, width = pixels.shape[1:3]
    shown = resize(pixels, (_HEIGHT, max(1, round(width * _HEIGHT / height)))).numpy()
    return np.concatenate(list(shown), axis=1)


def _to_tensorboard(
    callbacks: Sequence[Any],
    step: int,
    lines: Sequence[Mapping[str, Any]],
    strips: Mapping[int, Strip | None],
) -> None:
    writer = next((w for c in callbacks if (w := getattr(c, "tb_writer", None)) is not None), None)
    if writer is None:  # it is closed at the end of the training
        return
    rows = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    rows += ["| " + " | ".join(_cell(line[name]) for name in _COLUMNS) + " |" for line in lines]
    writer.add_text("rollouts", "\n".join(rows), step)
    for number, strip in strips.items():
        if strip is not None:
            writer.add_image(f"rollouts/prompt_{number}", strip, step, dataformats="HWC")


def _cell(value: Any) -> str:
    """Of a table in Markdown."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")


def _to_wandb(step: int, lines: Sequence[Mapping[str, Any]], strips: Mapping[int, Strip | None]) -> None:
    import wandb

    pictures = {number: None if strip is None else wandb.Image(strip) for number, strip in strips.items()}
    data = [[pictures.get(line["prompt"]), *_values(line)] for line in lines]
    table = wandb.Table(columns=["frames", *_COLUMNS], data=data)
    wandb.log({"rollouts": table, "train/global_step": step})


def _to_trackio(step: int, lines: Sequence[Mapping[str, Any]], strips: Mapping[int, Strip | None]) -> None:
    import pandas
    import trackio

    rows = []
    for line in lines:
        strip = strips.get(line["prompt"])
        # A picture of its own for each row: saving one gives it a path.
        frames = None if strip is None else trackio.Image(strip)
        rows.append({"frames": frames} | dict(zip(_COLUMNS, _values(line), strict=True)))
    table = trackio.Table(dataframe=pandas.DataFrame(rows))
    trackio.log({"rollouts": table, "train/global_step": step})


def _values(line: Mapping[str, Any]) -> list[Any]:
    """As a cell can hold them."""
    return [str(line[name]) if name in ("rewards", "answer") else line[name] for name in _COLUMNS]
