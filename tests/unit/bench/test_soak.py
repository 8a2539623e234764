"""The bench of long runs, on runs that do nothing: what it does by hand takes minutes."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from bench import soak
from fourdthinker.settings import make_config
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.settings import GrpoConfig
from tests.e2e.training import BARE, prompts
from tests.tiny import tiny_checkpoint

# A run that goes on after its last multiple of 10, as after a checkpoint. It stops to be killed after `halt`.
RUN = """
import json, sys, time
path, steps, halt = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
    lines = [line for line in open(path).read().splitlines() if line.endswith("}")]
except OSError:
    lines = []
lines = lines[: len(lines) // 10 * 10]
open(path, "w").write("".join(line + chr(10) for line in lines))
for step in range(len(lines) + 1, steps + 1):
    open(path, "a").write(json.dumps({"step": step, "learning_rate": 1.0}) + chr(10))
    time.sleep(60 if step == halt else 0.002)
"""


@pytest.fixture
def tiny_runs(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: Path, steps: int) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        halt = 95 if len(started) < 2 else 0
        command = [sys.executable, "-S", "-c", RUN, str(folder / "metrics.jsonl"), str(steps), str(halt)]
        started.append(subprocess.Popen(command))
        return started[-1]

    monkeypatch.setattr(soak, "start", start)
    return started


def test_kills_are_spread_over_the_run() -> None:
    for seed in range(20):
        targets = soak.kill_targets(100, 5, random.Random(seed))
        assert [(target - 1) // 18 for target in targets] == [0, 1, 2, 3, 4]
    assert soak.kill_targets(100, 0, random.Random(0)) == []
    with pytest.raises(ValueError, match="10 kills within 5 steps"):
        soak.kill_targets(5, 10, random.Random(0))


def test_what_a_machine_decides_is_no_difference(tmp_path: Path) -> None:
    """Of a true run, twice."""
    for name in ("one", "two"):
        checkpoint = tiny_checkpoint(hidden=32, layers=1)
        options = {"num_generations": 2, "max_completion_length": 4, "max_steps": 2, "log_rollouts": 0}
        config = make_config(GrpoConfig, BARE | options | {"output_dir": str(tmp_path / name)})
        train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 4))
    one, two = (soak.lines_of(tmp_path / name) for name in ("one", "two"))
    assert one == two
    assert {"loss", "grad_norm", "reward", "kl"} <= one[0].keys()


def test_a_broken_run_goes_on_until_it_is_whole(
    tmp_path: Path, tiny_runs: list[subprocess.Popen[bytes]]
) -> None:
    done = soak.broken_run(tmp_path / "run", 100, [40, 90], random.Random(1))
    assert [text.rpartition(" ")[2] for text in done] == ["40", "90"]
    assert len(tiny_runs) == 3
    assert [line["step"] for line in soak.lines_of(tmp_path / "run")] == list(range(1, 101))


def test_nothing_is_left_running(tmp_path: Path, tiny_runs: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(KeyboardInterrupt), soak.running(tmp_path / "run", 100_000):
        raise KeyboardInterrupt
    assert tiny_runs[0].returncode is not None


def test_growth_is_that_of_the_second_half(tmp_path: Path) -> None:
    sizes = [10 * k for k in range(50)] + [1000 + 10 * (k // 5) for k in range(50)]
    (tmp_path / "memory.txt").write_text("".join(f"{k} {size}\n" for k, size in enumerate(sizes)))
    assert soak.growth(tmp_path) == pytest.approx(1085 / 1005)
