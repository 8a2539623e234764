"""Real files for tests, from a folder `shared` beside the checkout; none of them is part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared"


def shared(name: str) -> Path | None:
    """The folder of that name; for videos, FOURDTHINKER_VIDEOS names another one. None where it is absent."""
    named = os.environ.get("FOURDTHINKER_VIDEOS") if name == "videos" else None
    folder = Path(named) if named else BESIDE / name
    return folder if folder.is_dir() else None


def needs(name: str) -> pytest.MarkDecorator:
    """A mark for tests that read that folder."""
    reason = f"{BESIDE / name} is absent" + ("; set FOURDTHINKER_VIDEOS" if name == "videos" else "")
    return pytest.mark.skipif(shared(name) is None, reason=reason)
