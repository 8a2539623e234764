"""Attention of packed sequences piece by piece, against one softmax over all pairs in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fourdthinker.backbones.packed import NAME, additive_mask, packed_attention, packed_mask
from fourdthinker.backbones.segment_attention import segment_attention
from fourdthinker.errors import ConfigError
from tests.tiny import tiny_checkpoint
from tests.unit.backbones.test_packed import segments_of

LAYOUTS = {
    "shared": [(300, [1, 200, 40, 130], 29), (10, [290, 300], 100)],
    "prompt alone": [(50, [], 10), (60, [], 0)],
    "no prompt": [(0, [40, 1, 30], 9), (0, [80], 0)],
    "padding alone": [(0, [], 12), (3, [4], 5)],
}
# Of the output, and of the gradients: in bfloat16 each piece is rounded before the sum.
TOLERANCE = {torch.float64: (1e-13, 1e-12), torch.float32: (3e-6, 1e-5), torch.bfloat16: (2e-2, 1e-1)}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_pieces_equal_one_softmax(name: str, dtype: torch.dtype) -> None:
    segments = segments_of(LAYOUTS[name])
    rows, length = segments.shape
    generator = torch.Generator().manual_seed(3)

    def draw(heads: int) -> Tensor:
        drawn = torch.randn(rows, length, heads, 16, generator=generator, dtype=torch.float64).to(dtype)
        return drawn.transpose(1, 2).requires_grad_()

    leaves, grad = (draw(8), draw(2), draw(2)), draw(8).detach()
    out = segment_attention(*leaves, segments, 0.3)
    assert out.transpose(1, 2).is_contiguous()
    query, key, value = (x.detach().double().requires_grad_() for x in leaves)
    plain = F.scaled_dot_product_attention(
        query, key, value, attn_mask=additive_mask(segments, torch.float64), scale=0.3, enable_gqa=True
    )
    plain = plain * (segments >= 0)[:, None, :, None]  # what stands at padding means nothing: it is 0
    of_values, of_grads = TOLERANCE[dtype]
    torch.testing.assert_close(out.double(), plain, atol=of_values, rtol=0)
    ours = torch.autograd.grad(out, leaves, grad)
    theirs = torch.autograd.grad(plain, (query, key, value), grad.double())
    for mine, right in zip(ours, theirs, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), right, atol=of_grads, rtol=0)


def test_inputs_of_other_strides_and_dropout() -> None:
    segments = segments_of([(20, [10, 10], 0)])
    query, key, value = torch.randn(3, 1, 2, 40, 8).unbind()
    other_query, other_key, other_value = (x.mT.contiguous().mT for x in (query, key, value))
    assert other_query.stride(-1) == 40
    right = segment_attention(query, key, value, segments, 1.0)
    assert torch.equal(segment_attention(other_query, other_key, other_value, segments, 1.0), right)
    mask = packed_mask(segments, torch.float32)
    with pytest.raises(ConfigError, match=r"attention_dropout is 0\.1"):
        packed_attention(torch.nn.Module(), query, key, value, mask, dropout=0.1)


def test_a_completion_changes_with_its_prompt_and_with_nothing_behind_itself() -> None:
    segments = segments_of([(4, [3, 2], 1)])
    query, key, value = torch.randn(3, 1, 2, 10, 8).unbind()
    before = segment_attention(query, key, value, segments, 1.0)
    for changed, seeing in {2: {2, 3, 4, 5, 6, 7, 8}, 5: {5, 6}, 8: {8}, 9: set()}.items():
        other = value.clone()
        other[:, :, changed] += 1.0
        differs = (segment_attention(query, key, other, segments, 1.0) != before).any(-1).any(1)[0]
        assert set(differs.nonzero()[:, 0].tolist()) == seeing


def test_the_model_gives_the_same_by_pieces_and_by_a_mask_under_autocast() -> None:
    backbone = tiny_checkpoint().backbone
    batch = {
        "input_ids": torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1)),
        "position_ids": torch.arange(40).expand(3, 2, 40),
        "segments": segments_of([(20, [10, 10], 0), (5, [30], 5)]),
    }
    config = backbone.hf.model.language_model.config
    hidden = {}
    for name in (NAME, "sdpa", "eager"):
        config._attn_implementation = name
        with torch.autocast("cpu", torch.bfloat16):
            hidden[name] = backbone(batch, lambda backbone, hidden, batch: hidden).float()
    real = batch["segments"] >= 0
    spread = (hidden["sdpa"] - hidden["eager"])[real].abs().max()
    assert (hidden[NAME] - hidden["eager"])[real].abs().max() <= 2 * spread


@torch.no_grad()
@pytest.mark.parametrize("barred", [False, True])
def test_float64_stays_float64_under_autocast(barred: bool) -> None:
    """As in SDPA: autocast narrows float32 alone."""
    backbone = tiny_checkpoint(layers=1).backbone.double()
    batch = {
        "input_ids": torch.arange(40)[None],
        "position_ids": torch.arange(40).expand(3, 1, 40),
        "segments": segments_of([(20, [10, 10], 0)]),
    }
    if barred:
        batch["bottleneck"] = torch.zeros(1, 40, dtype=torch.int32)
    plain = backbone(batch, lambda backbone, hidden, batch: hidden)
    with torch.autocast("cpu", torch.bfloat16):
        cast = backbone(batch, lambda backbone, hidden, batch: hidden)
    assert cast.dtype == torch.float64
    torch.testing.assert_close(cast, plain, rtol=0, atol=1e-6)
