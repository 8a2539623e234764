"""The logits kernels behind linear_cross_entropy, linear_logprobs and linear_grpo_loss, against float64."""

from __future__ import annotations

import pytest
import torch

from fourdthinker.kernels import linear_cross_entropy, linear_grpo_loss, linear_logprobs
from fourdthinker.kernels._head import FusedHead
from fourdthinker.kernels._logits import in_memory_of
from tests.interpreter.numerics import assert_close
from tests.unit.kernels.options import KINDS, with_options
from tests.unit.kernels.test_loss_scale import OPS, check_gradients

OPTIONS = [{}, {"temperature": 0.7, "chunk_rows": 4}, {"softcap": 3.0, "temperature": 1.4}]


def case(vocabulary, width, dtype, *, bias):
    generator = torch.Generator().manual_seed(vocabulary)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    target = torch.randint(0, vocabulary, (2, 5), generator=generator)
    mask = torch.rand(2, 5, generator=generator) < 0.7
    mask[0, 0] = True
    leaves = [randn(2, 5, width), randn(vocabulary, width)] + ([randn(vocabulary)] if bias else [])
    return leaves, torch.where(mask, target, -100), mask


def run(op, leaves, dtype, backend):
    own = [t.detach().to(dtype or t.dtype).requires_grad_() for t in leaves]
    outputs = op(own, backend)
    sum((value * weight).sum() for value, weight in outputs).backward()
    return [value.detach() for value, _ in outputs], [t.grad for t in own]


def compare(op, leaves, *, ulps=2.0, floor=6e-6):
    got, got_grads = run(op, leaves, None, "triton")
    want, want_grads = run(op, leaves, torch.float64, "torch")
    for value, exact in zip(got + got_grads, want + want_grads, strict=True):
        assert_close(value, exact, ulps=ulps, floor=floor)


@pytest.mark.parametrize("kind", ["cross entropy", "logprobs", "grpo"])
def test_under_autocast_the_matmuls_take_its_dtype(kind, monkeypatch):
    """float32 leaves: hidden states are rounded to bf16, logits and sums are float32, gradients too."""
    leaves, target, mask = case(300, 16, torch.float32, bias=False)
    seen = []
    before = FusedHead.__init__

    def recorded(self, input, *rest):
        seen.append(input.dtype)
        before(self, input, *rest)

    monkeypatch.setattr(FusedHead, "__init__", recorded)

    def op(own, backend):
        if kind == "cross entropy":
            return [(linear_cross_entropy(own[0], own[1], target, backend=backend), 1.0)]
        if kind == "logprobs":
            return [(linear_logprobs(own[0], own[1], target, mask=mask, backend=backend), 1.0)]
        loss = linear_grpo_loss(
            *own, target.clamp(min=0), advantages=torch.ones(2), mask=mask, backend=backend
        )[0]
        return [(loss, 1.0)]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, grads = run(op, leaves, None, "triton")
    want, want_grads = run(op, [leaves[0].bfloat16().float(), leaves[1]], torch.float64, "torch")
    assert set(seen) == {torch.bfloat16}
    assert [t.dtype for t in (*values, *grads)] == [torch.float32] * 3
    torch.testing.assert_close(values[0].double(), want[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads[0].double(), want_grads[0], rtol=2**-7, atol=1e-5)  # as bf16 until then
    torch.testing.assert_close(grads[1].double(), want_grads[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("vocabulary", "width", "bias"), [(7, 3, True), (300, 16, False), (5000, 8, True)])
def test_cross_entropy_and_logprobs(options, dtype, vocabulary, width, bias):
    leaves, target, mask = case(vocabulary, width, dtype, bias=bias)
    up = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def cross_entropy(own, backend):
        more = {"bias": own[2]} if bias else {}
        return [(linear_cross_entropy(own[0], own[1], target, backend=backend, **more, **options), 0.3)]

    def logprobs(own, backend):
        more = {"bias": own[2]} if bias else {}
        values = linear_logprobs(
            own[0], own[1], target, mask=mask, return_entropy=True, backend=backend, **more, **options
        )
        return [(value, weight.to(value.dtype)) for value, weight in zip(values, up, strict=True)]

    compare(cross_entropy, leaves)
    compare(logprobs, leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_grpo_loss(kind):
    leaves, target, mask = case(300, 8, torch.float32, bias=True)
    generator = torch.Generator().manual_seed(2)
    base = linear_logprobs(leaves[0], leaves[1], target.clamp(min=0), bias=leaves[2])
    old, ref, sampler = (base + 0.3 * torch.randn(2, 5, generator=generator) for _ in range(3))

    def loss(own, backend):
        value, logprobs, _ = linear_grpo_loss(
            own[0], own[1], target, bias=own[2], advantages=torch.tensor([0.7, -1.1]), mask=mask,
            old_logprobs=old, ref_logprobs=ref, sampler_logprobs=sampler, chunk_rows=3, backend=backend,
            **with_options(kind, beta=0.1, entropy_coef=0.05, max_length=5, sampler_cap=2.0),
        )  # fmt: skip
        return [(value, 0.9), (logprobs, 0.0)]

    compare(loss, leaves, floor=3e-5)  # terms of either sign


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradient_in_the_memory_of_the_logits(dtype):
    """On a GPU the gradient of low-precision inputs is narrower than the float32 logits it replaces."""
    rows, vocabulary = 3, 9000  # three tiles
    z = torch.randn(rows, -(-vocabulary // 16) * 16)[:, :vocabulary]
    weight = torch.zeros(vocabulary, 1)
    head = FusedHead(torch.zeros(rows, 1), weight, None, 0.8, None)
    target = torch.tensor([0, 4096, 8999])
    _, normaliser, entropy, _ = head.stats(z, target, with_entropy=True)
    upstream, bonus = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.1, 0.2, -0.3])
    exact = z.double().requires_grad_()
    log_p = (exact / 0.8).log_softmax(1)
    value = (log_p.gather(1, target[:, None])[:, 0] * upstream).sum()
    value = value - ((log_p.exp() * log_p).sum(1) * bonus).sum()
    value.backward()
    head.dtype = dtype
    before = z.data_ptr()
    got = head.grad_(z, target, normaliser, entropy, upstream, bonus)
    assert got.data_ptr() == before
    assert got.dtype == dtype
    assert got.stride(0) * got.element_size() == z.stride(0) * 4
    # Beside the ones at the targets everything is small: compare those, and the rest, apart.
    assert_close(got.gather(1, target[:, None]), exact.grad.gather(1, target[:, None]))
    rest = torch.ones(rows, vocabulary, dtype=torch.bool).scatter_(1, target[:, None], False)
    assert_close(
        got[rest].float(), exact.grad[rest], ulps=2.0, floor=2e-3 if dtype == torch.float16 else 1e-5
    )
    assert in_memory_of(got, dtype).data_ptr() == before


def test_very_negative_and_infinite_logits():
    head = FusedHead(torch.zeros(2, 1), torch.zeros(5, 1), None, 1.0, None)
    z = torch.tensor(
        [[0.0, -torch.inf, -1e30, 0.0, -3e38], [-3e38, -torch.inf, -torch.inf, -torch.inf, -torch.inf]]
    )
    logprob, normaliser, entropy, _ = head.stats(z, torch.tensor([3, 0]), with_entropy=True)
    torch.testing.assert_close(logprob, torch.tensor([0.5, 1.0]).log())
    torch.testing.assert_close(entropy, torch.tensor([2.0, 1.0]).log())
    got = head.grad_(z, torch.tensor([3, 0]), normaliser, entropy, torch.ones(2), torch.ones(2))
    torch.testing.assert_close(got, torch.tensor([[-0.5, 0, 0, 0.5, 0], [0.0, 0, 0, 0, 0]]))


@pytest.mark.parametrize("op", OPS)
def test_float16_gradients_keep_their_digits_until_the_loss_scale_comes(op):
    check_gradients(op, 200_000.0, "triton")


@pytest.mark.parametrize("softcap", [30.0, 1_000.0, 10_000.0])
def test_a_wide_soft_cap_loses_no_digits(softcap):
    """Within 1e-6, as the reference is: 2 sigmoid(2 y) - 1 instead of tanh was off by softcap * 7e-8."""
    leaves, target, mask = case(300, 64, torch.float32, bias=False)
    leaves[0], leaves[1] = leaves[0] * 0.3, leaves[1] * 0.3
    got, want = (
        linear_logprobs(
            leaves[0].to(dtype), leaves[1].to(dtype), target, mask=mask, softcap=softcap, backend=backend
        )
        for dtype, backend in ((torch.float32, "triton"), (torch.float64, "torch"))
    )
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6)
