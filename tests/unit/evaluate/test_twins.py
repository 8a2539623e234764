"""Which sets of twins records name."""

from __future__ import annotations

import pytest

from fourdthinker.evaluate import twins_of
from fourdthinker.records import Record


def record(id: str, twins: str | None) -> Record:
    return Record("rl", id, "Where?", answer="1", extra={} if twins is None else {"twins": twins})


def test_records_name_their_set(caplog: pytest.LogCaptureFixture) -> None:
    records = [record("a", "1"), record("b", "1"), record("c", None), record("d", "2"), record("e", "2")]
    assert twins_of(records) == {"a": "1", "b": "1", "d": "2", "e": "2"}
    assert twins_of([record("c", None)]) == {}
    assert not caplog.records


def test_a_set_that_lacks_a_question_does_not_count_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Its fourth line was a bad record, and three right answers of three made the model consistent."""
    records = [record("a", "1"), record("b", "1"), record("d", "2")]
    assert twins_of(records) == {"a": "1", "b": "1"}
    assert "1 sets of twins have fewer than 2 questions, such as '2', and do not count" in caplog.text
    assert twins_of([record("a", "1")]) == {}
