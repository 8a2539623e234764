"""Masks of packed sequences: pair by pair, as blocks and through flex_attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from fourdthinker.backbones import FAMILIES, packed
from fourdthinker.backbones.packed import NAME, block_mask, dense_mask, packed_mask
from fourdthinker.sampler import LatentSampler, SamplingConfig, replay_batch, replay_logprobs
from tests.tiny import tiny_checkpoint
from tests.unit.sampler.cases import make_prompt, talkative

# Prompt, completions and padding of each sequence.
LAYOUTS = {
    "one block": [(5, [3, 2], 4), (3, [11], 0)],
    "whole blocks": [(256, [128, 128], 128), (384, [128], 128)],
    "ragged": [(300, [1, 200, 40, 130], 29), (10, [290, 300], 100)],
    "padding first shared block": [(100, [], 600), (1, [1] * 150, 549)],
    "no padding": [(700, [], 0), (130, [570], 0)],
}


def segments_of(layout: list[tuple[int, list[int], int]]) -> Tensor:
    rows = [
        [0] * prompt + [1 + r for r, length in enumerate(lengths) for _ in range(length)] + [-1] * padding
        for prompt, lengths, padding in layout
    ]
    return torch.tensor(rows, dtype=torch.int32)


def by_pairs(segments: Tensor) -> Tensor:
    rows, length = segments.shape
    seen = torch.zeros(rows, 1, length, length, dtype=torch.bool)
    for b, row in enumerate(segments.tolist()):
        for q, mine in enumerate(row):
            for k in range(q + 1):
                seen[b, 0, q, k] = q == k or (mine >= 0 and row[k] in (0, mine))
    return seen


def listed_blocks(blocks: BlockMask, dense: Tensor) -> Tensor:
    """[2, B, n, n] of the blocks that are read in part and as a whole, which together are the dense mask."""
    rows, _, _, length = dense.shape
    count = -(-length // 128)
    kinds = torch.zeros(2, rows, count, count, dtype=torch.bool)
    listed = ((blocks.kv_num_blocks, blocks.kv_indices), (blocks.full_kv_num_blocks, blocks.full_kv_indices))
    for kind, (numbers, indices) in zip(kinds, listed, strict=True):
        assert numbers is not None
        assert indices is not None
        for b in range(rows):
            for q in range(count):
                kind[b, q, indices[b, 0, q, : numbers[b, 0, q]].long()] = True
    some, every = (kind.repeat_interleave(128, 1).repeat_interleave(128, 2) for kind in kinds)
    some, every = some[:, :length, :length], every[:, :length, :length]
    assert not (some & every).any()
    assert torch.equal(dense[:, 0], every | (some & dense[:, 0]))
    return kinds


@pytest.mark.parametrize("name", LAYOUTS)
def test_both_masks_see_the_same_pairs(name: str) -> None:
    segments = segments_of(LAYOUTS[name])
    dense = dense_mask(segments)
    assert torch.equal(dense, by_pairs(segments))
    kinds = listed_blocks(block_mask(segments), dense)
    rows, length = segments.shape
    count = -(-length // 128)
    whole = torch.nn.functional.pad(dense[:, 0], (0, count * 128 - length) * 2)
    tiles = whole.view(rows, count, 128, count, 128)
    assert torch.equal(kinds.any(0), tiles.any(4).any(2))  # no block is read for nothing


@torch.no_grad()
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_flex_attention_gives_the_same_logprobs(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eagerly on the CPU, two sequences of different lengths over two blocks."""
    checkpoint = talkative(family=family)
    prompts = [make_prompt(checkpoint, 0, 120, clip=0), make_prompt(checkpoint, 1, 90)]
    rollout = LatentSampler(checkpoint.backbone).sample(prompts, 2, SamplingConfig(max_new_tokens=40))
    batch = replay_batch(rollout, prompts, share=True)
    assert batch["segments"].shape[1] > 128
    assert "attention_mask" not in batch
    dense = replay_logprobs(checkpoint.backbone, batch)
    calls = []
    flex = packed._flex("cpu")

    def counted(*args: Any, **options: Any) -> Tensor:
        calls.append(1)
        return flex(*args, **options)

    monkeypatch.setattr(packed, "_flex", lambda device: counted)
    monkeypatch.setattr(
        "fourdthinker.backbones.common.packed_mask", lambda segments, *_: block_mask(segments)
    )
    blocks = replay_logprobs(checkpoint.backbone, batch)
    assert len(calls) == checkpoint.backbone.num_layers
    torch.testing.assert_close(blocks, dense, atol=2e-5, rtol=1e-5)
    assert (dense - rollout.logprobs).abs().max() < 1e-4


def test_short_sequences_take_a_dense_mask_and_the_cpu_none(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = torch.zeros(2, packed.FLEX_FROM, dtype=torch.int32)
    mask = packed_mask(segments, torch.float32)
    assert isinstance(mask, Tensor)
    assert mask.shape == (2, 1, 1, packed.FLEX_FROM)
    barred = packed_mask(segments[:, :3], torch.float32, torch.zeros(2, 3, dtype=torch.int8))
    assert isinstance(barred, Tensor)
    assert (barred.shape, barred.dtype) == ((2, 1, 3, 3), torch.float32)
    made = []
    for name in ("block_mask", "additive_mask"):
        monkeypatch.setattr(packed, name, lambda *_, name=name: made.append(name))
    for length in (packed.FLEX_FROM - 1, packed.FLEX_FROM):
        on_gpu = torch.empty(1, length, device="meta")
        packed_mask(_OnGpu(on_gpu), torch.float32)  # type: ignore[arg-type]
    assert made == ["additive_mask", "block_mask"]


class _OnGpu:
    def __init__(self, like: Tensor) -> None:
        self.shape, self.device = like.shape, torch.device("cuda")


def test_the_users_choice_of_attention_stays() -> None:
    backbone = tiny_checkpoint().backbone
    text = backbone.hf.model.language_model.config
    assert text._attn_implementation == NAME
    assert backbone.attention == "sdpa"
    text._attn_implementation = "eager"
    again = type(backbone)(backbone.model, backbone.latents)
    assert again.attention == "eager"
    assert isinstance(block_mask(torch.zeros(1, 3, dtype=torch.int32)), BlockMask)


@pytest.mark.parametrize(("shared", "attention", "made"), [(False, "", 0), (True, "", 0), (True, "sdpa", 1)])
def test_no_layer_keeps_a_mask_of_its_own(shared: bool, attention: str, made: int) -> None:
    """One mask for all layers of a packed batch, where attention needs one at all."""
    backbone = tiny_checkpoint(layers=4).backbone
    if attention:
        backbone.hf.model.language_model.config._attn_implementation = attention
    ids = torch.randint(0, 300, (2, 40))
    batch = {"input_ids": ids, "position_ids": torch.arange(40).expand(3, 2, 40)}
    if shared:
        batch["segments"] = torch.arange(40).expand(2, 40).div(10, rounding_mode="floor").int()
    else:
        batch["attention_mask"] = torch.ones(2, 40, dtype=torch.long)
        batch["attention_mask"][1, 30:] = 0
    masks: dict[int, tuple[int, ...]] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape[-2:] == (40, 40):
            masks[tensor.untyped_storage().data_ptr()] = tuple(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = backbone(batch, lambda backbone, hidden, batch: hidden)
    assert len(masks) == made, masks
    assert kept.requires_grad
