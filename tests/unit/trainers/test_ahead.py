"""Batches that are made while the model trains."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from fourdthinker.trainers.ahead import Ahead


def counted(made: list[int], number: int) -> Iterator[int]:
    for i in range(number):
        made.append(i)
        yield i


def test_the_next_batches_are_made_before_they_are_asked_for() -> None:
    made: list[int] = []
    source = counted(made, 6)
    ahead: Ahead[int] = Ahead(2)
    assert ahead.take(source, 2) == [0, 1]
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made == [0, 1, 2, 3], "two more than were taken, and not all"
    assert ahead.take(source, 3) == [2, 3, 4]
    assert ahead.take(source, 3) == [5]
    ahead.close()


def test_another_epoch_and_the_end() -> None:
    ahead: Ahead[int] = Ahead(3)
    before = threading.active_count()
    for _ in range(2):
        source = counted([], 2)
        assert ahead.take(source, 2) == [0, 1]
        assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before
    ahead.close()


def test_errors_are_raised_where_the_batch_is_taken() -> None:
    def broken() -> Iterator[int]:
        yield 0
        raise ValueError("clip 7")

    ahead: Ahead[int] = Ahead(2)
    source = broken()
    assert ahead.take(source, 1) == [0]
    with pytest.raises(ValueError, match="clip 7"):
        ahead.take(source, 1)
    ahead.close()


def test_batches_are_seen_before_they_are_taken() -> None:
    ahead: Ahead[int] = Ahead(4)
    source = iter(range(5))
    assert ahead.take(source, 1) == [0]
    assert ahead.peek(0, 2) == [1, 2]
    assert ahead.peek(2, 2) == [3, 4]
    assert ahead.take(source, 2) == [1, 2]
    assert ahead.peek(1, 2) == [4], "the iterator has ended"
    assert ahead.take(source, 3) == [3, 4]
    ahead.close()
