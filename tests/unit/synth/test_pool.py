"""The pool: messages in order, what takes too long, what dies, and jobs that come later."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from fourdthinker.synth.pool import Begin, Lost, run_jobs
from fourdthinker.synth.processes import LocalProcesses


def target(job: dict[str, Any], send: Callable[[Any], None]) -> None:
    for number in range(job.get("items", 1)):
        send(Begin(f"{job['name']}.{number}", "motion"))
        if number == job.get("bad", -1):
            if job["how"] == "hang":
                time.sleep(600)
            if job["how"] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("ends the process")
        time.sleep(job.get("nap", 0))
        send((job["name"], number, os.getpid()))


def variable(name: str, send: Callable[[Any], None]) -> None:
    send(os.environ.get(name))


def run(jobs: list[dict[str, Any]], later: list[dict[str, Any]] | None = None, **options: Any) -> list[Any]:
    messages: list[Any] = []
    waiting = list(later or [])
    run_jobs(
        iter(jobs),
        LocalProcesses(target),
        workers=options.get("workers", 2),
        timeout=options.get("timeout", 60.0),
        handle=lambda job, message: messages.append(message),
        more=lambda: waiting.pop(0) if waiting else None,
    )
    return messages


def test_all_jobs_are_done_and_processes_are_used_twice() -> None:
    messages = run([{"name": str(k), "items": 3} for k in range(6)], [{"name": "later"}])
    by_job = {name: [m[1] for m in messages if m[0] == name] for name in {m[0] for m in messages}}
    assert by_job == {**{str(k): [0, 1, 2] for k in range(6)}, "later": [0]}
    assert len({m[2] for m in messages}) <= 2


@pytest.mark.parametrize("before", [None, "3"])
def test_a_process_has_one_thread_for_algebra(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each of the processes, one for each core, has as many threads as there are cores."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if before is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", before)
    messages: list[Any] = []
    run_jobs(
        iter(["OMP_NUM_THREADS"]),
        LocalProcesses(variable),
        workers=1,
        timeout=60.0,
        handle=lambda job, message: messages.append(message),
        more=lambda: None,
    )
    assert messages == ["1"]
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_one_late_item_costs_only_itself() -> None:
    started = time.monotonic()
    slow = {"name": "slow", "items": 3, "bad": 1, "how": "hang"}
    messages = run([slow, {"name": "b", "items": 2}, {"name": "c"}], timeout=4.0)
    assert Lost("slow.1", "motion", "took longer than 4 s") in messages
    assert [m[:2] for m in messages if not isinstance(m, Lost) and m[0] != "slow"] == [
        ("b", 0),
        ("b", 1),
        ("c", 0),
    ]
    assert time.monotonic() - started < 60


def test_the_time_of_each_item_counts_by_itself() -> None:
    messages = run([{"name": "long", "items": 4, "nap": 1.2}], timeout=4.0, workers=1)
    assert [m[1] for m in messages] == [0, 1, 2, 3]


def test_a_process_that_dies_is_named_and_replaced() -> None:
    bad = [{"name": "k", "bad": 0, "how": "die"}, {"name": "e", "bad": 0, "how": "raise"}]
    messages = run([*bad, {"name": "good"}], workers=1)
    lost = [message for message in messages if isinstance(message, Lost)]
    assert lost == [
        Lost("k.0", "motion", "its process ended by signal 9"),
        Lost("e.0", "motion", "its process ended with status 1"),
    ]
    assert messages[-1][0] == "good"
