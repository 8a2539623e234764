"""Everything that one read of the logits tells, of every op and with every option, against float64."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from fourdthinker.kernels import (
    cross_entropy,
    grpo_loss,
    linear_cross_entropy,
    linear_grpo_loss,
    linear_logprobs,
    logprobs,
)
from tests.interpreter.numerics import assert_close
from tests.unit.kernels.options import KINDS, with_options

OPTIONS: list[dict[str, Any]] = [
    {"bias": bias, "softcap": softcap, "temperature": temperature}
    for bias, softcap, temperature in product((False, True), (None, 3.0), (1.0, 0.6))
]
MORE = ("top1", "sum_p2", "mean_logit")


def case(dtype=torch.float32, vocabulary=300):
    generator = torch.Generator().manual_seed(vocabulary)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    leaves = [randn(2, 5, 8), randn(vocabulary, 8), randn(vocabulary)]
    target = torch.randint(0, vocabulary, (2, 5), generator=generator)
    mask = torch.tensor([[True, True, False, True, True], [True, False, True, True, True]])
    return leaves, target, mask


def scores(leaves, bias, softcap, temperature):
    x, weight, added = (t.double() for t in leaves)
    z = x @ weight.T
    z = z + added if bias else z
    return (z if softcap is None else softcap * (z / softcap).tanh()) / temperature


def brute(z, target):
    """Log-probability, entropy and the other statistics of rows of float64 scores."""
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    chosen = z.gather(-1, target[..., None])[..., 0]
    return [
        log_p.gather(-1, target[..., None])[..., 0], -(p * log_p).sum(-1), (chosen >= z.amax(-1)).double(),
        p.square().sum(-1), z.mean(-1),
    ]  # fmt: skip


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_of_hidden_states(options, backend):
    leaves, target, mask = case()
    target[0, 0] = scores(leaves, **options)[0, 0].argmax()  # one at least is the most probable
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    want = brute(scores(exact, **options), target)
    own = [leaf.clone().requires_grad_() for leaf in leaves]
    more = options | {"bias": own[2] if options["bias"] else None}
    values, statistics = linear_logprobs(
        own[0], own[1], target, mask=mask, return_statistics=True, chunk_rows=3, backend=backend, **more
    )
    got = [values, *statistics]
    for value, right in zip(got, want, strict=True):
        assert not value[~mask].any()
        assert_close(value[mask].detach(), right[mask].detach(), ulps=8)
    (values - 0.3 * statistics.entropy).sum().backward()
    (want[0] - 0.3 * want[1])[mask].sum().backward()
    for mine, right in zip(own, exact):
        if mine.grad is not None:
            assert_close(mine.grad, right.grad, floor=6e-6)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [7, 5003])
def test_of_given_logits(dtype, vocabulary, backend):
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(2, 4, vocabulary, generator=generator) * 3).to(dtype)
    target = logits.argmax(-1)
    target[1] = 0
    mask = torch.tensor([[True, False, True, True], [True, True, True, False]])
    values, statistics = logprobs(
        logits, target, mask=mask, temperature=0.7, return_statistics=True, backend=backend
    )  # fmt: skip
    want = brute(logits.double() / 0.7, target)
    for value, right in zip([values, *statistics], want, strict=True):
        assert value.dtype == torch.float32
        assert not value[~mask].any()
        torch.testing.assert_close(value[mask].double(), right[mask], rtol=1e-5, atol=1e-5)
    assert statistics.top1[0, 0] == 1


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=str)
def test_beside_every_loss_and_its_gradients(kind, options, backend):
    """Asked for or not, loss and gradients are the same; the metrics are means over the tokens."""
    leaves, target, mask = case()
    generator = torch.Generator().manual_seed(4)
    old = brute(scores(leaves, **options), target)[0].float() + 0.2 * torch.randn(2, 5, generator=generator)
    given = with_options(kind, entropy_coef=0.05, max_length=5)
    given |= {"advantages": torch.tensor([0.7, -1.1]), "mask": mask, "old_logprobs": old}
    results = []
    for statistics in (False, True):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        more = options | {"bias": own[2] if options["bias"] else None}
        loss, _, metrics = linear_grpo_loss(
            own[0],
            own[1],
            target,
            return_statistics=statistics,
            chunk_rows=3,
            backend=backend,
            **given,
            **more,
        )
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in own if leaf.grad is not None)])
    for plain, with_statistics in zip(*results, strict=True):
        assert torch.equal(plain, with_statistics)
    want = brute(scores(leaves, **options), target)[1:]
    for name, right in zip(("entropy", *MORE), want, strict=True):
        torch.testing.assert_close(metrics[name].double(), right[mask].mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_beside_the_loss_of_given_logits(backend):
    leaves, target, mask = case()
    logits = scores(leaves, False, None, 1.0).float()
    _, _, metrics = grpo_loss(
        logits, target, advantages=torch.ones(2), mask=mask, return_statistics=True, backend=backend
    )
    want = brute(logits.double(), target)[1:]
    for name, right in zip(("entropy", *MORE), want, strict=True):
        torch.testing.assert_close(metrics[name].double(), right[mask].mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=str)
def test_beside_the_cross_entropies(options, backend):
    """Means over the rows that count; asked for or not, loss and gradients are the same."""
    leaves, target, mask = case()
    labels = torch.where(mask, target, -100)
    want = brute(scores(leaves, **options), target)
    results, calls = [], []
    for statistics in (False, True):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        more = options | {"bias": own[2] if options["bias"] else None}
        made = linear_cross_entropy(
            own[0], own[1], labels, chunk_rows=3, return_statistics=statistics, backend=backend, **more
        )
        loss = made[0] if statistics else made
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in own if leaf.grad is not None)])
        calls.append(made)
    for plain, with_statistics in zip(*results, strict=True):
        assert torch.equal(plain, with_statistics)
    logits = scores(leaves, options["bias"], options["softcap"], 1.0).float()
    given = cross_entropy(
        logits, labels, temperature=options["temperature"], return_statistics=True, backend=backend
    )
    for loss, found in (calls[1], given):
        torch.testing.assert_close(loss.detach().double(), -want[0][mask].mean(), rtol=1e-5, atol=0)
        for name, right in zip(("entropy", *MORE), want[1:], strict=True):
            value = getattr(found, name)
            assert not value.requires_grad
            torch.testing.assert_close(value.double(), right[mask].mean(), rtol=1e-5, atol=1e-5)
    nothing = linear_cross_entropy(
        leaves[0], leaves[1], torch.full_like(labels, -100), return_statistics=True, backend=backend
    )
    assert [float(value) for value in nothing[1]] == [0.0] * 4


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_ties_and_ids_of_no_weight(backend):
    logits = torch.tensor([[2.0, 2.0, -torch.inf, 0.0], [2.0, 2.0, -torch.inf, 0.0]])
    _, statistics = logprobs(logits, torch.tensor([1, 3]), return_statistics=True, backend=backend)
    assert statistics.top1.tolist() == [1.0, 0.0]
    p = logits.double().softmax(-1)
    torch.testing.assert_close(statistics.sum_p2.double(), p.square().sum(-1), rtol=1e-6, atol=0)
    assert statistics.mean_logit.tolist() == [-torch.inf, -torch.inf]
