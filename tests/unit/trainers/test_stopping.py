"""Which signals end a run, and how."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from fourdthinker.settings import make_config
from fourdthinker.trainers import driver, stopping
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.settings import DiftConfig
from fourdthinker.trainers.stopping import EndBeforeTraining
from tests.e2e.training import BARE, samples
from tests.processes import SERVER, run_ranks
from tests.tiny import tiny_checkpoint


@pytest.fixture
def handlers() -> Iterator[None]:
    """Signals that nothing takes change nothing, and those of a run that ended are set back."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in stopping.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signal_before(monkeypatch: pytest.MonkeyPatch, name: str, *, swallow: bool = False) -> None:
    """Let a function of the driver send a signal before it does its work, as Slurm ignores it at first."""
    function = getattr(driver, name)

    def signalled(*arguments: Any, **options: Any) -> Any:
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        except EndBeforeTraining:
            if not swallow:
                raise
        return function(*arguments, **options)

    monkeypatch.setattr(driver, name, signalled)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("name", "swallow"),
    [("training_arguments", False), ("load_model", False), ("_given", False), ("_given", True)],
)
def test_a_signal_before_training_ends_the_run_well(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    swallow: bool,
) -> None:
    signal_before(monkeypatch, name, swallow=swallow)
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    config = make_config(DiftConfig, BARE | {"output_dir": str(tmp_path), "max_steps": 1})
    with pytest.raises(SystemExit) as ended, caplog.at_level(logging.INFO):
        train_dift(config, checkpoint=checkpoint, samples=samples(checkpoint, 2))
    assert ended.value.code == 0
    assert [r.getMessage() for r in caplog.records] == ["SIGUSR1: the run ends before its first update"]
    assert {path.name for path in tmp_path.iterdir()} <= {"run.lock"}
    os.kill(os.getpid(), signal.SIGUSR1)  # the same one again, while the process ends


def one_rank_is_asked(rank: int, folder: Path) -> None:
    """The second of three processes, while the first waits for it in a collective and the third works."""

    def reads(*arguments: Any, **options: Any) -> None:
        if rank == 0:
            dist.barrier()
        elif rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(60)

    driver._given = reads  # type: ignore[assignment]
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    values = {"output_dir": str(folder / "run"), "max_steps": 1, "ddp_timeout": 10}
    train_dift(make_config(DiftConfig, BARE | values), checkpoint=checkpoint, samples=samples(checkpoint, 2))


def test_all_ranks_end_before_training_where_one_is_asked_to(tmp_path: Path) -> None:
    assert run_ranks(one_rank_is_asked, tmp_path, processes=3) == [0, 0, 0]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.lock"}


def meets_nobody(rank: int, port: int, folder: Path) -> None:
    """One of two processes, of which the other is never started."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    logging.getLogger("fourdthinker").addHandler(logging.FileHandler(folder / "log"))
    stopping.PATIENCE, meet = 0.2, dist.init_process_group

    def say_and_meet(*arguments: Any, **options: Any) -> None:
        (folder / "waits").touch()
        meet(*arguments, **options)

    dist.init_process_group = say_and_meet
    values = {"output_dir": str(folder / "run"), "max_steps": 1}
    train_dift(make_config(DiftConfig, BARE | values))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_ends_a_process_that_waits_for_others_to_begin(tmp_path: Path, rank: int) -> None:
    """Torch waits for them outside of Python, where no handler runs: for the time-out, half an hour."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = SERVER.Process(target=meets_nobody, args=(rank, port, tmp_path))
    process.start()
    try:
        while not (tmp_path / "waits").exists():
            assert process.is_alive()
            time.sleep(0.02)
        time.sleep(0.2)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(20)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert (tmp_path / "log").read_text().splitlines() == [
        "SIGTERM: the run ends before its first update, while it waits for its other processes"
    ]
    assert not (tmp_path / "run").exists()


def is_asked_while_it_starts(folder: Path, processes: int, early: bool) -> None:
    """A signal that Python's handler takes, before or while ranks meet."""
    os.environ["WORLD_SIZE"] = str(processes)
    logging.getLogger("fourdthinker").addHandler(logging.FileHandler(folder / "log"))
    stopping.PATIENCE, callback = 0.1, stopping.StopOnSignal()
    with callback.listening():
        if early:
            os.kill(os.getpid(), signal.SIGTERM)
        with callback.meeting():
            if not early:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.4 if processes == 1 else 30)
        callback.interrupt()


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_while_a_process_starts_is_one_line(tmp_path: Path, processes: int, early: bool) -> None:
    """One that is alone waits for nobody, however long it takes to start."""
    process = SERVER.Process(target=is_asked_while_it_starts, args=(tmp_path, processes, early))
    process.start()
    try:
        process.join(20)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert (tmp_path / "log").read_text() == "SIGTERM: the run ends before its first update\n"


def test_signals_are_heard_as_before_once_all_have_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    callback = stopping.StopOnSignal()
    with callback.listening():
        with callback.meeting():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.set_wakeup_fd(before) == before
        with pytest.raises(EndBeforeTraining):
            callback.interrupt()
    assert "signals" not in {t.name for t in threading.enumerate()}


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    callback = stopping.StopOnSignal()
    try:
        for number in stopping.SIGNALS:
            signal.signal(number, lambda number, frame: taken.append(number))
        with callback.listening():
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            assert taken == []
            later = time.monotonic() + stopping.SAME + 1
            monkeypatch.setattr(stopping.time, "monotonic", lambda: later)
            os.kill(os.getpid(), signal.SIGTERM)
        assert taken == [signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_forked_process_that_is_no_worker_dies_of_it() -> None:
    begun, begins = os.pipe()
    with stopping.StopOnSignal().listening():
        child = os.fork()
        if child == 0:
            os.write(begins, b".")  # Python drops signals that came before it has forked
            time.sleep(30)
            os._exit(0)
        os.read(begun, 1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    os.close(begun)
    os.close(begins)
    assert os.WTERMSIG(status) == signal.SIGTERM
