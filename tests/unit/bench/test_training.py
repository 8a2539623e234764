"""What the bench of training steps does on a tiny model: the same work for both, and what is kept."""

from __future__ import annotations

import argparse

import pytest
import torch

from bench import _training_trl as trl
from bench import training
from bench._training_cases import Case, make_task

TINY = [
    "--shape",
    "mini",
    "--prompt-tokens",
    "40",
    "--completions",
    "2",
    "--new-tokens",
    "2",
    "--prompts",
    "1",
]


def test_the_dift_losses_must_be_the_same(monkeypatch):
    monkeypatch.setattr(training, "ANSWER", 20)
    monkeypatch.setattr(
        training.dift, "plain_objective", lambda *_: (torch.ones((), requires_grad=True), None)
    )
    with pytest.raises(RuntimeError, match="not the same work"):
        training.race_dift(training.parse(TINY))


def test_pictures_take_as_many_tokens_as_the_clip():
    backbone = training.make_backbone(argparse.Namespace(shape="mini", device="cpu"))
    task = make_task(backbone, Case(250, 2, 2, 1))
    pictures = trl.as_pictures(task, 0)
    assert pictures["input_ids"].numel() == task.prompts[0].input_ids.numel() == 250
    patches, merged = pictures["image_grid_thw"].prod(1).sum(), pictures["mm_token_type_ids"].sum()
    assert patches == pictures["pixel_values"].shape[0] == 4 * merged
    assert merged == (task.prompts[0].input_ids == 151_656).sum()


def test_trl_is_named_with_its_remedy_where_it_is_absent(monkeypatch):
    monkeypatch.setattr(trl, "NEEDS", ("trl_that_is_not", "json"))
    assert trl.absent() == "trl_that_is_not not installed: pip install 'fourdthinker[bench]'"


def test_a_step_keeps_memory_for_prompt_and_completions_once(monkeypatch):
    """P + G * C positions: neither G * (P + C), nor anything that grows faster."""
    monkeypatch.setattr(training, "GROWTH", ("completions",))
    rows = training.measure_growth(training.parse(TINY))
    sizes = [row["kept_bytes_a_position"] for row in rows]
    assert len({row["positions"] for row in rows}) == 3
    assert max(sizes) < 1.1 * min(sizes)


def test_parts_add_up_to_what_is_kept():
    rows = {row["part"]: row["MB"] for row in training.list_parts(training.parse(TINY))}
    kinds = [size for part, size in rows.items() if part.startswith("kept by")]
    assert len(kinds) == 4
    assert sum(kinds) == pytest.approx(rows["kept for backward"], abs=0.3)
    assert rows["whole peak"] > rows["weights"] + rows["AdamW's state"] + rows["kept for backward"]


def test_quick_leaves_out_what_takes_long():
    quick, full = training.parse(["--quick"]), training.parse([])
    assert len(full.cases) == 9
    assert all(case.prompt_tokens * case.completions <= 8_000 for case in quick.cases)
    assert {case.prompt_tokens for case in quick.cases} == {250, 1000}
