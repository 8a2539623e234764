"""Captured decode steps over growth and compaction; run first in a process of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fourdthinker.backbones import FAMILIES, Checkpoint
from fourdthinker.sampler import LatentSampler, Rollout, SamplingConfig, run
from tests.unit.sampler.cases import mixed_prompts, talkative

pytestmark = pytest.mark.gpu_only  # of graphs alone
FIELDS = ("tokens", "lengths", "policy_mask", "logprobs", "sampled_logprobs", "latents", "latent_rows")


class Eager:
    """Stands in for graphs: every step runs eagerly."""

    captured, seconds = 0, 0.0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def run(self, key: Any, step: Any, remaining: int) -> None:
        step()


def sample(checkpoint: Checkpoint, limit: int) -> Rollout:
    config = SamplingConfig(max_new_tokens=limit, max_blocks=4, seed=3, top_p=0.95)
    sampler = LatentSampler(checkpoint.backbone, checkpoint.tokenizer)
    return sampler.sample(mixed_prompts(checkpoint), 4, config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_growth_and_compaction_change_nothing(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 tokens: the room for completions grows, and rows that have ended leave the batch."""
    checkpoint = talkative(eos=0.0, family=family)
    checkpoint.backbone.to("cuda", dtype)
    captured = sample(checkpoint, 600)
    assert int(captured.lengths.max()) > 256, "too short to grow"
    assert int(captured.lengths.min()) < 300, "no row ended early, so that nothing was compacted"
    assert captured.timing["graphs"] >= 3
    monkeypatch.setattr(run, "Graphs", Eager)
    eager = sample(checkpoint, 600)
    for name in FIELDS:
        assert torch.equal(getattr(captured, name), getattr(eager, name)), name
