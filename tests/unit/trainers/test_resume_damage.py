"""A checkpoint of which anything is damaged: found before the folder changes, and the one before is taken."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import trainer

from fourdthinker.backbones.common import Backbone
from fourdthinker.errors import CheckpointError, ConfigError
from fourdthinker.settings import make_config
from fourdthinker.trainers.checkpointing import _loading
from fourdthinker.trainers.file_digests import file_digest
from fourdthinker.trainers.resume import find_resume
from fourdthinker.trainers.run_state import RunState
from fourdthinker.trainers.settings import DiftConfig
from fourdthinker.trainers.trainer import LatentTrainer
from fourdthinker.trainers.update import MemoryLimitError
from tests.unit.trainers.test_beginning import ARGS
from tests.unit.trainers.test_resume import BASE, files, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "run"
    train(folder)
    shutil.rmtree(folder / "final")
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def found(folder: Path) -> str | None:
    return find_resume(make_config(DiftConfig, BASE | {"output_dir": str(folder)}), ARGS)


def refused(folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """What is said of checkpoint-4; the one before is taken, and without one the run does not begin."""
    before = files(folder)
    assert found(folder) == str(folder / "checkpoint-2")
    (said,) = [line for line in caplog.messages if "checkpoint-4" in line]
    assert files(folder) == before
    shutil.rmtree(folder / "checkpoint-2")
    with pytest.raises(ConfigError, match="no checkpoint can be gone on from") as error:
        found(folder)
    assert "\n" not in str(error.value)
    return said


def zeros(path: Path, part: float = 1.0) -> None:
    """As a disk that lost power leaves it: the length is right."""
    size = path.stat().st_size
    keep = int((1 - part) * size)
    path.write_bytes(path.read_bytes()[:keep] + bytes(size - keep))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
@pytest.mark.parametrize("part", [1.0, 0.3])
def test_zeros_in_a_file_are_found(
    folder: Path, name: str, part: float, caplog: pytest.LogCaptureFixture
) -> None:
    zeros(folder / "checkpoint-4" / name, part)
    assert f"has another content in {name} than its run wrote" in refused(folder, caplog)


def test_what_is_read_of_a_large_file_does_not_grow_with_it(tmp_path: Path) -> None:
    """One of 100 GB, of holes; zeros in a sixteenth of it are found wherever they are."""
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 100 << 30)
    first = file_digest(path)
    for place in (0, (100 << 30) - 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"1")
        assert file_digest(path) != first
        first = file_digest(path)
    small = tmp_path / "small"
    small.write_bytes(os.urandom(3 << 20))
    for place in range(16):
        data = bytearray(small.read_bytes())
        start = place * (len(data) // 16)
        data[start : start + len(data) // 16 + (1 << 16)] = bytes(len(data) // 16 + (1 << 16))
        (tmp_path / "other").write_bytes(data[: 3 << 20])
        assert file_digest(tmp_path / "other") != file_digest(small)


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"foo": 5}, "has foo in trainer_state.json, which this version of transformers does not know"),
        ({"best_model_checkpoint": 5}, "a wrong type in trainer_state.json (best_model_checkpoint)"),
        ({"log_history": [5]}, "a wrong type in trainer_state.json (log_history)"),
        ({"log_history": None}, "a wrong type in trainer_state.json (log_history)"),
        ({"stateful_callbacks": []}, "a wrong type in trainer_state.json (stateful_callbacks)"),
        ({"global_step": 3}, "has seen 4 updates by run.json and 3 by trainer_state.json"),
    ],
)
def test_a_state_of_trainer_that_it_cannot_go_on_from(
    folder: Path, values: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    change_json(folder / "checkpoint-4" / "trainer_state.json", **values)
    assert said in refused(folder, caplog)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"settings": []}, "settings: Input should be a valid dictionary"),
        ({"settings": {"num_iterations": "a"}}, "cannot be read"),
        ({"settings": {"num_iterations": 0}}, "cannot be read"),
        ({"files": None}, "files: Input should be a valid dictionary"),
        ({"files": {"a": "b"}}, "files.a: Input should be a valid integer"),
        ({"digests": {"a": 1}}, "digests.a: Input should be a valid string"),
        ({"processes": "x"}, "processes: Input should be a valid integer"),
        ({"processes": 0}, "processes: Input should be greater than 0"),
        ({"records_per_update": "a"}, "records_per_update: Input should be a valid integer"),
        ({"divisions": None}, "divisions: Input should be a valid integer"),
        ({"updates": -1}, "updates: Input should be greater than or equal to 0"),
        ({"foo": 1}, "foo: Unexpected keyword argument"),
    ],
)
def test_a_run_json_of_wrong_types(
    folder: Path, values: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    change_json(folder / "checkpoint-4" / "run.json", **values)
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read"):
        RunState.read(folder / "checkpoint-4")
    line = refused(folder, caplog)
    assert "is of another version" in line
    assert said in line


def cut_tensors(folder: Path) -> None:
    torch.save({"state": {}}, folder / "optimizer.pt")


def no_state(folder: Path) -> None:
    torch.save({}, folder / "rng_state.pth")


def no_schedule(folder: Path) -> None:
    (folder / "scheduler.pt").write_bytes(b"no archive")


def refused_while_loaded(folder: Path, **extra: Any) -> str:
    """What is said of checkpoint-2 when it is named, and its digests are right; checkpoint-4 stays."""
    state = RunState.read(folder / "checkpoint-2")
    RunState(**vars(state) | {"digests": {}, "files": {}}).write(folder / "checkpoint-2")
    before = files(folder)
    with pytest.raises(CheckpointError, match=r"cannot be loaded .*; name an earlier checkpoint") as error:
        train(folder, max_steps=5, resume_from_checkpoint=str(folder / "checkpoint-2"), **extra)
    assert files(folder) == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("damage", [cut_tensors, no_state, no_schedule])
def test_what_is_found_while_it_is_loaded_is_one_line(folder: Path, damage: Callable[[Path], None]) -> None:
    """As damage between the blocks of a large file, whose digest is right."""
    damage(folder / "checkpoint-2")
    said = refused_while_loaded(folder)
    assert "weights_only" not in said
    assert ("UnpicklingError: Unsupported operand 110)" in said) == (damage is no_schedule)


def test_no_tracker_writes_before_all_is_loaded(folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra train)")
    no_state(folder / "checkpoint-2")
    refused_while_loaded(folder, report_to=["tensorboard"])


class PartitionError(Exception):
    """As DeepSpeed's own errors, it is of no class that others have."""


@pytest.mark.parametrize(
    "error", [None, PartitionError("world size of 4"), AssertionError("no shards"), FileNotFoundError("a.pt")]
)
def test_deepspeed_state_that_cannot_be_loaded_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """By an engine that gives None where there is no `latest`; the rest of the way is Trainer's."""

    def load(self: Backbone, *arguments: Any, **options: Any) -> tuple[None, None]:
        if error is not None:
            raise error
        return None, None

    def under_deepspeed(self: LatentTrainer, *arguments: Any, **options: Any) -> int:
        self.is_deepspeed_enabled = True
        return train_to(self, *arguments, **options)

    train_to = LatentTrainer._train_to
    monkeypatch.setattr(LatentTrainer, "_train_to", under_deepspeed)
    monkeypatch.setattr(trainer, "deepspeed_init", lambda *a, **options: (None, None))
    monkeypatch.setattr(Backbone, "load_checkpoint", load, raising=False)
    (folder / "checkpoint-2" / "global_step2").mkdir()
    said = refused_while_loaded(folder)
    assert said.startswith(f"{folder / 'checkpoint-2'}: DeepSpeed's state cannot be loaded (")
    assert str(error or "failed to resume from checkpoint") in said


def test_a_rank_that_is_lost_while_others_load_is_no_damage() -> None:
    """gloo's error is a plain one; `Watch` says which rank that is, and why."""
    lost = RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(RuntimeError) as error, _loading("checkpoint-2", "the state"):
        raise lost
    assert error.value is lost


def host_memory() -> RuntimeError:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60)
    return error.value


@pytest.mark.parametrize(
    ("error", "ends", "said"),
    [
        (MemoryError(), MemoryLimitError, r"MemoryError\); lower max_tokens_per_forward"),
        (torch.OutOfMemoryError("CUDA out of memory"), MemoryLimitError, r"CUDA out of memory\); lower"),
        (host_memory(), MemoryLimitError, r"can't allocate memory.*\); lower"),
        (ImportError("No module named 'a'"), ConfigError, r"'a'\); install what is missing, .* may be whole"),
        (torch.AcceleratorError("CUDA error: b\nc"), ConfigError, r"CUDA error: b\); look at the device"),
    ],
)
def test_what_fails_beside_the_files_is_no_damage(error: Exception, ends: Any, said: str) -> None:
    with pytest.raises(ends, match=rf"checkpoint-2: the state cannot be loaded \(.*{said}") as found:
        with _loading("checkpoint-2", "the state"):
            raise error
    assert type(found.value) is ends
    assert "\n" not in str(found.value)
    assert "earlier checkpoint" not in str(found.value)
