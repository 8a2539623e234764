"""The demo's twins: one question of four clips, answered by each one's own geometry."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from fourdthinker.demo.data import demo_world, render_clips
from fourdthinker.demo.questions import label
from fourdthinker.demo.settings import POLICY, DemoSettings, RenderSettings
from fourdthinker.demo.twins import write_twins
from fourdthinker.evaluate import twins_of
from fourdthinker.frames import read_frames
from fourdthinker.records import Record, read_records
from fourdthinker.worlds.twins import twins

SETTINGS = DemoSettings(seed=5, render=replace(RenderSettings(), train=1, rl=1, test=8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("render")
    for _ in render_clips(SETTINGS, folder, 1):
        pass
    write_twins(SETTINGS, folder)
    return folder


def sets(folder: Path) -> dict[str, list[Record]]:
    records = read_records(folder / "twins.jsonl", kind="rl")
    named = twins_of(records)
    found = defaultdict(list)
    for record in records:
        found[named[record.id]].append(record)
    return found


def test_four_clips_are_asked_the_same(folder: Path) -> None:
    found = sets(folder)
    assert {records[0].type for records in found.values()} == {"camera", "direction", "distance"}
    assert len(found) >= 2 * SETTINGS.render.test
    for records in found.values():
        assert len({record.video for record in records}) == len(records) == 4
        assert len({(record.question, *record.options.items()) for record in records}) == 1
        assert len({record.extra["source"] for record in records}) == 1
        # Whoever does not look gives one answer to one text.
        assert len({record.answer for record in records}) > 1


def test_answers_follow_from_each_clips_own_geometry(folder: Path) -> None:
    for name, records in sets(folder).items():
        worlds = twins(demo_world(SETTINGS.render, SETTINGS.seed, "test", int(name[:5])))
        for world, record in zip(worlds, records, strict=True):
            labels, answer = label(world), record.options[str(record.answer)]
            if record.type == "distance":
                assert answer in labels.distance
            else:
                assert answer == getattr(labels, str(record.type))


def test_the_video_of_a_scene_in_reverse_shows_it_in_reverse(folder: Path) -> None:
    scene, _, back, _ = next(iter(sets(folder).values()))
    shown, reverse = (read_frames(str(one.video), POLICY).pixels.float() for one in (scene, back))
    assert (shown.flip(0) - reverse).abs().mean() < 4 < (shown - reverse).abs().mean()
