"""Bounded runs of the fuzzers of reading, in processes of their own that a crash may take down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, *arguments: str) -> str:
    values = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.fuzz.{module}", *arguments],
        cwd=ROOT,
        env=values,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=550,
        check=False,
    )
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"status {done.returncode}\n{output[-8000:]}"
    return output


def test_damaged_files(tmp_path: Path) -> None:
    note = tmp_path / "case"
    try:
        output = run("containers", "--cases", "6000", "--seconds", "45", "--note", str(note))
    except BaseException as error:
        raise AssertionError(f"case {note.read_text() if note.exists() else '?'}") from error
    assert "'frames'" in output
    assert "'error'" in output


def test_random_clips_at_random_times() -> None:
    assert "'same'" in run("times", "--cases", "400", "--seconds", "45")


def test_files_of_every_kind_read_in_every_way() -> None:
    """The same files each time; more by hand: python -m tests.fuzz.order --cases N."""
    last = run("order", "--first", "7000", "--cases", "50").strip().splitlines()[-1]
    assert last.startswith("50 files in ")
    assert last.endswith(", 0 wrong; 0 files failed")
    assert int(last.partition(" right")[0].split()[-1]) > 900
