"""The captured decode step: equal to the eager one, no synchronisation, few kernels."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fourdthinker.backbones import FAMILIES, Checkpoint
from fourdthinker.backbones.decoding import Decoder
from fourdthinker.backbones.fused import fused_projections
from fourdthinker.sampler import LatentSampler, Rollout, SamplingConfig, replay_batch, replay_logprobs, run
from fourdthinker.sampler.attention import NAME
from fourdthinker.sampler.graphs import Graphs
from fourdthinker.sampler.prefill import prefill
from fourdthinker.sampler.store import KVStore
from tests.gpu.device import DEVICE
from tests.unit.sampler.cases import compare, make_prompt, mixed_prompts, talkative


class Eager:
    """Stands in for graphs: every step runs eagerly."""

    captured, seconds = 0, 0.0

    def __init__(self, device):
        self.device = device

    def run(self, key, step, remaining):
        step()


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def talker(request: pytest.FixtureRequest) -> Checkpoint:
    checkpoint = talkative(family=request.param)
    checkpoint.backbone.to(DEVICE)
    return checkpoint


def sample(checkpoint: Checkpoint, n: int = 4, **options) -> Rollout:
    limits = {name: options.pop(name) for name in ("max_rows", "check_every") if name in options}
    processors = options.pop("logits_processor", None)
    config = SamplingConfig(**{"max_new_tokens": 60, "max_blocks": 4, "seed": 3} | options)
    sampler = LatentSampler(checkpoint.backbone, checkpoint.tokenizer, **limits)
    return sampler.sample(mixed_prompts(checkpoint), n, config, logits_processor=processors)


@pytest.mark.gpu_only
def test_graphs_change_nothing(talker, monkeypatch):
    options = {"top_p": 0.9, "repetition_penalty": 1.1}
    captured = sample(talker, **options)
    assert captured.timing["graphs"] >= 1
    monkeypatch.setattr(run, "Graphs", Eager)
    eager = sample(talker, **options)
    for name in (
        "tokens",
        "lengths",
        "policy_mask",
        "logprobs",
        "sampled_logprobs",
        "latents",
        "latent_rows",
    ):
        assert torch.equal(getattr(captured, name), getattr(eager, name)), name
    assert captured.finish_reason == eager.finish_reason


@pytest.mark.parametrize("limits", [{"check_every": 1}, {"check_every": 5, "max_rows": 7}, {"max_rows": 1}])
def test_schedules_change_nothing(talker, limits):
    one, other = sample(talker, 2), sample(talker, 2, **limits)
    # A draw within a rounding error of a border may fall on either side of it; the row goes on otherwise.
    ids = [[row[:length].tolist() for row, length in zip(r.tokens, r.lengths)] for r in (one, other)]
    same = [i for i in range(16) if ids[0][i] == ids[1][i]]
    assert len(same) >= 15
    compare(one, other, same, same)


def test_replay(talker):
    rollout, prompts = sample(talker), mixed_prompts(talker)
    assert rollout.latents.shape[0] > 20
    with torch.no_grad():
        logprobs = replay_logprobs(talker.backbone, replay_batch(rollout, prompts))
    assert (logprobs - rollout.logprobs).abs().max() <= 1e-4


@pytest.mark.parametrize("lengths", [[9000], [4000, 4000, 3990]])
def test_prompts_above_the_size_of_a_piece(talker, lengths, monkeypatch):
    """More than 8,192 tokens of one prompt, or of several that are prefilled together."""
    text = talker.backbone.hf.model.language_model.config
    monkeypatch.setattr(text, "max_position_embeddings", 32_768)
    prompts = [make_prompt(talker, i, length) for i, length in enumerate(lengths)]
    config = SamplingConfig(max_new_tokens=20, seed=1)
    together = LatentSampler(talker.backbone).sample(prompts, 2, config)
    with torch.no_grad():
        logprobs = replay_logprobs(talker.backbone, replay_batch(together, prompts))
    assert (logprobs - together.logprobs).abs().max() <= 1e-3


@pytest.mark.gpu_only
def test_processors_run_eagerly_and_say_so(talker, caplog):
    with caplog.at_level("INFO"):
        rollout = sample(talker, logits_processor=[lambda ids, scores: scores])
    assert "without a CUDA graph" in caplog.text
    assert "graphs" not in rollout.timing
    compare(rollout, sample(talker), range(32), range(32))


@pytest.mark.gpu_only
def test_no_synchronisation_between_looks(talker, monkeypatch):
    """Every step from the second on, replayed or eager, under CUDA's own watch; captures are not watched."""
    steps = []

    class Watched(Graphs):
        def run(self, key, step, remaining):
            if self._graph is None or key != self._key:
                super().run(key, step, remaining)
                return
            torch.cuda.set_sync_debug_mode("error")
            try:
                super().run(key, step, remaining)
                step()  # the same function eagerly: it must not synchronise either
            finally:
                torch.cuda.set_sync_debug_mode("default")
            steps.append(key)

    monkeypatch.setattr(run, "Graphs", Watched)
    sample(talker, max_new_tokens=200)
    assert len(steps) > 20


@pytest.mark.gpu_only
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("room", [512, 1024])
@torch.no_grad()
def test_kernels_of_a_layer(family, room):
    """10, or 11 with room for more than 512 tokens, in the dtype of real models. cuBLAS may split a product
    of few rows into two kernels: one more for each of the four is let pass."""
    counts = []
    for layers in (2, 4):
        checkpoint = talkative(family=family, layers=layers)
        backbone = checkpoint.backbone.to(DEVICE, torch.bfloat16)
        prompt = make_prompt(checkpoint, 0, 20)
        store = KVStore(backbone, 8, 20, room, 20, 1)
        segment = store.allocate([20])
        prefill(backbone, [prompt], [None], store, segment)
        store.arrange([(segment, 0)] * 8)
        steps = torch.ones(8, dtype=torch.int64, device=DEVICE)
        store.set_steps(steps, room)
        embeds = torch.randn(8, backbone.hidden_size, device=DEVICE, dtype=torch.bfloat16)

        with fused_projections(backbone) as fused:
            decoder = Decoder(backbone, 64, fused)
            assert None not in [part for layer in fused for part in (layer.qkv, layer.gate_up)]
            decoder.step(embeds, steps + 20, steps - 1, store, NAME)
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
                decoder.step(embeds, steps + 20, steps - 1, store, NAME)
                torch.cuda.synchronize()
        kernels = [e for e in profiled.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        counts.append(len(kernels))
    assert (counts[1] - counts[0]) / 2 <= (10 if room <= 512 else 11) + 4
