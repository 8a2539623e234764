"""linear_grpo_loss equals grpo_token_loss of linear_logprobs, in value, gradient and metrics."""

from __future__ import annotations

import pytest
import torch

from fourdthinker.kernels import grpo_loss, grpo_token_loss, linear_grpo_loss, linear_logprobs
from tests.gpu.kernel_cases import head_of_many_rows
from tests.unit.kernels.memory import peak_bytes
from tests.unit.kernels.options import KINDS, fits, with_options

ROWS, LENGTH, WIDTH, VOCAB = 4, 6, 7, 19


def case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    input, weight, bias = randn(ROWS, LENGTH, WIDTH), randn(VOCAB, WIDTH), randn(VOCAB)
    target = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator)
    mask = torch.rand(ROWS, LENGTH, generator=generator) < 0.6
    mask[1] = False
    base = linear_logprobs(input, weight, target, bias=bias)
    tensors = {
        name: base + 0.4 * randn(ROWS, LENGTH)
        for name in ("old_logprobs", "ref_logprobs", "sampler_logprobs")
    }
    tensors = {name: torch.where(mask, value, torch.nan) for name, value in tensors.items()}
    tensors["entropy_mask"] = torch.rand(ROWS, LENGTH, generator=generator) < 0.7
    return (input, weight, bias), target, mask, randn(ROWS), tensors


OPTIONS = [
    {},
    {"beta": 0.2, "epsilon_high": 0.4, "temperature": 0.7},
    {"beta": 0.2, "kl": "k2", "delta": 1.6, "softcap": 4.0},
    {"entropy_coef": 0.1, "num_items": 13.0, "num_tokens": 29.0, "sampler_cap": 1.3},
    {"entropy_coef": 0.1, "entropy_norm": "loss", "num_items": 13.0},
    {"sampler_cap": 1.4, "sampler_floor": 0.5, "sampler_level": "sequence", "off_policy_bound": 0.1},
    {"sampler_cap": 1.4, "sampler_excess": "mask", "beta": 0.2, "kl_weighting": "ratio"},
]
CASES = [(kind, option) for kind in KINDS for option in OPTIONS if fits(kind, option)]
HEAD = ("temperature", "softcap")


def composed(leaves, target, mask, advantages, tensors, **options):
    head = {name: options.pop(name) for name in HEAD if name in options}
    logprobs, entropy = linear_logprobs(
        leaves[0], leaves[1], target, bias=leaves[2], mask=mask, return_entropy=True, **head
    )
    extra = {"entropy": entropy} if options["options"].entropy_coef else {}
    return *grpo_token_loss(logprobs, advantages, mask, **tensors, **extra, **options), logprobs.detach()


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("absent", [(), ("old_logprobs", "sampler_logprobs", "entropy_mask")])
def test_equals_the_composition(kind, options, absent):
    options = with_options(kind, **options, max_length=9)
    values, target, mask, advantages, tensors = case()
    if options["options"].corrected:
        absent = [name for name in absent if name != "sampler_logprobs"]
    tensors = {name: value for name, value in tensors.items() if name not in absent}
    leaves = [t.clone().requires_grad_() for t in values]
    want, want_metrics, want_logprobs = composed(leaves, target, mask, advantages, tensors, **options)
    (want * 1.7).backward()
    for chunk_rows in (3, 1000):
        own = [t.clone().requires_grad_() for t in values]
        loss, logprobs, metrics = linear_grpo_loss(
            own[0], own[1], target, bias=own[2], advantages=advantages, mask=mask, chunk_rows=chunk_rows,
            **tensors, **options,
        )  # fmt: skip
        (loss * 1.7).backward()
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(logprobs, want_logprobs)
        assert not logprobs.requires_grad
        for got, expected in zip(own, leaves, strict=True):
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-9, atol=1e-12)
        assert metrics.keys() == want_metrics.keys()
        for name, value in want_metrics.items():
            torch.testing.assert_close(metrics[name], value, msg=name)


@pytest.mark.parametrize("kind", ["grpo token", "grpo sequence", "dapo token"])
def test_packed_equals_padded(kind):
    values, target, mask, advantages, tensors = case()
    options = with_options(kind, beta=0.1, max_length=9)
    padded = [t.clone().requires_grad_() for t in values]
    want, logprobs, _ = linear_grpo_loss(
        padded[0], padded[1], target, bias=padded[2], advantages=advantages, mask=mask, **tensors, **options
    )
    want.backward()
    keep = torch.rand(ROWS * LENGTH, generator=torch.Generator().manual_seed(1)) < 0.8
    keep = (keep | mask.flatten()).nonzero()[:, 0].flip(0)  # masked positions may be missing, order is free
    packed = [t.clone().requires_grad_() for t in values]
    ids = torch.arange(ROWS).repeat_interleave(LENGTH)[keep]
    loss, packed_logprobs, _ = linear_grpo_loss(
        packed[0].flatten(0, 1)[keep], packed[1], target.flatten()[keep], bias=packed[2],
        advantages=advantages, mask=mask.flatten()[keep], sequence_ids=ids,
        rows=mask.flatten()[keep].nonzero()[:, 0],
        **{name: value.flatten()[keep] for name, value in tensors.items()}, **options,
    )  # fmt: skip
    loss.backward()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(packed_logprobs, logprobs.flatten()[keep])
    for got, expected in zip(packed, padded, strict=True):
        torch.testing.assert_close(got.grad, expected.grad)


def test_token_advantages_frozen_head_and_listed_but_masked_rows():
    (input, weight, bias), target, mask, advantages, _ = case()
    spread = advantages[:, None].expand(-1, LENGTH)
    input.requires_grad_()
    first, _, _ = linear_grpo_loss(input, weight, target, bias=bias, advantages=advantages, mask=mask)
    second, _, _ = linear_grpo_loss(
        input, weight, target, bias=bias, advantages=spread, mask=mask, rows=torch.arange(ROWS * LENGTH)
    )
    torch.testing.assert_close(first, second)
    grads = [torch.autograd.grad(loss, input)[0] for loss in (first, second)]
    torch.testing.assert_close(*grads)
    assert not grads[0][~mask].any()


@pytest.mark.parametrize("kind", KINDS)
def test_listed_rows_that_are_masked_may_be_anything(kind):
    (input, weight, bias), target, mask, advantages, tensors = case()
    mask[0] = False
    options = with_options(kind, mask=mask, max_length=9, beta=0.1, entropy_coef=0.01)
    leaves = [input.clone().requires_grad_(), weight.clone().requires_grad_()]
    want, logprobs, _ = linear_grpo_loss(
        *leaves, target, bias=bias, advantages=advantages, **tensors, **options
    )
    want.backward()
    dirty = [input.masked_fill(~mask[..., None], torch.nan).requires_grad_(), weight.clone().requires_grad_()]
    advantages[0] = torch.nan
    tensors = {k: v if v.dtype == torch.bool else v.masked_fill(~mask, torch.nan) for k, v in tensors.items()}
    loss, current, metrics = linear_grpo_loss(
        *dirty, target.masked_fill(~mask, -100), bias=bias, advantages=advantages,
        rows=torch.arange(ROWS * LENGTH), chunk_rows=4, **tensors, **options,
    )  # fmt: skip
    loss.backward()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(current, logprobs)
    assert all(value.isfinite() for value in metrics.values())
    for got, expected in zip(dirty, leaves, strict=True):
        torch.testing.assert_close(got.grad, expected.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_counted_is_zero_in_the_graph(kind):
    values, target, mask, advantages, _ = case(torch.float32)
    leaves = [t.requires_grad_() for t in values]
    loss, _, metrics = linear_grpo_loss(
        leaves[0], leaves[1], target, bias=leaves[2], advantages=advantages, mask=torch.zeros_like(mask),
        **with_options(kind, max_length=9),
    )  # fmt: skip
    assert loss.item() == 0
    assert all(torch.isfinite(m) for m in metrics.values())
    for gradient in torch.autograd.grad(loss, leaves):
        assert not gradient.any()


@pytest.mark.parametrize("kind", ["dapo token", "grpo sequence"])
def test_peak_memory_is_one_chunk_of_logits(kind):
    rows, vocabulary, width, chunk = 1024, 8192, 64, 128  # dW is half a chunk: a second one would show
    input = torch.randn(1, rows, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    target, mask = torch.randint(0, vocabulary, (1, rows)), torch.ones(1, rows, dtype=torch.bool)
    given = (input.numel() + weight.numel()) * 4  # dX and dW

    def step():
        loss, _, _ = linear_grpo_loss(
            input, weight, target, advantages=torch.ones(1), mask=mask, chunk_rows=chunk,
            **with_options(kind, entropy_coef=0.1),
        )  # fmt: skip
        loss.backward()

    assert peak_bytes(step) - given <= 1.1 * chunk * vocabulary * 4


@pytest.mark.parametrize("kind", KINDS)
def test_an_infinite_ratio_adds_nothing_without_an_advantage(kind):
    (input, weight, bias), target, mask, advantages, _ = case()
    advantages[0] = 0.0
    old = linear_logprobs(input, weight, target, bias=bias).detach()
    old[0] -= 1e4
    mask[0, 0] = True
    leaf = input.requires_grad_()
    options = with_options(kind, max_length=9, advantages=advantages, mask=mask, old_logprobs=old)
    for loss in (
        linear_grpo_loss(leaf, weight, target, bias=bias, **options)[0],
        grpo_loss(leaf @ weight.T + bias, target, **options)[0],
    ):
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert not gradient[0].any()


def test_a_second_backward_through_a_retained_graph():
    (input, weight, bias), target, mask, advantages, _ = case()
    leaves = [x.requires_grad_() for x in (input, weight, bias)]
    loss, _, _ = linear_grpo_loss(input, weight, target, bias=bias, advantages=advantages, mask=mask)
    first = torch.autograd.grad(2 * loss, leaves, retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(3 * loss, leaves)
    for grad, before, after in zip(first, kept, second):
        assert torch.equal(grad, before)
        torch.testing.assert_close(after, 1.5 * grad)


def test_the_entropy_without_a_weight_is_a_metric_only():
    (input, weight, bias), target, mask, advantages, _ = case()
    input.requires_grad_()
    options = {"bias": bias, "advantages": advantages, "mask": mask}
    plain, _, metrics = linear_grpo_loss(input, weight, target, **options)
    loss, _, more = linear_grpo_loss(input, weight, target, **options, return_entropy=True)
    assert torch.equal(plain, loss)
    assert torch.equal(*(torch.autograd.grad(value, input)[0] for value in (plain, loss)))
    _, entropy = linear_logprobs(input, weight, target, bias=bias, mask=mask, return_entropy=True)
    torch.testing.assert_close(more.pop("entropy"), (entropy.sum() / mask.sum()).detach())
    assert more.keys() == metrics.keys()


def test_indices_are_checked_when_debugging(monkeypatch):
    (input, weight, _), target, mask, advantages, _ = case()
    flat = {"input": input.flatten(0, 1), "target": target.flatten(), "mask": mask.flatten()}
    flat |= {"weight": weight, "advantages": advantages}
    ids = torch.arange(ROWS).repeat_interleave(LENGTH)
    monkeypatch.setenv("FOURDTHINKER_DEBUG", "1")
    linear_grpo_loss(**flat, sequence_ids=ids)
    masked = torch.where(mask, target, 99).flatten()
    linear_grpo_loss(**{**flat, "target": masked}, sequence_ids=ids)
    for message, changes in [
        (
            r"target has values from -1 to -1; they must be in \[0, 19\)",
            {"target": torch.where(mask, -1, target).flatten()},
        ),
        ("sequence_ids has values from 1 to 4", {"sequence_ids": ids + 1}),
        (r"rows has values from 3 to 24; they must be in \[0, 24\)", {"rows": torch.tensor([3, 24])}),
    ]:
        with pytest.raises(ValueError, match=message):
            linear_grpo_loss(**{**flat, "sequence_ids": ids, **changes})


def test_more_rows_than_a_grid_has_on_its_second_axis():
    head_of_many_rows("cpu", 65_537, "torch")


def test_bad_input_is_named():
    (input, weight, _), target, mask, advantages, tensors = case()

    def call(**changes):
        return linear_grpo_loss(**{"input": input, "weight": weight, "target": target, "mask": mask,
                                   "advantages": advantages, **with_options(**changes)})  # fmt: skip

    for message, changes in [
        ("zero-mean gradient", {"kl": "k1"}),
        ("no ref_logprobs", {"beta": 0.1}),
        ("mask is torch.int64", {"mask": mask.long()}),
        (r"old_logprobs is \(4, 5\)", {"old_logprobs": tensors["ref_logprobs"][:, :5]}),
        (r"advantages is \(3,\)", {"advantages": advantages[:3]}),
        (r"advantages is \(\)", {"advantages": advantages[0]}),
        (
            r"advantages is \(\)",
            {
                "input": input[0],
                "target": target[0],
                "mask": mask[0],
                "advantages": advantages[0],
                "sequence_ids": target[0],
            },
        ),
        ("sequence_ids is needed", {"sequence_ids": target}),
        (r"target is \(4, 5\)", {"target": target[:, :5]}),
        ("rows has 2 2 times; pass each index once", {"rows": torch.tensor([2, 2])}),
        ("rows is on meta", {"rows": torch.zeros(1, dtype=torch.int64, device="meta")}),
        ("temperature is 0", {"temperature": 0.0}),
        ("input is torch.int64", {"input": input.long()}),
        ("weight is torch.int64", {"weight": weight.long()}),
        ("chunk_rows is 1.5", {"chunk_rows": 1.5}),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**changes)
