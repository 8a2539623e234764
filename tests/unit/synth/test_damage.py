"""Damaged videos: what is good of them is kept, and later runs go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fourdthinker.errors import VideoError
from fourdthinker.synth import clips, functions, run, stages
from fourdthinker.synth.clips import Clip, RejectError
from fourdthinker.synth.inputs import candidates, open_candidate
from fourdthinker.synth.journal import Entry, Journal
from fourdthinker.synth.run import Options, synthesise
from tests.unit.synth.test_run import noise, video

DAMAGE = 21.0  # seconds


def in_this_process(jobs: Any, processes: Any, *, handle: Any, more: Any, **options: Any) -> None:
    while (job := more() or next(jobs, None)) is not None:
        stages.work(job, lambda message, job=job: isinstance(message, Entry) and handle(job, message))


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "run_jobs", in_this_process)
    monkeypatch.setitem(functions.FUNCTIONS, "segment", lambda context: {"things": []})
    return video(tmp_path / "v.mp4", 24, noise(6))


@pytest.fixture
def damaged(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    original = clips.iterate_frames

    def stops(path: str, *args: Any, **options: Any) -> Any:
        for batch in original(path, *args, **options):
            if batch.seconds[-1] > DAMAGE:
                raise VideoError(f"{path}: damaged at 21 s")
            yield batch

    monkeypatch.setattr(clips, "iterate_frames", stops)
    return whole


def made(path: Path, *wanted: str) -> dict[str, Any]:
    options = Options(stages=("ingest", *wanted), workers=1, progress=False)
    return synthesise([str(path)], path.parent / "out", options=options)


def test_clips_before_the_damage_go_on_in_later_runs(damaged: Path) -> None:
    for wanted in (("objects",), ("objects", "segment")):
        summary = made(damaged, *wanted)
        assert summary["stages"]["ingest"]["done"] == 1
        assert summary["stages"]["ingest"]["rejected"] == {"unreadable: damaged at 21 s": 1}
        assert summary["stages"][wanted[-1]]["done"] == 1
        assert summary["failed"] == []


def test_a_failure_before_the_damage_is_tried_again(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(context: Any) -> Any:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setitem(functions.FUNCTIONS, "objects", fails)
        assert len(made(damaged, "objects")["failed"]) == 1
    summary = made(damaged, "objects")
    assert summary["failed"] == []
    assert summary["stages"]["objects"]["done"] == 1


def test_a_window_without_any_clip_is_rejected(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.DAMAGE", 2.0)
    summary = made(damaged, "objects")
    assert summary["stages"]["ingest"]["done"] == 0
    assert summary["stages"]["ingest"]["rejected"] == {"unreadable: damaged at 21 s": 1}


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (RejectError("other pictures"), "rejected", "other pictures"),
        (VideoError("damaged since"), "rejected", "unreadable: damaged since"),
        (OSError("no space"), "failed", "OSError: no space"),
    ],
)
def test_a_clip_that_cannot_be_read_again_costs_only_itself(
    whole: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, state: str, reason: str
) -> None:
    assert made(whole, "objects")["stages"]["objects"]["done"] == 2
    original = stages.read_clip

    def first_fails(source: Any, item: str, start: float, *args: Any) -> Clip:
        if start == 0:
            raise error
        return original(source, item, start, *args)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "read_clip", first_fails)
        summary = made(whole, "objects", "segment")
    assert summary["stages"]["segment"]["done"] == 1
    assert summary["stages"]["ingest"][state] == {reason: 1}
    with Journal(whole.parent / "out") as journal:
        (source,) = (open_candidate(one, journal, 0, {}) for one in candidates([str(whole)]))
        window = [entry for entry in journal.of_source(source.name) if entry.item == f"{source.name}.w0"]
    assert [entry.state for entry in window] == ["done"]
