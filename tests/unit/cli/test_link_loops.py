"""A symbolic link that leads to itself, wherever a command reads or writes: one line that names it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fourdthinker import cli
from fourdthinker.trainers.run_folder import is_of_run

ROOT = Path(__file__).resolve().parents[3]
ASK = ["generate", "--checkpoint", "m", "--question", "q"]
COMMANDS = [
    [*ASK, "--out", "loop"],
    [*ASK, "--out", "loop/x"],
    [*ASK, "--out", "new.jsonl", "--latents-out", "loop"],
    [*ASK, "--out", "new.jsonl", "--latents-out", "loop/x"],
    ["audit", "q.jsonl", "--out", "loop"],
    ["audit", "q.jsonl", "--prune", "loop"],
    ["audit", "loop"],
    ["push", "loop"],
    ["push", "loop/final"],
    ["push", "model", "--results", "loop"],
    ["eval", "--checkpoint", "m", "--data", "q.jsonl", "--out", "loop"],
    ["eval", "--checkpoint", "m", "--data", "loop", "--out", "new"],
    ["latents", "m", "--data", "q.jsonl", "--out", "loop"],
    ["report", "loop"],
    ["report", "run", "--out", "loop"],
    ["compare", "loop", "loop"],
    ["compare", "run", "run", "--out", "loop"],
    ["preview", "loop"],
    ["preview", "run", "--out", "loop"],
    ["synth", "scenes:1", "-o", "loop"],
    ["synth", "scenes:1", "-o", "loop/x"],
    ["demo", "--out", "loop"],
    ["init", "m", "loop"],
    ["init", "loop", "new"],
    ["convert", "m", "loop/x"],
    ["convert", "loop", "new"],
    ["probe", "loop"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_loop_is_named(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "q.jsonl").write_text('{"question": "q", "options": ["a", "b"], "answer": "A"}\n')
    for name, text in (("run/metrics.jsonl", '{"loss": 1}\n'), ("model/config.json", "{}")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    assert cli.main(command) in (1, 2)
    said = capsys.readouterr()
    assert "loop" in (said.out + said.err).splitlines()[-1]


def test_a_checkpoint_that_is_a_loop_is_of_no_run(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "checkpoint-1").mkdir()
    assert not is_of_run(tmp_path / "loop", tmp_path)
    assert is_of_run(tmp_path / "checkpoint-1", tmp_path)


def test_links_are_followed_in_one_way() -> None:
    """`Path.resolve` raises RuntimeError for a loop, `os.path.realpath` leaves it for the reader to name."""
    files = (ROOT / "fourdthinker").rglob("*.py")
    assert [
        str(path) for path in files if re.search(r"\.resolve\(\)(?!\.parent)", path.read_text("utf-8"))
    ] == []
