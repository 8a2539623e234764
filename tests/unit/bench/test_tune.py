"""Tuning of launch settings, with a timer that knows how long each setting takes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

from bench import __main__ as command
from bench import _kernel_tune as tuner
from bench._kernel_data import Case
from fourdthinker.kernels import _gpu_architectures as gpus

ARCH = 999


@pytest.fixture(autouse=True)
def tuned(monkeypatch):
    monkeypatch.setattr(gpus, "TUNED", {})


def case(cost, *ops, alike=False):
    """Takes the rows of ``ops`` from the table, and as long as ``cost`` says."""
    return Case(
        "op", "size", "mode",
        {"ours": lambda: torch.tensor(float(sum(cost(gpus.row(op, ARCH)) for op in ops)))}, alike=alike,
    )  # fmt: skip


def timed(calls):
    taken = {name: float(call()) for name, call in calls.items()}
    return {name: [seconds, seconds * 1.01, seconds * 0.99] for name, seconds in taken.items()}


def unkept(rows):
    """Nothing is written."""


def test_the_fastest_setting_is_found_and_the_others_stay():
    one = case(lambda row: {2: 5.0, 4: 3.0, 8: 1.0}[row.num_warps] + (row.block == 512), "silu_mul")
    rows = tuner.tune([one], ARCH, timed, unkept)
    assert rows == {"silu_mul": replace(gpus.DEFAULT["silu_mul"], num_warps=8)}
    assert gpus.TUNED[ARCH] == {}  # measured, not yet in use


def test_a_small_gain_is_not_taken():
    one = case(lambda row: 1.0 - 0.001 * row.num_warps, "silu_mul")
    assert tuner.tune([one], ARCH, timed, unkept) == {}


def test_a_kernel_is_judged_by_all_cases_that_launch_it():
    more = case(lambda row: 1 / row.num_warps, "silu_mul")
    fewer = case(lambda row: row.num_warps**2, "silu_mul")  # loses twice what it gains
    assert tuner.tune([more], ARCH, timed, unkept)["silu_mul"].num_warps == 8
    assert tuner.tune([more, fewer], ARCH, timed, unkept)["silu_mul"].num_warps == 2


def test_kernels_of_one_case_are_tuned_one_after_another():
    two = case(lambda row: 1 / row.num_warps, "silu_mul", "logits_grad")
    rows = tuner.tune([two], ARCH, timed, unkept)
    assert {op: row.num_warps for op, row in rows.items()} == {"silu_mul": 8, "logits_grad": 16}


def test_what_is_found_is_written_after_each_kernel(tmp_path):
    """Also into a file of one's own, which begins as that of the package."""
    path, seen = tmp_path / "new" / "tuned.json", []

    def keep(rows):
        tuner.write(path, ARCH, rows)
        seen.append(dict(gpus.read_tuned(path)[ARCH]))

    two = case(lambda row: 1 / row.num_warps, "silu_mul", "logits_grad")
    tuner.tune([two], ARCH, timed, keep)
    assert [set(rows) for rows in seen] == [{"silu_mul"}, {"silu_mul", "logits_grad"}]
    assert set(json.loads(path.read_text())) == {*json.loads(gpus.TUNED_FILE.read_text()), str(ARCH)}


def test_settings_that_fail_or_give_another_loss_are_left_out(caplog):
    def cost(row):
        if row.num_warps == 8:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 if row.num_warps == 4 else 0.5

    with caplog.at_level(logging.INFO):
        assert tuner.tune([case(cost, "silu_mul", alike=True)], ARCH, timed, unkept) == {}
    assert "out of resource" in caplog.text
    assert "gives 0.5 instead of 1.0" in caplog.text


def test_the_block_that_decides_ids_is_not_tried():
    assert {launch.block for launch in tuner.neighbours("sample_scan", gpus.DEFAULT["sample_scan"])} == {8192}
    blocks = {launch.block for launch in tuner.neighbours("silu_mul", gpus.DEFAULT["silu_mul"])}
    assert blocks == {512, 1024, 2048}
    assert gpus.DEFAULT["silu_mul"] in tuner.neighbours("silu_mul", gpus.DEFAULT["silu_mul"])


def test_rows_are_written_for_one_gpu_and_read_again(tmp_path):
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"80": {"silu_mul": {"num_warps": 2, "block": 512}}, "90": {}}))
    row = gpus.Launch(num_warps=16, block=2048)
    tuner.write(path, 90, {"silu_mul": row})
    assert gpus.read_tuned(path) == {
        80: {"silu_mul": gpus.Launch(num_warps=2, block=512)}, 90: {"silu_mul": row},
    }  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["tuned.json"]


def test_measured_rows_come_first(monkeypatch):
    row = gpus.Launch(num_warps=1, block=64)
    monkeypatch.setitem(gpus.TUNED, 90, {"silu_mul": row, "prefix_decode_prompt": row})
    assert gpus.row("silu_mul", 90) == gpus.row("prefix_decode_prompt", 90) == row
    assert gpus.row("silu_mul", 80) == gpus.row("silu_mul", None) == gpus.DEFAULT["silu_mul"]


def test_rows_in_the_file_are_of_known_kernels():
    for rows in gpus.read_tuned(gpus.TUNED_FILE).values():
        assert set(rows) <= set(gpus.DEFAULT)


def test_without_a_gpu_tuning_is_refused(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = gpus.TUNED_FILE.read_text()
    assert command.run(["kernels", "--tune"]) == 2
    assert "--tune measures launch settings, and this machine has no GPU" in caplog.text
    assert gpus.TUNED_FILE.read_text() == before
