"""The ablation of latents: what it does in which order, what the blocks show, and what its tables say."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from bench import _ablation_data as data
from bench import _ablation_tables as tables
from bench import _ablation_training as training
from bench import _measure as measure
from bench import ablation
from fourdthinker.errors import ConfigError
from fourdthinker.evaluate import AnsweredQuestion, EvalResult
from fourdthinker.evaluate.journal import Journal
from fourdthinker.files import write_json
from fourdthinker.records import Record
from fourdthinker.worlds.scenes import RenderedWorld, make_world, render


@cache
def clip() -> RenderedWorld:
    return render(make_world(5, "move left", "right", size=64))


def shown(kind: str, number: int, solid: int = 0) -> np.ndarray:
    return data.picture(clip(), kind, solid, number)


def test_scenes_come_first_and_imagery_before_it_is_needed() -> None:
    steps = training.order(["depth", "latents", "none"], [4, 7])
    assert steps[:7] == [
        (4, "", "scenes"), (4, "none", "dift"), (4, "none", "rl"), (4, "latents", "dift"),
        (4, "latents", "rl"), (4, "", "imagery"), (4, "depth", "dift"),
    ]  # fmt: skip
    assert [step[1:] for step in steps[7:]] == [step[1:] for step in steps[:7]]
    assert {step[0] for step in steps[7:]} == {7}
    assert all(stage != "imagery" for _, _, stage in training.order(["none", "self_feed"], [0]))


def test_without_imagery_the_words_are_the_same() -> None:
    text = "<think> it goes from 3 5 <output_image> to 4 5 <output_image> . </think>"
    record = Record("dift", "1", "?", text_output=text, images=["a.png", "b.png"])
    bare = training.without_imagery(record)
    assert (bare.text_output, bare.images) == ("<think> it goes from 3 5 to 4 5 . </think>", [])


def test_blocks_show_what_they_are_named_after() -> None:
    first, last, mask = clip().pixels[0], clip().pixels[-1], clip().mask(0)
    assert (shown("silhouette", 0)[mask[0]] == 255).all()
    assert (shown("silhouette", 0)[~mask[0]] == 0).all()
    assert np.array_equal(shown("next", 0), last)
    assert np.array_equal(shown("next", 1), last)
    assert (shown("overlay", 0) != first).any(-1)[mask[0]].mean() > 0.9
    depth = shown("depth", 1)
    assert (depth[clip().solid[-1] < 0] == 0).all()  # the sky
    assert depth[-1].mean() > depth[32].mean()  # the ground near by is brighter


def test_a_trail_ends_where_the_solid_is() -> None:
    path = clip().world.project(clip().world.solids[0].centre)[:, :2]
    for number, frame in ((0, 0), (1, len(path) - 1)):
        x, y = path[frame]
        assert tuple(shown("trail", number)[int(y), int(x)]) == (255, 0, 0)
    x, y = path[0]
    assert tuple(shown("trail", 1)[int(y), int(x)]) == (255, 0, 0)  # the path so far


def test_a_map_depends_on_the_solid() -> None:
    assert shown("map", 1).shape == (64, 64, 3)
    assert (shown("map", 1) != shown("map", 1, solid=1)).any()
    with pytest.raises(ValueError, match="imagery 'colour': it is overlay or one of silhouette, "):
        shown("colour", 0)


def result(right: list[bool], letters: str = "AB") -> EvalResult:
    """Two questions a video, the second of another type; all samples as at temperature 0."""
    questions = tuple(
        AnsweredQuestion(
            f"q{i}", "direction" if i % 2 else "camera", f"video{i // 2}", {"A": "left", "B": "right"}, "A",
            answers=(letters[not good],), greedy=letters[not good],
        )
        for i, good in enumerate(right)
    )  # fmt: skip
    return EvalResult("model", questions, 1, True)


def write_seed(out: Path, seed: int, variant: str, own: list[bool], zero: list[bool] | None = None) -> None:
    """A finished variant after DIFT."""
    folder = tables.answers_folder(out, seed, variant, "dift")
    answers = {training.ANSWERS: own}
    if zero is not None:
        answers |= {f"{training.MODES}/own": own, f"{training.MODES}/zero": zero}
    for name, right in answers.items():
        (folder / name).mkdir(parents=True)
        found = result(right)
        settings = {"name": "model", "n": found.n, "greedy": True}
        with Journal(folder / name / "answers.jsonl", settings) as journal:
            journal.add(found.questions, 1.0)
    blocks = [{"block": 1, "cosine": 0.5 + seed / 10, "lost": None}] if zero is not None else []
    write_json(tables.result_path(out, seed, variant, "dift"), {"seconds": 1.0, "blocks": blocks})


def test_tables_are_of_all_seeds_that_have_a_row(tmp_path: Path) -> None:
    write_seed(tmp_path, 0, "none", [True, False, True, False])
    write_seed(tmp_path, 0, "latents", [True] * 4, [False, True, True, False])
    write_seed(tmp_path, 1, "none", [False] * 4)
    write_seed(tmp_path, 1, "latents", [True, True, True, False], [True] * 4)
    write_seed(tmp_path, 2, "latents", [True] * 4, [True] * 4)
    seeds = {seed: tables.rows_of_seed(tmp_path, seed) for seed in range(3)}
    seeds = json.loads(
        json.dumps(seeds), object_hook=lambda d: {int(k) if k in "012" else k: v for k, v in d.items()}
    )
    lines = {line["variant"]: line for line in tables.accuracy_table(seeds)}
    assert list(lines) == ["none", "latents"], "as they are trained"
    assert (lines["none"]["seeds"], lines["none"]["greedy %"], lines["none"]["less none"]) == (2, "25.0", "")
    latents = lines["latents"]
    assert (latents["seeds"], latents["greedy %"], latents["direction"]) == (3, "91.7", "83.3")
    assert latents["less none"].startswith("+62.5 (")
    half = 12.7062047 * 12.5  # Student's t with one degree of freedom
    assert latents["less none, over seeds"] == f"+62.5 ({62.5 - half:+.1f} … {62.5 + half:+.1f})"
    (audit,) = tables.audit_table(seeds)
    assert (audit["own"], audit["zero"].split()[0]) == ("91.7", "-8.3")
    (block,) = tables.block_table(seeds)
    assert block == {"variant": "latents", "stage": "dift", "block": 1, "cosine": 0.6, "lost": None}


def test_saved_seeds_are_shown_with_those_of_the_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    for seed in (0, 1):  # in folders of their own, as on two machines
        out = tmp_path / f"machine{seed}"
        out.mkdir()
        ablation.check_folder(out, quick=True)
        write_seed(out, seed, "none", [True, True, True, seed == 1])
        ablation.report(out, [0, 1], save=True)
    assert "87.5" in capsys.readouterr().out  # the mean of both
    other = tmp_path / "other"
    other.mkdir()
    ablation.check_folder(other, quick=False)
    ablation.report(other, [0], save=False)  # after hours of other seeds this ends nothing
    assert "ablation, seed 0 in " in caplog.text
    assert f"is of another demo than {other} and left out; run that seed again" in caplog.text


def test_every_training_is_shown_and_saved_when_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third step is killed: what the first trained is kept; another revision goes on and says so."""
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(measure, "revision", lambda: "first")

    def do(out: Path, step: ablation.Step, kinds: list[str], *, quick: bool) -> dict[str, object]:
        seed, name, stage = step
        if name == killed:
            raise KeyboardInterrupt
        if stage == "dift":
            write_seed(out, seed, name, [True, False])
        return {}

    monkeypatch.setattr(ablation, "do", do)
    monkeypatch.setattr(training, "VARIANTS", {name: training.Variant() for name in ("none", "latents")})
    out, killed = tmp_path / "out", "latents"
    with pytest.raises(KeyboardInterrupt):
        ablation.run(out, ["none", "latents"], [0], quick=True, save=True)
    settings, row = measure.saved("ablation, seed 0") or []
    assert (row["variant"], row["revision"], settings["part"]) == ("none", "first", "settings")
    monkeypatch.setattr(measure, "revision", lambda: "second")
    killed = ""
    caught: list[str] = []
    monkeypatch.setattr(ablation.log, "warning", lambda text, *values: caught.append(text % values))
    ablation.run(out, ["none", "latents"], [0], quick=True, save=True)
    assert caught == [
        "revision first, not second, made: 0 scenes, 0 none dift, 0 latents dift; rows name their revisions; "
        "for one revision name another folder (--out)"
    ]
    rows = {row["variant"]: row["revision"] for row in tables.rows_of_seed(out, 0)}
    assert rows == {"none": "first", "latents": "first second"}


def test_answers_that_an_older_reader_read_are_read_anew(tmp_path: Path) -> None:
    for name in ("none", "latents"):
        write_seed(tmp_path, 0, name, [True, True])
    path = tables.answers_folder(tmp_path, 0, "none", "dift") / training.ANSWERS / "answers.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    texts = {"texts": ["<answer>A. right</answer>"], "greedy_text": "<answer>A. left</answer>"}
    path.write_text("".join(json.dumps(line | texts if "id" in line else line) + "\n" for line in lines))
    none = next(row for row in tables.rows_of_seed(tmp_path, 0) if row["variant"] == "none")
    assert (none["greedy"], none["accuracy"]) == (1.0, 0.0)


def begun_by(out: Path, monkeypatch: pytest.MonkeyPatch, revision: str, *steps: ablation.Step) -> None:
    """These steps are done by a revision."""
    monkeypatch.setattr(measure, "revision", lambda: revision)
    for step in steps:
        ablation.begin(out, step)
        if step[2] == "dift":
            write_seed(out, *step[:2], [True, False])
        elif step[2] == "rl":
            tables.answers_folder(out, *step).parent.mkdir(exist_ok=True)
            tables.answers_folder(out, *step[:2], "dift").rename(tables.answers_folder(out, *step))
            write_seed(out, *step[:2], [True, False])
        write_json(tables.result_path(out, *step), {"seconds": 1.0})


def test_a_row_names_the_revisions_of_all_that_it_was_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun_by(tmp_path, monkeypatch, "one", (0, "", "scenes"))
    begun_by(tmp_path, monkeypatch, "two", (0, "", "imagery"), (0, "none", "dift"))
    begun_by(tmp_path, monkeypatch, "three", (0, "none", "rl"), (0, "depth", "dift"))
    rows = {(row["variant"], row["stage"]): row["revision"] for row in tables.rows_of_seed(tmp_path, 0)}
    assert rows == {
        ("none", "dift"): "one two", ("none", "rl"): "one two three", ("depth", "dift"): "one two three",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("step", "left"),
    [
        ((0, "", "scenes"), "seed0/settings.json"),
        ((0, "", "imagery"), "seed0/imagery/parts/depth.000000.npy"),
        ((0, "", "imagery"), "seed0/imagery/test/00001.solid0.next.1.png"),
        ((0, "", "imagery"), "seed0/imagery.json"),
        ((0, "none", "dift"), "seed0/none/dift/checkpoint-1/state"),
    ],
)
def test_what_an_older_revision_left_without_a_name_is_of_an_unknown_one(
    tmp_path: Path, step: ablation.Step, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "revision", lambda: "now")
    caught: list[str] = []
    monkeypatch.setattr(ablation.log, "warning", lambda text, *values: caught.append(text % values))
    ablation.warn_of_revisions(tmp_path, [step])
    assert caught == []  # nothing is begun
    (tmp_path / left).parent.mkdir(parents=True)
    (tmp_path / left).write_text("")
    ablation.warn_of_revisions(tmp_path, [step])
    assert [text.partition(" made")[0] for text in caught] == ["revision unknown, not now,"]
    ablation.begin(tmp_path, step)
    ablation.begin(tmp_path, step)
    assert tables.revisions(tmp_path, *step) == ["unknown", "now"]


def test_an_interval_over_questions_is_that_of_independent_seeds() -> None:
    found = tables.over_questions(
        [{"mean": 0.1, "low": 0.07, "high": 0.13}, {"mean": 0.3, "low": 0.26, "high": 0.34}]
    )
    assert found == pytest.approx({"mean": 0.2, "low": 0.175, "high": 0.225})
    assert tables.over_questions([{"mean": 0.1, "low": None, "high": None}])["low"] is None


def test_an_interval_over_seeds_is_students() -> None:
    found = tables.over_seeds([1.0, 2.0, 3.0])
    assert found["mean"] == 2
    assert found["high"] == pytest.approx(2 + 4.3026527 / math.sqrt(3))
    assert tables.over_seeds([1.0]) == {"mean": 1.0, "low": None, "high": None}


def test_time_left_is_that_of_steps_like_those_that_are_done(tmp_path: Path) -> None:
    steps = training.order(["none", "next"], [0, 1])
    for variant, stage, seconds in (("", "scenes", 50.0), ("none", "dift", 30.0), ("none", "rl", 7.0)):
        path = tables.result_path(tmp_path, 0, variant, stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"seconds": seconds})
    todo = [step for step in steps if not ablation.is_done(tmp_path, step, ["next"])]
    assert len(todo) == len(steps) - 3
    usual = ablation._USUAL["imagery"]
    assert ablation.seconds_left(tmp_path, todo, steps) == 2 * usual + 50 + 3 * 30 + 7
    write_json(tables.result_path(tmp_path, 0, "", "imagery"), {"seconds": 1.0, "kinds": ["map", "next"]})
    assert ablation.is_done(tmp_path, (0, "", "imagery"), ["next"])
    assert not ablation.is_done(tmp_path, (0, "", "imagery"), ["next", "depth"])


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    ablation.check_folder(tmp_path, quick=True)
    ablation.check_folder(tmp_path, quick=True)
    with pytest.raises(ConfigError, match="an ablation with other settings or another demo"):
        ablation.check_folder(tmp_path, quick=False)
    found = json.loads((tmp_path / "ablation.json").read_text())
    assert found["variants"]["self_feed"] == ["overlay", {"self_feed": 0.2}, True]
