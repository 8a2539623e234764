"""The runner of the GPU day: time limits, what fails, what is kept, and the choice of stages."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tools import gpu_check
from tools.gpu_check import Stage

PYTHON = sys.executable


def stage(name: str, *codes: str, seconds: float = 60) -> Stage:
    return Stage(name, seconds, tuple((PYTHON, "-c", code) for code in codes))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = (
        "import subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', {str(tmp_path)!r}])"
    )
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    monkeypatch.setattr(
        gpu_check, "STAGES",
        (
            stage("slow", f"{started}; time.sleep(60)", seconds=2.5),
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
    running = Path("/proc").glob("[0-9]*/cmdline")
    assert not [path for path in running if str(tmp_path).encode() in _read(path)]
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
    monkeypatch.setattr(gpu_check, "GRACE", 0.1)
    monkeypatch.setattr(gpu_check, "STAGES", stages)
    assert gpu_check.main(["--out", str(tmp_path)]) == 0
    assert gpu_check.main(["--out", str(tmp_path), "--stage", "2"]) == 1


def test_tests_that_are_cut_show_what_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One failure hides no other, and pytest is told to end before it is ended."""
    monkeypatch.setattr(gpu_check, "GRACE", 60)  # a busy machine is slow to say it
    started = tmp_path / "started"
    (tmp_path / "test_cut.py").write_text(
        "import pathlib, time\ndef test_one():\n    assert 'first' == 'wrong'\n"
        "def test_two():\n    assert 'second' == 'wrong'\n"
        f"def test_slow():\n    pathlib.Path({str(started)!r}).touch()\n    time.sleep(60)\n"
    )
    gpu_check.hear_interrupts()
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [*gpu_check.TESTS, "test_cut.py"], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        while not started.exists():
            assert process.poll() is None
            time.sleep(0.05)
        gpu_check.interrupt([process])
    finally:
        gpu_check.end(process)
    shown = (tmp_path / "log").read_text()
    for text in ("'first' == 'wrong'", "'second' == 'wrong'", "2 failed", "slowest 10 durations"):
        assert text in shown, shown


def test_what_stages_see_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    monkeypatch.setattr(gpu_check, "STAGES", (stage("environment", code),))
    assert gpu_check.main(["--out", str(tmp_path)]) == 0
    (found,) = json.loads((tmp_path / "results.json").read_text())[0]["found"]
    assert "TRITON_INTERPRET" not in found
    wanted = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    assert {name: found.get(name) for name in wanted} == wanted


def test_the_day_fits_one_command_of_ten_minutes() -> None:
    """Half a minute and more is left for the wheels and for the first import."""
    day = [gpu_check.STAGES[number - 1] for number in gpu_check.chosen_stages(None)]
    assert sum(stage.seconds for stage in day) <= 545
    assert [stage.name for stage in gpu_check.STAGES if stage not in day] == ["tune"]
    assert gpu_check.STAGES[12].name == "tune"  # docs/kernels.md says --stage 13
    assert len({stage.name for stage in gpu_check.STAGES}) == len(gpu_check.STAGES)


def test_what_reads_the_free_memory_of_the_gpu_runs_alone() -> None:
    reading = [s for s in gpu_check.STAGES if any("tests/gpu/test_video_cuda.py" in c for c in s.commands)]
    assert [len(s.commands) for s in reading] == [1]


def test_every_file_of_the_lane_is_in_the_day() -> None:
    words = {word for s in gpu_check.STAGES for command in s.commands for word in command}
    files = {f"tests/gpu/{path.name}" for path in (gpu_check.ROOT / "tests" / "gpu").glob("test_*.py")}
    assert files <= words


def test_a_race_that_is_found_is_a_failure() -> None:
    (races,) = [s for s in gpu_check.STAGES if s.name == "races"]
    command = races.commands[0]
    assert command[command.index("--error-exitcode") + 1] == "9"


def test_the_package_is_imported_as_it_is_installed() -> None:
    place = gpu_check.workplace()
    assert not (place / "fourdthinker").exists()
    assert (place / "tests" / "gpu" / "test_kernels.py").is_file()
