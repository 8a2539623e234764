"""Going on: never begun anew over checkpoints, nothing deleted, no changed setting ignored."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainerState

from fourdthinker.backbones import load_checkpoint
from fourdthinker.errors import ConfigError, FourdError, OutputError
from fourdthinker.files import locked_folder, locks, make_folder
from fourdthinker.settings import make_config
from fourdthinker.trainers import checkpointing, driver
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.resume import agreed_resume, find_resume
from fourdthinker.trainers.run_state import RunState
from fourdthinker.trainers.settings import DiftConfig
from tests.e2e.training import evaluations, metrics, samples
from tests.processes import run_ranks
from tests.tiny import tiny_checkpoint

BASE: dict[str, Any] = {
    "use_cpu": True,
    "report_to": [],
    "logging_steps": 1,
    "warmup_steps": 0,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 2,
    "save_steps": 2,
    "max_steps": 4,
    "resume_from_checkpoint": "auto",
}


def train(
    folder: Path,
    *callbacks: TrainerCallback,
    number: int = 6,
    content: int = 0,
    held_out: bool = False,
    **extra: Any,
) -> Path:
    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    config = make_config(DiftConfig, BASE | {"output_dir": str(folder)} | extra)
    return train_dift(
        config,
        checkpoint=checkpoint,
        samples=samples(checkpoint, number, seed=content),
        held_out=samples(checkpoint, 2, seed=5) if held_out else None,
        callbacks=callbacks,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "run"
    train(folder)
    return folder


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """A run that was killed after its second update."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in ("checkpoint-4", "final"):
        shutil.rmtree(folder / name)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_memory_needed_is_known_when_a_run_goes_on(stopped: Path, tmp_path: Path) -> None:
    state = RunState.read(stopped / "checkpoint-2")
    RunState(**vars(state) | {"divisions": 1}).write(stopped / "checkpoint-2")
    shutil.copytree(stopped, tmp_path / "other")
    train(stopped)
    assert [line.get("out_of_memory") for line in metrics(stopped)] == [None, None, 1, 1]
    assert RunState.read(stopped / "final").divisions == 1
    train(tmp_path / "other", max_tokens_per_forward=100)
    assert [line.get("out_of_memory") for line in metrics(tmp_path / "other")] == [None] * 4


def refused(folder: Path, **extra: Any) -> str:
    before = files(folder)
    with pytest.raises(ConfigError) as error:
        train(folder, **extra)
    assert files(folder) == before, "a refusal changes nothing"
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1e-4),
        ("seed", 7),
        ("weight_decay", 0.5),
        ("lr_scheduler_type", "constant"),
        ("warmup_steps", 3),
        ("adam_beta2", 0.95),
        ("optim", "sgd"),
        ("freeze_vision", False),
        ("dtype", "float32"),
        ("model", "elsewhere"),
    ],
)
def test_a_changed_setting_is_refused(stopped: Path, name: str, value: Any) -> None:
    message = refused(stopped, **{name: value})
    assert f"checkpoint-2 keeps its settings, but {name} is" in message
    assert "set them back" in message


def test_a_changed_batch_is_refused_with_what_fits(stopped: Path) -> None:
    message = refused(stopped, per_device_train_batch_size=1)
    assert "written with 2 records an update" in message
    assert "set gradient_accumulation_steps=2" in message


def test_another_engine_is_refused_by_name(stopped: Path) -> None:
    """One process has no FSDP, so that this is also what going on with another number comes to there."""
    config = make_config(DiftConfig, BASE | {"output_dir": str(stopped), "fsdp": True})
    two: Any = SimpleNamespace(world_size=2, process_index=0, deepspeed=None, fsdp=True)
    two.save_only_model = False
    said = "written by 1 processes without DeepSpeed and FSDP, and this run has 2 under FSDP"
    with pytest.raises(ConfigError, match=said):
        find_resume(config, two)
    folder = stopped / "checkpoint-2"
    state = RunState.read(folder)
    RunState(**vars(state) | {"engine": "FSDP", "processes": 2}).write(folder)
    for name in ("masters.safetensors", "optimizer.bin", "rng_state_0.pth", "rng_state_1.pth"):
        (folder / name).touch()
    message = refused(stopped)
    assert "written by 2 processes under FSDP, and this run has 1 without DeepSpeed and FSDP" in message
    assert "start as then" in message


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ("ZeRO-2", 3, "written by 2 processes under ZeRO-2, and this run has 2 under ZeRO-3"),
        ("ZeRO-3", 2, "written by 2 processes under ZeRO-3, and this run has 2 under ZeRO-2"),
        ("ZeRO-3", None, "under ZeRO-3, and this run has 2 without DeepSpeed and FSDP"),
        (None, 2, "without DeepSpeed and FSDP, and this run has 2 under ZeRO-2"),
        ("FSDP", 3, "under FSDP, and this run has 2 under ZeRO-3"),
    ],
)
def test_another_stage_of_zero_is_refused_by_name(
    stopped: Path, then: str | None, now: int | None, said: str
) -> None:
    folder = stopped / "checkpoint-2"
    state = vars(RunState.read(folder)) | {"engine": then, "processes": 2, "records_per_update": 4}
    RunState(**state).write(folder)
    for name in ("masters.safetensors", "optimizer.bin", "rng_state_0.pth", "rng_state_1.pth"):
        (folder / name).touch()
    config = make_config(DiftConfig, BASE | {"output_dir": str(stopped)})
    plugin = SimpleNamespace(zero_stage=now)
    args: Any = SimpleNamespace(world_size=2, process_index=0, save_only_model=False, fsdp=False)
    args.deepspeed, args.deepspeed_plugin = now and "zero.json", plugin
    with pytest.raises(ConfigError, match=said) as error:
        find_resume(config, args)
    assert "\n" not in str(error.value)
    if now:
        RunState(**state | {"engine": f"ZeRO-{now}"}).write(folder)
        assert find_resume(config, args) == str(folder)


def choose(rank: int, folder: Path) -> None:
    """Each rank on a machine of its own: in the same, in another, in none, in one that cannot be written."""
    for case, expected in {
        "same": None,
        "other": "rank 0 found run/checkpoint-4, and rank 1 run/checkpoint-2; set output_dir to a folder",
        "none": "rank 0 found run/checkpoint-4, and rank 1 no checkpoint; set output_dir to a folder",
        "content": "rank 0 found run/checkpoint-4, and rank 1 another run/checkpoint-4; set output_dir",
        "done": "rank 0 found run/checkpoint-4, and rank 1 run/final; set output_dir",
        "wrong": "rank 1: " * (rank == 0) + "run is not a folder",
    }.items():
        os.chdir(folder / case / str(rank))
        values = {"output_dir": "run", "per_device_train_batch_size": 1}
        args: Any = SimpleNamespace(world_size=2, process_index=rank, deepspeed=None, fsdp=False)
        args.save_only_model = False
        config = make_config(DiftConfig, BASE | values)
        if expected is None:
            assert agreed_resume(config, args) == "run/checkpoint-4"
            continue
        with pytest.raises(FourdError, match=expected) as error:
            agreed_resume(config, args)
        assert "\n" not in str(error.value)
    os.chdir(folder / "locked")  # by a third process
    said = "rank 0: " * (rank == 1) + "/.*locked/run: another process is writing this folder"
    with pytest.raises(FourdError, match=said), contextlib.ExitStack() as stack:
        driver._locked(stack, config, args)
    (folder / f"done{rank}").touch()


def test_ranks_that_find_different_checkpoints_do_not_begin(finished: Path, tmp_path: Path) -> None:
    for case in ("same", "other", "none", "content", "done", "wrong"):
        for rank in "01":
            shutil.copytree(finished, tmp_path / case / rank / "run")
            if (case, rank) != ("done", "1"):
                shutil.rmtree(tmp_path / case / rank / "run" / "final")
    shutil.rmtree(tmp_path / "other" / "1" / "run" / "checkpoint-4")
    for path in [*tmp_path.glob("none/1/run/checkpoint-*"), *tmp_path.glob("done/1/run/checkpoint-*")]:
        shutil.rmtree(path)
    folder = tmp_path / "content" / "1" / "run" / "checkpoint-4"
    RunState(**vars(RunState.read(folder)) | {"data": "others"}).write(folder)
    shutil.rmtree(tmp_path / "wrong" / "1" / "run")
    (tmp_path / "wrong" / "1" / "run").touch()
    with locked_folder(make_folder(tmp_path / "locked" / "run")):
        assert run_ranks(choose, tmp_path) == [0, 0]
    assert {path.name for path in tmp_path.glob("done?")} == {"done0", "done1"}


def test_other_records_are_refused(stopped: Path) -> None:
    assert "data: the records are not those" in refused(stopped, number=5)
    assert "data: the records are not those" in refused(stopped, content=1)


def test_what_a_checkpoint_does_not_hold_is_used(stopped: Path) -> None:
    train(stopped, max_steps=3, logging_steps=2, save_steps=3)
    assert [path.name for path in sorted(stopped.glob("checkpoint-*"))] == ["checkpoint-2", "checkpoint-3"]


def test_intervals_are_those_of_the_run_that_goes_on(stopped: Path) -> None:
    """Trainer keeps those that a checkpoint was written with; without any, every update is an end of one."""
    state = stopped / "checkpoint-2" / "trainer_state.json"
    then = json.loads(state.read_text()) | {"save_steps": 1, "logging_steps": 1, "eval_steps": 1}
    state.write_text(json.dumps(then))
    train(stopped, save_steps=5, logging_steps=4, max_steps=7)
    assert {path.name for path in stopped.glob("checkpoint-*")} == {"checkpoint-5", "checkpoint-7"}
    assert [line["step"] for line in metrics(stopped)] == [1, 2, 4, 5, 7]
    train(stopped, held_out=True, save_steps=0, eval_steps=4, logging_steps=5, max_steps=11)
    assert list(evaluations(stopped)) == [8, 11]
    assert [line["step"] for line in metrics(stopped)] == [1, 2, 4, 5, 7, 8, 10, 11]


def test_the_same_update_divided_otherwise_is_the_same(stopped: Path, finished: Path) -> None:
    train(stopped, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    got, expected = (load_checkpoint(run / "final").backbone for run in (stopped, finished))
    for a, b in zip(got.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_signal_while_the_final_checkpoint_is_written_lets_it_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, taken = checkpointing.save_checkpoint, []

    def signalled(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(*arguments, **options)

    before = signal.signal(signal.SIGTERM, lambda number, frame: taken.append(number))  # else it would end us
    try:
        monkeypatch.setattr(checkpointing, "save_checkpoint", signalled)
        final = train(tmp_path / "run", save_steps=0)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == []
    assert final.name == "final"
    assert RunState.read(final).updates == 4


def test_a_checkpoint_of_the_model_alone_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, save_only_model=True, max_steps=2)
    shutil.rmtree(folder / "final")
    weights = folder / "checkpoint-2" / "model.safetensors"
    sizes = RunState.read(weights.parent).files
    assert sizes[weights.name] == weights.stat().st_size
    for given in ("auto", str(folder / "checkpoint-2")):
        message = refused(folder, resume_from_checkpoint=given)
        assert "checkpoint-2 was written with save_only_model=true, without the state of the" in message


def test_a_checkpoint_that_lacks_a_file_does_not_make_the_run_begin_anew(stopped: Path) -> None:
    (stopped / "checkpoint-2" / "optimizer.pt").unlink()
    message = refused(stopped)
    assert "checkpoint-2 has no optimizer.pt" in message
    assert "overwrite_output_dir=true" in message


def test_a_checkpoint_that_was_cut_off_is_set_aside(stopped: Path) -> None:
    """Killed while it wrote its first checkpoint, and started again by the queue."""
    (stopped / "checkpoint-2" / "trainer_state.json").unlink()
    train(stopped)
    assert [line["step"] for line in metrics(stopped)] == [1, 2, 3, 4]
    assert (stopped / "former-checkpoint-2" / "optimizer.pt").is_file()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "tokenizer.json"])
def test_a_checkpoint_that_is_not_whole_is_left_out_aloud(
    finished: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The machine lost power, or a copy was cut off: the last file is there, another not whole."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "final")
    file = folder / "checkpoint-4" / name
    size = file.stat().st_size
    os.truncate(file, size // 2)
    said = f"checkpoint-4 has {size // 2} of the {size} bytes of {name}"
    if name.endswith(".json"):
        said = f"checkpoint-4 has a {name} that cannot be read"
    assert said in refused(folder, resume_from_checkpoint=str(folder / "checkpoint-4"))
    train(folder)
    (line,) = [line for line in caplog.messages if said in line]
    assert line.endswith("/checkpoint-2")
    assert "the run goes on from" in line
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]
    assert (folder / "former-checkpoint-4" / name).is_file()


def test_a_text_that_was_written_anew_is_no_harm(stopped: Path) -> None:
    config = stopped / "checkpoint-2" / "config.json"
    config.write_text(config.read_text() + "\n")
    train(stopped, resume_from_checkpoint=str(stopped / "checkpoint-2"), max_steps=3)
    assert [line["step"] for line in metrics(stopped)] == [1, 2, 3]


@pytest.mark.parametrize("only_model", [False, True])
def test_all_of_a_checkpoint_is_on_the_disk_before_what_makes_it_complete(
    only_model: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[int, int] = {}  # bytes by inode
    sync, save = os.fsync, TrainerState.save_to_json

    def counted(handle: int) -> None:
        status = os.fstat(handle)
        synced[status.st_ino] = status.st_size
        sync(handle)

    def missing(folder: Path) -> set[str]:
        return {
            str(path.relative_to(folder))
            for path in [folder, *folder.rglob("*")]
            if path.is_file() and synced.get(path.stat().st_ino) != path.stat().st_size
        }

    def saved(state: TrainerState, path: str) -> None:
        assert missing(Path(path).parent) == set()
        save(state, path)

    monkeypatch.setattr(os, "fsync", counted)
    monkeypatch.setattr(TrainerState, "save_to_json", saved)
    train(tmp_path / "run", max_steps=2, save_only_model=only_model)
    for name in ("checkpoint-2", "final"):
        assert missing(tmp_path / "run" / name) == set()
        assert (tmp_path / "run" / name).stat().st_ino in synced
    assert (tmp_path / "run").stat().st_ino in synced


def test_what_a_killed_save_left_is_removed(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (".checkpoint-4.ab_d1234", ".final.abcd1234"):
        (stopped / name).mkdir()
        (stopped / name / "model.safetensors").touch()
    others = (".checkpoint-4.mine", ".finally.abcd1234", "checkpoint-4.abcd1234")
    for name in others:
        (stopped / name).mkdir()
    (stopped / ".checkpoint-6.abcd1234").touch()
    with locked_folder(stopped), pytest.raises(OutputError, match="another process"):
        train(stopped)
    assert (stopped / ".final.abcd1234").is_dir()
    with monkeypatch.context() as without:
        without.setattr(locks, "_holds", lambda handle: False)
        train(stopped, max_steps=3)
    assert (stopped / ".final.abcd1234").is_dir()
    train(stopped)
    assert not list(stopped.glob(".*.a*1234/model.safetensors"))
    assert {path.name for path in stopped.glob(".*")} == {*others[:2], ".checkpoint-6.abcd1234"}


def test_where_a_run_goes_on_is_looked_up_once_its_folder_is_locked(
    stopped: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is started again while the former one, told to end, writes its last checkpoint."""

    def locked_after_it(folder: Path) -> AbstractContextManager[bool]:
        shutil.copytree(finished / "checkpoint-4", stopped / "checkpoint-4")
        return locked_folder(folder)

    monkeypatch.setattr(driver, "locked_folder", locked_after_it)
    train(stopped, max_steps=5)
    assert files(stopped / "checkpoint-4") == files(finished / "checkpoint-4")
    assert not list(stopped.glob("former-*"))


def test_a_finished_run_without_checkpoints_is_not_begun_anew(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    before = files(folder)
    train(folder)
    assert files(folder) == before
    assert "final has seen 4 updates, 6 are asked for" in refused(folder, max_steps=6)
    assert "learning_rate is 0.1" in refused(folder, learning_rate=0.1)


def test_beginning_anew_deletes_nothing_and_is_resumed_as_itself(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    rollouts, before = folder / "rollouts.jsonl", (folder / "metrics.jsonl").read_bytes()
    rollouts.write_text('{"step": 1}\n')
    anew = {"overwrite_output_dir": True, "resume_from_checkpoint": None, "learning_rate": 1e-2}
    for number in ("", "2-"):
        train(folder, **anew)
        for name in ("checkpoint-2", "checkpoint-4", "final"):
            assert (folder / f"former-{number}{name}" / "config.json").is_file()
        assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]
        assert (folder / f"former-{number}rollouts.jsonl").read_bytes() == b'{"step": 1}\n'
        assert (folder / f"former-{number}metrics.jsonl").read_bytes() == before
        before = (folder / "metrics.jsonl").read_bytes()
        rollouts.write_text('{"step": 1}\n')
    # As killed after its second update: the final checkpoint of the run before is not taken for its own.
    for name in ("checkpoint-4", "final"):
        shutil.rmtree(folder / name)
    train(folder, learning_rate=1e-2)
    assert (folder / "checkpoint-4").is_dir()


def test_going_on_from_an_earlier_checkpoint_sets_later_ones_aside(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "final")
    train(folder, resume_from_checkpoint=str(folder / "checkpoint-2"), max_steps=5)
    assert (folder / "former-checkpoint-4" / "optimizer.pt").is_file()
    assert (folder / "former-metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("max_steps", [4, 6])
def test_a_checkpoint_of_another_folder_does_not_go_on_in_a_former_run(
    finished: Path, tmp_path: Path, max_steps: int
) -> None:
    """Neither is that run taken for its own, nor is anything of it lost."""
    other = tmp_path / "other"
    train(other, content=1, learning_rate=1e-2)
    before = files(other)
    named: dict[str, Any] = {"resume_from_checkpoint": str(finished / "checkpoint-2"), "max_steps": max_steps}
    assert "output_dir" in (said := refused(other, **named))
    assert "holds a former run" in said
    final = train(other, overwrite_output_dir=True, **named)
    assert [line["step"] for line in metrics(other)] == list(range(3, max_steps + 1))
    assert RunState.read(final).data == RunState.read(finished / "final").data
    now = files(other)
    for name, content in before.items():
        first = name.split("/")[0]
        if first.startswith("checkpoint-") or first in ("final", "metrics.jsonl"):
            assert now[f"former-{name}"] == content


def test_a_checkpoint_that_was_set_aside_does_not_go_on_in_the_run_after_it(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "checkpoint-4").rename(folder / "former-checkpoint-4")
    named = str(folder / "former-checkpoint-4")
    assert "holds a former run" in refused(folder, resume_from_checkpoint=named, max_steps=5)


def test_a_named_checkpoint_of_a_finished_run_is_gone_on_from(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    named = str(folder / "checkpoint-2")
    final = train(folder, resume_from_checkpoint=named, max_grad_norm=1e-6)
    kept = files(finished / "final")
    assert files(folder / "former-final") == kept
    assert files(final)["model.safetensors"] != kept["model.safetensors"]
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]
    assert (folder / "former-checkpoint-4" / "optimizer.pt").is_file()
