"""Packed attention of the vision towers: equal to transformers', few calls, nothing read from the device."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from fourdthinker.backbones import FAMILIES, tower
from fourdthinker.backbones.common import Backbone
from tests.tiny import tiny_checkpoint

# Frames of different sizes; the second has windows of three sizes in Qwen2.5-VL.
GRIDS = torch.tensor([[3, 8, 8], [1, 12, 10], [2, 4, 4]])


@pytest.fixture(params=sorted(FAMILIES))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return tiny_checkpoint(family=request.param).backbone


def patches(backbone: Backbone, grids: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(int(grids.prod(-1).sum()), backbone.vision.patch_dim, generator=generator)


def plain(backbone: Backbone, values: Tensor, grids: Tensor) -> Tensor:
    """What transformers computes by itself."""
    backbone.visual.config._attn_implementation = "sdpa"
    output = backbone.visual(values, grid_thw=grids)
    tower.use_packed_attention(backbone.visual)
    return torch.cat([output.pooler_output, *getattr(output, "deepstack_features", [])], dim=1)


@pytest.mark.parametrize("grids", [GRIDS, GRIDS[:1], GRIDS[2:]], ids=["mixed", "one clip", "one window"])
def test_features_and_gradients_are_those_of_transformers(backbone: Backbone, grids: Tensor) -> None:
    values, results = patches(backbone, grids), []
    for encode in (backbone.encode_vision, lambda v, g: plain(backbone, v, g)):
        backbone.zero_grad()
        features = encode(values, grids)
        (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
        grads = [p.grad.clone() for p in backbone.visual.parameters() if p.grad is not None]
        assert grads
        results.append([features.detach(), *grads])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_one_call_for_each_length_of_piece(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    attend = tower._attend
    monkeypatch.setattr(tower, "_attend", lambda *sides: calls.append(sides[0].shape) or attend(*sides))
    backbone.encode_vision(patches(backbone, GRIDS), GRIDS)
    assert len(calls) <= 4 * len(backbone.visual.blocks), calls  # windows have at most four sizes


def test_variable_length_attention_gets_the_bounds(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: one call a layer, with the longest piece known on the host."""
    calls: list[tuple[list[int], int]] = []

    def varlen(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, _: Tensor, longest: int, *rest: Any,
               scale: float) -> Tensor:  # fmt: skip
        calls.append((bounds.tolist(), longest))
        return tower._by_length(query, key, value, bounds, scale)

    values = patches(backbone, GRIDS)
    expected = backbone.encode_vision(values, GRIDS)
    monkeypatch.setattr(tower, "varlen_attn", varlen)
    monkeypatch.setattr(tower, "_has_flash", lambda tensor: True)
    assert torch.equal(backbone.encode_vision(values, GRIDS), expected)
    assert len(calls) == len(backbone.visual.blocks)
    for bounds, longest in calls:
        assert (bounds[0], bounds[-1]) == (0, len(values))
        assert longest == max(b - a for a, b in itertools.pairwise(bounds))
    frames = [0, 64, 128, 192, 312, 328, 344]
    assert (frames, 120) in calls


def test_nothing_is_read_from_the_device(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that depends on the grids is computed before the first layer runs."""
    reads: list[str] = []
    begun = False
    original = backbone.visual.blocks[0].forward

    def first(*args: Any, **options: Any) -> Any:
        nonlocal begun
        begun = True
        return original(*args, **options)

    monkeypatch.setattr(backbone.visual.blocks[0], "forward", first)
    monkeypatch.setattr(tower, "_has_flash", lambda tensor: True)
    monkeypatch.setattr(tower, "varlen_attn", lambda query, *rest, **options: query)
    for name in ("item", "tolist", "nonzero"):
        read = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda self, *a, _read=read, _name=name: (reads.append(_name) if begun else None)
            or _read(self, *a),
        )  # fmt: skip
    backbone.encode_vision(patches(backbone, GRIDS), GRIDS)
    assert begun
    assert not reads


def test_a_choice_of_the_user_stays(backbone: Backbone) -> None:
    backbone.visual.config._attn_implementation = "flash_attention_2"
    tower.use_packed_attention(backbone.visual)
    assert backbone.visual.config._attn_implementation == "flash_attention_2"


def test_the_call_of_torch_takes_what_it_is_given() -> None:
    """Torch's own signature, which a machine without a GPU never calls."""
    taken = inspect.signature(varlen_attn).bind(*"qkv", "bounds", "bounds", 5, 5, scale=0.5).arguments
    names = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale"]
    assert list(taken) == names
