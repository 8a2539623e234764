"""The loader of a run: its epochs, its workers and their errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info

from fourdthinker.errors import FourdError, RecordError, VideoError
from fourdthinker.trainers.ahead import Ahead
from fourdthinker.trainers.batches import Items, ShardedBatches, same
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.driver import run_command
from fourdthinker.trainers.loader import Loader, errors_of_workers
from fourdthinker.trainers.settings import DiftConfig
from tests.e2e.training import BARE, samples, settings
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[3]


def loader(items: Items[Any], **options: Any) -> Loader:
    return Loader(
        items,
        batch_sampler=ShardedBatches(len(items), 2),  # type: ignore[arg-type]
        collate_fn=same,
        num_workers=1,
        **options,
    )


def test_epochs_of_persistent_workers_are_whole() -> None:
    batches, ahead = loader(Items(list("abcdef")), persistent_workers=True), Ahead[Any](2)
    for _ in range(3):
        epoch = iter(batches)
        taken = [pair for _ in range(3) for batch in ahead.take(epoch, 1) for pair in batch]
        assert sorted(item for _, item in taken) == list("abcdef")
    ahead.close()


def encode(name: str) -> str:
    try:
        raise VideoError(f"{name}: cut off")
    except VideoError as error:
        raise RecordError(f"data.jsonl:3: {error}\nmend it") from error


def test_an_error_of_a_worker_is_that_of_its_record() -> None:
    ahead: Ahead[Any] = Ahead(1)
    with pytest.raises(RecordError) as caught:
        ahead.take(iter(loader(Items(["a.mp4", "b.mp4"], encode))), 1)
    assert str(caught.value) in [f"data.jsonl:3: {name}.mp4: cut off\nmend it" for name in "ab"]
    assert isinstance(caught.value.__cause__, FourdError)
    assert "Traceback" in str(caught.value.__cause__)
    ahead.close()


def test_an_error_of_the_system_in_a_worker_is_a_line(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    try:
        missing.read_bytes()
    except FileNotFoundError:
        told = ExceptionWrapper(where="in DataLoader worker process 0")  # what a worker sends
    with pytest.raises(FileNotFoundError) as caught, errors_of_workers():
        told.reraise()
    assert str(caught.value) == f"[Errno 2] No such file or directory: {str(missing)!r}"


def signal_itself(name: str) -> str:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.2)
    return name


def test_workers_outlive_signals() -> None:
    taken = [item for batch in loader(Items(["a", "b"], signal_itself)) for _, item in batch]
    assert sorted(taken) == ["a", "b"]


class KillItsWorker(list[Any]):
    """Samples of which the last ends the process that reads it, as the kernel does where memory ran out."""

    def __getitem__(self, index: Any) -> Any:
        if get_worker_info() is not None and index == len(self) - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_is_killed_ends_the_run_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    given = {"checkpoint": checkpoint, "samples": KillItsWorker(samples(checkpoint, 3))}
    values = settings(BARE | {"output_dir": str(tmp_path), "dataloader_num_workers": 1})
    with pytest.raises(SystemExit) as stop:
        run_command(
            lambda config: train_dift(config, **given), DiftConfig, values, program="p", description="d"
        )
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "DataLoader worker (pid" in line
    assert "lower dataloader_num_workers" in line


def test_a_process_that_exits_ends_its_workers() -> None:
    """An iterator that an error keeps is not shut down; Python sends SIGTERM and waits."""
    lines = ["import tests.unit.trainers.test_loader as t", "kept = iter(t.loader(t.Items(list('abcd'))))"]
    subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, "next(kept)", "raise SystemExit(2)"])],
        cwd=ROOT,
        timeout=60,
        check=False,
    )
