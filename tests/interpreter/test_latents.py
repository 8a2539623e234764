"""pool_latents and cosine_latent_loss: kernels against float64."""

from __future__ import annotations

import pytest
import torch

from fourdthinker.kernels import cosine_latent_loss, pool_latents
from tests.interpreter.numerics import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("counts", "width"), [([4], 1), ([9, 5, 64], 33), ([7, 100], 520), ([], 8)])
@pytest.mark.parametrize("latent_size", [1, 4])
def test_pool_latents(dtype, counts, width, latent_size):
    torch.manual_seed(0)
    storage = torch.randn(sum(counts), 2 * width).to(dtype)
    for features in (storage[:, :width], storage[:, ::2]):  # strided rows; strided columns
        number = torch.tensor(counts, dtype=torch.int64)
        got = pool_latents(features, number, latent_size, backend="triton")
        assert got.dtype == dtype
        assert_close(got, pool_latents(features.double(), number, latent_size))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 33, 256, 1000])
@pytest.mark.parametrize("upstream", [1.0, 0.37])
def test_cosine_latent_loss(dtype, width, upstream):
    torch.manual_seed(1)
    hidden = torch.randn(2, 9, width).to(dtype).requires_grad_()
    target = torch.randn(5, 2 * width).to(dtype)[:, :width]
    index = torch.tensor([1, 2, 5, 10, 17])
    loss, cosine = cosine_latent_loss(hidden, target, index, num_items=7, backend="triton")
    (loss * upstream).backward(retain_graph=True)
    exact = hidden.detach().double().requires_grad_()
    want, want_cosine = cosine_latent_loss(exact, target.double(), index, num_items=7)
    (want * upstream).backward()
    assert_close(loss.detach(), want.detach())
    assert_close(cosine, want_cosine)
    if width > 1:  # in one dimension the gradient is 0 but for rounding
        assert_close(hidden.grad, exact.grad, ulps=2.0)
    first = hidden.grad.clone()
    hidden.grad = None
    (loss * upstream).backward()  # the retained graph gives the same gradient once more
    assert_close(hidden.grad, first.double(), ulps=2.0, floor=1e-5)


def test_cosine_without_gradient_without_latents_and_at_extremes():
    hidden = torch.randn(6, 8)
    nothing = torch.zeros(0, dtype=torch.int64)
    loss, cosine = cosine_latent_loss(hidden.requires_grad_(), torch.zeros(0, 8), nothing, backend="triton")
    loss.backward()
    assert (loss.item(), cosine.shape, hidden.grad.any().item()) == (0.0, (0,), False)
    hard = torch.zeros(4, 6, dtype=torch.bfloat16)
    hard[1], hard[2] = 3e38, 1e-38
    target = torch.ones(4, 6, dtype=torch.bfloat16)
    target[3] = 0
    loss, cosine = cosine_latent_loss(
        hard.requires_grad_(), target, torch.tensor([1, 2, 3, 4]), backend="triton"
    )
    loss.backward()
    assert cosine.tolist() == pytest.approx([0.0, 1.0, 0.0, 0.0])
    assert torch.isfinite(hard.grad).all()
    with torch.no_grad():
        assert cosine_latent_loss(hard, target, torch.tensor([2]).repeat(4), backend="triton")[0].item() < 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_features_are_no_zero_vectors(value):
    for side in range(2):
        hidden, target, index = torch.randn(6, 40), torch.randn(2, 40), torch.tensor([1, 4])
        (hidden, target)[side][0, 2] = value
        hidden.requires_grad_()
        loss, cosine = cosine_latent_loss(hidden, target, index, backend="triton")
        loss.backward()
        assert loss.isnan()
        assert cosine.isnan().tolist() == [True, False]
        assert hidden.grad[0].isnan().any()
        assert hidden.grad[3].isfinite().all()
