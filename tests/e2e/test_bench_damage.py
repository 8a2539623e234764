"""The bench of damaged files: its cases, and readers at work in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import damage
from bench._clips import Clip


def test_cases_damage_what_they_say() -> None:
    data = bytes(range(1, 251)) * 4
    made = damage.cases(25, 120)
    assert [case.kind for case in made[:4]] == list(damage.KINDS)
    assert made == damage.cases(25, 120)
    for case in made:
        changed, begin = case.damage(data), int(case.position * len(data))
        assert changed[:begin] == data[:begin]
        if case.kind == "removed":
            assert data.endswith(changed[begin:])
            assert len(changed) < len(data)
        else:
            differ = [k for k in range(len(data)) if data[k] != changed[k]]
            assert len(changed) == len(data)
            assert (len(differ) == 1) == (case.kind == "flipped")
            assert 0 <= case.number < 120
        assert case.kind != "zeroed" or not any(changed[begin : begin + case.size])


def test_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURDTHINKER_BENCH_CACHE", str(tmp_path))
    path = damage.file_of(Clip("h264", 240, 30, 1), "mkv", tmp_path)
    assert path.suffix == ".mkv"
    found = list(damage.outcomes("ours", path, 2))
    assert len(found) == 8
    assert set(found) <= {"right", "error", "wrong"}
    assert "error" in found
    assert next(damage.outcomes("no such reader", path, 1)) == "crash"
