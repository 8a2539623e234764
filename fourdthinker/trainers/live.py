"""A line on the terminal while a model trains: updates done and left, time left, the last metrics."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.progress import Progress, TaskID
from transformers import TrainerCallback

from fourdthinker.progress import progress_bar

_SHOWN = ("loss", "reward", "ce", "cosine", "kl")
_WINDOW = 3600.0  # seconds over which the speed is estimated: an update may take minutes


def shown_metrics(line: Mapping[str, Any], names: Sequence[str]) -> str:
    """Some of a line of metrics, for people."""
    return ", ".join(f"{name} {line[name]:.4g}" for name in names if name in line)


class LiveLine(TrainerCallback):
    """Draws the line from the beginning of the training to its end, or to `close`."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._redirected: list[tuple[logging.StreamHandler[Any], Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer."""
        before = sys.stderr
        self._bar = progress_bar(window=_WINDOW)
        self._bar.start()
        self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step)
        # Lines of the log would be written through the bar; sys.stderr now writes them above it.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                self._redirected.append((handler, handler.setStream(sys.stderr)))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer after every update."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called by Trainer with every line of metrics."""
        if self._bar is not None and (text := shown_metrics(logs or {}, _SHOWN)):
            self._bar.update(self._task, description=text)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer."""
        self.close()

    def close(self) -> None:
        """End the line, if it is there."""
        for handler, stream in self._redirected:
            handler.setStream(stream)
        self._redirected.clear()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
