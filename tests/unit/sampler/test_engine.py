"""The engine: what a decode step costs, memory that is too small, models of all kinds."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from fourdthinker.backbones import FAMILIES, Checkpoint
from fourdthinker.backbones.decoding import Decoder
from fourdthinker.backbones.fused import fused_projections
from fourdthinker.errors import ConfigError
from fourdthinker.kernels import _common as checks
from fourdthinker.sampler import LatentSampler, SamplingConfig, engine, run, schedule
from fourdthinker.sampler import step as decode_step
from fourdthinker.sampler.attention import NAME
from fourdthinker.sampler.prefill import prefill
from fourdthinker.sampler.step import Slots, Stepper
from fourdthinker.sampler.store import KVStore, PrefillCache, Segment, bucket, token_bytes
from fourdthinker.sampler.vision import encode_prompts
from tests.tiny import tiny_checkpoint
from tests.unit.sampler.cases import compare, make_prompt, mixed_prompts, talkative

SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "equal", "is_nonzero")


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def talker(request: pytest.FixtureRequest) -> Checkpoint:
    return talkative(family=request.param)


def prepared(checkpoint: Checkpoint, config: SamplingConfig) -> tuple[Stepper, Slots, KVStore]:
    """A batch of six rows of two prompts in the middle of their way."""
    backbone = checkpoint.backbone
    prompts = [make_prompt(checkpoint, 0, 9, clip=0), make_prompt(checkpoint, 1, 12)]
    features = encode_prompts(backbone, prompts)
    store = KVStore(backbone, 6, 200, 128, 64, 2)
    owners = []
    hidden = []
    for prompt, feature in zip(prompts, features, strict=True):
        segment = store.allocate([prompt.input_ids.numel()])
        assert segment is not None
        hidden += 3 * [prefill(backbone, [prompt], [feature], store, segment)[0]]
        owners += 3 * [(segment, 0)]
    slots = Slots.fresh(backbone, config, [p for p in prompts for _ in range(3)], torch.arange(6))
    stepper = Stepper(backbone, Decoder(backbone, 200), config, torch.tensor(backbone.vision.eos_ids))
    store.arrange(owners)
    stepper.emit(slots, torch.stack(hidden))
    return stepper, slots, store


class Recorder(TorchDispatchMode):
    """Every operation with the shapes of what it makes, and how many bytes of new memory that is."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[tuple[int, ...], ...]]] = []
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [x for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, torch.Tensor)]
        self.calls.append((str(func), tuple(tuple(x.shape) for x in made)))
        old = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        self.bytes += sum(x.nbytes for x in made if x.untyped_storage().data_ptr() not in old)
        return out


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}])
def test_a_step_never_asks_the_device_and_always_does_the_same(
    talker: Checkpoint, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No synchronisation, no branch on values, no shape that depends on them: rows that think, that have
    ended and that talk make the same operations on the same shapes."""
    # As on a GPU, where nobody looks at values.
    monkeypatch.setattr(checks, "readable", lambda *_: False)
    monkeypatch.setattr(decode_step, "_broken", lambda *_: None)
    stepper, slots, store = prepared(talker, SamplingConfig(max_new_tokens=60, **settings))
    latents, eos = talker.backbone.latents, talker.backbone.vision.eos_ids[0]
    seen = []
    for forced in (70, latents.start_id, eos):
        slots.state["phase"][:3] = 1 if forced == latents.start_id else 0
        slots.state["finished"][3:] = forced == eos
        with Recorder() as recorder:
            stepper.step(slots, store, 64)
        names = Counter(name for name, _ in recorder.calls)
        assert not [name for name in names if any(sync in name for sync in SYNCS)]
        assert names["fourdthinker_kernels.sample_tokens.default"] == 1
        assert names["fourdthinker_kernels.latent_feedback_step_.default"] == 1
        assert not [name for name in names if "cat" in name and "concat" not in name and names[name] > 12]
        seen.append((recorder.calls, recorder.bytes))
    assert seen[0] == seen[1] == seen[2]
    # Far less than a copy of the caches would be: nothing grows with the tokens so far.
    kept = sum(x.nbytes for layer in range(store.layers) for x in (*store.prompt(layer), *store.own(layer)))
    assert len(seen[0][0]) < 200 * store.layers
    assert kept > 0


@torch.no_grad()
def test_the_layers_equal_those_of_transformers(talker: Checkpoint) -> None:
    """Fused kernels or not: one token a row after a prompt, in both."""
    backbone = talker.backbone
    prompts = [make_prompt(talker, i, 20) for i in range(3)]
    store = KVStore(backbone, 3, 60, 64, 20, 3)
    segment = store.allocate([20, 20, 20])
    assert segment is not None
    hidden = prefill(backbone, prompts, [None] * 3, store, segment)
    ids = torch.stack([prompt.input_ids for prompt in prompts])
    cache = backbone.new_cache()
    expected = backbone.decode(backbone.embed_tokens(ids), torch.arange(20).expand(3, 3, -1), None, cache)
    torch.testing.assert_close(hidden, expected[:, -1], atol=1e-4, rtol=1e-4)
    store.arrange([(segment, 2), (segment, 0), (segment, 1)])
    order = torch.tensor([2, 0, 1])
    for step in range(3):
        embeds = torch.randn(3, backbone.hidden_size, generator=torch.Generator().manual_seed(step))
        at = torch.full((3,), step)
        store.set_steps(at + 1, 64)
        got = Decoder(backbone, 30).step(embeds, at + 20, at, store, NAME)
        back = torch.empty_like(embeds).index_copy_(0, order, embeds)
        wanted = backbone.decode(back[:, None], torch.full((3, 3, 1), 20 + step), None, cache)[:, 0]
        torch.testing.assert_close(got, wanted[order], atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("piece", [1, 7, 64])
def test_prefill_in_pieces(talker: Checkpoint, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepStack levels and causality across the borders of pieces, prompts of several lengths."""
    backbone = talker.backbone
    prompts = [
        make_prompt(talker, 3, 12, clip=0),
        make_prompt(talker, 4, 9, clip=2),
        make_prompt(talker, 5, 31),
    ]
    features = encode_prompts(backbone, prompts)
    results = []
    for tokens in (100_000, 3 * piece):
        monkeypatch.setattr("fourdthinker.sampler.prefill.PIECE_TOKENS", (tokens, tokens))
        store = KVStore(backbone, 1, 200, 64, 64, 3)
        segment = store.allocate([prompt.input_ids.numel() for prompt in prompts])
        assert segment is not None
        results.append((prefill(backbone, prompts, features, store, segment), store.prompt(1)[0]))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-4)
    for number, prompt in enumerate(prompts):
        place = slice(number * segment.spacing, number * segment.spacing + prompt.input_ids.numel())
        torch.testing.assert_close(
            results[0][1][:, :, place], results[1][1][:, :, place], atol=1e-4, rtol=1e-4
        )


# -- memory


def test_room_in_the_pool() -> None:
    backbone = tiny_checkpoint().backbone
    store = KVStore(backbone, 1, 100, 64, 50, 9)
    first, second = store.allocate([30, 20]), store.allocate([40])
    assert (first, second) == (Segment(0, 30, [30, 20]), Segment(60, 40, [40]))
    assert store.allocate([1]) is None
    assert first is not None
    store.release(first)
    third = store.allocate([50])
    assert third == Segment(0, 50, [50])
    assert store.allocate([11]) is None
    for segment in (second, third):
        assert segment is not None
        store.release(segment)
    assert store.allocate([100]) == Segment(0, 100, [100])
    assert [bucket(n) for n in (1, 64, 65, 129)] == [64, 64, 128, 256]
    assert isinstance(PrefillCache(store, Segment(0, 100, [100])).done, int)


def test_out_of_memory_is_said_before_anything_is_allocated(talker: Checkpoint) -> None:
    prompts = mixed_prompts(talker)
    each = token_bytes(talker.backbone)
    longest = max(prompt.input_ids.numel() for prompt in prompts)
    room = schedule.completion_room(20)
    config = SamplingConfig(max_new_tokens=20)
    with pytest.raises(ConfigError) as error:
        LatentSampler(talker.backbone, kv_budget=(longest + room - 1) * each).sample(prompts, 2, config)
    for part in (
        f"has {longest} tokens",
        f"{room} more",
        f"{each} bytes a token",
        "kv_budget is",
        "lower max_new",
    ):
        assert part in str(error.value)
    rollout = LatentSampler(talker.backbone, kv_budget=(longest + room) * each).sample(prompts, 2, config)
    compare(rollout, LatentSampler(talker.backbone).sample(prompts, 2, config), range(16), range(16))


@pytest.mark.parametrize(("budget", "slots", "pool"), [(10_000, 30, 800), (2_300, 23, 800), (700, 3, 500)])
def test_the_plan_keeps_to_the_budget(budget: int, slots: int, pool: int) -> None:
    lengths, n = [100, 50, 500, 100], 10
    rows = [list(range(i * n, (i + 1) * n)) for i in range(3)] + [[]]
    plan = schedule.make_plan(
        ["a", "b", "c", "d"], lengths, rows, 60, token_bytes=8, budget=8 * budget, max_rows=256
    )
    assert (plan.slots, plan.pool) == (slots, pool)
    assert plan.pool + 64 * plan.slots <= budget
    assert sorted(row for chunk in plan.chunks for row, _ in chunk.rows) == list(range(30))


def test_a_plan_always_has_a_place() -> None:
    plan = schedule.make_plan(["a", "b"], [10, 10], [[0], [1]], 85, token_bytes=1, budget=138, max_rows=9)
    assert plan.slots == 1


def test_rows_take_turns_when_there_is_little_room(
    talker: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few places, many rows: prompts come and go, and each is prefilled once."""
    prompts = mixed_prompts(talker)
    prefilled: list[int] = []
    before = run.prefill
    monkeypatch.setattr(
        run, "prefill", lambda b, p, *rest: (prefilled.append(len(p)), before(b, p, *rest))[1]
    )
    config = SamplingConfig(max_new_tokens=30)
    whole = LatentSampler(talker.backbone).sample(prompts, 3, config)
    assert sum(prefilled) == 8
    prefilled.clear()
    tight = 2 * (64 + 64) * token_bytes(talker.backbone)
    turns = LatentSampler(talker.backbone, kv_budget=tight, max_rows=2).sample(prompts, 3, config)
    assert sum(prefilled) == 8
    assert len(prefilled) > 3
    assert turns.timing["steps"] > whole.timing["steps"]
    compare(whole, turns, range(24), range(24))


# -- what is refused, and what is said


def test_longer_than_the_context(talker: Checkpoint) -> None:
    prompt = make_prompt(talker, 0, 4000)
    with pytest.raises(
        ConfigError, match=r"prompt 0 has 4000 tokens; with max_new_tokens=97 .* 4096 positions"
    ):
        LatentSampler(talker.backbone).sample([prompt], 1, SamplingConfig(max_new_tokens=97))


def test_families_are_not_mixed() -> None:
    one, other = (tiny_checkpoint(family=family) for family in sorted(FAMILIES))
    mine = replace(make_prompt(one, 0, 8), family=one.backbone.family)
    theirs = replace(make_prompt(other, 0, 8), family=other.backbone.family)
    with pytest.raises(
        ConfigError, match=r"prompt 1 was made for a qwen3_vl, and this model is a qwen2_5_vl"
    ):
        LatentSampler(one.backbone).sample([mine, theirs], 1)
    with pytest.raises(ConfigError, match="another family"):
        LatentSampler(one.backbone).sample([make_prompt(one, 0, 8), make_prompt(other, 0, 8, clip=0)], 1)


def test_sliding_windows_are_refused(talker: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    config = talker.backbone.hf.model.language_model.config
    monkeypatch.setattr(config, "layer_types", ["sliding_attention", "full_attention"], raising=False)
    with pytest.raises(ConfigError, match="sliding_attention; the sampler knows full_attention only"):
        LatentSampler(talker.backbone).sample([make_prompt(talker, 0, 4)], 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"check_every": 0}, {"kv_budget": 0}, {"max_rows": -1}, {"kv_budget": "1g"}, {"max_rows": 1.5},
        {"max_rows": None}, {"check_every": True},
    ],
)  # fmt: skip
def test_bad_limits(talker: Checkpoint, wrong: dict[str, int]) -> None:
    ((name, value),) = wrong.items()
    said = f"{name} is {value!r}; it must be an integer{' of bytes' * (name == 'kv_budget')}, at least 1"
    with pytest.raises(ConfigError, match=said):
        LatentSampler(talker.backbone, **wrong)


# -- models


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(talker: Checkpoint, dtype: torch.dtype) -> None:
    checkpoint = talkative(family=talker.backbone.family)
    prompts = mixed_prompts(checkpoint)[:4]
    exact = LatentSampler(checkpoint.backbone).sample(prompts, 2, SamplingConfig(max_new_tokens=1))
    checkpoint.backbone.to(dtype)
    half = LatentSampler(checkpoint.backbone, max_rows=3).sample(prompts, 2, SamplingConfig(max_new_tokens=1))
    same = exact.tokens[:, 0] == half.tokens[:, 0]
    assert same.sum() >= 5
    assert (exact.logprobs - half.logprobs)[same].abs().max() < 0.2
    longer = LatentSampler(checkpoint.backbone).sample(prompts, 2, SamplingConfig(max_new_tokens=20))
    assert longer.latents.dtype == dtype
    assert torch.isfinite(longer.logprobs).all()


def test_adapters_take_part(talker: Checkpoint) -> None:
    checkpoint = talkative(family=talker.backbone.family)
    prompts = mixed_prompts(checkpoint)[:3]
    config = SamplingConfig(max_new_tokens=8)
    plain = LatentSampler(checkpoint.backbone).sample(prompts, 2, config)
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["k_proj", "up_proj"], init_lora_weights=False)
    model = get_peft_model(checkpoint.backbone.hf, lora).eval()
    adapted = type(checkpoint.backbone)(model, checkpoint.backbone.latents)
    sampled = LatentSampler(adapted).sample(prompts, 2, config)
    assert not torch.equal(sampled.logprobs[:, 0], plain.logprobs[:, 0])
    with adapted.without_adapter():
        compare(LatentSampler(adapted).sample(prompts, 2, config), plain, range(6), range(6))
    model.merge_adapter()
    merged = LatentSampler(adapted).sample(prompts, 2, config)
    model.unmerge_adapter()
    torch.testing.assert_close(merged.logprobs[:, 0], sampled.logprobs[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "autocast"])
def test_joined_projections_sample_the_same(
    talker: Checkpoint, mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, where they are joined; under autocast the products are in half precision."""
    prompts, config = mixed_prompts(talker)[:3], SamplingConfig(max_new_tokens=20)
    backbone = talker.backbone
    calls = []
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        plain = LatentSampler(backbone).sample(prompts, 2, config)
        monkeypatch.setattr(engine, "nullcontext", lambda: calls.append(1) or fused_projections(backbone))
        joined = LatentSampler(backbone).sample(prompts, 2, config)
    assert calls == [1]
    if not mixed:
        compare(plain, joined, range(6), range(6))
    else:
        same = plain.tokens[:, 0] == joined.tokens[:, 0]
        assert same.all()
        assert (plain.logprobs - joined.logprobs)[:, 0].abs().max() < 0.05
        assert joined.logprobs.isfinite().all()


def test_processors_run_in_turns_when_memory_is_short(talker: Checkpoint) -> None:
    prompts = mixed_prompts(talker)[:4]

    def favour(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + (input_ids[:, -1:] == torch.arange(scores.shape[1])) * 2.0

    config = SamplingConfig(max_new_tokens=12)
    whole = LatentSampler(talker.backbone).sample(prompts, 2, config, logits_processor=[favour])
    turns = LatentSampler(talker.backbone, max_rows=3).sample(prompts, 2, config, logits_processor=[favour])
    compare(whole, turns, range(8), range(8))


def test_no_log_of_graphs_on_the_cpu(talker: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        rollout = LatentSampler(talker.backbone).sample([make_prompt(talker, 0, 5)], 1)
    assert "graphs" not in rollout.timing
    assert not [record for record in caplog.records if "graph" in record.message]


def test_the_budget_counts_what_torch_only_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a training step torch keeps nearly all of the GPU's memory for later allocations."""
    readings = {"mem_get_info": (1_000, 80_000), "memory_reserved": 75_000, "memory_allocated": 20_000}
    for name, value in readings.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert engine._budget(torch.device("cuda", 1)) == int(0.8 * 56_000)


def test_sampling_runs_on_the_device_of_the_model(
    talker: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton, events and streams go by the current device."""
    entered: list[torch.Tensor] = []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        entered.append(tensor)
        yield
        entered.append(tensor)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    seen = []

    def encode(backbone: object, prompts: list[object]) -> list[None]:
        seen.append(len(entered))
        return [None] * len(prompts)

    monkeypatch.setattr(engine, "encode_prompts", encode)
    LatentSampler(talker.backbone).sample([make_prompt(talker, 0, 5)], 1, SamplingConfig(max_new_tokens=2))
    assert seen == [1]
    assert len(entered) == 2
    assert entered[0] is talker.backbone.embedding_weight
