"""Real clips of unlike kinds go through `synth` without any weights; DIFT trains on what comes out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fourdthinker import cli
from fourdthinker.frames import FramePolicy, load_image
from fourdthinker.records import Record, read_records
from fourdthinker.settings import make_config
from fourdthinker.synth.settings import CLIP_STAGES
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.settings import DiftConfig
from tests.e2e.training import BARE, metrics
from tests.shared import needs, shared
from tests.tiny import tiny_checkpoint

pytestmark = [needs("clips"), needs("videos")]

SUFFIXES = {".mkv", ".mov", ".mp4"}
CLIPS = 10
STEPS = 20
# Less to look at than by default: it takes two thirds of the time. One split, so that clips give each other
# their wrong options.
SETTINGS = """
analysis_fps: 5
analysis_pixels: 131072
min_seconds: 2
max_seconds: 5
splits: {train: 1.0}
"""


def given() -> list[Path]:
    """The videos of both folders; `needs` has seen to it that they are there."""
    folders = [Path(str(shared(name))) for name in ("clips", "videos")]
    return sorted(path for folder in folders for path in folder.iterdir() if path.suffix in SUFFIXES)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    (folder / "settings.yaml").write_text(SETTINGS)
    out = folder / "out"
    command = ["synth", *map(str, given()), "-o", str(out), "--config", str(folder / "settings.yaml")]
    assert cli.main(command) == 0, "1 where items have failed"
    return out


def lost(row: dict[str, Any]) -> int:
    assert row["failed"] == row["quarantined"] == {}
    assert all(row["rejected"])  # each has a reason
    return sum(row["rejected"].values())


def test_every_clip_is_accounted_for(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text())
    stages = summary["stages"]
    assert summary["videos"]["given"] == len(given())
    assert (summary["videos"]["refused"], summary["failed"], summary["quarantined"]) == (0, [], [])
    assert lost(stages["ingest"]) > 0  # one of them is damaged
    left = stages["ingest"]["done"]
    assert left >= CLIPS
    for stage in CLIP_STAGES:
        assert stages[stage]["done"] + lost(stages[stage]) == left
        left = stages[stage]["done"]
    left = stages["options"]["done"]
    assert lost(stages["options"]) + left >= stages["imagery"]["done"]  # of each such clip a question
    for stage in ("narrate", "write"):
        assert stages[stage]["done"] + lost(stages[stage]) == left
        left = stages[stage]["done"]
    assert left == summary["records"]["train"]["dift"] > 0


def records(out: Path, kind: Any) -> list[Record]:
    """Those of a trainer, as it reads them."""
    return read_records(out / f"{kind}-train-00000.jsonl", kind=kind)


def test_records_are_whole(out: Path) -> None:
    dift, rl = records(out, "dift"), records(out, "rl")
    assert {record.id for record in rl} <= {record.id for record in dift}
    for record in (*dift, *rl):
        if record.options:
            assert record.answer in record.options
        for path in (*record.media_paths, *record.images):
            assert load_image(path).ndim == 3
    assert all(record.images for record in dift)
    assert all(record.options for record in rl)


def test_dift_trains_on_them(out: Path, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model", layers=1, policy=FramePolicy(max_frames=4, max_pixels=112 * 112))
    values = BARE | {
        "model": str(tmp_path / "model"),
        "data": str(out / "dift-train-00000.jsonl"),
        "output_dir": str(tmp_path / "run"),
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 1,
        "dataloader_num_workers": 0,
    }
    train_dift(make_config(DiftConfig, values))
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert len(losses) == STEPS
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
