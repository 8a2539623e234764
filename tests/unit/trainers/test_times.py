"""Clips whose times are not the container's are counted where training reads them, cached or not."""

from __future__ import annotations

import json
import logging
import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest

from fourdthinker.records import Record, read_records
from fourdthinker.settings import make_config
from fourdthinker.trainers import data
from fourdthinker.trainers.arguments import training_arguments
from fourdthinker.trainers.data import Kept
from fourdthinker.trainers.settings import GrpoConfig
from fourdthinker.trainers.stopping import EndBeforeTraining
from fourdthinker.trainers.vision_cache import VisionCache
from tests.clips import make_clip
from tests.tiny import tiny_checkpoint


def in_order_of_storage(source: Path, target: Path) -> None:
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for place, packet in enumerate(packet for packet in old.demux(video=0) if packet.size):
            packet.pts = packet.dts = place
            packet.time_base, packet.stream = Fraction(1, 25), stream
            new.mux(packet)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Two questions about a clip with right stamps, two about one with stamps in the order of storage."""
    make_clip(tmp_path / "right.mp4", [40 * k for k in range(20)], options={"bf": "2"}, size=(56, 56))
    in_order_of_storage(tmp_path / "right.mp4", tmp_path / "sorted.mp4")
    made = [
        {"id": f"{k}", "video_path": f"{name}.mp4", "Question": "Which?", "A": "left", "B": "right"}
        | {"Correct": "A"}
        for k, name in enumerate(("right", "sorted", "sorted", "right"))
    ]
    path = tmp_path / "rl.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in made))
    return path


@pytest.mark.parametrize("cached", [False, True])
def test_clips_with_other_times_are_counted(
    tmp_path: Path, lines: Path, caplog: pytest.LogCaptureFixture, cached: bool
) -> None:
    settings = {"use_cpu": True, "report_to": [], "data": str(lines), "output_dir": str(tmp_path / "run")}
    if cached:
        settings["cache_dir"] = str(tmp_path / "cache")
    config = make_config(GrpoConfig, settings)
    arguments, kept = training_arguments(config), Kept(clips=True, imagery=False)
    with caplog.at_level(logging.WARNING, logger="fourdthinker"):
        data.load_items(config, arguments, tiny_checkpoint(layers=1), "rl", kept)
    assert [r.getMessage() for r in caplog.records if "times of" in r.getMessage()] == [
        "times of 1 of 2 clips are not their containers': sorted 1 (fourdthinker probe tells of which)"
    ]


def test_the_cache_keeps_how_times_were_learnt(tmp_path: Path, lines: Path) -> None:
    checkpoint = tiny_checkpoint(layers=1)
    cache = VisionCache(tmp_path, checkpoint.backbone, checkpoint.encoder(), clips=True, imagery=False)
    records = read_records(lines, kind="rl")
    cache.fill(checkpoint.backbone, records)
    told = [cache.prompt(record).vision.times_from for record in records]
    assert told == ["container", "sorted", "sorted", "container"]


def test_a_signal_does_not_wait_for_the_records_that_are_left() -> None:
    """It comes while they are handed out."""
    begun: list[Any] = []
    over = threading.Event()

    class Records(list[Record]):
        def __getitem__(self, share: Any) -> Any:
            yield from range(50)
            raise EndBeforeTraining

    def find(record: Any) -> data.Finding:
        begun.append(record)
        over.wait(1)
        return data.Finding(None)

    arguments: Any = SimpleNamespace(process_index=0, world_size=1)
    try:
        with pytest.raises(EndBeforeTraining):
            data._checked(arguments, Records(), find)
        assert len(begun) <= 8, "only those that were being read"
    finally:
        over.set()


def test_clips_among_other_media_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    media = [("video", "a.mp4"), ("image", "b.png")]
    records = [
        Record("rl", "1", "?", media=media),
        Record("rl", "2", "?", media=media),
        Record("rl", "3", "?", video="c.mp4"),
        Record("rl", "4", "?", frames=["d.png"], separate=True),
    ]
    arguments: Any = SimpleNamespace(process_index=0, world_size=1)
    with caplog.at_level(logging.WARNING, logger="fourdthinker"):
        found = data._checked(
            arguments, records, lambda r: data.Finding(None, "rate" if r.media else "container")
        )
    assert found == [None] * 4
    assert "times of 1 of 2 clips are not their containers': rate 1" in caplog.text
