"""The kernels behind logprobs, cross_entropy and grpo_loss of given logits, against float64."""

from __future__ import annotations

import pytest
import torch

from fourdthinker.kernels import cross_entropy, grpo_loss, logprobs
from tests.interpreter.numerics import assert_close
from tests.unit.kernels.options import KINDS, with_options

VIEWS = {
    "flat": lambda z: z.flatten(0, 1),
    "batch": lambda z: z,
    "slice": lambda z: z[:, 1:],
    "transposed": lambda z: z.transpose(0, 1),
    "columns": lambda z: z[..., ::2],
    "one row": lambda z: z[:1, :1],
    "empty": lambda z: z[:, :0],
}


def masked(view, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, view.shape[-1], view.shape[:-1], generator=generator)
    mask = torch.rand(view.shape[:-1], generator=generator) < 0.6
    if mask.numel():
        mask.view(-1)[0] = True
    return target, mask


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [7, 300, 5003])
def test_logprobs_and_entropy(view, dtype, vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = VIEWS[view](torch.randn(3, 4, vocabulary, generator=generator).to(dtype) * 2)
    target, mask = masked(logits)
    logits = torch.where(mask[..., None], logits, torch.nan) if view == "batch" else logits  # not read
    up = torch.randn(2, *target.shape, generator=generator, dtype=torch.float64)
    results = []
    for backend, leaf in (("triton", logits.detach()), ("torch", logits.detach().double())):
        leaf.requires_grad_()
        values = logprobs(leaf, target, mask=mask, temperature=0.7, return_entropy=True, backend=backend)
        sum((value * weight).sum() for value, weight in zip(values, up, strict=True)).backward()
        results.append([*(value.detach() for value in values), leaf.grad])
    for got, exact in zip(*results, strict=True):
        assert_close(got, exact, ulps=2.0, floor=6e-6)
    assert not results[0][2][~mask].any()


@pytest.mark.parametrize("offset", [0.0, 200.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_bf16_log_probs_are_within_1e_5_of_float64_on_the_same_inputs(offset, temperature):
    generator = torch.Generator().manual_seed(9)
    logits = (torch.randn(6, 20_011, generator=generator) * 3 + offset).bfloat16()
    target = torch.randint(0, 20_011, (6,), generator=generator)
    got = logprobs(logits, target, temperature=temperature, return_entropy=True, backend="triton")
    exact = logprobs(logits.double(), target, temperature=temperature, return_entropy=True)
    for value, want in zip(got, exact, strict=True):
        torch.testing.assert_close(value.double(), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy(inplace, dtype):
    logits = torch.randn(2, 5, 4100, generator=torch.Generator().manual_seed(0)).to(dtype)
    target, mask = masked(logits)
    labels = torch.where(mask, target, -100)
    leaf, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = cross_entropy(leaf * 1.0, labels, num_items=9, inplace_backward=inplace, backend="triton")
    want = cross_entropy(exact, labels, num_items=9)
    (loss * 0.3).backward()
    (want * 0.3).backward()
    assert_close(loss.detach(), want.detach())
    assert_close(leaf.grad, exact.grad, ulps=2.0)


@pytest.mark.parametrize("kind", KINDS)
def test_grpo_loss(kind):
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 6, 300, generator=generator)
    target, mask = masked(logits)
    base = logprobs(logits, target, mask=mask)
    past = {name: base + 0.3 * torch.randn(3, 6, generator=generator)
            for name in ("old_logprobs", "ref_logprobs", "sampler_logprobs")}  # fmt: skip
    options = with_options(
        kind, **past, advantages=torch.tensor([0.7, -1.1, 0.4]), mask=mask, beta=0.1, entropy_coef=0.05,
        max_length=6, temperature=1.3, sampler_cap=2.0,
    )  # fmt: skip
    results = []
    for backend, leaf in (("triton", logits.clone()), ("torch", logits.double())):
        leaf.requires_grad_()
        loss, values, _ = grpo_loss(leaf, target, **options, backend=backend)
        (loss * 0.9).backward()
        results.append([loss.detach(), values, leaf.grad])
    for got, exact in zip(*results, strict=True):
        assert_close(got, exact, ulps=2.0, floor=1e-5)


def test_infinite_and_very_negative_logits():
    rows = [
        [0.0, -torch.inf, -1e30, 0.0, -3e38],
        [-3e38, -torch.inf, -torch.inf, -torch.inf, -torch.inf],
    ]
    logits = torch.tensor(rows).requires_grad_()
    values, entropy = logprobs(
        logits, torch.tensor([3, 0]), return_entropy=True, backend="triton"
    )  # fmt: skip
    (values.sum() + entropy.sum()).backward()
    torch.testing.assert_close(values, torch.tensor([0.5, 1.0]).log())
    torch.testing.assert_close(entropy, torch.tensor([2.0, 1.0]).log())
    want = torch.tensor([[-0.5, 0, 0, 0.5, 0], [0.0, 0, 0, 0, 0]])
    torch.testing.assert_close(logits.grad, want)


def test_padding_of_a_larger_vocabulary_is_left_alone():
    """In place, columns beside a slice belong to somebody else."""
    whole = torch.randn(3, 20)
    logits = whole[:, :13].detach().requires_grad_()
    beside = whole[:, 13:].clone()
    loss = cross_entropy(logits, torch.zeros(3, dtype=torch.int64), inplace_backward=True, backend="triton")
    loss.backward()
    assert torch.equal(whole[:, 13:], beside)
    assert torch.equal(whole[:, :13], logits.grad)
