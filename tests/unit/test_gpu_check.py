"""The runner of the GPU day: time limits, what fails, what is kept, and the choice of stages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.gpu import races
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


def test_the_kernels_bench_alone_sees_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers imports datasets wherever it is installed, and would fail with it."""
    monkeypatch.setenv("PYTHONPATH", "site")
    monkeypatch.setenv("GPU_CHECK_PEERS", "peers")
    seen = {
        command: gpu_check.environment(command, False)["PYTHONPATH"]
        for one in gpu_check.STAGES for command in one.commands
    }  # fmt: skip
    assert {command[:4] for command, path in seen.items() if path == "site:peers"} == {gpu_check.KERNELS}
    assert {path for command, path in seen.items() if command[:4] != gpu_check.KERNELS} == {"site"}


def test_the_day_leaves_time_for_a_second_run() -> None:
    """Of a quarter of an hour; half a minute of the day is for the wheels and for the first import."""
    day = [gpu_check.STAGES[number - 1] for number in gpu_check.chosen_stages(None)]
    assert gpu_check.DAY <= 480
    assert sum(stage.seconds for stage in day) + 30 <= gpu_check.DAY
    assert [stage.name for stage in gpu_check.STAGES if stage not in day] == ["tune"]
    assert gpu_check.STAGES[12].name == "tune"  # docs/kernels.md says --stage 13
    assert day[-1].name == "races"  # of the least value where time is short
    assert len({stage.name for stage in gpu_check.STAGES}) == len(gpu_check.STAGES)


def test_no_stage_outlasts_the_day_and_a_late_one_has_its_share() -> None:
    of_twenty = stage("one", seconds=20)
    early, late = gpu_check.Clock(130.0, 400.0, False), gpu_check.Clock(70.0, 400.0, False)
    assert early.seconds(of_twenty, begin=100.0) == 30.0  # what earlier ones have left
    assert late.seconds(of_twenty, begin=100.0) == 20.0
    assert late.seconds(of_twenty, begin=390.0) == 10.0
    assert late.seconds(of_twenty, begin=410.0) < 0


def test_what_came_before_the_stages_is_in_the_time_of_the_day(
    stages: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "DAY", 100)
    begin = str(time.time() - 100)
    assert gpu_check.main(["--out", str(tmp_path), "--begin", begin]) == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert [result["state"] for result in results] == ["no time was left"] * 5


def test_the_clock_starts_with_the_script(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    before = time.time()
    done = subprocess.run(
        ["bash", str(gpu_check.ROOT / "tools" / "gpu_check.sh"), "--rehearse"], text=True, check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)}, stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    words = done.stdout.split()
    assert before <= float(words[words.index("--begin") + 1]) <= time.time()
    assert words[-1] == "--rehearse"


def test_what_measures_time_has_the_gpu_to_itself() -> None:
    """Two at once would time one another, and each would write the rows that the other saved."""
    for one in gpu_check.STAGES:
        timing = [c for c in one.commands if c[: len(gpu_check.BENCH)] == gpu_check.BENCH]
        timing = [c for c in timing if "--errors" not in c]
        assert len(one.commands) == 1 or not timing, one.name


def test_a_row_is_kept_as_soon_as_it_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not when its stage has ended: the whole command may be ended before."""
    code = (
        "import pathlib; pathlib.Path('bench/results/rows.json').write_text('{}'); "
        f"print(pathlib.Path({str(tmp_path)!r}, 'rows.json').exists())"
    )
    monkeypatch.setattr(gpu_check, "STAGES", (stage("bench", code),))
    assert gpu_check.main(["--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "results.json").read_text())[0]["said"] == ["True"]
    assert (tmp_path / "rows.json").exists()  # the copy of the checkout is removed, not what it links to


def test_what_reads_the_free_memory_of_the_gpu_runs_alone() -> None:
    reading = [s for s in gpu_check.STAGES if any("tests/gpu/test_video_cuda.py" in c for c in s.commands)]
    assert [len(s.commands) for s in reading] == [1]


def test_every_file_of_the_lane_is_in_the_day() -> None:
    words = {word for s in gpu_check.STAGES for command in s.commands for word in command}
    files = {f"tests/gpu/{path.name}" for path in (gpu_check.ROOT / "tests" / "gpu").glob("test_*.py")}
    assert files <= words


@pytest.mark.parametrize(
    ("usage", "option"), [("--kernel-name arg", "--kernel-name"), ("--kernel-regex arg", "--kernel-regex")]
)
def test_a_race_that_is_found_is_a_failure(
    tmp_path: Path,
    usage: str,
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """By a compute-sanitizer that finds one, and says what it was told to watch."""
    (watched,) = [s for s in gpu_check.STAGES if s.name == "races"]
    assert watched.commands[0][1:] == ("-m", "tests.gpu.races", "--watched")
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(
        f'#!/bin/sh\nif [ "$1" = --help ]; then echo "{usage}"; exit; fi\necho "$@"\nexit 9\n'
    )
    sanitizer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert races.watch() == 9
    words = capfd.readouterr().out.split()
    assert words[words.index("--error-exitcode") + 1] == "9"
    assert words[-2:] == ["-m", "tests.gpu.races"]
    told = [words[k + 1] for k, word in enumerate(words) if word == option]
    names = re.findall(r"^def (\w+)_kernel\(", sources("kernels"), re.M)
    for filter_ in told:  # parts of names, not patterns: another would watch nothing and find nothing
        assert any(filter_.removeprefix("kernel_substring=") in name for name in names), filter_
    assert len(told) == 3


def sources(folder: str) -> str:
    return "\n".join(path.read_text() for path in sorted((gpu_check.ROOT / folder).glob("*.py")))


def test_the_package_is_imported_as_it_is_installed(tmp_path: Path) -> None:
    place = gpu_check.workplace(tmp_path)
    assert not (place / "fourdthinker").exists()
    assert (place / "tests" / "gpu" / "test_kernels.py").is_file()
