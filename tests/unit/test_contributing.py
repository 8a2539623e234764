"""The diffs of CONTRIBUTING.md apply to the files as they are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFFS = dict(re.findall(r"^### ([^\n]+)\n.*?^```diff\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def apply(diff: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "apply", *options, "-"]
    return subprocess.run(command, cwd=ROOT, input=diff, capture_output=True, text=True, check=False)


def test_every_kind_of_addition_is_shown():
    wanted = {"loss", "metric", "family", "codec", "reward", "questions", "architecture"}
    assert {word for word in wanted if any(word in title for title in DIFFS)} == wanted


def test_the_questions_are_those_of_the_product():
    """With its wordings and its test; the demo's questions serve the demo alone."""
    changed = set(re.findall(r"^\+\+\+ b/(\S+)", DIFFS["A family of questions"], re.MULTILINE))
    assert "fourdthinker/synth/questions/phrases.py" in changed
    assert "tests/unit/synth/questions/test_questions.py" in changed
    assert not any("demo" in path for path in changed)


@pytest.mark.parametrize("title", DIFFS)
def test_the_diff_applies(title):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = apply(DIFFS[title], "--check", "--recount")
    assert done.returncode == 0, done.stderr


def test_a_diff_of_another_file_does_not_apply():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    diff = DIFFS["A codec"].replace("prores", "prores2")
    assert apply(diff, "--check", "--recount").returncode != 0
