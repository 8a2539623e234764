"""What the bench of training steps does on a tiny model: the same work for both, and what is kept."""

from __future__ import annotations

import argparse

import pytest
import torch

from bench import _measure as measure
from bench import _training_trl as trl
from bench import training
from bench._training_cases import Case, make_task
from bench._training_parts import AtPeak, Kept

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


def test_a_peer_alone_that_is_absent_is_an_error_of_one_line(monkeypatch, capsys):
    monkeypatch.setattr(trl, "NEEDS", ("trl_that_is_not",))
    with pytest.raises(SystemExit):
        training.main([*TINY, "--only", "grpo", "--candidates", "fair"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("trl_that_is_not not installed: pip install 'fourdthinker[bench]'")
    assert training.race_all(training.parse([*TINY, "--candidates", "fair"])) == []


def test_trl_is_given_the_attention_of_transformers():
    backbone = training.make_backbone(argparse.Namespace(shape="mini", device="cpu"))
    model = trl.as_shipped(backbone)
    parts = (model.config, model.model.visual.config, model.model.language_model.config)
    assert [part._attn_implementation for part in parts] == ["sdpa"] * 3


def test_a_step_keeps_memory_for_prompt_and_completions_once(monkeypatch):
    """P + G * C positions: neither G * (P + C), nor anything that grows faster."""
    monkeypatch.setattr(training, "GROWTH", ("completions",))
    monkeypatch.setattr(training, "GROWTH_STEPS", 1)
    rows = training.measure_growth(training.parse(TINY))
    sizes = [row["kept_bytes_a_position"] for row in rows]
    assert len({row["positions"] for row in rows}) == 3
    assert max(sizes) < 1.1 * min(sizes)


def test_sizes_take_turns_and_the_fastest_step_counts(monkeypatch):
    taken, seconds = [], iter([9.0, 8.0, 7.0, 3.0, 1.0, 2.0, 6.0, 2.5, 4.0, 5.0, 3.5, 1.5])

    class Step(Rival):
        def __init__(self, backbone, task, case, folder):
            self.size = case.completions

        def __call__(self):
            taken.append(self.size)
            self.seconds = {"loss": next(seconds)}

    monkeypatch.setattr(training, "OurStep", Step)
    monkeypatch.setattr(training, "GROWTH", ("completions",))
    rows = training.measure_growth(training.parse(TINY))
    small, middle, large = (row["completions"] for row in rows)
    assert taken[3:] == [small, middle, large, large, middle, small, small, middle, large]
    assert [row["loss_s"] for row in rows] == [3.0, 1.0, 1.5]
    assert rows[0]["ms_a_position"] == 3e3 / rows[0]["positions"]


@pytest.mark.parametrize(
    ("completions", "tokens", "gradients", "chunk"), [(2, 2, 2, 0), (8, 10, 1, 80)], ids=["backward", "head"]
)
def test_parts_are_those_of_the_worst_moment(completions, tokens, gradients, chunk):
    """The end of the backward pass, with gradients of embedding and head, or the last chunk of logits."""
    words = ["--completions", str(completions), "--new-tokens", str(tokens)]
    rows = {row["part"]: row["MB"] for row in training.list_parts(training.parse([*TINY, *words]))}
    backbone = training.make_backbone(argparse.Namespace(shape="mini", device="cpu"))
    head = backbone.hf.get_output_embeddings().weight
    assert rows["gradients of head and embedding"] == pytest.approx(gradients * head.nbytes / 1e6, abs=0.1)
    logits = chunk * head.shape[0] * 4 / 1e6
    assert logits <= rows.get("logits of a chunk", 0) < 1.2 * logits + 0.1
    assert ("kept by MLPs" in rows) is (chunk > 0)
    whole = rows.pop("whole peak")
    assert abs(rows["within operators"]) < 0.01 * whole
    assert rows["rest"] < 0.01 * whole
    assert sum(rows.values()) == pytest.approx(whole, abs=0.05 * len(rows) + 0.1)


def test_a_number_of_a_storage_that_is_gone_tells_nothing_of_the_next():
    backbone = training.make_backbone(argparse.Namespace(shape="mini", device="cpu"))
    shape = backbone.hf.get_output_embeddings().weight.shape
    with Kept(backbone) as kept, AtPeak(backbone, kept) as live:
        torch.empty(shape)
        logits = torch.empty(400, shape[0])
        held = torch.empty(100)
    assert live.parts == {"logits of a chunk": logits.nbytes, "rest": held.nbytes}


CLOCK = {"last": 0.0}


class Rival:
    """A candidate of the race whose steps take ``seconds``, one after the other; without a peak, too much."""

    def __init__(self, checkpointing, seconds, peak):
        self.trainer = argparse.Namespace(args=argparse.Namespace(gradient_checkpointing=checkpointing))
        self.left, self.peak, self.seconds = list(seconds), peak, {}

    def __call__(self):
        CLOCK["last"] = self.left.pop(0)
        self.seconds = {"loss": CLOCK["last"]}

    def peak_bytes(self):
        if self.peak is None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return self.peak

    def kept_bytes(self):
        return 1


@pytest.fixture
def race(tmp_path, monkeypatch):
    """Runs ``bench training --only grpo`` with candidates that measure nothing; says which were raced."""
    raced = []

    def steps(options, case, folder):
        raced.append(case.completions)
        return {
            "ours": Rival(False, (1.0, 2.0, 9.0, 2.0), 10),
            "TRL, fair": Rival(False, (8.0, 1.0, 8.0, 8.0), None if case.completions == 4 else 40),
            "TRL, fair, gradient checkpointing": Rival(True, [9.0] * 4, 20),
        }

    def timed(call):
        call()
        return CLOCK["last"]

    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(measure, "_seconds", timed)
    monkeypatch.setattr(measure, "revision", lambda: "abc")
    monkeypatch.setattr(training, "grpo_steps", steps)
    monkeypatch.setattr(trl, "absent", lambda: None)

    def run(*words):
        raced.clear()
        given = ["--only", "grpo", "--prompt-tokens", "40", "--new-tokens", "2", "--save", "--candidates"]
        training.main([*given, "ours", "fair", "fair-checkpointing", *words])
        return list(raced)

    return run


def saved_rows():
    return {(row["candidate"], row["completions"]): row for row in measure.saved("training grpo")}


def test_ratios_of_the_race_are_of_medians(race):
    race("--completions", "2")
    rows = saved_rows()
    assert rows["TRL, fair", 2]["slower"] == 8.0 / 2.0
    assert rows["TRL, fair", 2]["loss_s"] == 8.0
    assert [row["recomputed"] for row in rows.values()] == [False, False, True]
    assert rows["TRL, fair, gradient checkpointing", 2]["ours_to_its_peak"] == 0.5


def test_a_case_is_saved_when_it_is_done_and_not_run_again(race, monkeypatch):
    assert race("--completions", "2") == [2]
    assert race("--completions", "2", "4") == [4]
    assert {completions for _, completions in saved_rows()} == {2, 4}
    assert race("--completions", "2", "--repeats", "4") == [2]  # more runs than there are
    monkeypatch.setattr(measure, "revision", lambda: "abd")
    assert race("--completions", "4") == [4]
    monkeypatch.setattr(measure, "revision", lambda: "abd+")  # whatever that is
    assert race("--completions", "4") == [4]


def test_who_needs_more_memory_than_there_is_is_named(race):
    race("--completions", "4")
    rows = saved_rows()
    assert rows["TRL, fair", 4]["absent"].startswith("DefaultCPUAllocator: can't allocate memory")
    assert rows["TRL, fair, gradient checkpointing", 4]["slower"] == 9.0 / 2.0


def test_memory_beyond_what_is_free_is_refused():
    with measure.bounded_memory(share=0.0), pytest.raises(RuntimeError, match="memory"):
        torch.empty(1 << 34, dtype=torch.uint8)
    torch.empty(1 << 28, dtype=torch.uint8)


def test_what_is_saved_is_a_median_of_three(capsys):
    assert training.parse(["--save"]).repeats == 3
    for words in (["--quick"], ["--repeats", "2"]):
        with pytest.raises(SystemExit):
            training.parse([*words, "--save"])
        assert "medians of at least 3 runs" in capsys.readouterr().err


def test_quick_leaves_out_what_takes_long():
    quick, full = training.parse(["--quick"]), training.parse([])
    assert len(full.cases) == 9
    assert all(case.prompt_tokens * case.completions <= 8_000 for case in quick.cases)
    assert {case.prompt_tokens for case in quick.cases} == {250, 1000}
