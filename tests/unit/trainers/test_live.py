"""The line on the terminal: there on one, not elsewhere, below the lines of the log, gone after an error."""

from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from fourdthinker.settings import make_config
from fourdthinker.trainers.dift import DiftTrainer, train_dift
from fourdthinker.trainers.settings import DiftConfig
from tests.e2e.training import BARE, samples
from tests.tiny import tiny_checkpoint


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> logging.StreamHandler[Any]:
    """A handler of the log that writes to standard error, as `start_logging` makes it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("NO_COLOR", raising=False)
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    level = logging.getLogger("fourdthinker").level
    logging.getLogger("fourdthinker").setLevel(logging.INFO)
    yield handler
    logging.getLogger("fourdthinker").setLevel(level)
    logging.getLogger().removeHandler(handler)


def train(folder: Path, **extra: Any) -> None:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    values = BARE | {"output_dir": str(folder), "max_steps": 2} | extra
    train_dift(make_config(DiftConfig, values), checkpoint=checkpoint, samples=samples(checkpoint, 2))


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_the_line_is_drawn_on_a_terminal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Any, stream: type[io.StringIO]
) -> None:
    terminal = stream()
    monkeypatch.setattr(sys, "stderr", terminal)
    logged.setStream(terminal)
    train(tmp_path)
    text = terminal.getvalue()
    assert sys.stderr is terminal
    assert logged.stream is terminal, "the log writes where it wrote before"
    assert "step 2: loss" in text
    assert ("2/2" in text) == (stream is Terminal)
    if stream is Terminal:
        assert text.rindex("step 2: loss") < text.rindex("2/2"), "the line stays below the log"
        words = re.sub(r"\x1b\[[\d;?]*\w", "", text)
        assert re.search(r"\d/2 \d:\d\d:\d\d (\d:\d\d|-:--):(\d\d|--)", words), "time gone and time left"
    else:
        assert "\x1b" not in text


def test_an_error_ends_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Any) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    logged.setStream(terminal)
    monkeypatch.setattr(DiftTrainer, "prepare_update", broken)
    with pytest.raises(RuntimeError, match="broken"):
        train(tmp_path)
    assert sys.stderr is terminal
    assert logged.stream is terminal
    assert "\x1b[?25h" in terminal.getvalue(), "the cursor is shown"
