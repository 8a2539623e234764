"""Which signals end a run, and how."""

from __future__ import annotations

import os
import signal
import time

import pytest

from fourdthinker.trainers import stopping


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
