"""Gradients in float16 under the loss scale of mixed-precision training, against float64."""

from __future__ import annotations

import pytest
import torch

from fourdthinker.kernels import GrpoOptions, cosine_latent_loss, linear_cross_entropy, linear_grpo_loss
from fourdthinker.kernels._head import power_of_two

SCALE = 65_536.0
COUNT, WIDTH, VOCAB = 24, 16, 300
OPS = ("cross entropy", "grpo", "cosine")


def loss_of(op, x, weight, items, backend):
    places = torch.arange(COUNT, device=x.device)
    target = places * 7 % VOCAB
    if op == "cross entropy":
        return linear_cross_entropy(x, weight, target, num_items=items, backend=backend)
    if op == "cosine":
        return cosine_latent_loss(x, weight[:COUNT], places + 1, num_items=items, backend=backend)[0]
    return linear_grpo_loss(
        x.view(2, -1, WIDTH), weight, target.view(2, -1), GrpoOptions(loss_type="dapo", entropy_coef=0.1),
        advantages=torch.tensor([1.0, -0.5], device=x.device), mask=places.view(2, -1) >= 0,
        num_items=items, num_tokens=items, backend=backend,
    )[0]  # fmt: skip


def check_gradients(op, items, backend, device="cpu"):
    """Relative error below half a step of float16; on CUDA the gradient of the logits is rounded too."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(COUNT, WIDTH, generator=generator).half()
    weight = (torch.randn(VOCAB, WIDTH, generator=generator) * WIDTH**-0.5).half()
    trained = op != "cosine"
    got, exact = (
        [
            x.to(device, dtype, copy=True).requires_grad_(),
            weight.to(device, dtype, copy=True).requires_grad_(trained),
        ]
        for dtype in (torch.float16, torch.float64)
    )
    (SCALE * loss_of(op, got[0], got[1], items, backend)).backward()
    (SCALE * loss_of(op, exact[0], exact[1], items, "torch")).backward()
    for mine, right in zip(got[: 1 + trained], exact):
        assert mine.grad.dtype == torch.float16
        error = (mine.grad.double() - right.grad).norm() / right.grad.norm()
        assert error < (2.0**-11 if device == "cpu" else 2.0**-10), (op, items, float(error))


@pytest.mark.parametrize("items", [1_024.0, 8_192.0, 200_000.0, 2e7])
@pytest.mark.parametrize("op", OPS)
def test_float16_gradients_keep_their_digits_until_the_loss_scale_comes(op, items):
    check_gradients(op, items, "torch")


def test_weights_are_divided_by_a_power_of_two():
    for value in (1.0, 0.3, 1e-30, -7.0, 8191.0, 2.0**-20):
        unit = power_of_two(torch.tensor([value, value / 3]), torch.tensor(0.0))
        assert 0.5 <= abs(value) / unit < 1
        assert torch.frexp(unit).mantissa == 0.5
    assert power_of_two(torch.zeros(0)) == 1
    assert power_of_two(torch.tensor(torch.nan)).isnan()
