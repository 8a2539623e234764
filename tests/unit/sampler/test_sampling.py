"""The sampler against simulations, exact distributions, Hugging Face's generate, and other batches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

from fourdthinker.backbones import Checkpoint
from fourdthinker.errors import ConfigError, SamplingError
from fourdthinker.sampler import (
    LatentSampler,
    Rollout,
    SamplingConfig,
    encode_prompts,
    row_seed,
    run,
)
from fourdthinker.sampler.step import drawing
from fourdthinker.samples import Prompt
from tests.tiny import tiny_checkpoint
from tests.unit.sampler.cases import Script, compare, make_prompt, mixed_prompts, talkative

OTHER = 65  # the id that scripts fall back on


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return tiny_checkpoint(layers=1)


@pytest.fixture(scope="module")
def talker() -> Checkpoint:
    return talkative()


def sample(checkpoint: Checkpoint, prompts: list[Prompt], n: int = 1, **options: Any) -> Rollout:
    fields = {k: options.pop(k) for k in list(options) if k in SamplingConfig.__dataclass_fields__}
    every = options.pop("check_every", None)
    sampler = LatentSampler(checkpoint.backbone, checkpoint.tokenizer, check_every=every)
    return sampler.sample(prompts, n, SamplingConfig(**fields), **options)


# -- a row depends on nothing but itself


@pytest.mark.parametrize("mode", ["exact", "reference"])
@pytest.mark.parametrize(
    "settings_", [{}, {"temperature": 0.8, "top_p": 0.9, "top_k": 60, "repetition_penalty": 1.1}]
)
def test_batch_invariance(talker: Checkpoint, mode: str, settings_: dict[str, Any]) -> None:
    prompts = mixed_prompts(talker)
    options = {"max_new_tokens": 40, "mode": mode, "max_blocks": 4, **settings_}
    seeds = [1000 + 7 * row for row in range(16)]
    whole = sample(talker, prompts, 2, seeds=seeds, **options)
    assert set(whole.finish_reason) == {"eos", "length"}  # rows leave the batch
    assert whole.latent_rows.unique().numel() >= 8
    for p, prompt in enumerate(prompts):
        rows = [2 * p, 2 * p + 1]
        alone = sample(talker, [prompt], 2, seeds=[seeds[row] for row in rows], **options)
        compare(alone, whole, [0, 1], rows)
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    moved = sample(
        talker, [prompts[p] for p in order], 2,
        seeds=[seeds[2 * p + s] for p in order for s in (1, 0)], **options,
    )  # fmt: skip
    compare(whole, moved, [2 * p + s for p in order for s in (1, 0)], range(16))


@pytest.mark.parametrize("check_every", [3, 16, 100])
def test_the_check_interval_changes_nothing(talker: Checkpoint, check_every: int) -> None:
    prompts = mixed_prompts(talker)[:4]
    options: dict[str, Any] = {
        "max_new_tokens": 30,
        "stop_strings": ["mo", "<|latent_end|>a", "?"],
        "seed": 5,
    }
    often = sample(talker, prompts, 8, check_every=1, **options)
    seldom = sample(talker, prompts, 8, check_every=check_every, **options)
    assert {"stop", "eos"} <= set(often.finish_reason)
    assert often.tokens.shape == seldom.tokens.shape
    compare(often, seldom, range(32), range(32))


def test_rows_leaving_the_batch_change_nothing(talker: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = mixed_prompts(talker)
    results = []
    for share in (0.0, 0.75, 1.0):
        monkeypatch.setitem(run.COMPACT_BELOW, "cpu", share)
        results.append(sample(talker, prompts, 4, max_new_tokens=50, presence_penalty=0.3))
    assert results[0].finish_reason.count("eos") > 8
    for other in results[1:]:
        compare(results[0], other, range(32), range(32))


def test_seeds(talker: Checkpoint) -> None:
    prompt = make_prompt(talker, 0, 9)
    derived = sample(talker, [prompt, prompt], 3, max_new_tokens=12, seed=4)
    assert derived.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert len({tuple(row) for row in derived.tokens.tolist()}) == 6
    again = sample(talker, [prompt], 1, max_new_tokens=12, seeds=[row_seed(4, 1, 2)])
    compare(again, derived, [0], [5])
    other = sample(talker, [prompt, prompt], 3, max_new_tokens=12, seed=5)
    assert not torch.equal(other.tokens[:, :5], derived.tokens[:, :5])
    extremes = torch.tensor([-(2**63), 2**63 - 1, 0, 1, 2, 3])
    assert len(sample(talker, [prompt, prompt], 3, max_new_tokens=4, seeds=extremes).lengths) == 6
    assert len({row_seed(s, p, i) for s in range(10) for p in range(10) for i in range(10)}) == 1000


# -- the grammar


def simulate(
    checkpoint: Checkpoint, wishes: list[int], limit: int, mode: str, max_blocks: int, train_start: bool
) -> tuple[list[int], list[bool], str]:
    """What a greedy row emits whose model wishes for these ids and, where they are illegal, for OTHER."""
    spec, eos = checkpoint.backbone.latents, checkpoint.backbone.vision.eos_ids
    ids: list[int] = []
    chosen: list[bool] = []
    inside = -1  # pads so far, -1 outside a block
    blocks = 0
    for step in range(limit):
        wish = wishes[step] if step < len(wishes) else OTHER
        if inside >= 0:
            closes = inside == spec.latent_size or (mode == "reference" and wish == spec.end_id)
            ids.append(spec.end_id if closes else spec.pad_id)
            chosen.append(False)
            inside = -1 if closes else inside + 1
            continue
        illegal = wish in (spec.pad_id, spec.end_id) or (wish == spec.start_id and blocks >= max_blocks)
        token = OTHER if illegal else wish
        ids.append(token)
        chosen.append(train_start or token != spec.start_id)
        if token == spec.start_id:
            inside, blocks = 0, blocks + 1
        if token in eos:
            return ids, chosen, "eos"
    return ids, chosen, "length"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_grammar_against_a_simulation(tiny: Checkpoint, data: st.DataObject) -> None:
    spec, eos = tiny.backbone.latents, tiny.backbone.vision.eos_ids
    wish = st.one_of(
        st.sampled_from([spec.start_id, spec.start_id, spec.pad_id, spec.end_id]),
        st.sampled_from([*eos, *range(60, 64)]),
    )
    mode = data.draw(st.sampled_from(["exact", "reference"]))
    max_blocks, limit = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 22))
    train_start = data.draw(st.booleans())
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    prompts = [make_prompt(tiny, 100 + i, length) for i, length in enumerate(lengths)]
    scripts = [(prompt, data.draw(st.lists(wish, max_size=22))) for prompt in prompts]
    rollout = sample(
        tiny, prompts, 1, max_new_tokens=limit, temperature=data.draw(st.sampled_from([0.0, 1.0])), mode=mode,
        max_blocks=max_blocks, train_start=train_start, check_every=data.draw(st.integers(1, 5)),
        logits_processor=[Script(scripts, OTHER)],
    )  # fmt: skip
    for row, (_, wishes) in enumerate(scripts):
        ids, chosen, reason = simulate(tiny, wishes, limit, mode, max_blocks, train_start)
        length = int(rollout.lengths[row])
        assert rollout.tokens[row, :length].tolist() == ids
        assert rollout.policy_mask[row, :length].tolist() == chosen
        assert rollout.finish_reason[row] == reason
        assert (rollout.tokens[row, length:] == tiny.backbone.vision.pad_id).all()
        pads = [step for step, token in enumerate(ids) if token == spec.pad_id]
        assert rollout.latent_steps[rollout.latent_rows == row].tolist() == pads
        ignored = ~rollout.policy_mask[row]
        assert not rollout.logprobs[row][ignored].any()
        assert not rollout.sampled_logprobs[row][ignored].any()
        assert (rollout.logprobs[row][~ignored] < 0).all()
    assert rollout.tokens.shape[1] == int(rollout.lengths.max())


@pytest.mark.parametrize("mode", ["exact", "reference"])
def test_sampled_rows_obey_the_grammar(talker: Checkpoint, mode: str) -> None:
    """The model's own tilted logits, rows leaving the batch."""
    spec, eos = talker.backbone.latents, talker.backbone.vision.eos_ids
    rollout = sample(talker, mixed_prompts(talker), 6, max_new_tokens=60, mode=mode, max_blocks=3)
    sizes = []
    for row, length in enumerate(rollout.lengths.tolist()):
        ids = rollout.tokens[row, :length].tolist()
        assert ids.count(spec.start_id) <= 3
        step = 0
        while step < length:
            assert ids[step] not in (spec.pad_id, spec.end_id)
            if ids[step] in eos:
                assert step == length - 1
                assert rollout.finish_reason[row] == "eos"
            if ids[step] == spec.start_id:
                size = 0
                while step + 1 + size < length and ids[step + 1 + size] == spec.pad_id:
                    size += 1
                step += 1 + size
                if step < length:
                    assert ids[step] == spec.end_id
                    sizes.append(size)
            step += 1
    assert len(sizes) > 20
    assert (
        set(sizes) == {spec.latent_size} if mode == "exact" else min(sizes) < max(sizes) == spec.latent_size
    )


# -- log-probabilities and distributions


def first_logits(checkpoint: Checkpoint, prompt: Prompt) -> torch.Tensor:
    backbone = checkpoint.backbone
    batch = {"input_ids": prompt.input_ids[None], "position_ids": prompt.position_ids[:, None]}
    with torch.no_grad():
        hidden = backbone.decode(backbone.embed_inputs(batch).embeds, batch["position_ids"])[0, -1]
        return (backbone.head_weight @ hidden).double()


def exact_distribution(logits: torch.Tensor, banned: list[int], config: SamplingConfig) -> torch.Tensor:
    scores = logits.clone()
    scores[banned] = -torch.inf
    p = (scores / config.temperature).softmax(0)
    order = p.argsort(descending=True)
    keep = torch.ones_like(p, dtype=torch.bool)
    if config.top_k:
        keep[order[config.top_k :]] = False
    p = torch.where(keep, p, 0.0) / p[keep].sum()
    if config.top_p < 1:
        before = p[order].cumsum(0) - p[order]
        keep[order[before >= config.top_p]] = False
    if config.min_p:
        keep &= p >= config.min_p * p.max()
    return torch.where(keep, p, 0.0) / p[keep].sum()


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.5, top_k=40),
        SamplingConfig(temperature=1.5, top_p=0.6),
        SamplingConfig(min_p=0.1, max_blocks=0),
        SamplingConfig(temperature=0.7, top_k=100, top_p=0.9, min_p=0.02),
    ],
)
def test_first_tokens_follow_the_exact_distribution(tiny: Checkpoint, config: SamplingConfig) -> None:
    prompt, spec, rows = make_prompt(tiny, 3, 6), tiny.backbone.latents, 4000
    banned = [spec.pad_id, spec.end_id, *([] if config.max_blocks else [spec.start_id])]
    logits = first_logits(tiny, prompt)
    p = exact_distribution(logits, banned, config)
    config = replace(config, max_new_tokens=1, train_start=True, seed=1)
    rollout = LatentSampler(tiny.backbone).sample([prompt], rows, config)
    ids = rollout.tokens[:, 0]
    torch.testing.assert_close(
        rollout.logprobs[:, 0].double(), (logits / config.temperature).log_softmax(0)[ids], atol=2e-5, rtol=0
    )
    torch.testing.assert_close(rollout.sampled_logprobs[:, 0].double(), p.log()[ids], atol=2e-5, rtol=0)

    expected, counts = p * rows, torch.bincount(ids, minlength=len(p)).double()
    common = expected >= 5
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    counts = torch.cat([counts[common], counts[~common].sum()[None]])
    expected, counts = expected[expected > 1e-6], counts[expected > 1e-6]
    assert counts.sum() == rows
    statistic = ((counts - expected) ** 2 / expected).sum()
    tail = torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2)
    assert tail > 1e-3, (float(statistic), len(counts))


def test_greedy_counts_as_temperature_one(tiny: Checkpoint) -> None:
    prompt = make_prompt(tiny, 3, 6)
    rollout = sample(tiny, [prompt], max_new_tokens=1, temperature=0.0, max_blocks=0)
    expected = first_logits(tiny, prompt).log_softmax(0)
    assert float(rollout.logprobs) == pytest.approx(float(expected[rollout.tokens[0, 0]]), abs=1e-5)
    assert float(rollout.sampled_logprobs) == 0.0


def test_processors_are_honoured_and_leave_the_logprobs_alone(tiny: Checkpoint) -> None:
    prompts = mixed_prompts(tiny)[:3]
    wanted = [41, 42, 43]
    ban = SuppressTokensLogitsProcessor([i for i in range(393) if i not in wanted], device="cpu")
    rollout = sample(tiny, prompts, 40, max_new_tokens=2, logits_processor=LogitsProcessorList([ban]))
    assert set(rollout.tokens.flatten().tolist()) == set(wanted)
    text = make_prompt(tiny, 1, 7)  # prompt 1 of the three
    p = first_logits(tiny, text).log_softmax(0)
    ids = rollout.tokens[40:80, 0]
    torch.testing.assert_close(rollout.logprobs[40:80, 0], p[ids].float(), atol=1e-5, rtol=0)
    truncated = (p[ids] - p[wanted].logsumexp(0)).float()
    torch.testing.assert_close(rollout.sampled_logprobs[40:80, 0], truncated, atol=1e-5, rtol=0)


def test_processors_see_prompt_and_emitted_ids_without_padding(tiny: Checkpoint) -> None:
    prompts = [make_prompt(tiny, i, length) for i, length in enumerate((5, 3, 5))]
    calls: list[torch.Tensor] = []

    def look(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert scores.dtype == torch.float32
        calls.append(input_ids.clone())
        return scores

    rollout = sample(tiny, prompts, 2, max_new_tokens=3, logits_processor=[look], max_blocks=0)
    assert [tuple(ids.shape) for ids in calls] == [(4, 5), (2, 3), (4, 6), (2, 4), (4, 7), (2, 5)]
    rows = [0, 1, 4, 5]
    assert torch.equal(calls[-2][:, 5:], rollout.tokens[rows, :2])
    assert torch.equal(calls[-2][:, :5], torch.stack([prompts[r // 2].input_ids for r in rows]))


def test_a_processor_that_leaves_nothing_is_named(tiny: Checkpoint) -> None:
    def ban(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf)

    with pytest.raises(SamplingError, match=r"prompt 0: its logits .* or for processors that ban every id"):
        sample(tiny, [make_prompt(tiny, 0, 4)], max_new_tokens=1, logits_processor=[ban])


def test_a_processor_that_leaves_only_what_the_grammar_forbids(tiny: Checkpoint) -> None:
    pad = tiny.backbone.latents.pad_id

    def ban(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        kept = torch.full_like(scores, -torch.inf)
        kept[:, pad] = 0.0
        return kept

    with pytest.raises(SamplingError, match="processors that ban every id"):
        sample(tiny, [make_prompt(tiny, 0, 4)], max_new_tokens=3, logits_processor=[ban])


def test_what_is_ignored_may_be_banned(tiny: Checkpoint) -> None:
    """Ended rows, and rows inside an exact block, draw an id that nobody looks at."""
    spec, eos = tiny.backbone.latents, tiny.backbone.vision.eos_ids[0]
    short, long = make_prompt(tiny, 0, 4), make_prompt(tiny, 1, 5)
    script = Script([(short, [70, eos]), (long, [spec.start_id])], OTHER)

    def ban(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - (4 if torch.equal(input_ids[0, :4], short.input_ids) else 5)
        ignored = step >= 2 if input_ids.shape[1] - step == 4 else 1 <= step <= 5
        return torch.full_like(scores, -torch.inf) if ignored else scores

    rollout = sample(tiny, [short, long], max_new_tokens=8, temperature=0.0, logits_processor=[script, ban])
    assert rollout.lengths.tolist() == [2, 8]


# -- Hugging Face's generate


def generate(checkpoint: Checkpoint, prompt: Prompt, **options: Any) -> list[int]:
    backbone, spec = checkpoint.backbone, checkpoint.backbone.vision
    inputs: dict[str, Any] = {"input_ids": prompt.input_ids[None]}
    if prompt.vision is not None:
        inputs["mm_token_type_ids"] = 2 * (inputs["input_ids"] == spec.video_token_id).long()
        inputs["pixel_values_videos"], inputs["video_grid_thw"] = (
            prompt.vision.patches,
            prompt.vision.grid_thw,
        )
        inputs["second_per_grid_ts"] = torch.ones(len(prompt.vision.grid_thw))
    out = backbone.hf.generate(
        **inputs, do_sample=False, max_new_tokens=24, suppress_tokens=list(backbone.latents.ids), **options
    )
    return out[0, len(prompt.input_ids) :].tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_text_equals_hf_generate(penalty: float) -> None:
    talker, ends = talkative(eos=0.0), (*range(0, 300, 30), 383)
    prompts = [make_prompt(talker, i, 4 + 5 * i) for i in range(5)]
    if penalty == 1.0:  # HF's repetition penalty counts vision pads, ours does not
        prompts += [make_prompt(talker, 20, 9, clip=0), make_prompt(talker, 21, 12, clip=2)]
    rollout = sample(
        talker, prompts, max_new_tokens=24, temperature=0.0, max_blocks=0, repetition_penalty=penalty,
        eos_ids=ends,
    )  # fmt: skip
    for row, prompt in enumerate(prompts):
        ids = rollout.tokens[row, : rollout.lengths[row]].tolist()
        assert ids == generate(talker, prompt, repetition_penalty=penalty, eos_token_id=list(ends))
    assert set(rollout.finish_reason) == {"eos", "length"}


def test_presence_penalty_forbids_what_was_said(tiny: Checkpoint) -> None:
    prompt = make_prompt(tiny, 2, 8)
    plain = sample(tiny, [prompt], max_new_tokens=40, temperature=0.0, max_blocks=0, eos_ids=(0,))
    assert len(plain.tokens[0].unique()) < 40
    strict = sample(
        tiny, [prompt], max_new_tokens=40, temperature=0.0, max_blocks=0, presence_penalty=1e4, eos_ids=(0,)
    )
    length = int(strict.lengths)
    assert len(strict.tokens[0, :length].unique()) == length > 10


def test_vision_pads_are_no_repetition(tiny: Checkpoint) -> None:
    prompt, video = make_prompt(tiny, 2, 8, clip=0), tiny.backbone.vision.video_token_id
    drawn = drawing(tiny.backbone, SamplingConfig(repetition_penalty=2.0), [prompt], torch.zeros(1))
    assert set(drawn["seen"][0].nonzero()[:, 0].tolist()) == set(prompt.input_ids.tolist()) - {video}


# -- where rows end


def ids_of(checkpoint: Checkpoint, text: str) -> list[int]:
    return checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("check_every", [1, 4, 50])
def test_stop_strings(tiny: Checkpoint, check_every: int) -> None:
    eos, spec = tiny.backbone.vision.eos_ids[0], tiny.backbone.latents
    block = [spec.start_id, *[spec.pad_id] * 4, spec.end_id]
    said = [
        "A camera </answer> and more",  # cut within later text
        "x</answ",  # never reached
        "é…</answer>tail",  # after ids that are parts of characters
        "straight to",  # EOS first
        "",  # a stop made of a latent token
        "left STOP right",  # the other stop string
        "by itself",  # EOS, whose text is a stop string as well
    ]
    scripts = [ids_of(tiny, text) for text in said]
    scripts[3] += [eos, *ids_of(tiny, "</answer>")]
    scripts[6].append(eos)
    scripts[4] = [*block, *ids_of(tiny, "a"), *block, *ids_of(tiny, "a</answer>")]
    prompts = [make_prompt(tiny, 50 + i, 3) for i in range(len(said))]
    rollout = sample(
        tiny, prompts, max_new_tokens=40, temperature=0.0, check_every=check_every,
        stop_strings=("</answer>", "STOP", "a<|latent_start|><|latent_pad|>", "<|im_end|>", "<|endoftext|>"),
        logits_processor=[Script(list(zip(prompts, scripts, strict=True)), OTHER)],
    )  # fmt: skip
    assert rollout.finish_reason == ["stop", "length", "stop", "eos", "stop", "stop", "eos"]
    texts = rollout.texts(tiny.tokenizer)
    assert texts[0].startswith("A camera </answer>")
    assert not texts[0].endswith("more")
    assert texts[2].startswith("é…</answer>")
    assert texts[3] == "straight to"
    assert texts[4].endswith("<|latent_end|>a<|latent_start|><|latent_pad|>")
    assert texts[5].startswith("left STOP")
    assert texts[6] == "by itself"
    for row in (0, 2, 4, 5):  # the shortest prefix with a stop in it
        ids = rollout.tokens[row, : rollout.lengths[row]].tolist()
        shorter = tiny.tokenizer.decode(ids[:-1], skip_special_tokens=False)
        assert not any(stop in shorter for stop in ("</answer>", "STOP", "a<|latent_start|><|latent_pad|>"))
    assert rollout.latent_steps[rollout.latent_rows == 4].tolist() == [1, 2, 3, 4, 8]
    assert int(rollout.lengths[4]) == 9  # cut inside a block
    assert rollout.tokens.shape[1] == int(rollout.lengths.max()) == 40


def test_several_eos_ids(tiny: Checkpoint) -> None:
    prompts = [make_prompt(tiny, 60 + i, 3) for i in range(4)]
    own = tiny.backbone.vision.eos_ids
    assert len(own) == 2
    scripts = [[70, own[0], 71], [70, own[1], 71], [70, 77, 71], [78, 79, 80]]
    script = [Script(list(zip(prompts, scripts, strict=True)), OTHER)]
    rollout = sample(tiny, prompts, max_new_tokens=5, temperature=0.0, logits_processor=script)
    assert rollout.lengths.tolist() == [2, 2, 5, 5]
    rollout = sample(
        tiny, prompts, max_new_tokens=5, temperature=0.0, logits_processor=script, eos_ids=(77, 79)
    )
    assert rollout.lengths.tolist() == [5, 5, 2, 2]
    assert rollout.finish_reason == ["length", "length", "eos", "eos"]


def test_a_row_cut_inside_a_block_ends_cleanly(tiny: Checkpoint) -> None:
    spec, prompt = tiny.backbone.latents, make_prompt(tiny, 0, 5)
    script = [Script([(prompt, [70, spec.start_id])], OTHER)]
    for limit, pads in ((2, 0), (3, 1), (6, 4)):
        rollout = sample(tiny, [prompt], max_new_tokens=limit, temperature=0.0, logits_processor=script)
        assert rollout.tokens.tolist() == [[70, spec.start_id, *[spec.pad_id] * pads]]
        assert rollout.finish_reason == ["length"]
        assert rollout.latents.shape == (pads, 32)
        assert rollout.policy_mask.tolist() == [[True, False, *[False] * pads]]


def test_texts_keep_blocks_and_drop_the_end(tiny: Checkpoint) -> None:
    spec, eos = tiny.backbone.latents, tiny.backbone.vision.eos_ids[0]
    prompt = make_prompt(tiny, 0, 5)
    wishes = [*ids_of(tiny, "see "), spec.start_id, 1, 2, 3, 4, 5, *ids_of(tiny, "left"), eos]
    script = [Script([(prompt, wishes)], OTHER)]
    rollout = sample(tiny, [prompt], temperature=0.0, max_new_tokens=60, logits_processor=script)
    pads = "<|latent_pad|>" * 4
    assert rollout.texts(tiny.tokenizer) == [f"see <|latent_start|>{pads}<|latent_end|>left"]


# -- shared work, dtypes, modes of the model


def test_clips_and_prompts_are_encoded_once(talker: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = talker.backbone
    prompts = [make_prompt(talker, i % 3, 8, clip=i % 2) for i in range(6)]  # 6 different ones of 2 clips
    prompts += [make_prompt(talker, 0, 8, clip=0), make_prompt(talker, 9, 8)]  # a copy, and one of text
    encoded, prefilled = [], []
    encode, decode = backbone.encode_vision, backbone.decode
    monkeypatch.setattr(backbone, "encode_vision", lambda p, g: (encoded.append(len(g)), encode(p, g))[1])

    def watch(embeds: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        prefilled.append(tuple(embeds.shape[:2]))
        return decode(embeds, *args, **options)

    monkeypatch.setattr(backbone, "decode", watch)
    rollout = sample(talker, prompts, 2, max_new_tokens=3, eos_ids=(5,))
    assert encoded == [2]
    assert sum(rows for rows, _ in prefilled) == 7
    assert rollout.timing.keys() == {"vision", "prefill", "decode", "steps"}

    features = encode_prompts(backbone, prompts)
    assert features[0] is features[2] is features[4] is features[6]
    assert features[-1] is None
    encoded.clear()
    given = sample(talker, prompts, 2, max_new_tokens=3, eos_ids=(5,), features=features)
    assert not encoded
    compare(rollout, given, range(16), range(16))


def test_clips_that_differ_in_one_value_are_different(talker: Checkpoint) -> None:
    one, two = make_prompt(talker, 0, 8, clip=0), make_prompt(talker, 0, 8, clip=0)
    two.vision.patches[17, 501] += 1.0
    features = encode_prompts(talker.backbone, [one, two])
    assert not torch.equal(features[0], features[1])
    rollout = sample(talker, [one, two], temperature=0.0, max_new_tokens=1)
    assert rollout.logprobs[0] != rollout.logprobs[1]


def test_prompts_that_bring_features(talker: Checkpoint) -> None:
    prompts = mixed_prompts(talker)
    plain = sample(talker, prompts, 1, max_new_tokens=10)
    features = encode_prompts(talker.backbone, prompts)
    for prompt, feature in zip(prompts, features, strict=True):
        if prompt.vision is not None:
            prompt.vision = replace(prompt.vision, features=feature, patches=None)
    compare(plain, sample(talker, prompts, 1, max_new_tokens=10), range(8), range(8))


def test_the_model_is_left_as_it_was(tiny: Checkpoint) -> None:
    backbone = tiny_checkpoint().backbone
    prompts = [make_prompt(tiny, 0, 6)]
    expected = LatentSampler(backbone).sample(prompts, 2, SamplingConfig(max_new_tokens=6))
    backbone.train()
    backbone.visual.eval()
    backbone.gradient_checkpointing_enable()
    before = [module.training for module in backbone.modules()]
    rollout = LatentSampler(backbone).sample(prompts, 2, SamplingConfig(max_new_tokens=6))
    assert [module.training for module in backbone.modules()] == before
    assert not rollout.latents.requires_grad
    compare(expected, rollout, range(2), range(2))
    with pytest.raises(ConfigError):
        LatentSampler(backbone).sample(
            [make_prompt(tiny, 0, 6, clip=0), replace(prompts[0], input_ids=torch.ones(0))]
        )
    assert [module.training for module in backbone.modules()] == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    checkpoint = talkative()
    checkpoint.backbone.to(dtype)
    rollout = sample(checkpoint, mixed_prompts(checkpoint)[:3], 4, max_new_tokens=20)
    assert rollout.latents.dtype == dtype
    assert rollout.latents.shape[0] > 0
    assert torch.isfinite(rollout.logprobs).all()


# -- what is refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"top_k": 2**31},
        {"max_blocks": 2**31},
        {"temperature": 10**400},
        {"presence_penalty": -1e39},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 1.0},
        {"presence_penalty": math.inf},
        {"repetition_penalty": 0},
        {"repetition_penalty": 1e-38},
        {"repetition_penalty": 1e38},
        {"presence_penalty": 1e38},
        {"temperature": 1e-40},
        {"mode": "fast"},
        {"max_blocks": -1},
        {"stop_strings": "</answer>"},
        {"stop_strings": ("",)},
        {"eos_ids": 5},
        {"eos_ids": (-1,)},
        {"eos_ids": ("<|im_end|>",)},
        {"seed": None},
        {"seed": 2**63},
        {"seed": -(2**63) - 1},
        {"seed": True},
    ],
)
def test_bad_settings(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError) as error:
        SamplingConfig(**wrong)
    assert f"{name} is {value!r}; it must be" in str(error.value)


@pytest.mark.parametrize(
    "right",
    [{"temperature": 0}, {"temperature": 1e-38}, {"repetition_penalty": 1e3}, {"min_p": 0}, {"top_p": 1}],
)
def test_good_settings(right: dict[str, Any]) -> None:
    SamplingConfig(**right)


def test_settings_from_yaml_lists() -> None:
    config = SamplingConfig(stop_strings=["a", "b"], eos_ids=[1])
    assert (config.stop_strings, config.eos_ids) == (("a", "b"), (1,))
    assert hash(config) == hash(SamplingConfig(stop_strings=("a", "b"), eos_ids=(1,)))


@pytest.mark.parametrize(
    "wrong", [{"seed": 10**5000}, {"max_new_tokens": 10**5000}, {"eos_ids": (10**5000,)}], ids="".join
)
def test_a_number_that_python_does_not_write_is_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name} is a number of more than 4,300 digits; it must be"):
        SamplingConfig(**wrong)


def test_bad_calls(tiny: Checkpoint) -> None:
    prompt, sampler = make_prompt(tiny, 0, 6, clip=0), LatentSampler(tiny.backbone)
    with pytest.raises(ConfigError, match="no prompts"):
        sampler.sample([])
    for n in (0, 1.5, "2", True, None):
        with pytest.raises(ConfigError, match=rf"n is {n!r}; it must be an integer in \[1, 2\^31\)"):
            sampler.sample([prompt], n)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"3 seeds for 1 prompts of 2 samples; give 2"):
        sampler.sample([prompt], 2, seeds=[1, 2, 3])
    with pytest.raises(ConfigError, match=r"seed 9223372036854775808 is no integer of 64 bits"):
        sampler.sample([prompt], 1, seeds=[2**63])
    with pytest.raises(ConfigError, match=r"eos id 5000 is not in the vocabulary of 393 ids"):
        sampler.sample([prompt], 1, SamplingConfig(eos_ids=(5000,)))
    with pytest.raises(ConfigError, match=r"eos id \d+ is one of the latent tokens"):
        sampler.sample([prompt], 1, SamplingConfig(eos_ids=(tiny.backbone.latents.end_id,)))
    with pytest.raises(ConfigError, match=r"LatentSampler\(backbone, tokenizer\)"):
        sampler.sample([prompt], 1, SamplingConfig(stop_strings=("x",)))
    with pytest.raises(ConfigError, match="check_every is 0"):
        LatentSampler(tiny.backbone, check_every=0)
    with pytest.raises(ConfigError, match=r"0 features for 1 prompts"):
        sampler.sample([prompt], features=[])


def test_bad_prompts(tiny: Checkpoint) -> None:
    sampler, good = LatentSampler(tiny.backbone), make_prompt(tiny, 0, 6, clip=0)
    blind = replace(good, vision=None)
    with pytest.raises(ConfigError, match=r"prompt 1: 12 vision pads in its ids but 0 vision features; make"):
        sampler.sample([good, blind])
    pictures = make_prompt(tiny, 0, 6, clip=1).vision
    with pytest.raises(ConfigError, match=r"prompt 0: 12 vision pads in its ids but 6 vision features"):
        sampler.sample([replace(good, vision=pictures), good])
    with pytest.raises(ConfigError, match=r"prompt 0: .*neither patches nor features"):
        sampler.sample([replace(good, vision=replace(good.vision, patches=None))])
    empty = torch.empty(0, dtype=torch.long)
    with pytest.raises(ConfigError, match=r"prompt 0: input_ids is \(0,\)"):
        sampler.sample([Prompt(empty, torch.empty(3, 0, dtype=torch.long), 0)])
    with pytest.raises(ConfigError, match=r"prompt 0: position_ids is \(3, 4\); it must be \(3, 18\)"):
        sampler.sample([replace(good, position_ids=good.position_ids[:, :4])])
