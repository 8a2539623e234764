"""Trackers: a missing package is named before the first step, and rollouts reach each as it can hold them."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fourdthinker.errors import ConfigError
from fourdthinker.integrations.trackers import film_strip, require_trackers, show_rollouts
from fourdthinker.records import Record
from fourdthinker.settings import make_config
from fourdthinker.trainers import arguments, rollouts
from fourdthinker.trainers.arguments import training_arguments
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from tests.e2e.training import BARE, metrics, prompts, write_video
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize(
    ("name", "extra"), [("tensorboard", "train"), ("wandb", "track"), ("trackio", "track")]
)
def test_a_missing_package_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    find = importlib.util.find_spec
    hidden = {"tensorboard", "tensorboardX", "wandb", "trackio"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n in hidden else find(n, *a))
    config = make_config(DiftConfig, {"use_cpu": True, "report_to": [name], "output_dir": str(tmp_path)})
    message = rf"report_to names {name}, .* pip install 'fourdthinker\[{extra}\]', or leave it out"
    with pytest.raises(ConfigError, match=message):
        training_arguments(config)
    assert not list(tmp_path.iterdir())
    require_trackers([])


class Kept:
    """Takes the place of a tracker's class or module, and keeps what it is called with."""

    def __init__(self, *values: Any, **options: Any) -> None:
        self.values, self.options = values, options


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    logged: dict[str, list[dict[str, Any]]] = {"wandb": [], "trackio": []}
    for name, lines in logged.items():
        fake: Any = ModuleType(name)
        fake.Image, fake.Table, fake.log = Kept, Kept, lines.append
        monkeypatch.setitem(sys.modules, name, fake)
    frames: Any = ModuleType("pandas")
    frames.DataFrame = lambda rows: {name: [row[name] for row in rows] for name in rows[0]}
    monkeypatch.setitem(sys.modules, "pandas", frames)
    return logged


LINE: dict[str, Any] = {
    "prompt": 3,
    "id": "a",
    "question": "Left | right?",
    "answer": "A",
    "text": "one\ntwo",
    "reward": 0.25,
    "rewards": {"accuracy": 0.25},
    "advantage": -1.0,
    "length": 7,
    "finish_reason": "eos",
}


def test_rollouts_are_tables_with_their_frames(tmp_path: Path, trackers: dict[str, Any]) -> None:
    write_video(tmp_path / "v.mp4", 40)
    records = {3: Record("rl", "a", "?", video=str(tmp_path / "v.mp4")), 4: Record("rl", "b", "?")}
    lines = [LINE, LINE | {"reward": None, "advantage": 0.0}, LINE | {"prompt": 4, "id": "b"}]
    written: list[tuple[Any, ...]] = []
    writer = SimpleNamespace(
        add_text=lambda *a: written.append(a), add_image=lambda *a, **k: written.append((*a, k))
    )
    callbacks = [SimpleNamespace(), SimpleNamespace(tb_writer=writer)]
    show_rollouts(["tensorboard", "wandb", "trackio"], callbacks, 5, lines, records)

    strip = film_strip(records[3])
    assert strip is not None
    assert strip.shape == (112, 4 * 112, 3)
    assert strip[:, :112].max() > 150, "the square is bright"
    (text, image) = written
    assert text[0] == "rollouts"
    assert text[2] == 5
    rows = text[1].splitlines()
    assert len(rows) == 5
    assert all(row.replace("\\|", "").count("|") == 10 for row in rows)
    assert "Left \\| right?" in rows[2]
    assert "one<br>two" in rows[2]
    assert image[0] == "rollouts/prompt_3"
    assert np.array_equal(image[1], strip)
    assert image[3] == {"dataformats": "HWC"}

    (logged,) = trackers["wandb"]
    assert logged["train/global_step"] == 5
    columns, data = logged["rollouts"].options["columns"], logged["rollouts"].options["data"]
    assert columns[0] == "frames"
    assert [row[columns.index("reward")] for row in data] == [0.25, None, 0.25]
    assert np.array_equal(data[0][0].values[0], strip)
    assert data[2][0] is None, "it has no pictures"
    (logged,) = trackers["trackio"]
    table = logged["rollouts"].options["dataframe"]
    assert list(table["id"]) == ["a", "a", "b"]
    assert table["frames"][0] is not table["frames"][1]
    assert np.array_equal(table["frames"][1].values[0], strip)


def test_all_clips_and_pictures_of_a_prompt_are_shown_up_to_a_bound(tmp_path: Path, caplog: Any) -> None:
    clips = [str(tmp_path / f"{shade}.mp4") for shade in (40, 90)]
    for path, shade in zip(clips, (40, 90), strict=True):
        write_video(Path(path), shade)
    pictures = [str(tmp_path / f"{i}.png") for i in range(6)]
    for i, path in enumerate(pictures):
        Image.new("RGB", (64 + 32 * i, 64), (30 * i, 0, 0)).save(path)
    media = [("video", clips[0]), *(("image", path) for path in pictures), ("video", clips[1])]
    strip = film_strip(Record("rl", "a", "?", media=media))
    assert strip is not None
    rows = strip.reshape(4, 112, strip.shape[1], 3)
    for row, shade in zip(rows, (40, 90), strict=False):
        assert abs(int(np.median(row[:, : 4 * 112])) - shade) < 12, "the ground of each clip"
    assert rows[2][50, 20, 0] < 5 < rows[2][50, 20 + 112, 0], "the pictures in their order"
    assert rows[3][50, 20, 0] == pytest.approx(120, abs=3)
    assert not rows[0, :, 4 * 112 :].any(), "rows are filled up"
    separate = film_strip(Record("rl", "b", "?", frames=pictures[:3], separate=True))
    assert separate is not None
    assert separate.shape[0] == 112
    assert separate.shape[1] > 112 + 140 + 168, "each as wide as it is"
    many = film_strip(Record("rl", "c", "?", media=[("image", pictures[0])] * 100))
    assert many is not None
    assert many.shape == (8 * 112, 4 * 112, 3)
    left = film_strip(Record("rl", "d", "?", media=[("video", str(tmp_path / "gone.mp4")), media[1]]))
    assert left is not None
    assert left.shape == (112, 112, 3)
    assert "gone.mp4" in caplog.text


def test_a_tracker_that_fails_costs_its_table_alone(trackers: dict[str, Any], caplog: Any) -> None:
    def broken(_: Any) -> None:
        raise OSError("no space left")

    sys.modules["wandb"].log = broken  # type: ignore[attr-defined]
    show_rollouts(["wandb", "trackio"], [], 5, [LINE], {3: Record("rl", "a", "?")})
    assert "wandb took no rollouts of step 5 (OSError: no space left)" in caplog.text
    assert len(trackers["trackio"]) == 1


def test_a_clip_that_is_gone_costs_its_frames_alone(tmp_path: Path, caplog: Any) -> None:
    assert film_strip(None) is None
    assert film_strip(Record("rl", "a", "?", video=str(tmp_path / "gone.mp4"))) is None
    assert "gone.mp4" in caplog.text


def shown_run(folder: Path, tracker: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run of one update that reports to a tracker: its line of metrics, and the rollouts it wrote down."""
    write_video(folder / "v.mp4", 40)
    values = BARE | {"num_generations": 2, "max_completion_length": 4, "max_steps": 1, "learning_rate": 0.0}
    values |= {"rewards": ["tests.e2e.training:length_reward"], "reward_weights": [1.0]}
    values |= {"loss": {"beta": 0.0}, "report_to": [tracker], "output_dir": str(folder)}
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    (asked,) = prompts(checkpoint, 1)
    assert asked.record is not None
    asked = replace(asked, record=replace(asked.record, video=str(folder / "v.mp4")))
    train_grpo(make_config(GrpoConfig, values), checkpoint=checkpoint, prompts=[asked])
    (line,) = metrics(folder)
    written = [json.loads(text) for text in (folder / "rollouts.jsonl").read_text().splitlines()]
    assert len(written) == 2
    return line, written


def test_tensorboard_holds_what_a_run_writes_down(tmp_path: Path) -> None:
    """By TensorBoard's own reader."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra train)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    line, written = shown_run(tmp_path, "tensorboard")
    (events,) = (tmp_path / "runs").glob("*/events.out.tfevents.*")
    read = EventAccumulator(str(events)).Reload()
    for name in ("loss", "policy_loss", "reward", "reward_length_reward", "time_rollouts", "memory"):
        point, *_ = read.Scalars(f"train/{name}")  # a last line has memory and times once more
        assert (point.step, point.value) == (1, pytest.approx(line[name], rel=1e-6))
    (table,) = read.Tensors("rollouts/text_summary")
    rows = table.tensor_proto.string_val[0].decode().splitlines()
    assert len(rows) == 4
    assert all(f"| {one['length']} | {one['finish_reason']} |" in row for one, row in zip(written, rows[2:]))
    (picture,) = read.Images("rollouts/prompt_0")
    assert (picture.step, picture.width, picture.height) == (1, 4 * 112, 112)


def test_wandb_holds_what_a_run_writes_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: the files that a later `wandb sync` sends."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed (extra track)")
    for name, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("DATA_DIR", str(tmp_path / "data"))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    line, written = shown_run(tmp_path, "wandb")
    run = wandb.run
    assert run.summary["train/loss"] == pytest.approx(line["loss"])
    assert run.summary["train/reward"] == pytest.approx(line["reward"])
    wandb.finish()
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/table/rollouts*.table.json")
    table = json.loads(path.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    for row, one in zip(rows, written, strict=True):
        assert {name: row[name] for name in ("id", "text", "reward", "length")} == {
            name: one[name] for name in ("id", "text", "reward", "length")
        }
    staged = [path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert any(content.startswith(b"\x89PNG") for content in staged), "frames are of the table's artifact"


def test_trackio_holds_what_a_run_writes_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its database on this machine."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed (extra track)")
    line, written = shown_run(tmp_path, "trackio")
    (path,) = (tmp_path / "trackio").glob("*.db")
    with closing(sqlite3.connect(path)) as database:
        points = [json.loads(text) for (text,) in database.execute("select metrics from metrics")]
    (found,) = (point for point in points if "train/loss" in point)
    for name in ("loss", "policy_loss", "reward", "time_rollouts"):
        assert found[f"train/{name}"] == pytest.approx(line[name])
    (table,) = (point["rollouts"]["_value"] for point in points if "rollouts" in point)
    assert [row["text"] for row in table] == [one["text"] for one in written]
    for row in table:
        assert (tmp_path / "trackio" / "media" / row["frames"]["file_path"]).stat().st_size > 0


def test_all_trackers_are_shown_rollouts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["mine"])
    monkeypatch.setattr(arguments, "get_reporting_integration_callbacks", lambda names: [])
    monkeypatch.setattr("transformers.trainer.get_reporting_integration_callbacks", lambda names: [])
    monkeypatch.setattr(rollouts, "show_rollouts", lambda names, *_: shown.append(names))
    shown_run(tmp_path, "all")
    assert shown == [["mine"]]
