"""`fourdthinker probe`."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourdthinker import cli
from fourdthinker.frames import Frames, probe
from fourdthinker.frames.orientation import Orientation
from tests.clips import make_clip
from tests.unit.frames.test_order import mux


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = make_clip(
        tmp_path / "right.mp4", [40 * k for k in range(10)], rotation=90, size=(48, 96), audio=True
    )
    copied, raw, bad = (
        mux(tmp_path / "copied.mp4"),
        mux(tmp_path / "c.h264", stamp=None),
        tmp_path / "bad.mp4",
    )
    bad.write_bytes(b"no video")
    assert cli.main(["probe", str(right), str(copied), str(raw)]) == 0
    text = capsys.readouterr().out
    first, second, third = (part for part in text.split(str(tmp_path) + "/") if part)
    for wanted in (
        "0 video h264 (read), 1 audio aac",
        "96x48, turned by 90 degrees",
        "frames       10\n",
        "from 0.000 to 0.400 s",
        "25 a second",
        "times        from the container",
        "fault        none",
    ):
        assert wanted in first
    assert "times        the container's, sorted" in second
    assert "times        counted from the rate" in third
    assert cli.main(["probe", "--fps", "5", str(copied), str(bad)]) == 1
    text = capsys.readouterr().out
    assert "5 a second" in text
    assert "error        " in text


def test_a_fault_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_clip(tmp_path / "c.mkv", [40 * k for k in range(50)], options={"g": "10"})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert cli.main(["probe", str(path)]) == 1
    assert "fault        at " in capsys.readouterr().out


def test_values(tmp_path: Path) -> None:
    found = probe(make_clip(tmp_path / "c.mp4", [0, 40, 100], size=(48, 96)))
    assert (found.size, found.orientation, found.frames, found.begin) == ((48, 96), Orientation(), 3, 0.0)
    assert found.times_from == Frames().times_from == "container"
