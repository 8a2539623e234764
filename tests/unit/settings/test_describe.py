"""Settings in words, for --help and docs/settings.md."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
from pydantic import Field

from fourdthinker.settings import Bool, Int, Names, Settings, settings_of, settings_tables, settings_text
from tests.unit.settings.test_fields import Media


class Job(Settings):
    groups: ClassVar[dict[str, str]] = {"steps": "Length", "data": "Input"}
    derived: ClassVar[dict[str, str]] = {}
    steps: Int = Field(10, ge=1, le=99, description="Updates.")
    kind: Literal["mean", "sum"] = Field("mean", description="How.")
    data: Names = Field(default_factory=list, description="Files.")
    whole: Bool | None = Field(None, description="All of them.")
    media: Media = Field(default_factory=Media, description="How media are read.")


def test_groups_kinds_bounds_and_defaults() -> None:
    groups = {title: [(s.key, s.kind, s.default, s.text) for s in some] for title, some in settings_of(Job)}
    assert groups == {
        "Length": [
            ("steps", "whole number >= 1 and <= 99", "10", "Updates."),
            ("kind", "mean, sum", "mean", "How."),
        ],
        "Input": [
            ("data", "list of texts", "[]", "Files."),
            ("whole", "true or false or null", "null", "All of them."),
            ("media.rate", "number > 0", "1.0", "Frames a second."),
        ],
    }


def test_derived_keys_are_left_out() -> None:
    class Less(Job):
        derived: ClassVar[dict[str, str]] = {"media.rate": "steps"}

    assert "media.rate" not in {setting.key for _, some in settings_of(Less) for setting in some}


def test_text_and_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = settings_text(Job)
    assert "Input:" in text
    assert "steps = 10" in text
    assert max(map(len, text.splitlines())) <= 60
    table = settings_tables(settings_of(Job))
    assert "| `steps` | `10` | whole number >= 1 and <= 99 | Updates. |" in table
