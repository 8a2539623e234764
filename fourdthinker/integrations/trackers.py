"""Trackers of experiments (TensorBoard, W&B, trackio): their packages, and rollouts as tables with frames."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fourdthinker.errors import ConfigError, VideoError, install
from fourdthinker.frames import FramePolicy, Frames, read_frames, read_images, resize
from fourdthinker.records import Record, read_media

logger = logging.getLogger(__name__)

# Tracker -> the packages any of which will do, and how one is installed.
_PACKAGES = {
    "tensorboard": (("tensorboard", "tensorboardX"), install("train")),
    "wandb": (("wandb",), install("track")),
    "trackio": (("trackio",), install("track")),
}
_ROWS, _FRAMES, _HEIGHT = 8, 4, 112  # of the pictures in a table
_POLICY = FramePolicy(fps=8.0, max_frames=_FRAMES, max_pixels=_HEIGHT * _HEIGHT * 2)
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
    """What a record shows, small: a row of frames for each clip, then its separate pictures.

    Args:
        record: names them. Of many the first make `_ROWS` rows of `_FRAMES` pictures.

    Returns:
        [H, W, 3] uint8; None without pictures. What cannot be read is left out, which is warned of.
    """
    rows = []
    for read in [] if record is None else _rows(record)[:_ROWS]:
        try:
            rows.append(np.concatenate([_small(picture) for picture in read()], axis=1))
        except VideoError as error:
            logger.warning("no frames for the trackers: %s", error)
    width = max((row.shape[1] for row in rows), default=0)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    return np.concatenate(padded) if padded else None


def _rows(record: Record) -> list[Callable[[], list[Strip]]]:
    """What reads the pictures of each row."""
    shown = record.shown
    if record.video is not None or any(kind == "frame" for kind, _ in shown):
        return [lambda: _pictures(read_media(record, _POLICY, out="uint8"))]
    clips = [path for kind, path in shown if kind == "video"]
    images = [path for kind, path in shown if kind == "image"]
    own = [images[first : first + _FRAMES] for first in range(0, len(images), _FRAMES)]
    return [
        *(functools.partial(_clip, path) for path in clips),
        *(functools.partial(_images, o) for o in own),
    ]


def _clip(path: str) -> list[Strip]:
    return _pictures(read_frames(path, _POLICY, out="uint8"))


def _images(paths: Sequence[str]) -> list[Strip]:
    return [picture for path in paths for picture in _pictures(read_images(path, _POLICY))]


def _pictures(frames: Frames | None) -> list[Strip]:
    return [] if frames is None else list(np.asarray(frames.pixels)[:_FRAMES])


def _small(picture: Strip) -> Strip:
    """Of one height; one that is more than four times as wide is squeezed."""
    height, width = picture.shape[:2]
    size = (_HEIGHT, min(4 * _HEIGHT, max(1, round(width * _HEIGHT / height))))
    return resize(picture[None], size).numpy()[0]


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
