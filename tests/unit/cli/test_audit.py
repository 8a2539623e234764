"""`fourdthinker audit`: exit status, table, files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is missing: pip install fourdthinker[audit]")

from fourdthinker import cli
from fourdthinker.audit import ChoiceQuestion, read_questions
from tests.unit.audit.generators import dsr_items, fair_items


def write(path: Path, items: Sequence[ChoiceQuestion]) -> Path:
    lines = [
        {
            "id": item.id,
            "video_path": item.group,
            "Question": item.question,
            **dict(zip("ABCD", item.options, strict=True)),
            "Correct": "ABCD"[item.answer],
            "type": item.type,
        }
        for item in items
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_leak_is_exit_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaks, fair = (
        write(tmp_path / "a.jsonl", dsr_items("distance", 200)),
        write(tmp_path / "b.jsonl", fair_items(200, seed=1)),
    )
    assert cli.main(["audit", str(fair), "--folds", "3"]) == 0
    assert "beats chance" not in capsys.readouterr().out
    out = tmp_path / "audit.json"
    assert cli.main(["audit", str(fair), str(leaks), "--folds", "3", "--out", str(out)]) == 1
    assert "beats chance" in capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert set(figures) == {str(leaks), str(fair)}
    assert len(figures[str(leaks)]["bias"]) == 200


def test_pruning_writes_a_file_that_passes(tmp_path: Path) -> None:
    mixed = [*fair_items(400), *dsr_items("distance", 40)]
    path, out = write(tmp_path / "a.jsonl", mixed), tmp_path / "pruned.jsonl"
    assert cli.main(["audit", str(path), "--folds", "3", "--prune", str(out)]) == 0
    left = read_questions(out).items
    assert 200 < len(left) < 440
    assert {item.id for item in left} < {item.id for item in mixed}


def test_a_fair_file_is_pruned_of_nothing(tmp_path: Path) -> None:
    path, out = write(tmp_path / "a.jsonl", fair_items(100)), tmp_path / "pruned.jsonl"
    assert cli.main(["audit", str(path), "--folds", "3", "--prune", str(out)]) == 0
    assert out.read_bytes() == path.read_bytes()


def test_a_type_that_looks_like_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [replace(x, type=("[/dis]", "b")[i % 2]) for i, x in enumerate(dsr_items("distance", 200))]
    path, out = write(tmp_path / "[a].jsonl", items), tmp_path / "audit.json"
    assert cli.main(["audit", str(path), "--folds", "3", "--out", str(out)]) == 1
    assert "[/dis]" in capsys.readouterr().out
    assert out.exists()


def test_too_few_videos_to_tell_are_no_leak_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [replace(x, group=f"v{i % 3}") for i, x in enumerate(fair_items(40))]
    assert cli.main(["audit", str(write(tmp_path / "a.jsonl", items)), "--folds", "2"]) == 0
    assert "3 videos are too few to tell" in capsys.readouterr().out


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", fair_items(10))
    assert cli.main(["audit", str(path), str(path), "--prune", str(tmp_path / "o")]) == 2
    assert "--prune writes one file and 2 are given" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["audit", str(path), "--keep", "0", "--prune", str(tmp_path / "o")])
    assert "--keep: '0': give a number from 1e-06 to 1" in capsys.readouterr().err
    assert cli.main(["audit", str(tmp_path / "none.jsonl")]) == 2
    assert "cannot be read" in capsys.readouterr().err
