"""The runner of the GPU day: time limits, what fails, what is kept, and the choice of stages."""

from __future__ import annotations

import json
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tools import gpu_check
from tools.gpu_check import Stage

PYTHON = sys.executable


def stage(name: str, *codes: str, seconds: int = 60) -> Stage:
    return Stage(name, seconds, tuple((PYTHON, "-c", code) for code in codes))


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> None:
    started = (
        "import subprocess, sys, time; "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    monkeypatch.setattr(
        gpu_check, "STAGES",
        (
            stage("slow", f"{started}; time.sleep(60)", seconds=2),
            stage("good", "print('text'); print('{\"rate\": 3}')"),
            stage("bad", "print('why it failed'); raise SystemExit(3)", "print('beside it')"),
            Stage("absent", 5, (("no-such-program",),)),
            stage("last", "print('still runs')"),
        ),
    )  # fmt: skip


def test_what_fails_stops_nothing_and_all_is_kept(stages: None, tmp_path: Path) -> None:
    begin = time.monotonic()
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    assert time.monotonic() - begin < 40  # the slow one was ended, with what it had started
    results = json.loads((tmp_path / "results.json").read_text())
    assert [r["state"] for r in results] == [
        "01-0.log: no end after 2 s", "ok", "03-0.log: status 3: why it failed",
        "no-such-program is not installed", "ok",
    ]  # fmt: skip
    assert results[1]["found"] == [{"rate": 3}]
    with tarfile.open(tmp_path / "logs.tar.gz") as archive:
        assert "logs/03-1.log" in archive.getnames()


def test_stages_by_number(stages: None, tmp_path: Path) -> None:
    assert gpu_check.main(["--out", str(tmp_path), "--stage", "2,5"]) == 0
    assert [r["stage"] for r in json.loads((tmp_path / "results.json").read_text())] == ["good", "last"]


@pytest.mark.parametrize("wrong", ["0", "6", "two", "1,,2"])
def test_a_stage_that_is_none_is_refused(stages: None, tmp_path: Path, wrong: str) -> None:
    with pytest.raises(SystemExit, match=r"give numbers of these stages(.|\n)*5  last"):
        gpu_check.main(["--out", str(tmp_path), "--stage", wrong])


def test_a_stage_may_use_what_is_left_of_earlier_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """But no more than the day has in all."""
    stages = (
        stage("short", "pass", seconds=40),
        stage("longer than its share", "import time; time.sleep(3)", seconds=1),
    )
    monkeypatch.setattr(gpu_check, "STAGES", stages)
    assert gpu_check.main(["--out", str(tmp_path)]) == 0
    assert gpu_check.main(["--out", str(tmp_path), "--stage", "2"]) == 1


def test_the_day_takes_seven_minutes() -> None:
    assert sum(stage.seconds for stage in gpu_check.STAGES) <= 430
    assert len({stage.name for stage in gpu_check.STAGES}) == len(gpu_check.STAGES)


def test_the_package_is_imported_as_it_is_installed() -> None:
    place = gpu_check.workplace()
    assert not (place / "fourdthinker").exists()
    assert (place / "tests" / "gpu" / "test_kernels.py").is_file()
