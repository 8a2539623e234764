"""The line files of a run: what is left in them when it begins anew, and when it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fourdthinker.errors import ConfigError, FourdError, OutputError
from fourdthinker.files import append_lines, locked_folder, make_folder
from fourdthinker.settings import make_config
from fourdthinker.trainers.beginning import _cut_lines
from fourdthinker.trainers.data import load_records
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.left_out import LeftOut, read_left_out, write_left_out
from fourdthinker.trainers.settings import DiftConfig


def load(folder: Path, text: str) -> list[Any]:
    (folder / "data.jsonl").write_text(text)
    config = SimpleNamespace(
        data=[str(folder / "data.jsonl")],
        output_dir=str(folder / "run"),
        media_root=None,
        on_bad_record="skip",
    )
    args = SimpleNamespace(process_index=0, world_size=1)
    return load_records(config, args, "rl", None)[0]  # type: ignore[arg-type]  # all that it looks at


@pytest.mark.parametrize("bad", ["", "no record\n"])
def test_a_link_to_the_rejected_lines_stays_and_its_file_too(tmp_path: Path, bad: str) -> None:
    (tmp_path / "v.mp4").write_text("media are not read")
    line = {"id": "a", "Question": "Where?", "A": "left", "B": "right", "Correct": "A", "video_path": "v.mp4"}
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").write_text('{"where": "a:1", "reason": "of a former run"}\n')
    (tmp_path / "run" / "rejected.jsonl").symlink_to(tmp_path / "elsewhere")
    assert len(load(tmp_path, json.dumps(line) + "\n" + bad)) == 1
    assert (tmp_path / "run" / "rejected.jsonl").is_symlink()
    assert (tmp_path / "elsewhere").read_text().count("\n") == bad.count("\n")


def test_separators_of_lines_in_a_text_end_no_line(tmp_path: Path) -> None:
    left_out = [LeftOut("a:1", "none", f"{number} a\u2028b\x85c", "data", 0) for number in range(3)]
    write_left_out(tmp_path, left_out)
    assert read_left_out(tmp_path) == left_out
    rows = [{"step": step, "line": f"{step} a\u2028b\x85c"} for step in (1, 2, 3)]
    append_lines(tmp_path / "a.jsonl", rows)
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"step": 1, "li')  # a kill has cut it off
    _cut_lines(tmp_path / "a.jsonl", 2)
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_bytes().split(b"\n")[:-1]] == rows[:2]


def test_lines_that_somebody_wrote_into_the_metrics_of_a_run_stay(tmp_path: Path) -> None:
    path, own = tmp_path / "a.jsonl", b'[1, 2]\n"a note"\n{"step": "none"}\n{"step": null}\n'
    path.write_bytes(b'{"step": 1}\n' + own + b'{"step": 3}\n')
    _cut_lines(path, 2)
    assert path.read_bytes() == b'{"step": 1}\n' + own


def test_a_file_of_other_lines_named_rejected_stays(tmp_path: Path) -> None:
    mine = '{"id": "a", "Question": "Where?"}\n'
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rejected.jsonl").write_text(mine)
    with pytest.raises(ConfigError, match=r"rejected\.jsonl:1: no line of a file of rejected records"):
        load(tmp_path, "{}\n")
    assert (tmp_path / "run" / "rejected.jsonl").read_text() == mine


def test_a_second_run_in_the_folder_is_refused_before_its_model_loads(tmp_path: Path) -> None:
    settings = {"use_cpu": True, "report_to": [], "model": "/no/model", "data": ["/no/data"]}
    config = make_config(DiftConfig, settings | {"output_dir": str(tmp_path / "run")})
    with (
        locked_folder(make_folder(tmp_path / "run")),
        pytest.raises(OutputError, match=f"{tmp_path / 'run'}: another process is writing this folder"),
    ):
        train_dift(config)
    with pytest.raises(FourdError, match="no/model"):  # alone it goes on to the model
        train_dift(config)
