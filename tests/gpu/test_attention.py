"""Attention of the training forward and of the vision towers on CUDA."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from fourdthinker.backbones import FAMILIES, packed, tower
from fourdthinker.backbones.common import refuse_cudnn_attention
from tests.gpu.device import DEVICE
from tests.tiny import tiny_checkpoint


def test_masked_attention_has_finite_gradients() -> None:
    """S % 128 = 64 and log-sum-exps below -88.7: what cuDNN's attention turns into NaN."""
    refuse_cudnn_attention(DEVICE)
    length = 704
    sides = [torch.randn(1, 2, length, 64, device=DEVICE, dtype=torch.bfloat16) for _ in range(3)]
    query, key, value = (side.requires_grad_() for side in sides)
    mask = torch.full((1, 1, length, length), -200.0, device=DEVICE, dtype=torch.bfloat16)
    mask = mask.masked_fill(torch.ones_like(mask, dtype=torch.bool).triu(1), -torch.inf)
    F.scaled_dot_product_attention(query, key, value, attn_mask=mask).float().square().sum().backward()
    for side in (query, key, value):
        assert side.grad is not None
        assert torch.isfinite(side.grad).all()


@pytest.mark.gpu_only
def test_a_bottleneck_by_flex_attention_is_that_of_a_dense_mask() -> None:
    """Two samples of which the second half sees no frames, and padding."""
    length = packed.FLEX_FROM + 200
    segments = torch.ones(1, length, dtype=torch.int32, device=DEVICE)
    segments[:, 1500:], segments[:, 2200:] = 2, -1
    kinds = torch.zeros_like(segments)
    kinds[:, 10:700], kinds[:, 800:1500], kinds[:, 1510:1800], kinds[:, 1900:2200] = 1, 2, 1, 2
    sides = [torch.randn(1, 2, length, 64, device=DEVICE, requires_grad=True) for _ in range(3)]
    results = []
    for mask in (
        packed.packed_mask(segments, torch.float32, kinds),
        packed.additive_mask(segments, torch.float32, kinds),
    ):
        assert isinstance(mask, BlockMask) != bool(results)
        module = torch.nn.Module()
        out, _ = packed.packed_attention(module, *sides, mask, scaling=0.125)
        kept = out[:, :2200]
        results.append([kept, *torch.autograd.grad(kept.square().sum(), sides)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_tower_in_bf16_is_as_good_as_transformers(family: str) -> None:
    backbone = tiny_checkpoint(family=family).backbone.to(DEVICE)
    grids = torch.tensor([[3, 8, 8], [1, 12, 10], [2, 4, 4]])
    patches = torch.randn(int(grids.prod(-1).sum()), backbone.vision.patch_dim, device=DEVICE)
    with torch.no_grad():
        exact = backbone.to(torch.float64).encode_vision(patches.double(), grids)
        backbone.to(torch.bfloat16)
        ours = backbone.encode_vision(patches, grids)
        backbone.visual.config._attn_implementation = "sdpa"
        plain = backbone.visual(patches.bfloat16(), grid_thw=grids.to(DEVICE)).pooler_output
    width = plain.shape[1]
    error = (ours[:, :width].double() - exact[:, :width]).square().mean()
    assert error <= 4 * (plain.double() - exact[:, :width]).square().mean()


@pytest.mark.gpu_only
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_tower_does_not_wait(family: str) -> None:
    backbone = tiny_checkpoint(family=family).backbone.to(DEVICE, torch.bfloat16)
    grids = torch.tensor([[3, 8, 8], [1, 12, 10]])
    patches = torch.randn(int(grids.prod(-1).sum()), backbone.vision.patch_dim, device=DEVICE)
    with torch.no_grad():
        backbone.encode_vision(patches, grids)
        torch.cuda.set_sync_debug_mode("error")
        try:
            backbone.encode_vision(patches, grids)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu_only
def test_packed_attention_runs_in_one_call() -> None:
    assert tower._has_flash(torch.zeros(1, device=DEVICE, dtype=torch.bfloat16))
