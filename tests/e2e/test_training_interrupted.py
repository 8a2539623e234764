"""What ends a run from outside, or breaks in its middle: nothing is lost, and it says what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from fourdthinker.backbones import load_checkpoint
from fourdthinker.errors import RecordError
from fourdthinker.settings import make_config
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.run_state import RunState
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from tests.e2e.training import ENVIRONMENT, finish, kill, metrics, settings, torchrun, write_data, write_model

MODULE = {name: ("-m", f"fourdthinker.trainers.{name}") for name in ("dift", "grpo")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("interrupted")
    dift, rl = write_data(folder / "data", 6)
    shared = {
        "model": str(write_model(folder / "model")),
        "use_cpu": True,
        "save_steps": 0,
        "logging_steps": 1,
        "learning_rate": 1e-3,
    }
    sampled = {"max_completion_length": 8, "num_generations": 2, "num_iterations": 2}
    return {
        "dift": shared | {"data": str(dift), "per_device_train_batch_size": 2},
        "grpo": shared | sampled | {"data": str(rl)},
    }


def wait_for_lines(run: Path, process: subprocess.Popen[str], number: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and len(metrics(run)) >= number:
            return
        time.sleep(0.05)
    kill(process)
    raise AssertionError(process.communicate()[0][-4000:])


def descendants(pid: int) -> list[int]:
    """A process and all that it started, as a scheduler signals them: torchrun's workers have own groups."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [other for child in children for other in descendants(int(child))]


@pytest.mark.parametrize(
    ("trainer", "number"), [("dift", signal.SIGTERM), ("dift", signal.SIGUSR1), ("grpo", signal.SIGUSR1)]
)
def test_a_signal_saves_and_ends_the_run_well(
    base: dict[str, Any], tmp_path: Path, trainer: str, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    config = base[trainer] | {"output_dir": str(run), "max_steps": 10_000, "resume_from_checkpoint": "auto"}
    process = subprocess.Popen(
        [sys.executable, *MODULE[trainer], *settings(config)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for_lines(run, process, 2)
    process.send_signal(number)
    output = finish(process, timeout=120)
    assert f"{number.name}: the run ends with a checkpoint" in output
    (checkpoint,) = run.glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert metrics(run)[-1]["step"] == step
    assert str(checkpoint) in output
    assert not (run / "final").exists()
    config |= {"max_steps": step + 2}
    resumed = finish(torchrun(1, *MODULE[trainer], *settings(config)))
    assert "final" in resumed
    assert [line["step"] for line in metrics(run)] == list(range(1, step + 3))


@pytest.mark.parametrize("only_model", [False, True])
def test_a_signal_to_all_processes_comes_twice(
    base: dict[str, Any], tmp_path: Path, only_model: bool
) -> None:
    """Slurm and torchrun both send it, and to every process: also workers of the loader get it."""
    run = tmp_path / "run"
    config = base["dift"] | {"output_dir": str(run), "max_steps": 10_000, "dataloader_num_workers": 1}
    config |= {"dataloader_persistent_workers": True, "save_only_model": only_model}
    process = subprocess.Popen(
        [sys.executable, *MODULE["dift"], *settings(config)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for_lines(run, process, 5)  # of more than one epoch
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.01)
    output = finish(process, timeout=120)
    assert len(list(run.glob("checkpoint-*"))) == 1
    assert ("goes on" in output) != only_model
    assert output.count("no run can go on from its checkpoints") == 2 * only_model


def test_ranks_stop_together_when_slurm_warns(base: dict[str, Any], tmp_path: Path) -> None:
    """SIGUSR1 to every process of the job, of which torchrun must not take notice."""
    run = tmp_path / "run"
    config = base["dift"] | {"output_dir": str(run), "max_steps": 10_000}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.Popen(
        ["bash", "-c", "trap '' USR1; exec \"$@\"", "job", *command, *MODULE["dift"], *settings(config)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for_lines(run, process, 2)
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGUSR1)
    finish(process, timeout=120)
    (checkpoint,) = run.glob("checkpoint-*")
    assert load_checkpoint(checkpoint).backbone.num_layers == 1
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}


def test_torchrun_passes_sigterm_on_and_waits_for_the_checkpoint(
    base: dict[str, Any], tmp_path: Path
) -> None:
    """As a container is ended: the signal goes to torchrun alone, which kills its workers after a time."""
    run = tmp_path / "run"
    config = base["dift"] | {"output_dir": str(run), "max_steps": 10_000}
    process = torchrun(2, "--shutdown-timeout", "60", *MODULE["dift"], *settings(config))
    wait_for_lines(run, process, 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert output.count("SIGTERM: the run ends with a checkpoint after this update") == 2
    assert "SIGKILL" not in output, output[-4000:]
    assert process.returncode == 1  # of torchrun, which counts any signal as a failure
    (checkpoint,) = run.glob("checkpoint-*")
    state = RunState.read(checkpoint)
    assert state.updates == metrics(run)[-1]["step"]
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= state.files.keys()
    assert not [path.name for path in run.glob(".checkpoint-*")]


class BreakClip(TrainerCallback):
    """A clip that was read before the first step is no video any more."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.path.write_text("this is not a video " * 50)


def run_with_a_broken_clip(folder: Path, trainer: str, **extra: Any) -> Path:
    dift, rl = write_data(folder / "data", 4)
    values = {"model": str(write_model(folder / "model")), "use_cpu": True, "save_steps": 0, "report_to": []}
    values |= {"output_dir": str(folder / "run"), "max_steps": 4, "logging_steps": 1, **extra}
    breaks = BreakClip(folder / "data" / "2.mp4")
    if trainer == "dift":
        config = make_config(DiftConfig, values | {"data": str(dift)})
        train_dift(config, callbacks=[breaks])
    else:
        values |= {"data": str(rl), "max_completion_length": 4, "num_generations": 2}
        train_grpo(make_config(GrpoConfig, values), callbacks=[breaks])
    return folder / "run"


@pytest.mark.parametrize("trainer", ["dift", "grpo"])
def test_a_clip_that_breaks_during_the_run_is_named(trainer: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"record '[dr]2' \(.*\.jsonl:3\): .*2\.mp4") as caught:
        run_with_a_broken_clip(tmp_path, trainer)
    assert "on_bad_record=skip" in str(caught.value)


@pytest.mark.parametrize("trainer", ["dift", "grpo"])
def test_a_clip_that_breaks_during_the_run_can_be_skipped(trainer: str, tmp_path: Path) -> None:
    run = run_with_a_broken_clip(tmp_path, trainer, on_bad_record="skip")
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4]
    (rejected,) = [json.loads(line) for line in (run / "rejected.jsonl").read_text().splitlines()]
    assert rejected["where"].endswith(".jsonl:3")
    assert "2.mp4" in rejected["reason"]
    assert torch.isfinite(torch.tensor(metrics(run)[-1]["loss"]))


def test_a_run_in_which_clips_broke_goes_on(tmp_path: Path) -> None:
    dift, _ = write_data(tmp_path / "data", 5)
    mended = json.loads(dift.read_text().splitlines()[0]) | {"id": "mended", "video": "mended.mp4"}
    dift.write_text(dift.read_text() + "no record\n" + json.dumps(mended) + "\n")
    (tmp_path / "data" / "mended.mp4").write_text("this is not a video " * 50)
    values = {
        "model": str(write_model(tmp_path / "model")),
        "use_cpu": True,
        "save_steps": 2,
        "report_to": [],
    }
    values |= {"output_dir": str(tmp_path / "run"), "logging_steps": 1, "on_bad_record": "skip"}
    values |= {"data": str(dift), "resume_from_checkpoint": "auto", "lr_scheduler_type": "constant"}
    train_dift(
        make_config(DiftConfig, values | {"max_steps": 4}),
        callbacks=[BreakClip(tmp_path / "data" / "2.mp4")],
    )
    (tmp_path / "data" / "1.mp4").unlink()
    (tmp_path / "data" / "mended.mp4").write_bytes((tmp_path / "data" / "0.mp4").read_bytes())
    rejected = (tmp_path / "run" / "rejected.jsonl").read_text()
    assert [("line" in json.loads(line)) for line in rejected.splitlines()][:3] == [True, True, False]
    train_dift(make_config(DiftConfig, values | {"max_steps": 7}))
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 8))
    after = (tmp_path / "run" / "rejected.jsonl").read_text()
    assert after.startswith(rejected)
    assert not any("line" in json.loads(line) for line in after[len(rejected) :].splitlines())
