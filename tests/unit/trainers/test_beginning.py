"""The folder of a run when it begins: what is set aside, in an order that a kill does no harm to."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback

from fourdthinker.errors import CheckpointError
from fourdthinker.files import append_lines
from fourdthinker.settings import make_config
from fourdthinker.trainers.beginning import begin_run
from fourdthinker.trainers.data import Finding, load_records
from fourdthinker.trainers.left_out import LeftOut, read_left_out, write_left_out
from fourdthinker.trainers.resume import find_resume, finished_updates
from fourdthinker.trainers.run_folder import resumed_updates
from fourdthinker.trainers.run_state import RunState
from fourdthinker.trainers.settings import DiftConfig
from tests.e2e.training import metrics, without_times
from tests.unit.trainers.test_resume import BASE, refused, train

ARGS: Any = SimpleNamespace(world_size=1, process_index=0, deepspeed=None, fsdp=False, save_only_model=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beginning") / "run"
    train(folder)
    append_lines(folder / "rollouts.jsonl", [{"step": step} for step in range(5)])
    return folder


class Killed(BaseException):
    pass


def killed_before(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the change of a folder with this number on, there is no more."""
    changes = itertools.count()

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            if next(changes) >= step:
                raise Killed
            return change(*arguments, **options)

        return changed

    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


def contents(folder: Path) -> set[bytes]:
    """What is in the checkpoints of a folder, set aside or not, and the lines beside them."""
    found = {path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    lines = [path.read_bytes().split(b"\n") for path in folder.glob("*.jsonl")]
    return found.union(*lines)


def check_goes_on(folder: Path, start: Path | None) -> None:
    """`auto` finds a finished run with all its lines, or a checkpoint with those before it."""
    resume = find_resume(make_config(DiftConfig, BASE | {"output_dir": str(folder)}), ARGS)
    steps = [line["step"] for line in metrics(folder)] if (folder / "metrics.jsonl").exists() else []
    if finished_updates(folder / "final") == 4:
        assert steps == [1, 2, 3, 4]
        assert resume == str(folder / "checkpoint-4")
    elif resume is None or Path(resume).parent != folder:
        assert resume == (None if start is None else str(start))
        assert not list(folder.glob("checkpoint-*"))
    else:
        updates = resumed_updates(resume)
        assert steps[:updates] == list(range(1, updates + 1))


def with_rejected(finished: Path, folder: Path, reason: str) -> Path:
    """A copy of a run, which left out the line that is no record."""
    shutil.copytree(finished, folder)
    line = LeftOut("a:2", reason, "no record", "data", 0)
    append_lines(folder / "rejected.jsonl", [line.rejected()])
    for checkpoint in folder.glob("checkpoint-*"):
        write_left_out(checkpoint, [line])
    return folder


def write_records(folder: Path) -> Path:
    """A file of a record of 4DRL, and a line that is none."""
    (folder / "v.mp4").write_text("media are not read")
    data = folder / "data.jsonl"
    data.write_text(record_line("v.mp4") + "no record\n")
    return data


def record_line(clip: str) -> str:
    """A record of 4DRL."""
    record = {"id": "a", "Question": "Where?", "A": "left", "B": "right", "Correct": "A", "video_path": clip}
    return json.dumps(record) + "\n"


def start(values: dict[str, Any]) -> str | None:
    """Check the records and make the folder ready, as a run does; what it goes on from."""
    config = make_config(DiftConfig, BASE | values)
    resume = find_resume(config, ARGS)
    goes_on_from = None if resume is None else Path(resume)
    records, left_out = load_records(config, ARGS, "rl", None, goes_on_from=goes_on_from)
    assert len(records) == len(left_out) == 1
    begin_run(config, ARGS, resume)
    return resume


@pytest.mark.parametrize("then", ["as before", "auto"])
@pytest.mark.parametrize("case", ["earlier", "elsewhere", "anew"])
def test_a_kill_while_a_folder_is_made_ready_loses_nothing(
    finished: Path, tmp_path: Path, case: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {"data": [str(write_records(tmp_path))], "on_bad_record": "skip"}
    other = with_rejected(finished, tmp_path / "other", "of the other run")
    for step in itertools.count():
        folder = with_rejected(finished, tmp_path / str(step) / "run", "of the former run")
        before, settings = contents(folder), (folder / "config.yaml").read_bytes()
        begun = {"earlier": folder, "elsewhere": other}.get(case)
        resume = None if begun is None else str(begun / "checkpoint-2")
        values |= {"output_dir": str(folder), "overwrite_output_dir": case != "earlier"}
        with monkeypatch.context() as killing:
            killed_before(step, killing)
            try:
                start(values | {"resume_from_checkpoint": resume})
            except Killed:
                done = False
            else:
                done = True
        assert before - {settings} <= contents(folder)
        check_goes_on(folder, begun and begun / "checkpoint-2")
        again = {"resume_from_checkpoint": resume} if then == "as before" else {"overwrite_output_dir": False}
        found = start(values | again)
        own = found is not None and Path(found).parent == folder
        assert before - ({settings} if own else set()) <= contents(folder)
        left = {path.name for path in folder.iterdir() if not path.name.startswith(("former-", "."))}
        expected = {"config.yaml", "run.lock", "rejected.jsonl"}
        reasons = "of the former run" if own else "of the other run" if found else "Expecting value"
        assert reasons in (folder / "rejected.jsonl").read_text()
        assert (folder / "rejected.jsonl").read_text().count("\n") == 1
        if own and then == "as before":
            assert [line["step"] for line in metrics(folder)] == [1, 2]
            assert left == expected | {"checkpoint-2", "metrics.jsonl", "rollouts.jsonl"}
        elif not own:
            assert left == expected | ({"start.json"} if found else set())
        if done:
            break
    assert step > 8


def test_rollouts_of_a_former_run_are_not_read_whole(finished: Path, tmp_path: Path) -> None:
    for case in ("earlier", "anew"):
        folder = tmp_path / case
        shutil.copytree(finished, folder)
        rollouts = folder / "rollouts.jsonl"
        append_lines(rollouts, [{"step": step % 5, "text": "a" * 300_000} for step in range(20)])
        size = rollouts.stat().st_size
        resume = {"earlier": str(folder / "checkpoint-2")}.get(case)
        asked = {"output_dir": str(folder), "resume_from_checkpoint": resume}
        config = make_config(DiftConfig, BASE | asked | {"overwrite_output_dir": resume is None})
        tracemalloc.start()
        begin_run(config, ARGS, resume)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < size // 2
        assert (folder / "former-rollouts.jsonl").stat().st_size == size


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > self.step:
            raise Killed


def test_a_run_from_a_checkpoint_of_another_folder_goes_on_from_it_until_its_first_save(
    finished: Path, tmp_path: Path
) -> None:
    folder, first = tmp_path / "run", tmp_path / "first"
    shutil.copytree(finished, first)
    named = {"resume_from_checkpoint": str(first / "checkpoint-2"), "save_steps": 7}
    for attempt in ({}, {"resume_from_checkpoint": "auto"}):  # which is killed too
        with pytest.raises(Killed):
            train(folder, KillAt(3), **named | attempt)
        assert [line["step"] for line in metrics(folder)] == [3]
    assert "resume_from_checkpoint=auto" in refused(folder, **named)
    train(folder)
    expected = [without_times(line) for line in metrics(finished)]
    assert [without_times(line) for line in metrics(folder)] == expected[2:]


def test_a_start_that_is_gone_is_named(finished: Path, tmp_path: Path) -> None:
    folder, first = tmp_path / "run", tmp_path / "first"
    shutil.copytree(finished, first)
    named = str(first / "checkpoint-2")
    asked = {"output_dir": str(folder), "resume_from_checkpoint": named}
    begin_run(make_config(DiftConfig, BASE | asked), ARGS, named)
    (folder / "run.lock").touch()
    shutil.rmtree(first)
    said = refused(folder)
    assert f"{named}, which its run began from, has no config.json" in said


def test_beginning_anew_and_going_on_are_not_asked_for_at_once(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    said = refused(tmp_path / "run", overwrite_output_dir=True)
    assert "overwrite_output_dir=true begins anew, and resume_from_checkpoint=auto goes on" in said


def test_a_final_checkpoint_that_was_cut_off_is_written_again(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    weights = folder / "final" / "model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, size // 2)
    without = tmp_path / "without"
    shutil.copytree(folder, without)
    train(folder)
    assert weights.read_bytes() == (finished / "final" / "model.safetensors").read_bytes()
    assert (folder / "former-final" / "model.safetensors").stat().st_size == size // 2
    for path in without.glob("checkpoint-*"):
        shutil.rmtree(path)
    said = refused(without)
    assert f"final has {size // 2} of the {size} bytes of model.safetensors" in said
    assert "no checkpoint is there to go on from" in said


def test_a_file_that_somebody_has_in_a_final_checkpoint_is_none_of_it(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "final" / "README.md").write_text("a card")
    final = train(folder, max_steps=5)
    assert {"model.safetensors", "config.json"} <= RunState.read(final).files.keys()
    (final / "README.md").write_text("another card")
    assert finished_updates(final) == 5


@pytest.mark.parametrize("former", ['{"where": "a:1", "reason": "of a former run", "line": "x"}\n', None])
def test_what_a_former_run_left_out_is_kept_once_the_next_one_begins(
    tmp_path: Path, former: str | None
) -> None:
    folder, data = tmp_path / "run", write_records(tmp_path)
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    rejected = folder / "rejected.jsonl"
    if former is not None:
        rejected.write_text(former)
    values = {"data": [str(data)], "eval_data": [str(data)], "on_bad_record": "skip"}
    values |= {"output_dir": str(folder), "overwrite_output_dir": True}
    config = make_config(DiftConfig, BASE | values | {"resume_from_checkpoint": None})
    for _ in range(2):  # the first does not begin
        for held_out in (False, True):
            records, left_out = load_records(config, ARGS, "rl", None, held_out=held_out)
            assert len(records) == len(left_out) == 1
        assert (rejected.read_text() if rejected.exists() else None) == former
        assert (folder / "rejected.new.jsonl").read_text().count("no record") == 2
    begin_run(config, ARGS, None)
    kept = folder / "former-rejected.jsonl"
    assert (kept.read_text() if kept.exists() else None) == former
    assert rejected.read_text().count("no record") == 2
    assert not (folder / "rejected.new.jsonl").exists()


@pytest.mark.parametrize("checkpoint", ["checkpoint-4", "former-checkpoint-4"])
def test_what_a_run_left_out_that_did_not_begin_is_no_part_of_the_one_that_goes_on(
    finished: Path, tmp_path: Path, checkpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_rejected(finished, tmp_path / "run", "of the former run")
    if checkpoint.startswith("former-"):
        (folder / "checkpoint-4").rename(folder / checkpoint)
    before = (folder / "rejected.jsonl").read_bytes()
    others = [{"where": "a:1", "reason": "none", "line": line} for line in "xyz"]
    append_lines(folder / "rejected.new.jsonl", others)
    values = {"data": [str(write_records(tmp_path))], "on_bad_record": "skip", "overwrite_output_dir": True}
    start(values | {"output_dir": str(folder), "resume_from_checkpoint": str(folder / checkpoint)})
    assert any("1 records skipped" in line for line in caplog.messages)
    assert (folder / "rejected.jsonl").read_bytes() == before
    assert not (folder / "rejected.new.jsonl").exists()


@pytest.mark.parametrize("case", ["link", "here", "disk", "former"])
def test_a_checkpoint_holds_what_its_run_left_out(
    finished: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is named, wherever it stands, and whatever run has the folder now."""
    folder = with_rejected(finished, tmp_path / "run", "of the former run")
    values = {"data": [str(write_records(tmp_path))], "on_bad_record": "skip", "output_dir": str(folder)}
    checkpoint, named = folder / "checkpoint-4", str(folder / "checkpoint-4")
    if case == "link":
        (tmp_path / "link").symlink_to(checkpoint)
        named = str(tmp_path / "link")
    elif case == "here":
        monkeypatch.chdir(checkpoint)
        named = "."
    elif case == "disk":
        (tmp_path / "disk").mkdir()
        checkpoint.rename(tmp_path / "disk" / "checkpoint-4")
        checkpoint.symlink_to(tmp_path / "disk" / "checkpoint-4")
        values |= {"output_dir": str(tmp_path / "second")}
        start(values | {"resume_from_checkpoint": named})
        named = "auto"  # of the second run, which was killed before it saved anything
    else:
        (folder / "rejected.jsonl").rename(folder / "former-rejected.jsonl")
        checkpoint.rename(folder / "former-checkpoint-4")
        append_lines(folder / "rejected.jsonl", [{"where": "a:9", "reason": "later", "line": "another"}])
        values |= {"overwrite_output_dir": True}
        named = str(folder / "former-checkpoint-4")
    start(values | {"resume_from_checkpoint": named})
    (line,) = (Path(str(values["output_dir"])) / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "of the former run"


@pytest.mark.parametrize("held_out", [False, True])
def test_the_same_line_in_another_file_stays(tmp_path: Path, held_out: bool) -> None:
    """It is of another clip."""
    for name in "ab":
        (tmp_path / name).mkdir()
        write_records(tmp_path / name)
    (tmp_path / "b" / "w.mp4").write_text("whole")
    with (tmp_path / "b" / "data.jsonl").open("a") as file:
        file.write(record_line("w.mp4"))

    class OneIsBroken:
        def media(self, record: Any) -> Finding:
            return Finding("broken" if record.video.endswith("b/v.mp4") else None)

    name = "eval_data" if held_out else "data"
    asked = {"output_dir": str(tmp_path / "run"), name: [str(tmp_path / f / "data.jsonl") for f in "ab"]}
    config = make_config(DiftConfig, BASE | asked | {"on_bad_record": "skip", "resume_from_checkpoint": None})
    checks: Any = OneIsBroken()
    first, left_out = load_records(config, ARGS, "rl", checks, held_out=held_out)
    assert [(line.file, line.where[-1]) for line in left_out] == [(0, "2"), (1, "2"), (1, "1")]
    (tmp_path / "checkpoint").mkdir()
    write_left_out(tmp_path / "checkpoint", left_out)
    goes_on: Any = {"goes_on_from": tmp_path / "checkpoint", "held_out": held_out}
    assert load_records(config, ARGS, "rl", checks, **goes_on) == (first, left_out)


@pytest.mark.parametrize("line", ["5", "[]", '{"line": ["a"]}', "no JSON", '{"where": 1}'])
def test_lines_left_out_that_cannot_be_read_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "left_out.jsonl").write_text(line + "\n")
    with pytest.raises(CheckpointError, match=r"left_out\.jsonl: the lines that were left out") as error:
        read_left_out(tmp_path)
    assert "\n" not in str(error.value)
