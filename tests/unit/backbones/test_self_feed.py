"""A model's own latents in a batch, against what it feeds back when it decodes one position at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fourdthinker.backbones import Checkpoint
from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.self_feed import with_own_latents
from fourdthinker.latents import rescaled
from fourdthinker.samples import Sample, collate
from tests.e2e.training import samples
from tests.tiny import tiny_checkpoint

K = 4


def batch_of(checkpoint: Checkpoint, items: list[Sample]) -> dict[str, Any]:
    return collate(items, checkpoint.backbone.vision.pad_id)


@torch.no_grad()
def decoded(backbone: Backbone, item: Sample) -> torch.Tensor:
    """[N, H]: every latent is the hidden state of the step before, as generation feeds it back."""
    batch = collate([item], 0)
    inputs, length = backbone.embed_inputs(batch), item.input_ids.numel()
    latent = set(item.latent_index.tolist())
    embeds, cache, fed = inputs.embeds.clone(), backbone.new_cache(), []
    hidden = torch.zeros(0)
    for p in range(length):
        if p in latent:
            fed.append(rescaled(hidden[0, -1], backbone.latents.latent_norm))
            embeds[0, p] = fed[-1]
        deepstack = None if inputs.deepstack is None else inputs.deepstack.part(length, p, p + 1)
        hidden = backbone.decode(
            embeds[:, p : p + 1],
            batch["position_ids"][:, :, p : p + 1],
            torch.ones(1, p + 1, dtype=torch.long),
            cache,
            deepstack=deepstack,
        )
    return torch.stack(fed)


@pytest.mark.parametrize("norm", [None, 2.5])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_first_block_is_what_generation_would_feed(family: str, norm: float | None) -> None:
    checkpoint = tiny_checkpoint(family=family)
    backbone = checkpoint.backbone
    backbone.latents = replace(backbone.latents, latent_norm=norm)
    backbone.gradient_checkpointing_enable()
    backbone.train()
    items = samples(checkpoint, 5)  # of 1 to 3 blocks, of unequal lengths
    batch = batch_of(checkpoint, items)
    fed = with_own_latents(backbone, batch)
    assert backbone.training
    torch.testing.assert_close(fed["latents"], batch["latents"])
    backbone.eval()
    first = 0
    for item in items:
        count = item.latent_index.numel()
        expected = decoded(backbone, item)
        mine = fed["fed_latents"][first : first + K]
        torch.testing.assert_close(mine, expected[:K], rtol=1e-3, atol=1e-4)
        if norm is not None:
            torch.testing.assert_close(mine.norm(dim=-1), torch.full((K,), norm))
        first += count
    assert (fed["fed_latents"] - fed["latents"]).abs().amax(1).min() > 1e-2, "every latent was replaced"


def test_as_many_short_passes_as_latents_in_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoint()
    backbone = checkpoint.backbone
    widths: list[int] = []
    original = Backbone.decode

    def spy(self: Backbone, inputs_embeds: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        widths.append(inputs_embeds.shape[1])
        return original(self, inputs_embeds, *args, **kwargs)

    monkeypatch.setattr(Backbone, "decode", spy)
    items = samples(checkpoint, 5)
    start = min(int(item.latent_index.min()) for item in items) - 1
    longest = max(item.input_ids.numel() for item in items)
    with_own_latents(backbone, batch_of(checkpoint, items))
    assert widths == [start] + [longest - start] * K
    widths.clear()
    ids, positions = torch.arange(20), items[0].position_ids[:, :20]
    none = Sample(ids, positions, ids, latents=None)
    assert "fed_latents" not in with_own_latents(backbone, batch_of(checkpoint, [none]))
    assert len(widths) == 1 + K, "ranks without latents run as many"
