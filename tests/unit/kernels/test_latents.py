"""pool_latents and cosine_latent_loss against plain float64 arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdthinker.kernels import cosine_latent_loss, pool_latents


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(4, 31), max_size=5), latent_size=st.integers(1, 4))
def test_pooling_is_the_mean_of_contiguous_runs(counts, latent_size):
    features = torch.randn(sum(counts), 5, dtype=torch.float64)
    pooled = pool_latents(features, torch.tensor(counts, dtype=torch.int64), latent_size)
    expected, start = [], 0
    for count in counts:
        run = count // latent_size
        for k in range(latent_size):
            expected.append(features[start + k * run : start + (k + 1) * run].mean(dim=0))
        start += count
    assert pooled.shape == (len(expected), 5)
    if expected:
        torch.testing.assert_close(pooled, torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_pooling_accumulates_in_float32_and_ignores_the_tail():
    features = torch.ones(515, 3, dtype=torch.bfloat16)
    features[0] = 256.0  # 256 + 1 is lost in bf16
    features[512:] = torch.nan
    pooled = pool_latents(features, torch.tensor([515]), 4)
    assert pooled.dtype == torch.bfloat16
    assert pooled[:, 0].tolist() == [float(torch.tensor((256 + 127) / 128).bfloat16()), 1.0, 1.0, 1.0]
    assert pool_latents(features[:0], torch.zeros(0, dtype=torch.int64), 4).shape == (0, 3)


def test_pooling_names_bad_input():
    features = torch.randn(9, 3)
    with pytest.raises(ValueError, match="image 1 has 3 merged features, fewer than latent_size 4"):
        pool_latents(features, torch.tensor([6, 3]), 4)
    with pytest.raises(ValueError, match="add up to 8 but features has 9"):
        pool_latents(features, torch.tensor([8]), 4)
    with pytest.raises(ValueError, match="latent_size is 0"):
        pool_latents(features, torch.tensor([9]), 0)
    with pytest.raises(ValueError, match="counts is"):
        pool_latents(features, torch.tensor([9.0]), 1)
    with pytest.raises(ValueError, match="features is"):
        pool_latents(features[None], torch.tensor([9]), 1)


def brute_force(hidden, target, index, num_items):
    rows = hidden.double().reshape(-1, hidden.shape[-1])[index - 1]
    cosine = torch.nn.functional.cosine_similarity(rows, target.double(), dim=1)
    return (1 - cosine).sum() / num_items, cosine


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_items", [None, 17, "tensor"])
def test_cosine_loss_and_gradient(dtype, num_items):
    torch.manual_seed(0)
    hidden = torch.randn(3, 11, 19, dtype=torch.float64).to(dtype).requires_grad_()
    index = torch.tensor([2, 3, 4, 5, 13, 32])
    target = torch.randn(6, 19, dtype=torch.float64).to(dtype)
    items = torch.tensor(17) if num_items == "tensor" else num_items
    loss, cosine = cosine_latent_loss(hidden, target, index, num_items=items)
    (loss * 3).backward()
    reference = hidden.detach().double().requires_grad_()
    expected, expected_cosine = brute_force(reference, target, index, 6 if num_items is None else 17)
    (expected * 3).backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert loss.dtype == cosine.dtype == wide
    assert not cosine.requires_grad
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(cosine.double(), expected_cosine, rtol=1e-5, atol=1e-6)
    assert hidden.grad.dtype == dtype
    torch.testing.assert_close(hidden.grad.double(), reference.grad, rtol=tolerance, atol=tolerance * 0.1)


def test_cosine_gradcheck():
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 5, dtype=torch.float64)
    index = torch.tensor([1, 4, 7])
    assert torch.autograd.gradcheck(lambda h: cosine_latent_loss(h, target, index)[0], hidden)


def test_zero_vectors_and_extremes_are_finite():
    hidden = torch.zeros(4, 6, dtype=torch.bfloat16)
    hidden[1], hidden[2] = 3e38, 1e-38
    hidden.requires_grad_()
    target = torch.ones(4, 6, dtype=torch.bfloat16)
    target[3] = 0
    loss, cosine = cosine_latent_loss(hidden, target, torch.tensor([1, 2, 3, 4]))
    loss.backward()
    assert cosine.tolist() == pytest.approx([0.0, 1.0, 0.0, 0.0])
    assert torch.isfinite(hidden.grad).all()
    assert loss.item() == pytest.approx(0.75)


def test_no_latents_is_zero_in_the_graph():
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    for items in (None, 5, 0, torch.tensor(0)):
        loss, cosine = cosine_latent_loss(
            hidden, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), num_items=items
        )
        (gradient,) = torch.autograd.grad(loss, hidden)
        assert loss.item() == 0
        assert cosine.shape == (0,)
        assert not gradient.any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", ["hidden", "target"])
def test_broken_features_are_no_zero_vectors(value, side):
    """A zero would switch supervision off unseen."""
    hidden, target, index = torch.randn(2, 3, 4), torch.randn(2, 4), torch.tensor([1, 4])
    (hidden[0] if side == "hidden" else target)[0, 2] = value
    hidden.requires_grad_()
    loss, cosine = cosine_latent_loss(hidden, target, index)
    loss.backward()
    assert loss.isnan()
    assert cosine.isnan().tolist() == [True, False]
    assert hidden.grad[0, 0].isnan().any()
    assert hidden.grad[1].isfinite().all()


def test_cosine_names_bad_input(monkeypatch):
    hidden, target, index = torch.randn(2, 3, 4), torch.randn(2, 4), torch.tensor([1, 4])
    with pytest.raises(ValueError, match=r"target .*\(2, 5\)"):
        cosine_latent_loss(hidden, torch.randn(2, 5), index)
    with pytest.raises(ValueError, match=r"target is torch.int64"):
        cosine_latent_loss(hidden, target.long(), index)
    with pytest.raises(ValueError, match=r"index is \(3,\)"):
        cosine_latent_loss(hidden, target, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="target requires gradients"):
        cosine_latent_loss(hidden, target.requires_grad_(), index)
    with pytest.raises(ValueError, match="num_items is nan"):
        cosine_latent_loss(hidden, target.detach(), index, num_items=float("nan"))
    with pytest.raises(ValueError, match=r"num_items is \(2,\)"):
        cosine_latent_loss(hidden, target.detach(), index, num_items=torch.ones(2))
    for wrong in (0, 7):  # no position before it; beyond the end
        with pytest.raises(ValueError, match="a latent needs a position before it in its own row"):
            cosine_latent_loss(hidden, target.detach(), torch.tensor([1, wrong]))
    monkeypatch.setenv("FOURDTHINKER_DEBUG", "1")
    cosine_latent_loss(hidden, target.detach(), index)
    with pytest.raises(ValueError, match="a latent needs a position before it in its own row"):
        cosine_latent_loss(hidden, target.detach(), torch.tensor([1, 3]))
