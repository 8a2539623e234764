"""Two runs compared: pairing, intervals, the test, the flips, and the command."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console

from fourdthinker.cli import main
from fourdthinker.errors import ConfigError
from fourdthinker.evaluate import AnsweredQuestion, EvalResult, compare, load_result, scoring
from fourdthinker.evaluate.compare import mcnemar
from fourdthinker.evaluate.journal import Journal
from fourdthinker.evaluate.table import comparisons, results_table
from fourdthinker.report.verdict import verdict

OPTIONS = {"A": "left", "B": "right"}


def run(name: str, greedy: str, clips: Sequence[str]) -> EvalResult:
    """One question a letter; the right answer is A."""
    questions = tuple(
        AnsweredQuestion(
            f"q{i}", "t" if i % 2 else "s", clip, OPTIONS, "A", greedy=None if letter == "-" else letter
        )
        for i, (letter, clip) in enumerate(zip(greedy, clips, strict=True))
    )
    return EvalResult(name, questions, 0, True, {"name": name, "n": 0, "greedy": True})


def save(result: EvalResult, folder) -> None:
    with Journal(folder / "answers.jsonl", result.settings) as journal:
        journal.add([replace(result.questions[0], failed="gone")], 1.0)  # tried again below
        journal.add(result.questions, 1.0)


def test_mcnemar_against_sums_by_hand():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(3, 3) == 1.0
    assert 0 < mcnemar(900, 700) < 1e-5


def test_differences_are_paired_and_clustered():
    a, b = run("a", "AABBBB", "xxyyzz"), run("b", "AAAAB-", "xxyyzz")
    found = compare(a, replace(b, questions=b.questions[::-1]))  # whatever the order
    none = [0] * 6
    assert found.greedy == scoring.paired_interval([0, 0, 1, 1, 0, 0], none, list("xxyyzz"))
    assert found.greedy["low"] < scoring.paired_interval([0, 0, 1, 1, 0, 0], none)["low"]  # clips widen it
    assert [f.id for f in found.flips] == ["q2", "q3"]
    assert all(f.gained for f in found.flips)
    assert found.p == mcnemar(2, 0)
    assert found.changed == pytest.approx(3 / 6)
    assert found.sampled is None
    assert found.by_type["t"]["mean"] == pytest.approx(1 / 3)
    assert compare(b, a).greedy["mean"] == pytest.approx(-1 / 3)


def test_videos_that_one_run_lacks_are_said(tmp_path, caplog):
    a, b = run("a", "AABB", "xxyy"), run("b", "AABB", "xxyy")
    lost = replace(b, questions=(replace(b.questions[0], failed="no file"), *b.questions[1:]))
    assert compare(a, lost).failed == (0, 1)
    for result, name in ((a, "a"), (b, "b")):
        with Journal(tmp_path / name / "answers.jsonl", result.settings) as journal:
            journal.add(result.questions, 1.0)
    with Journal(tmp_path / "lost" / "answers.jsonl", lost.settings) as journal:
        journal.add(lost.questions, 1.0)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "could not be asked" not in caplog.text
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "lost")]) == 0
    assert "0 questions of the first run and 1 of the second could not be asked" in caplog.text


def test_other_questions_are_refused():
    a, b = run("a", "AB", "xy"), run("b", "AB", "xy")
    for words, other in (
        ("'q1': only in the first", replace(b, questions=b.questions[:1])),
        ("'q2': only in the second", run("b", "ABA", "xyz")),
        *((f"'q1': another {field}", other_question(b, **{field: value})) for field, value in CHANGED),
        ("'q1': another video", other_question(b, cluster="folder/z")),
        ("'q1': another stretch", other_question(b, shown={"start": 1.0, "end": 2.0})),
    ):
        with pytest.raises(ConfigError, match=rf"answered different questions \(1, first {words}\)"):
            compare(a, other)


CHANGED = (("answer", "B"), ("type", "u"), ("question", "Is it red?"), ("options", {"A": "up", "B": "down"}))


def other_question(result: EvalResult, **changed: object) -> EvalResult:
    return replace(result, questions=(result.questions[0], replace(result.questions[1], **changed)))


def test_the_same_benchmark_in_another_folder_is_compared():
    a, b = (
        run(name, letters, [f"/{name}/videos/{clip}.mp4" for clip in "xxyy"])
        for name, letters in (("a", "AABB"), ("b", "AAAA"))
    )
    assert compare(a, b).greedy == compare(run("a", "AABB", "xxyy"), run("b", "AAAA", "xxyy")).greedy
    apart = ["/b/1/x.mp4", "/b/2/x.mp4", "/b/1/y.mp4", "/b/1/y.mp4"]  # x is two videos there
    for first, second in ((a, run("b", "AAAA", apart)), (run("b", "AAAA", apart), a)):
        with pytest.raises(ConfigError, match="do not show the same video"):
            compare(first, second)


def test_runs_that_are_not_finished_are_refused_by_name(tmp_path, capsys):
    whole = run("whole", "ABAB", "wxyz")
    whole.settings["questions"] = 4
    part = replace(whole, name="part", questions=whole.questions[:2], settings=whole.settings)
    assert compare(whole, whole).questions == 4
    for first, second, words in (
        (whole, part, "second run, 'part', has 2 of 4"),
        (part, part, "first run, 'part', has 2 of 4"),
    ):
        with pytest.raises(ConfigError, match=words):
            compare(first, second)
    for name in ("a", "b"):  # cut to their headers
        with Journal(tmp_path / name / "answers.jsonl", {"name": name, "n": 0, "greedy": True}):
            pass
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "the first run, 'a', has 0 of its questions" in capsys.readouterr().err


def test_runs_without_answers_of_one_kind_are_refused():
    greedy, sampled = run("a", "AB", "xy"), run("b", "AB", "xy")
    questions = tuple(replace(q, answers=("A", "B"), greedy=None) for q in sampled.questions)
    with pytest.raises(ConfigError, match="no answers of one kind"):
        compare(greedy, EvalResult("b", questions, 2, False))
    both = EvalResult("c", tuple(replace(q, greedy="A") for q in questions), 2, True)
    assert compare(greedy, both).greedy["mean"] == 0.5
    assert compare(EvalResult("b", questions, 2, False), both).by_type["s"]["mean"] == 0.0


def test_names_that_look_like_markup(tmp_path, capsys):
    for name, letters in (("[/a]", "AA"), ("[/b]", "AB")):
        result = run(name, letters, "wx")
        questions = tuple(replace(q, type="[/dis]") for q in result.questions)
        save(replace(result, questions=questions), tmp_path / name.strip("[/]"))
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "[/b] less [/a]" in said
    assert "[/dis]" in said


def test_the_command(tmp_path, capsys):
    for name, letters in (("a", "AABB"), ("b", "BAAA")):
        save(run(name, letters, "wxyz"), tmp_path / name)
    assert load_result(tmp_path / "a").questions == run("a", "AABB", "wxyz").questions
    out = tmp_path / "difference.json"
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out), "--flips", "1"]) == 0
    said = capsys.readouterr().out
    assert "2 became right, 1 wrong" in said
    assert "− q0: A -> B, right is A" in said
    assert "q2" not in said
    assert [f["id"] for f in json.loads(out.read_text())["flips"]] == ["q0", "q2", "q3"]


def test_a_single_video_has_no_interval(tmp_path):
    for name, letters in (("a", "AAB"), ("b", "AAA")):
        save(run(name, letters, "xxx"), tmp_path / name)
    out = tmp_path / "difference.json"
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["greedy"] == {"mean": pytest.approx(1 / 3), "low": None, "high": None}
    json.dumps(run("a", "AAB", "xxx").easi(), allow_nan=False)


def test_a_difference_without_bounds_stays_in_the_table():
    results = {"model_minus_shown_none": {"mean": 0.25, "low": None, "high": None}, "seconds": {"mean": 1.0}}
    assert list(comparisons(results)) == ["model_minus_shown_none"]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(results_table(results))
    assert re.search(r"Model − no frames\W+\+25.0 points\W+–", console.export_text())
    change = {"dift": {"accuracy": 0.5}, "rl_minus_dift": results["model_minus_shown_none"]}
    assert len(verdict(change)) == 1  # nothing is said of what has no interval


def test_a_line_that_a_kill_has_cut_off_is_left_out(tmp_path):
    save(run("own", "AB", "xy"), tmp_path)
    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    for cut in (1, 20):
        path.write_bytes(whole[:-cut])
        assert [q.id for q in load_result(tmp_path).questions] == (["q0", "q1"] if cut == 1 else ["q0"])
    path.write_bytes(whole[:-20] + b"\n" + whole.splitlines()[-1] + b"\n")
    with pytest.raises(ConfigError, match=r"answers\.jsonl:4"):  # such a line within a file is damage
        load_result(tmp_path)


def test_what_is_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "answers.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(ConfigError, match="not the answers of an evaluation"):
        load_result(tmp_path)
    good = run("a", "A", "x")
    for changed, words in (
        ({"answers": ("A",)}, "1 answers, where the settings say 0"),
        ({"options": ["x"]}, r"options is .'x'"),
    ):
        with Journal(tmp_path / str(len(words)) / "answers.jsonl", good.settings) as journal:
            journal.add([replace(good.questions[0], **changed)], 1.0)
        with pytest.raises(ConfigError, match=f"answers.jsonl:2: .*{words}"):
            load_result(tmp_path / str(len(words)))
    (tmp_path / "answers.jsonl").write_text('{"settings": {"na')
    with pytest.raises(ConfigError, match="no answers yet"):
        load_result(tmp_path)
    (tmp_path / "answers.jsonl").write_text("[" * 200_000)
    with pytest.raises(ConfigError, match="not the answers of an evaluation"):
        load_result(tmp_path)
    with pytest.raises(ConfigError, match="not a line of an evaluation journal"):
        Journal(tmp_path / "answers.jsonl", {})
    assert main(["compare", str(tmp_path), str(tmp_path / "none")]) == 2
