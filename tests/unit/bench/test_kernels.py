"""The kernels bench runs from end to end on tiny sizes, compares losses and judges its promises."""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import re
import subprocess
import sys
import time

import pytest
import torch

from bench import __main__ as command
from bench import _kernel_cases, _kernel_errors, kernels
from bench import _kernel_peers as peers
from bench import _measure as measure
from bench._kernel_cases import FAMILIES
from bench._kernel_data import SIZES, Case


@pytest.fixture
def results(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    yield tmp_path / "results"
    torch.set_num_threads(threads)


def test_quick_figures_take_no_others_place(monkeypatch):
    def few(families, device, repeats, fastest, keep):
        keep([])
        return []

    names = []
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(kernels, "rates", lambda *_: {"copy": 1.0, "matmul": 1.0})
    monkeypatch.setattr(kernels, "run_families", few)
    monkeypatch.setattr(measure, "save", lambda name, *_: names.append(name))
    for words in (["--quick"], [], ["--quick", "--size", "tiny"]):
        kernels.main([*words, "--threads", "1", "--save"])
    assert names == ["kernels quick", "kernels", "kernels tiny"]


def test_a_run_times_compares_and_saves(results, capsys):
    assert (
        command.run(["kernels", "--size", "tiny", "--quick", "--repeats", "2", "--threads", "1", "--save"])
        == 0
    )
    (path,) = results.iterdir()
    saved = json.loads(path.read_text())["kernels tiny"]
    assert saved["versions"]["torch"] == torch.__version__
    rows = [row for row in saved["rows"] if "seconds" in row]
    ops = {row["op"] for row in rows if row["candidate"] == "ours"}
    assert ops == {
        "linear_cross_entropy", "linear_grpo_loss", "linear_grpo_loss with entropy", "linear_logprobs",
        "cross_entropy", "grpo_loss",
        "logprobs", "logprobs with entropy", "cosine_latent_loss", "pool_latents", "group_advantages",
        "grpo_token_loss", "sample_tokens", "latent_feedback_step_", "shared_prefix_decode",
    }  # fmt: skip
    for row in rows:
        assert row["seconds"]["runs"] == 2
        assert 0 < row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
        assert row.get("same_loss", True), f"{row['candidate']} of {row['op']} computes another loss"
    heads = [row for row in rows if row["op"].startswith("linear_")]
    hidden, weight = 4 * 2 * 8 * 16, 4 * 512 * 16
    for row in heads:
        if row["candidate"] == "its matmuls alone":  # in memory that is there before
            assert not {"peak_bytes", "dw_in_peak", "peak_with_inputs_bytes"} & row.keys()
            continue
        gradients = (hidden if "backward" in row["mode"] else 0) + (weight if row["dw_in_peak"] else 0)
        assert row["dw_in_peak"] is ("trained" in row["mode"])
        assert row["peak_bytes"] >= gradients, row
        assert row["peak_with_inputs_bytes"] == row["peak_bytes"] + hidden + weight
    every = {row["candidate"] for row in saved["rows"] if "op" in row}
    assert {"ours", "eager", "eager (TRL)", "torch.compile", "TRL fused head"} <= every
    assert "linear_grpo_loss" in capsys.readouterr().out


def test_the_fused_heads_of_others_are_raced_or_named():
    installed = importlib.util.find_spec("trl") is not None
    cases = [
        case
        for name in ("head", "logprobs", "entropy")
        for case in FAMILIES[name](SIZES["tiny"], "cpu", False)
    ]
    assert len(cases) == 8
    for case in cases:
        assert ("TRL fused head" in case.calls) is installed
        assert ("TRL fused head" in case.absent) is not installed
        assert case.absent["verl fused head"] == "not installed (pip install --no-deps verl), or needs a GPU"


def test_a_peer_that_cannot_be_imported_costs_its_row_alone(results, monkeypatch):
    """As TRL, where a package that it imports is not installed."""

    def broken():
        raise ModuleNotFoundError("No module named 'datasets'")

    monkeypatch.setattr(peers, "trl_logprobs", broken)
    monkeypatch.setattr(peers, "liger_grpo", broken)
    words = ["--size", "tiny", "--quick", "--repeats", "1", "--threads", "1", "--save", "--only"]
    assert command.run(["kernels", *words, "head", "logprobs", "liger"]) == 0
    assert command.run(["kernels", "--errors", "--size", "tiny", "--threads", "1", "--save"]) == 0
    (path,) = results.iterdir()
    saved = json.loads(path.read_text())
    rows = [row for row in saved["kernels tiny"]["rows"] if "op" in row]
    assert len([row for row in rows if row["candidate"] == "ours" and "seconds" in row]) == 6 + 2
    why = "ModuleNotFoundError: No module named 'datasets'"
    for name, count in (("TRL fused head", 6), ("Liger, not compiled", 2)):
        assert [row["absent"] for row in rows if row["candidate"] == name] == [why] * count
    errors = {row["candidate"]: row for row in saved["kernels errors"]["rows"]}
    assert errors["TRL fused head"]["absent"] == why
    assert errors["ours"]["holds"]


def test_a_peer_of_the_loss_with_entropy_computes_it(monkeypatch):
    """As a head of others that hands both back; the loss is ours."""
    asked = []

    def head(x, weight, target):
        logits = (x @ weight.T).float()
        asked.append(peers.eager_entropy(logits.detach()))
        return peers.eager_logprobs(logits, target), asked[-1]

    monkeypatch.setattr(peers, "trl_head_with_entropy", lambda: head)
    for case in FAMILIES["entropy"](SIZES["tiny"], "cpu", False):
        assert list(case.calls) == ["ours", "eager (TRL)", "TRL fused head"]
        losses = [float(call()) for call in case.calls.values()]
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert len(asked) == 2
    assert asked[0].shape == (2, 8)
    assert 0 < float(asked[0].mean()) < 6.24  # at most the logarithm of 512


def test_sizes_of_a_whole_head_on_a_cpu():
    for name, dtype in (("head", torch.float32), ("head-bf16", torch.bfloat16)):
        size = SIZES[name]
        whole = (size.sequences * size.length, size.width, size.vocabulary, size.dtype)
        assert whole == (512, 1_024, 151_668, dtype)


def test_matmuls_alone_are_of_numbers_and_clear_nothing(monkeypatch):
    """Products of zeros are faster, and a fill is no product."""
    made = []
    for name in ("mm", "addmm"):
        real = getattr(torch, name)

        def noted(*operands, real=real, name=name, **options):
            given = operands[-2:]  # of an addmm without what is added to
            made.append((name, min(operand.count_nonzero() / operand.numel() for operand in given)))
            wide = [operand.float() for operand in operands]
            options.pop("out_dtype", None)
            return real(*wide, **options)

        monkeypatch.setattr(torch, name, noted)
    monkeypatch.setattr(_kernel_cases, "chunk_size", lambda *words, **more: 8)
    x, weight = torch.randn(24, 16).bfloat16(), torch.randn(64, 16).bfloat16()
    call = _kernel_cases._matmuls(x, weight, True)
    monkeypatch.setattr(torch, "zeros", None)
    monkeypatch.setattr(torch.Tensor, "zero_", None)
    call()
    call()
    assert [name for name, _ in made] == ["mm", "mm", "mm", *["mm", "mm", "addmm"] * 2] * 2
    assert min(share for _, share in made) > 0.9


def test_bf16_logprobs_are_within_1e_5_of_float64_and_others_errors_stand_beside(results, monkeypatch):
    assert command.run(["kernels", "--errors", "--size", "tiny", "--threads", "1", "--save"]) == 0
    (path,) = results.iterdir()
    saved = json.loads(path.read_text())["kernels errors"]["rows"]
    rows = {row["candidate"]: row for row in saved if "logits" not in row}
    larger = {row["candidate"]: row for row in saved if "logits" in row}
    assert rows.keys() == larger.keys()
    assert rows["ours"]["largest"] < larger["ours"]["largest"] < larger["eager (TRL), bf16 logits"]["largest"]
    assert larger["ours"]["holds"]
    assert rows["ours"]["holds"]
    assert rows["ours"]["largest"] < 1e-5 < rows["eager (TRL), bf16 logits"]["largest"]
    assert "absent" in rows["verl fused head"]
    monkeypatch.setattr(_kernel_errors, "HELD", {1: 0.0})
    assert command.run(["kernels", "--errors", "--size", "tiny", "--threads", "1"]) == 1


def test_two_revisions_are_compared_in_one_run(results, monkeypatch, caplog):
    words = ["kernels", "--size", "tiny", "--quick", "--repeats", "1", "--threads", "1", "--only", "decode"]
    assert command.run([*words, "--base", "HEAD", "--save"]) == 0
    (path,) = results.iterdir()
    saved = json.loads(path.read_text())["kernels tiny against HEAD"]
    by = [row["candidate"] for row in saved["rows"] if "seconds" in row]
    assert by == ["ours", "base"] * (len(by) // 2)
    assert len(by) >= 2 * 6
    assert "base_kernels" in sys.modules["bench._kernel_cases_of_base"].sample_tokens.__module__
    assert command.run([*words, "--base", "no-such"]) == 2
    assert re.search(r"--base no-such: .*name a revision", caplog.text)


def test_peers_that_fail_or_differ_are_named():
    def broken():
        raise RuntimeError("no such kernel")

    one, two = torch.ones(()), torch.full((), 2.0)
    calls = {"ours": lambda: one, "broken": broken, "wrong": lambda: two}
    *_, rows = kernels.run_case(Case("op", "size", "mode", calls, absent={"gone": "why"}), "cpu", 1, {})
    by_name = {row["candidate"]: row for row in rows}
    assert by_name["broken"]["absent"] == "RuntimeError: no such kernel"
    assert by_name["gone"]["absent"] == "why"
    assert by_name["ours"]["same_loss"]
    assert not by_name["wrong"]["same_loss"]
    assert [line["loss"] for line in kernels.table(rows) if "loss" in line] == ["", "differs"]
    (rows,) = kernels.run_case(Case("op", "size", "mode", {"ours": broken}), "cpu", 1, {})
    assert [row["error"] for row in rows] == ["RuntimeError: no such kernel"]
    assert kernels.table(rows)[0]["ms (quartiles)"] == "RuntimeError: no such kernel"


def test_an_op_or_a_family_that_fails_hides_no_other(results, monkeypatch):
    """Peers raise what they like; rows are written after each case, and the exit status tells."""

    def broken():
        raise KeyError("a compiler's own error")

    def family(sizes, device, compiled):
        yield Case("good", "size", "mode", {"ours": lambda: None, "peer": broken})
        yield Case("bad", "size", "mode", {"ours": broken})
        yield Case("last", "size", "mode", {"ours": lambda: None})
        broken()

    monkeypatch.setattr(kernels, "FAMILIES", {"head": family, "small": FAMILIES["small"]})
    monkeypatch.setattr(kernels, "rates", lambda device, dtype: {"copy": 1.0, "matmul": 1.0})
    written = []
    real = measure.save
    monkeypatch.setattr(measure, "save", lambda *words: written.append(len(words[1])) or real(*words))
    words = ["kernels", "--size", "tiny", "--quick", "--repeats", "1", "--threads", "1", "--save"]
    assert command.run([*words, "--only", "head", "small"]) == 1
    (path,) = results.iterdir()
    rows = json.loads(path.read_text())["kernels tiny"]["rows"]
    errors = {row["op"]: row["error"] for row in rows if "error" in row}
    assert set(errors) == {"bad", "head"}
    assert {"good", "last", "pool_latents"} <= {row["op"] for row in rows if "seconds" in row}
    assert [row["absent"] for row in rows if row.get("candidate") == "peer"] == [errors["bad"]]
    assert written[:6] == [2, 3, 4, 5, 5, 6]  # with the rates


def test_a_cut_costs_what_is_not_measured_yet(results, monkeypatch):
    """As in the first call of a loss that torch compiles for half a minute."""

    def cut():
        raise KeyboardInterrupt

    def family(sizes, device, compiled):
        yield Case("done", "size", "mode", {"ours": lambda: None})
        yield Case("begun", "size", "mode", {"ours": lambda: None, "quick": lambda: None, "slow": cut})

    monkeypatch.setattr(kernels, "FAMILIES", {"head": family})
    monkeypatch.setattr(kernels, "rates", lambda device, dtype: {"copy": 1.0, "matmul": 1.0})
    words = ["--size", "tiny", "--repeats", "3", "--threads", "1", "--only", "head", "--save"]
    with pytest.raises(KeyboardInterrupt):
        command.run(["kernels", *words])
    (path,) = results.iterdir()
    rows = json.loads(path.read_text())["kernels tiny"]["rows"][1:]
    runs = [(row["op"], row["candidate"], row["seconds"]["runs"]) for row in rows]
    assert runs == [("done", "ours", 3), ("begun", "ours", 1), ("begun", "quick", 1)]


def test_what_a_peer_compiles_is_behind_all_else():
    assert list(FAMILIES)[-1] == "liger"
    for case in FAMILIES["head"](SIZES["tiny"], "cpu", False):
        assert "Liger, not compiled" not in {*case.calls, *case.absent}
    (trained, frozen) = FAMILIES["liger"](SIZES["tiny"], "cpu", False)
    assert trained.dw
    assert not frozen.dw
    assert "Liger, not compiled" in {*trained.calls, *trained.absent}


@pytest.mark.parametrize(
    ("faster", "slower", "holds"), [(0.0, 1e9, True), (1e9, 1e9, False), (0.0, 0.0, False)]
)
def test_promises_are_judged(faster, slower, holds):
    sizes = {"rows": (2, 20), "width": 8, "vocabularies": (64,), "faster": faster, "slower": slower}
    rows = kernels.must_hold(1, sizes)
    assert [(row["op"], row["head"]) for row in rows] == [
        (op, head) for head in ("trained", "frozen") for op in ("linear_cross_entropy", "linear_grpo_loss")
    ]
    assert all(row["holds"] is holds for row in rows)
    assert {line["holds"] for line in kernels.must_hold_table(rows)} == {"yes" if holds else "NO"}


def test_a_broken_promise_is_the_exit_status(results, monkeypatch):
    monkeypatch.setattr(kernels, "must_hold", lambda repeats, sizes: [])
    assert kernels.main(["--must-hold"]) == 0
    row = dict.fromkeys(("eager", "ours", "masked"), measure.summary([1.0])) | {
        "op": "op", "vocabulary": 1, "head": "frozen", "over_eager": 2.0, "masked_faster": 1.0,
        "holds": False,
    }  # fmt: skip
    monkeypatch.setattr(kernels, "must_hold", lambda repeats, sizes: [row])
    assert kernels.main(["--must-hold"]) == 1
    assert not results.exists()


def test_names_and_unknown_names(caplog):
    assert {"kernels", "resize"} <= set(command.names())
    assert not [name for name in command.names() if name.startswith(("_", "test"))]
    with caplog.at_level(logging.INFO):
        assert command.run([]) == 0
        assert command.run(["nothing"]) == 2
    assert "there are: " in caplog.text
    assert "kernels" in caplog.text


def test_peak_memory_and_order():
    assert measure.peak_allocated(lambda: torch.ones(1000, 1000)) == 4_000_000
    former: list[object] = [torch.ones(1000, 1000)]
    former.append(former)  # garbage that the collector alone finds
    del former
    assert measure.peak_allocated(lambda: (torch.ones(1000, 1000), gc.collect())[0]) == 4_000_000
    assert 35e6 < measure.peak_rss(lambda: torch.ones(10_000_000)) < 60e6
    order: list[str] = []
    taken = measure.interleaved({n: lambda n=n: order.append(n) for n in "abc"}, repeats=3, warmup=1)
    assert "".join(order) == "abcabcbcacab"
    assert [len(v) for v in taken.values()] == [3, 3, 3]


class Recorder:
    """Stands in for torch.cuda's events and for the memory that is filled."""

    def __init__(self, said):
        self.said = said

    def __getattr__(self, name):
        return lambda *_: self.said.append(name) or 1.0


def test_on_a_gpu_a_call_finds_the_cache_clean_and_the_clocks_up(monkeypatch):
    """The zeros that clear the cache are written back before the clock starts; short calls are warmed."""
    said = []
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: Recorder(said))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Recorder(said))
    measure._cuda_seconds(lambda: said.append("call"))
    fills = ["zero_"] * 4
    assert said == [*fills, "amax", "record", "call", "record", "synchronize", "elapsed_time"]
    said.clear()
    monkeypatch.setattr(measure, "_cuda_seconds", lambda call: time.sleep(0.002) or call())
    measure.interleaved({"": lambda: said.append("call")}, repeats=3, device="cuda")
    assert len(said) > 10
    said.clear()
    measure.interleaved({"": lambda: said.append("call")}, repeats=3, device="cuda", warm_seconds=0)
    assert len(said) == 4


def test_other_benches_of_the_day_stay_in_the_file(results):
    measure.save("one", [{"a": 1}], "my device")
    path = measure.save("two", [{"b": 2}], "my device")
    saved = json.loads(path.read_text())
    assert path.name.endswith("-my-device.json")
    assert saved["one"]["rows"] == [{"revision": measure.revision(), "a": 1}]
    assert saved["two"]["rows"] == [{"revision": measure.revision(), "b": 2}]
    assert {"torch", "trl", "verl"} <= saved["one"]["versions"].keys()


def test_a_row_keeps_the_revision_that_it_was_measured_at(results, monkeypatch):
    monkeypatch.setattr(measure, "revision", lambda: "older")
    measure.save("one", [{"a": 1}, {"a": 2}], "my device")
    monkeypatch.setattr(measure, "revision", lambda: "newer")
    path = measure.save("one", [{"a": 2}], "my device", replacing=("a",))
    assert json.loads(path.read_text())["one"]["rows"] == [
        {"revision": "older", "a": 1}, {"revision": "newer", "a": 2}
    ]  # fmt: skip


def test_the_revision_is_that_of_what_is_measured(tmp_path, monkeypatch):
    """Neither a commit of results nor one of a page makes figures look older than the code."""

    def git(*words):
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *name, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(measure, "__file__", str(tmp_path / "bench" / "_measure.py"))
    assert measure.revision.__wrapped__() == "unknown"
    git("init", "-q")
    for folder in ("bench/results", "csrc", "fourdthinker", "kernels"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a").write_text("1")
    git("add", "-A")
    git("commit", "-qm", "code")
    code = git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "bench/results/a").write_text("2")
    (tmp_path / "README.md").write_text("2")
    git("add", "-A")
    git("commit", "-qm", "results")
    (tmp_path / "bench/results/a").write_text("3")
    assert measure.revision.__wrapped__() == code
    (tmp_path / "kernels/a").write_text("2")
    assert measure.revision.__wrapped__() == code + "+"


def test_sizes_are_those_of_the_device():
    assert SIZES["cuda"].dtype == torch.bfloat16
    assert SIZES["cuda"].vocabulary == 151_936
