"""DIFT as users start it: torchrun, real videos, kill and resume, the feature cache."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdthinker.backbones import load_checkpoint
from fourdthinker.records import read_records
from fourdthinker.settings import make_config
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.settings import DiftConfig
from fourdthinker.trainers.settings_files import load_config
from fourdthinker.trainers.vision_cache import VisionCache
from tests.e2e.training import (
    evaluated,
    evaluations,
    finish,
    kill,
    killed,
    metrics,
    settings,
    torchrun,
    write_data,
    write_model,
)

MODULE = ("-m", "fourdthinker.trainers.dift")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a run on six tiny videos."""
    folder = tmp_path_factory.mktemp("dift")
    data, _ = write_data(folder / "data", 6)
    return {
        "model": str(write_model(folder / "model")),
        "data": str(data),
        "use_cpu": True,
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_steps": 3,
    }


def test_two_processes(base: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    held_out, _ = write_data(tmp_path / "held_out", 5)  # of the last two only one, and the other rank none
    evaluation = {"eval_data": str(held_out), "eval_steps": 2, "per_device_eval_batch_size": 2}
    extra = {"output_dir": str(run), "max_steps": 3, "dataloader_num_workers": 1} | evaluation
    output = finish(torchrun(2, *MODULE, *settings(base | extra)))
    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["ce"] > 0 and 0 < line["cosine"] < 2 for line in lines)
    assert lines[0]["loss"] == pytest.approx(0.1 * lines[0]["ce"] + lines[0]["cosine"], rel=1e-4)
    assert load_config(DiftConfig, run / "config.yaml").max_steps == 3
    assert list((run / "runs").glob("*/events.out.tfevents.*"))
    trained, before = load_checkpoint(run / "final"), load_checkpoint(base["model"])
    assert trained.policy == before.policy
    old, new = before.backbone.state_dict(), trained.backbone.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert not any("visual" in name for name in changed), "the tower is frozen"

    found = evaluations(run)
    assert list(found) == [2, 3]
    best = min(found, key=lambda step: found[step]["eval_loss"])
    assert f"the best checkpoint is {run}/checkpoint-{best}: eval_loss" in output
    load_checkpoint(run / f"checkpoint-{best}")
    # One process says the same of the same weights.
    unmoved = {"model": str(run / "final"), "learning_rate": 0.0, "max_steps": 1, "save_steps": 0}
    unmoved |= {"output_dir": str(tmp_path / "alone"), "per_device_eval_batch_size": 3}
    train_dift(make_config(DiftConfig, base | evaluation | unmoved))
    there, here = evaluated(found[3]), evaluated(evaluations(tmp_path / "alone")[1])
    for line in (there, here):
        line.pop("eval_latent_direction")  # a mean over batches, which are others
    assert there == pytest.approx(here, rel=1e-5)


def test_killed_and_resumed_run_has_the_losses_of_an_unbroken_one(
    base: dict[str, Any], tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    unbroken = torchrun(1, *MODULE, *settings(base | {"output_dir": str(whole)}))
    config = base | {"output_dir": str(broken), "resume_from_checkpoint": "auto"}
    killed(1, "dift", 5, *settings(config))
    assert {path.name for path in broken.glob("checkpoint-*")} == {"checkpoint-3"}
    (broken / "checkpoint-7").mkdir(exist_ok=True)  # as a save that was cut off leaves it
    finish(unbroken)
    finish(torchrun(1, *MODULE, *settings(config)))

    expected, got = metrics(whole), metrics(broken)
    assert [line["step"] for line in got] == [line["step"] for line in expected] == list(range(1, 9))
    for a, b in zip(expected, got, strict=True):
        same = ("loss", "grad_norm", "learning_rate", "ce", "cosine", "epoch")
        assert {k: a[k] for k in same} == {k: b[k] for k in same}
    a, b = (load_checkpoint(run / "final").backbone.state_dict() for run in (whole, broken))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_processes_on_the_cpu_go_on(base: dict[str, Any], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    two = base | {"max_steps": 4, "save_steps": 2, "gradient_accumulation_steps": 1}
    config = two | {"output_dir": str(broken), "resume_from_checkpoint": "auto"}
    killed(2, "dift", 3, *settings(config))
    finish(torchrun(2, *MODULE, *settings(config)))
    finish(torchrun(2, *MODULE, *settings(two | {"output_dir": str(whole)})))
    expected, got = metrics(whole), metrics(broken)
    assert [line["step"] for line in got] == [1, 2, 3, 4]
    assert [line["loss"] for line in got] == [line["loss"] for line in expected]


def test_a_silent_process_ends_the_run_after_ddp_timeout(base: dict[str, Any], tmp_path: Path) -> None:
    config = base | {"output_dir": str(tmp_path / "run"), "ddp_timeout": 10}
    process = torchrun(2, str(Path(__file__).with_name("silent_worker.py")), *settings(config))
    try:
        output, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    assert process.returncode != 0
    assert "error (rank 0): rank 1 in 'step 1: optimizer step' does not answer" in output, output[-4000:]
    assert "Rank 0 has been in 'step 2: " in output


def contents(run: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a run: when it was written, and what is in it."""
    files = [path for path in run.rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_finished_run_that_is_resumed_changes_nothing(
    base: dict[str, Any], tmp_path: Path, schedule: str
) -> None:
    # The schedule matters: with a constant one an update too many would change the weights.
    run = tmp_path / "run"
    config = base | {"output_dir": str(run), "resume_from_checkpoint": "auto", "lr_scheduler_type": schedule}
    config |= {"max_steps": 5, "save_steps": 2}
    final = train_dift(make_config(DiftConfig, config))
    before = contents(run)
    assert train_dift(make_config(DiftConfig, config)) == final
    after = contents(run)
    assert after.keys() == before.keys()
    written = [name for name in before if after[name] != before[name]]
    assert all(name == "rejected.jsonl" for name in written), written

    # Killed between its last checkpoint and the final one: the weights of the checkpoint are the final ones.
    config |= {"max_steps": 4, "output_dir": str(tmp_path / "other")}
    final = train_dift(make_config(DiftConfig, config))
    expected, lines = load_checkpoint(final).backbone.state_dict(), metrics(tmp_path / "other")
    shutil.rmtree(final)
    train_dift(make_config(DiftConfig, config))
    got = load_checkpoint(final).backbone.state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert metrics(tmp_path / "other") == lines

    # More updates than it was made with: it goes on.
    train_dift(make_config(DiftConfig, config | {"max_steps": 6}))
    assert [line["step"] for line in metrics(tmp_path / "other")][-1] == 6


def test_log_lines_do_not_depend_on_where_a_run_was_resumed(base: dict[str, Any], tmp_path: Path) -> None:
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    config = base | {"save_steps": 4, "logging_steps": 3}
    train_dift(make_config(DiftConfig, config | {"output_dir": str(whole)}))
    resume = {"output_dir": str(rest), "resume_from_checkpoint": str(whole / "checkpoint-4")}
    train_dift(make_config(DiftConfig, config | resume))
    expected = [line for line in metrics(whole) if line["step"] > 4]
    assert [line["step"] for line in expected] == [6, 8]
    for a, b in zip(expected, metrics(rest), strict=True):
        assert {k: a[k] for k in ("step", "loss", "ce", "cosine")} == {
            k: b[k] for k in ("step", "loss", "ce", "cosine")
        }


def test_cached_features_train_like_the_pictures(base: dict[str, Any], tmp_path: Path) -> None:
    runs = {}
    cache = {"cache_dir": str(tmp_path / "cache"), "cache_video": True}
    for name, extra in {"pictures": {}, "cached": cache, "again": cache}.items():
        config = base | extra | {"output_dir": str(tmp_path / name), "max_steps": 3, "save_steps": 0}
        train_dift(make_config(DiftConfig, config))
        runs[name] = [line["loss"] for line in metrics(tmp_path / name)]
        files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
        if name == "cached":
            made = files
            assert len(files) == 12
    assert files == made, "nothing is computed twice"
    assert runs["cached"] == pytest.approx(runs["pictures"], rel=1e-4)
    assert runs["again"] == runs["cached"]


def test_ranks_divide_the_cache_alike_whatever_is_there_already(base: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = load_checkpoint(base["model"])
    records = read_records(base["data"])
    cache = VisionCache(tmp_path, checkpoint.backbone, checkpoint.encoder(), clips=True, imagery=True)
    # The second rank is done before the first one looks.
    made = [cache.fill(checkpoint.backbone, records, rank=rank, world_size=2) for rank in (1, 0)]
    assert made == [6, 6]
    for record in records:
        assert cache.sample(record).latents is not None


def test_a_changed_file_is_encoded_again(base: dict[str, Any], tmp_path: Path) -> None:
    data, _ = write_data(tmp_path / "data", 2)
    config = base | {"data": str(data), "cache_dir": str(tmp_path / "cache"), "max_steps": 1, "save_steps": 0}
    train_dift(make_config(DiftConfig, config | {"output_dir": str(tmp_path / "a")}))
    before = len(list((tmp_path / "cache").rglob("*.safetensors")))
    overlay = tmp_path / "data" / "0_0.png"
    overlay.write_bytes((tmp_path / "data" / "1_0.png").read_bytes() + b" ")
    train_dift(make_config(DiftConfig, config | {"output_dir": str(tmp_path / "b")}))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == before + 1


def test_open_tower_is_trained(base: dict[str, Any], tmp_path: Path) -> None:
    config = base | {"output_dir": str(tmp_path / "run"), "max_steps": 1, "freeze_vision": False}
    final = train_dift(make_config(DiftConfig, config | {"save_steps": 0}))
    old = load_checkpoint(base["model"]).backbone.visual.state_dict()
    new = load_checkpoint(final).backbone.visual.state_dict()
    assert any(not torch.equal(old[name], new[name]) for name in old)


def test_skipped_records_are_written_down(base: dict[str, Any], tmp_path: Path) -> None:
    data = Path(base["data"])
    bad = data.with_name("bad.jsonl")
    bad.write_text(data.read_text() + '{"id": "x", "nonsense": 1}\n')
    run = tmp_path / "run"
    config = base | {"data": str(bad), "on_bad_record": "skip", "max_steps": 1, "save_steps": 0}
    train_dift(make_config(DiftConfig, config | {"output_dir": str(run)}))
    (rejected,) = (run / "rejected.jsonl").read_text().splitlines()
    assert "bad.jsonl:7" in json.dumps(json.loads(rejected))
