"""The latent audit tells a model that reads its latents from one that does not; its numbers are right."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fourdthinker.audit import latents as audit_module
from fourdthinker.audit.blocks import between_clip_cosine, effective_rank, mean_target_cosine
from fourdthinker.audit.latents import LatentAudit, kl_divergence, usable_modes
from fourdthinker.backbones import Checkpoint
from fourdthinker.backbones.watched import attention_shares
from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.evaluate import evaluate, latent_modes
from fourdthinker.evaluate.latent_modes import LatentFeeds, latent_feeds
from fourdthinker.evaluate.letters import letter_step
from fourdthinker.report.cards import Names
from fourdthinker.report.latents import latent_tables, thought_deck
from fourdthinker.report.media import Album
from fourdthinker.sampler import LatentSampler, SamplingConfig, replay_batch
from fourdthinker.samples import Prompt
from tests.tiny import tiny_tokenizer
from tests.unit.audit.synthetic import CLASSES, class_targets, ids_of, questions, trained
from tests.unit.sampler.cases import make_prompt, talkative

CONFIG = SamplingConfig(max_new_tokens=14, max_blocks=1)
QUESTIONS = 16


@pytest.fixture(scope="module")
def reader() -> Checkpoint:
    return trained(reads=True)


def audited(
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    modes: tuple[str, ...],
    folder: Path | None = None,
) -> dict[str, Any]:
    records, prompts = questions(checkpoint, QUESTIONS)
    targets = {record.id: class_targets()[i % 4] for i, record in enumerate(records)}
    for module in (audit_module, latent_modes):
        monkeypatch.setattr(module, "imagery_targets", lambda *_, **__: targets)
    sampler = LatentSampler(checkpoint.backbone)
    audit = LatentAudit(sampler, checkpoint.encoder(), records, config=CONFIG, folder=folder, progress=False)
    return audit.run(modes, prompts)


def test_a_model_that_answers_from_its_latents(
    reader: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = ("oracle", "zero", "other-clip", "none")
    found = audited(reader, monkeypatch, chosen, tmp_path)
    modes = found["modes"]
    assert tuple(modes) == ("own", *chosen)
    assert (modes["own"]["accuracy"], modes["own"]["parsed"]) == (1.0, 1.0)
    assert modes["oracle"]["accuracy"] == 1.0
    assert modes["oracle"]["flips"] == 0
    assert modes["zero"]["accuracy"] == 0.25  # one letter for all: chance
    for mode in ("zero", "other-clip"):
        assert modes[mode]["accuracy"] <= 0.4, mode
        assert modes[mode]["difference"]["high"] < -0.3
        assert modes[mode]["flips"] == modes[mode]["lost"] / QUESTIONS == 1 - modes[mode]["accuracy"]
        assert modes[mode]["p"] < 0.01
        assert modes[mode]["kl"]["mean"] > 1
        assert modes[mode]["kl_questions"] == QUESTIONS
    (block,) = found["blocks"]
    assert (block["block"], block["rows"], block["latents"]) == (1, QUESTIONS, 2 * QUESTIONS)
    assert block["oracle_cosine"] > 0.9
    assert block["mean_target_cosine"] < 0.8 < block["oracle_cosine"]
    assert block["between_clip_cosine"] < 0.6
    assert block["effective_rank"] > 4
    assert block["answer_to_latents"] > 0.3
    assert block["latents_to_frames"] is None
    assert found["without_blocks"] == 0
    # The answers of each mode are there to be compared, and an audit goes on with them.
    assert {path.parent.name for path in tmp_path.glob("*/answers.jsonl")} == set(modes)
    lines = [json.loads(line) for line in (tmp_path / "thoughts.jsonl").read_text().splitlines()]
    assert len(lines) == QUESTIONS
    for line in lines:
        (block,) = line["blocks"]
        assert len(block["norms"]) == len(block["cosines"]) == 2
        assert "".join(line["tokens"]) == line["text"]
        assert set(line["modes"]) == set(modes)
        assert line["modes"]["own"]["answer"] == line["answer"]
        assert line["modes"]["own"]["right"] > 0.5
    deck = thought_deck(tmp_path / "thoughts.jsonl", "", Album(tmp_path), Names())
    assert deck is not None
    flipped = sum("flipped" in card.flags for card in deck.cards)
    assert flipped > 0.6 * QUESTIONS
    assert all(card.rows[0].audit.startswith("right letter ") for card in deck.cards)
    tables = latent_tables(found)
    assert [row.label for row in tables[0].rows] == list(modes)
    assert tables[0].rows[2].cells[1].kind == "loss"  # zero
    assert len(tables[1].rows) == 1
    monkeypatch.setattr(evaluate.__globals__["Asking"], "answer", lambda self, todo: [*map(fail, todo)])
    assert audited(reader, monkeypatch, chosen, tmp_path)["modes"] == modes


def fail(item: Any) -> Any:
    raise AssertionError(f"{item} was answered before")


def test_a_model_that_ignores_its_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = audited(trained(reads=False), monkeypatch, ("oracle", "zero", "noise", "other-clip"))["modes"]
    assert modes.pop("own")["accuracy"] == 1.0
    for mode, row in modes.items():
        assert row["accuracy"] == 1.0, mode
        assert row["difference"]["mean"] == row["flips"] == row["gained"] == row["lost"] == 0
        assert row["kl"]["mean"] < 0.05


def test_replacements_do_not_depend_on_batching(reader: Checkpoint) -> None:
    """What is made of own latents is the same in batches of any size, and with latents known before."""
    records, prompts = questions(reader, 6)
    sampler, encoder = LatentSampler(reader.backbone), reader.encoder()
    for mode in ("noise", "other-clip"):
        options: dict[str, Any] = {"n": 1, "config": CONFIG, "latents": mode, "progress": False}
        options |= {"prompts": prompts, "letters": True}
        whole = evaluate(sampler, encoder, records, **options)
        parts = evaluate(sampler, encoder, records, batch_prompts=2, **options)
        for a, b in zip(whole.questions, parts.questions, strict=True):
            assert (a.texts, a.greedy_text) == (b.texts, b.greedy_text)
            assert (a.letters or {}) == pytest.approx(b.letters or {}, abs=1e-5)
        assert mode == "noise" or all(q.letters for q in whole.questions)
        assert whole.settings["latents"] == mode


def test_letters_of_a_resumed_run_are_those_of_a_whole_one(reader: Checkpoint, tmp_path: Path) -> None:
    """Prompts of mixed length, which are asked by length: every byte is that of a run that nothing cut."""
    records, prompts = questions(reader, QUESTIONS)
    for i, record in enumerate(records):
        ids = torch.tensor(ids_of(reader, "x" * (1 + 7 * i % 5) + CLASSES[i % 4] + "?"))
        prompts[i] = Prompt(ids, torch.arange(len(ids)).expand(3, -1), len(ids), record=record)

    def go(path: Path) -> bytes:
        evaluate(
            LatentSampler(reader.backbone), reader.encoder(), records, n=1, config=CONFIG, prompts=prompts,
            letters=True, journal=path, batch_prompts=4, progress=False,
        )  # fmt: skip
        return path.read_bytes()

    whole = go(tmp_path / "whole.jsonl")
    settings, *lines = whole.splitlines(keepends=True)
    assert sum(json.loads(line)["letters"] is not None for line in lines) > QUESTIONS / 2
    order = sorted(range(QUESTIONS), key=lambda i: len(prompts[i].input_ids))
    written = [lines[i] for i in order]
    for kept in (5, 13):
        cut = tmp_path / f"{kept}.jsonl"
        cut.write_bytes(settings + b"".join(written[:kept]) + written[kept][:30])
        assert go(cut) == whole


def test_what_is_fed(reader: Checkpoint) -> None:
    """noise has mean and norm of all own latents; other-clip is of another video; shuffle moves each one."""
    generator = torch.Generator().manual_seed(3)
    own = {(f"q{i}", 0): 1 + torch.randn(6, 32, generator=generator) for i in range(40)}
    sources = {f"q{i}": f"video{i // 2}" for i in range(40)}
    config = SamplingConfig(max_new_tokens=300, max_blocks=100)

    def table(mode: str) -> list[torch.Tensor]:
        feed = LatentFeeds(mode, reader.backbone, config, sources, own).feed(list(own))
        assert feed is not None
        return [rows[:count] for rows, count in zip(feed.table, feed.counts.tolist(), strict=True)]

    every = torch.cat(list(own.values()))
    noise = torch.cat(table("noise"))
    assert len(noise) == 40 * 200
    assert torch.allclose(noise.norm(dim=-1), every.norm(dim=-1).mean(), rtol=1e-5)
    assert (noise.mean(0) - every.mean(0)).abs().max() < 0.12
    assert len(noise.unique(dim=0)) == len(noise)
    keys = list(own)
    for number, rows in enumerate(table("other-clip")):
        (donor,) = [key for key in keys if torch.equal(own[key], rows[:6])]
        assert sources[donor[0]] != sources[keys[number][0]]
        assert torch.equal(rows[6:12], rows[:6])
    for key, rows in zip(keys, table("shuffle"), strict=True):
        assert (rows != own[key]).any(-1).all()
        assert torch.equal(rows.sort(0).values, own[key].sort(0).values)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 1.6])
@pytest.mark.parametrize("along", [0.0, 3.0, 20.0])
def test_noise_has_the_mean_of_latents_whose_norms_are_spread(
    reader: Checkpoint, scale: float, along: float
) -> None:
    """Log-normal norms around a common direction; the mean of rows of one norm cannot be longer than it."""
    generator = torch.Generator().manual_seed(0)
    base = along * F.normalize(torch.randn(32, generator=generator), dim=0)

    def vectors() -> torch.Tensor:
        size = torch.exp(scale * torch.randn(4, 1, generator=generator))
        return (base + torch.randn(4, 32, generator=generator)) * size

    own = {(f"q{i}", -1): vectors() for i in range(100)}
    config = SamplingConfig(max_new_tokens=300, max_blocks=100)
    feeds = LatentFeeds("noise", reader.backbone, config, {id: id for id, _ in own}, own)
    feed = feeds.feed(list(own))
    assert feed is not None
    noise, every = feed.table[:, : int(feed.counts[0])].flatten(0, 1), torch.cat(list(own.values()))
    norm = every.norm(dim=-1).mean()
    assert torch.allclose(noise.norm(dim=-1), norm, rtol=1e-5)
    assert (noise.mean(0) - every.mean(0)).norm() < 0.05 * norm


def test_what_would_be_own_is_left_out(reader: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    records, prompts = questions(reader, 4)
    monkeypatch.setattr(audit_module, "imagery_targets", lambda *_, **__: {})
    audit = LatentAudit(
        LatentSampler(reader.backbone), reader.encoder(), records, config=CONFIG, progress=False
    )
    assert audit.run(("shuffle", "first-repeat"), prompts)["shuffled"] == 4
    made = audit._own(records, prompts)
    own = {key: vectors[:1] for key, vectors in made[0].items()}
    monkeypatch.setattr(LatentAudit, "_own", lambda self, *_: (own, *made[1:]))
    found = audit.run(("zero", "shuffle"), prompts)
    assert list(found["modes"]) == ["own", "zero"]
    assert found["left_out"] == {"shuffle": "no answer has two latents"}
    assert found["shuffled"] == 0
    left_out = audit_module._left_out(["own", "first-repeat"], made[0], records, 1)
    assert left_out == {"first-repeat": "a block has one latent"}


def test_a_question_that_cannot_be_asked_is_in_one_denominator(
    reader: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, prompts = questions(reader, 8)
    monkeypatch.setattr(audit_module, "imagery_targets", lambda *_, **__: {})
    monkeypatch.setattr(LatentAudit, "_encode", lambda self: (prompts[2:], {"q0": "gone", "q1": "gone"}))
    audit = LatentAudit(
        LatentSampler(reader.backbone), reader.encoder(), records, config=CONFIG, progress=False
    )
    found = audit.run(("zero",))
    own = found["modes"]["own"]
    assert (found["questions"], found["asked"]) == (8, 6)
    assert (own["accuracy"], own["n"]) == (6 / 8, 8)
    assert (own["answered"]["accuracy"], own["answered"]["n"]) == (1.0, 6)
    assert own["low"] < 0.75 < own["high"]
    assert found["modes"]["zero"]["difference"]["mean"] == found["modes"]["zero"]["answered"]["accuracy"] - 1


def test_what_the_data_do_not_allow(reader: Checkpoint) -> None:
    records, _ = questions(reader, 2)
    encoder = reader.encoder()
    records[1].images, records[1].extra["source"] = [], "video0"
    assert usable_modes(records) == ["own", "zero", "pad", "first-repeat", "shuffle", "none"]
    with pytest.raises(RecordError, match=r"data.jsonl:2: latents oracle need overlays .*1 of 2 have none"):
        latent_feeds("oracle", reader.backbone, encoder, records, CONFIG)
    with pytest.raises(ConfigError, match="other-clip are made of those of several videos"):
        latent_feeds("other-clip", reader.backbone, encoder, records, CONFIG)


def test_audits_check_the_data_before_the_model_runs(
    reader: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatentAudit, "_own", lambda self, *_: fail("own"))
    records, prompts = questions(reader, 2)
    audit = LatentAudit(LatentSampler(reader.backbone), reader.encoder(), records, config=CONFIG)
    records[1].id, name = records[0].id, records[1].id
    with pytest.raises(RecordError, match="is already used"):
        audit.run(("zero",), prompts)
    records[1].id, records[1].images, records[1].extra["source"] = name, [], "video0"
    with pytest.raises(RecordError, match="latents oracle need overlays"):
        audit.run(("oracle",), prompts)
    with pytest.raises(ConfigError, match="other-clip are made of those of several videos"):
        audit.run(("other-clip",), prompts)


def test_other_clip_is_left_out_where_one_video_alone_has_latents(
    reader: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, prompts = questions(reader, 2)
    monkeypatch.setattr(audit_module, "imagery_targets", lambda *_, **__: {})
    audit = LatentAudit(
        LatentSampler(reader.backbone), reader.encoder(), records, config=CONFIG, progress=False
    )
    made = audit._own(records, prompts)
    own = {key: vectors[: 0 if key[0] == records[1].id else None] for key, vectors in made[0].items()}
    monkeypatch.setattr(LatentAudit, "_own", lambda self, *_: (own, *made[1:]))
    found = audit.run(("zero", "other-clip"), prompts)
    assert list(found["modes"]) == ["own", "zero"]
    assert found["left_out"] == {"other-clip": "the answers about one video alone have imagery blocks"}


def test_statistics_of_own_latents_are_made_once(reader: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {("a", 0): torch.randn(3, 32), ("b", 0): torch.randn(3, 32)}
    feeds = LatentFeeds("noise", reader.backbone, CONFIG, {"a": "v", "b": "w"}, own)
    calls, std = [], torch.Tensor.std
    monkeypatch.setattr(torch.Tensor, "std", lambda *a, **k: calls.append(1) or std(*a, **k))
    first, second = (feeds.feed(list(own)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert torch.equal(first.table, second.table)
    assert len(calls) == 1


def test_attention_shares_are_those_of_the_eager_layers() -> None:
    checkpoint = talkative(start=5.0, eos=0.0)
    backbone = checkpoint.backbone
    prompts = [make_prompt(checkpoint, 0, 7, clip=0), make_prompt(checkpoint, 1, 12)]
    rollout = LatentSampler(backbone).sample(
        prompts, config=SamplingConfig(max_new_tokens=14, temperature=0.0)
    )
    batch = replay_batch(rollout, prompts)
    rows, length = batch["input_ids"].shape
    groups = torch.zeros(2, rows * length, dtype=torch.bool)
    groups[0, batch["vision_index"]] = True
    groups[1, batch["latent_index"]] = True
    queries = torch.cat([batch["latent_index"], batch["source_index"][-3:]])
    shares = attention_shares(backbone, batch, queries, groups.view(2, rows, length))
    inputs = backbone.embed_inputs(batch)
    with torch.no_grad(), backbone.set_attention("eager"):
        weights = backbone.hf.model.language_model(
            inputs_embeds=inputs.embeds, position_ids=batch["position_ids"], output_attentions=True
        ).attentions
    mean = torch.stack(weights).mean((0, 2))  # [B, S, S]
    for line, query in enumerate(queries.tolist()):
        row, column = divmod(query, length)
        expected = groups.view(2, rows, length)[:, row].float() @ mean[row, column]
        assert (shares[line] - expected).abs().max() <= 1e-5
    assert shares[:, 0].max() > 0.05
    assert shares[:, 1].max() > 0.05


def test_ranks_cosines_and_divergence() -> None:
    assert effective_rank(torch.eye(5)[:3] * 7) == pytest.approx(3)
    assert effective_rank(torch.ones(4, 6)) == pytest.approx(1)
    assert effective_rank(torch.zeros(2, 2)) == 0
    blocks = [torch.randn(size, 5, generator=torch.Generator().manual_seed(size)) for size in (3, 2, 3, 1)]
    sources = ["a", "a", "b", "c"]
    pairs = [
        float(F.cosine_similarity(blocks[i][k], blocks[j][k], dim=0))
        for i in range(4)
        for j in range(4)
        for k in range(min(len(blocks[i]), len(blocks[j])))
        if sources[i] != sources[j]
    ]
    assert between_clip_cosine(blocks, sources) == pytest.approx(sum(pairs) / len(pairs))
    assert between_clip_cosine(blocks[:2], sources[:2]) is None
    firsts = F.normalize(torch.stack([block[0] for block in blocks]), dim=1)
    best = [float(unit @ F.normalize(firsts.sum(0), dim=0)) for unit in firsts]
    assert mean_target_cosine([block[:1] for block in blocks]) == pytest.approx(sum(best) / 4)
    assert mean_target_cosine([torch.eye(2), torch.eye(2)[:1]]) == pytest.approx(1)
    assert mean_target_cosine([]) is None
    p, q = {"A": 0.75, "B": 0.25}, {"A": 0.5, "B": 0.5}
    assert kl_divergence(p, q) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kl_divergence({"A": 1.0, "B": 0.0}, {"A": 1.0, "B": 0.0}) == 0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("so <answer> B. right </answer>", " B"),
        ("<answer>a</answer>", "a"),
        ("<answer>A</answer> no <answer>B</answer>", "B"),
        ("<answer> left </answer>", None),
        ("it is B", None),
        ("<answer>Between</answer>", None),
    ],
)
def test_the_step_that_names_the_letter(text: str, letter: str | None) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = letter_step(tokenizer, ids, {"A": "left", "B": "right"})
    if letter is None:
        assert found is None
        return
    assert found is not None
    assert tokenizer.decode([ids[found.step]]) == letter
    assert tokenizer.decode([found.ids["A"]]) == letter.replace("B", "A")
    assert tokenizer.decode([found.ids["B"]]) == letter.replace("A", "B").replace("a", "b")
