"""Settings from plain values: what is taken, and one line for what is not, of a class made for this."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from fourdthinker.errors import ConfigError
from fourdthinker.settings import Float, Int, Name, Names, Section, Settings, make_config, make_section


@dataclass(frozen=True)
class Clip:
    low: float = field(default=0.2, metadata={"help": "lower bound", "minimum": 0.0})
    count: int | None = field(default=None, metadata={"help": "how many"})


class Media(Section):
    rate: Float = Field(1.0, gt=0, description="Frames a second.")


class Job(Settings):
    steps: Int = Field(10, ge=1, description="Updates.")
    kind: Literal["mean", "sum"] = Field("mean", description="How.")
    data: Names = Field(default_factory=list, description="Files.")
    name: Name | None = Field(None, description="Of the job.")
    folder: Path | None = Field(None, description="Of the output.")
    media: Media = Field(default_factory=Media, description="How media are read.")


def test_values_as_yaml_gives_them() -> None:
    job = make_config(Job, {"steps": 3, "data": "a.jsonl", "media": {"rate": "1e-1"}, "folder": "out"})
    assert (job.steps, job.data, job.media.rate, job.folder) == (3, ["a.jsonl"], 0.1, Path("out"))
    with pytest.raises(Exception, match="frozen"):
        job.steps = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0; give at least 1"),
        ({"steps": 2.5}, r"steps is 2\.5 \(float\); give a whole number"),
        ({"steps": True}, r"steps is True \(bool\); give a whole number"),
        ({"kind": "median"}, "kind is 'median'; choose one of mean, sum"),
        ({"media": {"rate": 0}}, r"media\.rate is 0; give a number above 0"),
        ({"media": {"rate": float("inf")}}, r"media\.rate is inf; give a finite number"),
        ({"media": {"rat": 1}}, r"unknown key 'media\.rat', the nearest are media\.rate"),
        ({"stesp": 3}, "unknown key 'stesp', the nearest are steps"),
        ({"rate": 3}, r"unknown key 'rate', .*media\.rate"),
        ({"name": ""}, "name is empty; give a text"),
        ({"name": "a\0b"}, "holds NUL"),
        ({3: 1}, "the key 3 is no text"),
    ],
)
def test_what_is_wrong_is_one_line(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_config(Job, values)
    assert "\n" not in str(caught.value)


def test_all_problems_are_named_with_where_they_stand() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(Job, {"steps": 0, "kind": "?"}, origin=lambda key: f"file of {key}")
    assert str(caught.value) == (
        "file of steps: steps is 0; give at least 1; file of kind: kind is '?'; choose one of mean, sum"
    )


def test_a_section_that_is_a_dataclass() -> None:
    assert make_section(Clip, {"low": 0.1, "count": 3}, "clip") == Clip(0.1, 3)
    assert make_section(Clip, {}, "clip", low=0.5) == Clip(0.5)
    ready = Clip()
    assert make_section(Clip, ready, "clip") is ready
    with pytest.raises(ValueError, match=r"unknown key 'clip\.lwo', the nearest are clip\.low"):
        make_section(Clip, {"lwo": 1}, "clip")
    with pytest.raises(ValueError, match=r"clip\.count is 'x'"):
        make_section(Clip, {"count": "x"}, "clip")
