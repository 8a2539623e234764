"""The evaluation run: shared clips, seeds, failures, resuming, and frames that are not those asked about."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.evaluate import (
    AnsweredQuestion,
    EvalResult,
    baselines,
    evaluate,
    paired_difference,
    results_table,
    sample_seed,
    scoring,
    types_table,
)
from fourdthinker.evaluate.clips import derangement, donors, exchanged, group_clips, override_prompts
from fourdthinker.evaluate.weights import weights_of
from fourdthinker.files import write_json
from fourdthinker.frames import FramePolicy
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.prompts import Encoder
from fourdthinker.records import Record, source_of
from fourdthinker.sampler import LatentSampler, SamplingConfig
from tests.tiny import tiny_checkpoint

CONFIG = SamplingConfig(max_new_tokens=6, temperature=1.0, seed=3)
OPTIONS = {"A": "left", "B": "right"}


class CountingSampler(LatentSampler):
    calls: int = 0

    def sample(self, prompts: Any, n: int = 1, config: Any = None, **keywords: Any) -> Any:
        self.calls += 1
        return super().sample(prompts, n, config, **keywords)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[CountingSampler, Encoder, list[Record]]:
    """Three clips of two frames each (a fourth cannot be read), two questions about each."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    policy = FramePolicy(max_pixels=56 * 56)
    checkpoint = tiny_checkpoint(policy=policy, style=PromptStyle(instruction=""))
    encoder = Encoder(
        checkpoint.tokenizer,
        checkpoint.backbone.vision,
        checkpoint.backbone.latents,
        policy,
        checkpoint.style,
    )
    records = []
    for clip in range(4):
        frames = []
        for k in range(2):
            path = folder / f"{clip}-{k}.png"
            if clip < 3:
                Image.fromarray(rng.integers(0, 255, (56, 56, 3), dtype=np.uint8)).save(path)
            else:
                path.write_bytes(b"no picture")
            frames.append(str(path))
        for kind in ("camera", "object"):
            records.append(
                Record(
                    "rl", f"{clip}/{kind}", f"Which way does the {kind} move?", options=OPTIONS, answer="A",
                    frames=frames, type=kind, where=f"data.jsonl:{len(records) + 1}",
                )
            )  # fmt: skip
    sampler = CountingSampler(checkpoint.backbone, checkpoint.tokenizer)
    return sampler, encoder, records


def run(world: tuple[Any, Encoder, list[Record]], **keywords: Any) -> EvalResult:
    sampler, encoder, records = world
    keywords = {"n": 2, "config": CONFIG, "progress": False} | keywords
    return evaluate(sampler, encoder, keywords.pop("records", records), **keywords)


def contents(result: EvalResult) -> list[dict[str, Any]]:
    return [question.to_dict() for question in result.questions]


def test_every_question_is_answered_and_a_bad_clip_counts_as_wrong(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    result = run(world)
    assert [q.id for q in result.questions] == [r.id for r in world[2]]
    good, bad = result.questions[:6], result.questions[6:]
    assert all(len(q.texts) == 2 and q.greedy_text is not None and not q.failed for q in good)
    assert all(1 <= length <= 6 for q in good for length in q.lengths)
    assert all("3-0.png" in q.failed and not q.answers for q in bad)
    assert "2 of 8 questions have no answer" in caplog.text
    summary = result.summary()
    assert summary["n"] == 8
    assert summary["failed"] == 2
    assert summary["greedy"] <= 6 / 8
    assert result.marks.shape == (8, 2)
    assert not result.marks[6:].any()


def test_the_result_does_not_depend_on_batching_order_or_neighbours(world: Any) -> None:
    whole = {q.id: q for q in run(world, batch_prompts=8).questions}
    for question in run(world, batch_prompts=1).questions:
        assert question == whole[question.id]
    some = [world[2][4], world[2][1]]
    for question in run(world, records=some).questions:
        assert question == whole[question.id]


def test_samples_of_a_question_have_seeds_of_their_own(world: Any) -> None:
    seeds = {sample_seed(s, r, k) for s in (0, 1) for r in ("a", "b") for k in (-1, 0, 1)}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)
    texts = run(world, records=world[2][:1], n=6, greedy=False).questions[0].texts
    assert len(set(texts)) > 1
    other = run(
        world, records=world[2][:1], n=6, greedy=False, config=SamplingConfig(max_new_tokens=6, seed=4)
    )
    assert other.questions[0].texts != texts


def test_questions_about_one_clip_share_the_tower(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = world[0].backbone
    grids = []
    original = type(backbone).encode_vision

    def counting(self: Any, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        grids.append(len(grid_thw))
        return original(self, patches, grid_thw)

    monkeypatch.setattr(type(backbone), "encode_vision", counting)
    run(world, records=world[2][:6], batch_prompts=16)
    assert grids == [1, 1, 1]  # three clips; six questions, three rows each


def test_batches_about_one_clip_share_the_tower(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, records = world[0].backbone, world[2]
    towers = []
    original = type(backbone).encode_vision

    def counting(self: Any, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        towers.append(len(grid_thw))
        return original(self, patches, grid_thw)

    whole = run(world, records=records[:4])
    monkeypatch.setattr(type(backbone), "encode_vision", counting)
    assert contents(run(world, records=records[:4], batch_prompts=1)) == contents(whole)
    assert towers == [1, 1]  # two clips, four batches


def test_ready_made_prompts_give_the_same_answers(world: Any) -> None:
    _, encoder, records = world
    prompts = [encoder.prompt(record) for record in records[:6]]
    ready = run(world, records=records[:6], prompts=prompts)
    assert contents(ready) == contents(run(world, records=records[:6]))
    with pytest.raises(ConfigError, match="1 prompts for 6 records"):
        run(world, records=records[:6], prompts=prompts[:1])


def test_a_killed_run_is_resumed_from_its_journal(world: Any, tmp_path: Path) -> None:
    sampler, records = world[0], world[2][:6]
    path = tmp_path / "run" / "journal.jsonl"
    whole = run(world, records=records, journal=path, batch_prompts=2)
    written = path.read_bytes()
    lines = written.split(b"\n")
    assert len(lines) == 1 + 6 + 1
    path.write_bytes(b"\n".join(lines[:4]) + b"\n" + lines[4][:20])  # three answers and a cut line
    before = sampler.calls
    again = run(world, records=records, journal=path, batch_prompts=2)
    assert contents(again) == contents(whole)
    assert sampler.calls - before == 4  # two batches, sampled and greedy
    assert path.read_bytes() == written
    assert run(world, records=records, journal=path, batch_prompts=2).summary() == whole.summary()
    assert sampler.calls - before == 4
    run(world, records=records, journal=tmp_path / "twice.jsonl", batch_prompts=2)
    assert (tmp_path / "twice.jsonl").read_bytes() == written
    with pytest.raises(ConfigError, match=r"another evaluation \(batch: 2 there, 3 now\)"):
        run(world, records=records, journal=path, batch_prompts=3)


@pytest.mark.parametrize("letters", [False, True])
def test_a_run_that_goes_on_after_a_change_of_the_reader_has_one_reading(
    world: Any, tmp_path: Path, letters: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An older reader found an answer in every completion; the present one finds its own."""
    asked: dict[str, Any] = {"records": world[2][:4], "batch_prompts": 2, "letters": letters}
    whole, path = tmp_path / "whole.jsonl", tmp_path / "journal.jsonl"
    run(world, **asked, journal=whole)
    lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
    old = [json.loads(line) | {"answers": ["A", "B"], "greedy": "A"} for line in lines[1:3]]
    path.write_text(lines[0] + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in old), "utf-8")
    sampler = world[0]
    before = sampler.calls
    run(world, **asked, journal=path)
    assert path.read_bytes() == whole.read_bytes()
    assert sampler.calls - before == (4 if letters else 2), "replies are read, not asked for"
    assert "journal.jsonl: the answers to 2 questions are read otherwise now" in caplog.text
    caplog.clear()
    run(world, **asked, journal=path)
    assert "otherwise" not in caplog.text


def test_a_clip_that_comes_late_is_asked_in_the_batch_it_belongs_to(world: Any, tmp_path: Path) -> None:
    """What was answered beside it is asked once more, or its rounding would be that of another batch."""
    sampler, _, records = world
    path, picture = tmp_path / "journal.jsonl", tmp_path / "late.png"
    late = Record("rl", "late", "Which way?", options=OPTIONS, answer="A", frames=[str(picture)])
    asked: dict[str, Any] = {"records": [records[0], late, *records[1:6]], "batch_prompts": 3, "n": 0}
    picture.write_bytes(b"not yet")
    run(world, **asked, journal=path)
    before, first = sampler.calls, path.read_bytes()
    run(world, **asked, journal=path)
    assert sampler.calls == before, "a clip that fails again changes nothing"
    assert path.read_bytes() == first
    Image.new("RGB", (56, 56), "red").save(picture)
    run(world, **asked, journal=path)
    assert sampler.calls == before + 1, "one batch of three"
    run(world, **asked, journal=tmp_path / "whole.jsonl")
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_seconds_of_a_resumed_run_are_those_of_all_its_parts(world: Any, tmp_path: Path) -> None:
    records, path = world[2][:6], tmp_path / "journal.jsonl"
    run(world, records=records, journal=path, batch_prompts=2)
    times = tmp_path / "journal.seconds.jsonl"
    parts = [json.loads(line) for line in times.read_bytes().splitlines()]
    assert [part["questions"] for part in parts] == [2, 2, 2]
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]) + b'{"id"')
    times.write_text("".join(json.dumps(part | {"seconds": 20.0}) + "\n" for part in parts[:2]))
    resumed = run(world, records=records, journal=path, batch_prompts=2)
    assert 40 < resumed.seconds < 45  # a slow machine, and a kill
    assert 40 < run(world, records=records, journal=path, batch_prompts=2).seconds < 45
    path.unlink()
    assert run(world, records=records, journal=path).seconds < 5, "those of answers that are gone"
    for _ in range(2):  # a kill cuts a line of it off: it is gone, and spoils no later one
        times.write_bytes(times.read_bytes() + b'{"questions": 2, "sec')
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
        run(world, records=records, journal=path)
    times.write_text("{}\n")
    with pytest.raises(ConfigError, match=r"journal\.seconds\.jsonl:1: not the seconds of an evaluation"):
        run(world, records=records, journal=path)


def test_a_journal_of_something_else_is_refused(world: Any, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    run(world, records=world[2][:2], journal=path)
    with pytest.raises(ConfigError, match=r"journal.jsonl.*sampling"):
        run(world, records=world[2][:2], journal=path, config=SamplingConfig(max_new_tokens=5))
    with pytest.raises(ConfigError, match=r"records: '\w+' there, '\w+' now"):
        run(world, records=world[2][:3], journal=path)
    path.write_text(path.read_text() + "[1]\n")
    for text in (path.read_text(), "hello\n", "no newline"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"journal.jsonl:\d: not a line"):
            run(world, records=world[2][:2], journal=path)
        assert path.read_text() == text


def test_answers_of_other_weights_under_the_same_name_are_refused(world: Any, tmp_path: Path) -> None:
    """A training that goes on in the same folder leaves the name of the model as it is."""
    path, weight = tmp_path / "journal.jsonl", next(world[0].backbone.parameters())
    asked = {"records": world[2][:2], "n": 0, "journal": path}
    run(world, **asked)
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.view(-1)[-1] += 1e-3
        with pytest.raises(ConfigError, match=r"another evaluation \(weights: '\w+' there, '\w+' now\)"):
            run(world, **asked)
    finally:
        weight.data.copy_(before)
    run(world, **asked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3000,), (1, 5), (70, 64), (2, 3, 1024)])
def test_every_weight_counts_in_the_digest(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).reshape(shape).to(dtype))

    model = Model()
    first = weights_of(model)
    assert first == weights_of(Model())
    assert first["dtype"] == str(dtype).removeprefix("torch.")
    assert first["weights"] != weights_of(Model().to(torch.float64))["weights"]
    flat = model.weight.data.view(-1)
    for index in (0, 1, flat.numel() // 2, -1):
        kept = flat[index].clone()
        flat[index] += 0.5
        assert weights_of(model) != first
        flat[index] = kept
    assert weights_of(model) == first
    flat[[0, -1]] = flat[[-1, 0]]
    assert weights_of(model) != first, "the same numbers at other places"


def test_a_failed_clip_is_tried_again_on_resuming(world: Any, tmp_path: Path) -> None:
    path, picture = tmp_path / "journal.jsonl", tmp_path / "late.png"
    picture.write_bytes(b"not yet")
    record = Record("rl", "late", "Which way?", options=OPTIONS, answer="A", frames=[str(picture)])
    assert run(world, records=[record], journal=path).questions[0].failed
    Image.new("RGB", (56, 56), "red").save(picture)
    assert not run(world, records=[record], journal=path).questions[0].failed


def test_overrides_show_something_else_than_the_clip(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, encoder, records = world[0], world[1], world[2][:6]
    seen: dict[str, list[torch.Tensor]] = {}
    original = CountingSampler.sample

    def spy(self: Any, prompts: Any, *arguments: Any, **keywords: Any) -> Any:
        for prompt in prompts:
            seen.setdefault(prompt.record.id, []).append(prompt.vision.patches)
        return original(self, prompts, *arguments, **keywords)

    monkeypatch.setattr(CountingSampler, "sample", spy)
    own = {r.id: encoder.prompt(r).vision.patches for r in records}

    run(world, records=records, frames_override="black")
    low = torch.tensor([-1.7922625, -1.7520971, -1.4802198]).repeat_interleave(2 * 14 * 14)  # CLIP's black
    for patches in seen.values():
        torch.testing.assert_close(patches[0], low.expand(patches[0].shape[0], -1))

    seen.clear()
    run(world, records=records, frames_override="other")
    for record in records:
        shown = seen[record.id][0]
        assert not torch.equal(shown, own[record.id])
        assert any(torch.equal(shown, own[other.id]) for other in records if other.frames != record.frames)
    assert len({p[0].sum().item() for p in seen.values()}) == 3  # nobody is shown twice

    monkeypatch.setattr(CountingSampler, "sample", original)
    asked: list[Any] = []
    text_prompt: Any = encoder.prompt
    monkeypatch.setattr(encoder, "prompt", lambda r, frames=None: asked.append((r, frames)) or text_prompt(r))
    result = run(world, records=[*records, world[2][6]], frames_override="none")  # the last cannot be read
    assert not any(q.failed for q in result.questions)
    assert {q.cluster for q in result.questions} == {source_of(r) for r in world[2][:7]}
    assert all(frames is None and r.frames is None for r, frames in asked)
    monkeypatch.undo()

    prompts = [encoder.prompt(r) for r in records]
    clips = group_clips(records)
    with pytest.raises(ConfigError, match="changes the prompts"):
        override_prompts(prompts, clips, "none", 0, encoder.spec)
    others = override_prompts(prompts, clips, "other", 0, encoder.spec)
    for before, after in zip(prompts, others, strict=True):
        assert after.vision is not None
        assert not torch.equal(after.vision.patches, before.vision.patches)
        assert after.input_ids is before.input_ids
    black = override_prompts(prompts, clips, "black", 0, encoder.spec)
    assert len({id(prompt.vision) for prompt in black}) == 1
    torch.testing.assert_close(black[0].vision.patches[0], low)
    assert sampler.calls


def test_an_override_needs_pictures_and_another_clip(world: Any) -> None:
    _, encoder, records = world
    with pytest.raises(ConfigError, match="at least two different clips"):
        run(world, records=records[:2], frames_override="other")
    text = Record("rl", "text", "Which way?", options=OPTIONS, answer="A", where="data.jsonl:9")
    with pytest.raises(ConfigError, match=r"data.jsonl:9: frames_override"):
        run(world, records=[text], frames_override="black")
    alone = [encoder.prompt(record) for record in records[:2]]
    with pytest.raises(ConfigError, match=r"data.jsonl:1: .* this is the only one of its size"):
        run(world, records=records[:2], prompts=alone, frames_override="other")
    with pytest.raises(ConfigError, match="text only"):
        run(world, records=[text], prompts=[encoder.prompt(text)], frames_override="black")
    assert not run(world, records=[text]).questions[0].failed


def test_another_clip_has_as_many_videos_and_images(world: Any) -> None:
    """Which stand in the text of their question; without one, it fails and the others go on."""
    paths = [record.frames for record in world[2][:6:2]]
    records = [
        Record("rl", "two", "?", options=OPTIONS, answer="A", frames=paths[0], separate=True,
               turns=[("user", "Is <image> like <image>?")]),
        Record("rl", "one", "?", options=OPTIONS, answer="A", frames=paths[1][:1], separate=True,
               turns=[("user", "Is <image> red?")]),
        Record("rl", "pair", "?", options=OPTIONS, answer="A", frames=paths[2], separate=True,
               turns=[("user", "Is <image> not <image>?")]),
    ]  # fmt: skip
    shown = donors(group_clips(records), "other", 0)
    assert [clip and clip.record.id for clip in shown] == ["pair", None, "two"]
    questions = run(world, records=records, n=0, frames_override="other").questions
    assert [bool(question.failed) for question in questions] == [False, True, False]
    assert (
        "no question about another source shows as many videos and images, and has them"
        in questions[1].failed
    )
    with pytest.raises(ConfigError, match="at least two different clips"):
        run(world, records=records[:2], n=0, frames_override="other")


def test_only_clips_that_are_there_are_shown_for_others(world: Any, tmp_path: Path) -> None:
    """And a journal whose clips were exchanged otherwise is refused."""
    three = list({str(record.frames): record for record in world[2][:6]}.values())
    late = tmp_path / "late.png"
    gone = Record("rl", "gone", "Which way?", options=OPTIONS, answer="A", frames=[str(late)])
    for seed in range(6):
        shown = donors(group_clips([*three, gone]), "other", seed)
        assert all(clip is not None and clip.record.id != "gone" for clip in shown)
        assert all(clip.record.id != record.id for clip, record in zip(shown, three, strict=False) if clip)
    assert [clip and clip.record.id for clip in donors(group_clips([three[0], gone]), "other", 0)] == [
        None, three[0].id
    ]  # fmt: skip
    asked = {"records": [*three, gone], "n": 0, "frames_override": "other", "journal": tmp_path / "j"}
    assert not any(question.failed for question in run(world, **asked).questions)

    def made(mode: str) -> EvalResult:  # of the latents about all clips that are there, or of one's own
        journal = tmp_path / f"{mode}.jsonl"
        return run(world, records=asked["records"], n=0, latents=mode, journal=journal)

    modes = ("noise", "other-clip", "shuffle")
    assert [made(mode).questions[-1].id for mode in modes if made(mode).questions[-1].failed] == ["gone"] * 3
    Image.new("RGB", (56, 56), "red").save(late)
    with pytest.raises(ConfigError, match="the answers of another evaluation"):
        run(world, **asked)
    for mode in modes[:2]:
        with pytest.raises(ConfigError, match="the answers of another evaluation"):
            made(mode)
    assert not made("shuffle").questions[-1].failed


def test_clips_are_told_apart_by_the_kinds_of_their_media() -> None:
    media = [("video", "a"), ("image", "b")]
    kinds = [Record("rl", "1", "?", media=media), Record("rl", "2", "?", media=media)]
    kinds.append(Record("rl", "3", "?", media=[("image", "a"), ("video", "b")]))
    bare = [Record("rl", id, "?") for id in "45"]
    assert [clip.rows for clip in group_clips([*kinds, *bare])] == [(0, 1), (2,), (3,), (4,)]


def test_a_journal_of_other_turns_is_refused(world: Any, tmp_path: Path) -> None:
    media, turns = [("image", "no.png"), ("image", "none.png")], [("user", "<image> or <image>?")]
    record = Record("rl", "q", "or ?", options=OPTIONS, answer="A", media=media, turns=turns)
    run(world, records=[record], n=0, journal=tmp_path / "j")
    run(world, records=[record], n=0, journal=tmp_path / "j")
    for change in ({"turns": [("user", "Is it <image> or <image>?")]}, {"system": "Brief."}, {"fps": 2.0}):
        with pytest.raises(ConfigError, match="the answers of another evaluation"):
            run(world, records=[replace(record, **change)], n=0, journal=tmp_path / "j")


@pytest.mark.parametrize("number", [2, 3, 10])
def test_nothing_keeps_its_place_in_a_derangement(number: int) -> None:
    for seed in range(20):
        order = derangement(number, seed)
        assert sorted(order) == list(range(number))
        assert all(i != j for i, j in enumerate(order))


def test_bad_requests(world: Any) -> None:
    records = world[2]
    with pytest.raises(ConfigError, match="no records"):
        run(world, records=[])
    with pytest.raises(ConfigError, match="nothing to sample"):
        run(world, n=0, greedy=False)
    for name, wrong in (("batch_prompts", 0), ("batch_prompts", 1.5), ("n", -1), ("n", 1.5), ("n", True)):
        with pytest.raises(ConfigError, match=rf"{name} is {wrong}; it must be an integer in \["):
            run(world, **{name: wrong})
    with pytest.raises(RecordError, match=r"data.jsonl:1: id '0/camera' is already used at data.jsonl:1"):
        run(world, records=[records[0], records[0]])
    with pytest.raises(RecordError, match=r"^record: only questions with options"):
        run(world, records=[Record("rl", "x", "Why?")])


def result_of(name: str, answers: dict[str, tuple[str | None, ...]], greedy: bool = True) -> EvalResult:
    """Question ids "clip/type"; the right answer is always A."""
    questions = tuple(
        AnsweredQuestion(
            id, id.split("/")[1], id.split("/")[0], OPTIONS, "A", letters, letters[0] if greedy else None,
            lengths=(5,) * len(letters), truncated=1,
        )
        for id, letters in answers.items()
    )  # fmt: skip
    return EvalResult(name, questions, len(next(iter(answers.values()))), greedy)


def test_summary_numbers() -> None:
    result = result_of("m", {"0/x": ("A", "A"), "1/x": ("A", "B"), "2/y": (None, "B"), "3/y": ("B", "B")})
    summary = result.summary()
    assert summary["accuracy"] == pytest.approx(3 / 8)
    assert summary["greedy"] == pytest.approx(0.5)
    assert summary["low"] < 3 / 8 < summary["high"]
    assert summary["entropy"] == pytest.approx(math.log(2) / 2)
    assert summary["parsed"] == pytest.approx(7 / 8)
    assert summary["truncated"] == pytest.approx(0.5)
    assert summary["length"] == 5
    assert summary["by_type"]["x"]["accuracy"] == pytest.approx(0.75)
    assert summary["by_type"]["x"]["n"] == 2
    assert summary["macro"] == pytest.approx(0.375)
    json.dumps(summary, allow_nan=False)
    with pytest.raises(ValueError, match="no greedy answers"):
        result_of("m", {"0/x": ("A",)}, greedy=False).scores(greedy=True)


def test_both_denominators_are_in_the_tables_by_type_too() -> None:
    """And the accuracy less chance; without failures one denominator is enough."""
    result = result_of("m", {"0/x": ("A", "A"), "1/x": ("A", "A"), "2/y": ("A", "B"), "3/y": ("B", "B")})
    lost = tuple(replace(q, failed="no file") if q.id.startswith("1") else q for q in result.questions)
    for questions, columns in ((result.questions, 6), (lost, 8)):
        summary = replace(result, questions=questions).summary()
        table = types_table(summary)
        assert len(table.columns) == columns
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(table, results_table({"model": summary, "answered": summary["answered"]}))
        text = console.export_text()
        assert "adjusted" in text
        shown = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│ x ")]
        percents = [cell.strip().replace("\xa0", " ") for cell in shown[0]]
        assert percents[1] == ("100.0 %" if columns == 6 else "50.0 %")
        if columns == 8:
            assert percents[6:] == ["100.0 %", "1"]
            assert summary["answered"]["by_type"]["x"]["n"] == 1
            assert summary["answered"]["macro"] == pytest.approx(5 / 8)


def test_clips_whose_times_are_not_the_containers_are_counted() -> None:
    result = result_of("m", {"0/x": ("A",), "0/y": ("A",), "1/x": ("A",), "2/x": ("B",)})
    told = ("sorted", "sorted", "container", "rate")
    questions = tuple(
        replace(question, times_from=how) for question, how in zip(result.questions, told, strict=True)
    )
    assert result.summary()["times_not_from_container"] == 0
    assert replace(result, questions=questions).summary()["times_not_from_container"] == 2
    assert AnsweredQuestion.from_dict(questions[0].to_dict()).times_from == "sorted"


def test_how_times_were_learnt_reaches_the_result(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, encoder, records = world
    original = type(encoder).read

    def sorted_times(self: Any, record: Record) -> Any:
        vision = original(self, record)
        return replace(vision, times_from="sorted")

    monkeypatch.setattr(type(encoder), "read", sorted_times)
    result = run((sampler, encoder, records[:2]), n=1)
    assert [question.times_from for question in result.questions] == ["sorted", "sorted"]


def test_greedy_alone_stands_in_for_the_samples(world: Any) -> None:
    result = run(world, records=world[2][:2], n=0)
    summary = result.summary()
    assert summary["accuracy"] == summary["greedy"]
    assert summary["samples"] == 0
    assert summary["entropy"] is None
    json.dumps(summary, allow_nan=False)


def test_paired_difference_pairs_by_id() -> None:
    a = result_of("a", {f"{i}/x": ("A", "A") if i % 4 else ("A", "B") for i in range(40)})
    b = result_of("b", {f"{i}/x": ("B", "A") if i % 2 else ("B", "B") for i in reversed(range(40))})
    difference = paired_difference(a, b)
    expected = [(1.0 if i % 4 else 0.5) - (0.5 if i % 2 else 0.0) for i in range(40)]
    assert difference["mean"] == pytest.approx(np.mean(expected))
    apart = [[1.0 if i % 4 else 0.5 for i in range(40)], [0.5 if i % 2 else 0.0 for i in range(40)]]
    assert difference == scoring.paired_interval(*apart)
    assert paired_difference(a, b, greedy=True)["mean"] == 1.0
    with pytest.raises(ValueError, match=r"'a' and 'c' answered different questions \(39 unpaired"):
        paired_difference(a, result_of("c", {"0/x": ("A",)}))


def test_baselines() -> None:
    records = []
    for i in range(6):
        options = {"A": "left", "B": "right"} if i % 2 else {"A": "right", "B": "left"}
        answer = next(k for k, v in options.items() if v == ("left" if i < 4 else "right"))
        records.append(
            Record("rl", str(i), "?", options=options, answer=answer, video=f"{i}.mp4", type="move")
        )
    records.append(
        Record("rl", "6", "?", options={c: c for c in "ABCD"}, answer="D", video="6.mp4", type="count")
    )
    found = baselines(records)
    assert found["chance"]["accuracy"] == pytest.approx((6 / 2 + 1 / 4) / 7)
    assert found["chance"]["low"] == found["chance"]["high"] == found["chance"]["accuracy"]
    assert found["majority"]["accuracy"] == pytest.approx((4 + 1) / 7)
    assert found["majority"]["low"] < found["majority"]["accuracy"] < found["majority"]["high"]
    assert found["majority"]["by_type"]["move"]["accuracy"] == pytest.approx(4 / 6)
    assert found["majority"]["macro"] == pytest.approx((4 / 6 + 1) / 2)


def test_clips_of_one_source_are_not_independent(world: Any) -> None:
    """Records of frames, as a synthesis writes them: the key `source` names the video that they are of."""
    sources = ["v", "v", "w", "w"]
    records = [
        replace(record, frames=[*record.frames, str(i)], extra={"source": source})
        for i, (record, source) in enumerate(zip(world[2], sources, strict=False))
    ]
    assert [source_of(r) for r in records] == sources
    clips = group_clips(records)
    assert len(clips) == 4  # each is decoded
    assert [c and c.source for c in exchanged(clips, [True] * 4, 0)] == ["w", "w", "v", "v"]
    found = baselines([replace(r, answer=letter) for r, letter in zip(records, "AABB", strict=True)])
    apart = scoring.accuracy_interval([1.0, 1.0, 0.0, 0.0], sources)
    assert found["majority"]["low"] == apart["low"] < scoring.accuracy_interval([1.0, 1.0, 0.0, 0.0])["low"]

    two = [replace(r, extra={"source": "v"}) for r in (world[2][0], world[2][2])]
    assert [q.cluster for q in run(world, records=two, n=0).questions] == ["v", "v"]


def test_nothing_answered_is_valid_json(world: Any) -> None:
    summary = run(world, records=world[2][6:]).summary()  # the clip cannot be read
    assert summary["answered"]["accuracy"] is None
    assert (summary["answered"]["n"], summary["failed"], summary["accuracy"]) == (0, 2, 0.0)
    json.dumps(summary, allow_nan=False)


def test_types_that_look_like_markup_are_shown() -> None:
    part = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 4}
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(types_table({"by_type": {"[/dis]": part}, "macro": 0.5}))
    console.print(results_table({"[/dis]": {**part, "failed": 1}}, title="[/model]"))
    text = console.export_text()
    assert text.count("[/dis]") == 3
    assert "[/model]" in text


def test_results_are_written_whole_and_shown(tmp_path: Path) -> None:
    one = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "greedy": 0.55, "n": 100, "entropy": 0.7, "failed": 3}
    results = {
        "chance": {"accuracy": 0.25, "low": 0.25, "high": 0.25, "greedy": 0.25, "n": 100},
        "rl": one,
        "rl_minus_dift": {"mean": -0.02, "low": -0.05, "high": 0.01},
        "seeds": {"data": 1},
    }
    path = write_json(tmp_path / "deep" / "results.json", results)
    assert json.loads(path.read_text()) == results
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"accuracy": math.nan})
    assert json.loads(path.read_text()) == results
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(results_table(results))
    text = console.export_text()
    assert "After 4DRL" in text
    assert "40.0 – 60.0" in text
    assert "−2.0 points" in text
    assert "−5.0 … +1.0" in text
    assert "failed, counted as wrong: After 4DRL 3" in text
    assert "seeds" not in text
