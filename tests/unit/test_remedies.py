"""What is missing is named with the same words everywhere, and with a command that a shell takes."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

from fourdthinker.errors import install

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_is_quoted() -> None:
    assert shlex.split(install("train")) == ["pip", "install", "fourdthinker[train]"]


def test_extras_are_named_through_install_alone_and_exist() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set()
    for path in (ROOT / "fourdthinker").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "errors.py":
            assert not re.search(r"pip install[^\n]*fourdthinker\[", text), path
        named |= set(re.findall(r"\binstall\([\"'](\w+)[\"']\)", text))
    assert named == {"train", "zero", "synth", "audit", "eval", "geometry", "ray", "track"}
    assert named <= known["optional-dependencies"].keys()
