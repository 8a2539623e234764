"""`synth --engine ray` on a local Ray of two actors: the same data as without, also if an actor is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed (extra ray)")

from fourdthinker.synth.actors import RayActors
from fourdthinker.synth.journal import Entry, Journal
from fourdthinker.synth.run import Options, synthesise
from fourdthinker.synth.settings import read_settings
from tests.e2e.test_synth_killed import results
from tests.processes import processes_named

VIDEOS = 4


def made(out: Path, engine: str) -> dict[str, object]:
    settings = read_settings(None, analysis_fps=4)
    return synthesise(
        [f"scenes:{VIDEOS}"], out, settings, Options(engine=engine, workers=2, timeout=120.0, progress=False)
    )


def entries(folder: Path) -> list[Entry]:
    with Journal(folder) as journal:
        names = {path.name for path in (folder / "media").iterdir()}
        return [entry for name in names for entry in journal.of_source(name)]


def kill_one(killed: list[int], folder: Path) -> None:
    """Kill an actor once the journal has an outcome."""
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        if (folder / "media").exists() and (running := processes_named("ray::_Worker")):
            os.kill(running[0], signal.SIGKILL)
            killed.append(running[0])
            return
        time.sleep(0.05)


def test_ray_makes_the_same_data_and_a_killed_actor_costs_its_item_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    local = made(tmp_path / "local", "local")
    assert not local["failed"]
    killed: list[int] = []
    thread = threading.Thread(target=kill_one, args=(killed, tmp_path / "ray"))
    thread.start()
    made(tmp_path / "ray", "ray")
    thread.join()
    assert killed
    failed = {e.item: e.reason for e in entries(tmp_path / "ray") if e.state == "failed"}
    assert len(failed) <= 1
    assert all("its actor ended" in reason for reason in failed.values())
    again = made(tmp_path / "ray", "ray")
    assert again["failed"] == []
    assert again["videos"] == local["videos"]
    assert results(tmp_path / "ray") == results(tmp_path / "local")


def talk(path: str, send: Callable[[Any], None]) -> None:
    """Sends 60 numbers, and notes each in a file."""
    for number in range(60):
        with open(path, "a") as file:
            file.write("x")
        send(number)


def test_an_actor_waits_while_its_results_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    noted = tmp_path / "noted"
    actors = RayActors(talk, 1, gpus=False)
    try:
        actor = actors.start()
        actors.give(actor, str(noted))
        assert actors.wait([actor], 60) == [actor]
        assert actors.receive(actor) == 0
        time.sleep(2)
        assert noted.stat().st_size < 25
        assert [actors.receive(actor) for _ in range(60)] == [*range(1, 60), None]
    finally:
        actors.close([actor])
