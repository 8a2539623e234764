"""logprobs, cross_entropy and grpo_loss of given logits, against whole softmaxes in float64 and head ops."""

from __future__ import annotations

import pytest
import torch

from fourdthinker.kernels import cross_entropy, grpo_loss, linear_grpo_loss, logprobs
from tests.unit.kernels.memory import peak_bytes
from tests.unit.kernels.options import KINDS, fits, with_options

ROWS, LENGTH, VOCAB = 3, 5, 17


def case(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(ROWS, LENGTH, VOCAB, generator=generator, dtype=torch.float64).to(dtype) * 2
    target = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator)
    mask = torch.rand(ROWS, LENGTH, generator=generator) < 0.6
    mask[1] = False
    return logits, target, mask


def whole(logits, target, mask, temperature):
    log_p = (logits.double() / temperature).log_softmax(-1)
    values = log_p.gather(-1, target[..., None])[..., 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    return torch.where(mask, values, 0.0), torch.where(mask, entropy, 0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients(dtype, temperature):
    logits, target, mask = case(dtype)
    up = torch.randn(2, ROWS, LENGTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = logits.double().requires_grad_()
    want = whole(exact, target, mask, temperature)
    (want[0] * up[0] + want[1] * up[1]).sum().backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 4e-3}[dtype]
    for view in (logits, logits.flatten(0, 1), torch.cat((logits, logits), 1)[:, :LENGTH]):
        leaf = view.detach().requires_grad_()
        shape = view.shape[:-1]
        got = logprobs(
            leaf,
            target.reshape(shape),
            mask=mask.reshape(shape),
            temperature=temperature,
            return_entropy=True,
        )
        sum((value * weight.reshape(shape)).sum() for value, weight in zip(got, up, strict=True)).backward()
        for value, expected in zip(got, want, strict=True):
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            torch.testing.assert_close(value.double(), expected.detach().reshape(shape), rtol=1e-5, atol=1e-6)
        assert leaf.grad.dtype == dtype
        torch.testing.assert_close(
            leaf.grad.double().reshape(exact.shape), exact.grad, rtol=tolerance, atol=tolerance
        )
    alone = logprobs(logits, target, mask=mask, temperature=temperature)
    torch.testing.assert_close(alone, got[0].detach().reshape(alone.shape))


def test_gradcheck():
    logits, target, mask = case()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: logprobs(z, target, mask=mask, temperature=0.7, return_entropy=True), logits
    )
    labels = torch.where(mask, target, -100)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, labels, num_items=7), logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kl", ["k2", "k3"])
def test_grpo_loss_equals_the_head_op_and_its_own_differences(kind, kl):
    generator = torch.Generator().manual_seed(3)
    _, target, mask = case()
    hidden = torch.randn(ROWS, LENGTH, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCAB, 4, generator=generator, dtype=torch.float64)
    base = whole(hidden @ weight.T, target, mask, 0.8)[0]
    past = {
        name: torch.where(mask, base + 0.3 * torch.randn(ROWS, LENGTH, generator=generator), torch.nan)
        for name in ("old_logprobs", "ref_logprobs", "sampler_logprobs")
    }
    options = with_options(
        kind, **past, advantages=torch.tensor([0.5, -1.0, -0.7], dtype=torch.float64), mask=mask,
        entropy_mask=torch.rand(ROWS, LENGTH, generator=generator) < 0.8, kl=kl, beta=0.2, entropy_coef=0.1,
        max_length=9, temperature=0.8, sampler_cap=2.0,
        delta=1.5 if fits(kind, {"delta": 1.5}) else None,
    )  # fmt: skip
    leaf = hidden.requires_grad_()
    want = linear_grpo_loss(leaf, weight, target, **options)
    (expected,) = torch.autograd.grad(want[0], leaf)
    for inplace in (False, True):
        got = grpo_loss(leaf @ weight.T, target, **options, inplace_backward=inplace)
        (gradient,) = torch.autograd.grad(got[0], leaf)
        torch.testing.assert_close(got[0], want[0])
        torch.testing.assert_close(got[1], want[1])
        torch.testing.assert_close(gradient, expected)
        assert got[2].keys() == want[2].keys()
        for name, value in want[2].items():
            torch.testing.assert_close(got[2][name], value, msg=name)
    if kind.split()[0] not in ("cispo", "vespo"):  # their ratio is a constant: no finite differences
        z = (hidden @ weight.T).detach().requires_grad_()
        assert torch.autograd.gradcheck(lambda z: grpo_loss(z, target, **options)[0], z)


@pytest.mark.parametrize("inplace", [False, True])
def test_cross_entropy_equals_torch(inplace):
    logits, target, mask = case(torch.float32)
    labels = torch.where(mask, target, -100)
    leaf, exact = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    given = leaf * 1.0
    loss = cross_entropy(given, labels, inplace_backward=inplace)
    before = given.detach().clone()
    (loss * 2).backward(retain_graph=inplace)
    want = torch.nn.functional.cross_entropy(exact.flatten(0, 1), labels.flatten())
    (want * 2).backward()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(leaf.grad, exact.grad)
    assert torch.equal(given, before) != inplace
    if inplace:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_masked_rows_are_not_read_and_cost_zeros_only():
    logits, target, mask = case(torch.float32)
    dirty = torch.where(mask[..., None], logits, torch.nan)
    labels = torch.where(mask, target, 10**12)  # not an id
    leaves = [t.clone().requires_grad_() for t in (logits, dirty)]
    clean = cross_entropy(leaves[0], torch.where(mask, target, -100))
    other = cross_entropy(leaves[1], labels, ignore_index=10**12)
    grads = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in ((clean, leaves[0]), (other, leaves[1]))]
    assert torch.equal(clean, other)
    assert torch.equal(*grads)
    assert not grads[0][~mask].any()


@pytest.mark.parametrize("shape", [(0, VOCAB), (2, 0, VOCAB), (0, 3, VOCAB), (2, 3, VOCAB)])
def test_nothing_counted_is_zero_in_the_graph(shape):
    logits = torch.full(shape, torch.nan, requires_grad=True)
    target = torch.full(shape[:-1], -100)
    mask = torch.zeros(shape[:-1], dtype=torch.bool)
    losses = [
        cross_entropy(logits, target),
        cross_entropy(logits, target, num_items=torch.tensor(0)),
        logprobs(logits, target, mask=mask).sum(),
    ]
    if len(shape) == 3:
        losses.append(grpo_loss(logits, target, advantages=torch.ones(shape[0]), mask=mask)[0])
    for loss in losses:
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, logits)[0].any()


def test_infinite_and_very_negative_logits():
    logits = torch.tensor([[0.0, -torch.inf, -1e30, 0.0, -3e38]] * 3).requires_grad_()
    values, entropy = logprobs(logits, torch.tensor([0, 3, 0]), return_entropy=True)
    (values.sum() + entropy.sum()).backward()
    torch.testing.assert_close(values, torch.full((3,), 0.5).log())
    torch.testing.assert_close(entropy, torch.full((3,), 2.0).log())
    torch.testing.assert_close(logits.grad[1], torch.tensor([-0.5, 0, 0, 0.5, 0]))


def test_autocast_does_not_lower_the_precision():
    logits, target, mask = case(torch.float32)
    plain = grpo_loss(logits, target, advantages=torch.ones(ROWS), mask=mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = grpo_loss(logits, target, advantages=torch.ones(ROWS), mask=mask)
    assert torch.equal(plain[0], again[0])
    assert torch.equal(plain[1], again[1])


@pytest.mark.parametrize("inplace", [False, True])
def test_rows_that_share_their_memory(inplace):
    logits, target, _ = case(torch.float64)
    row = logits[0, 0].clone().requires_grad_()
    want = torch.autograd.grad(
        torch.nn.functional.cross_entropy(row.expand(ROWS, -1), target[:, 0]), row
    )  # fmt: skip
    loss = cross_entropy((row * 1).expand(ROWS, -1), target[:, 0], inplace_backward=inplace)
    torch.testing.assert_close(torch.autograd.grad(loss, row), want)


def test_memory_beside_logits_and_gradient_is_small():
    rows, vocabulary = 256, 8192
    logits, target = torch.randn(rows, vocabulary, requires_grad=True), torch.zeros(rows, dtype=torch.int64)

    def step(inplace):
        torch.autograd.grad(cross_entropy(logits, target, inplace_backward=inplace), logits)

    size = rows * vocabulary * 4
    blocks = 4 * 2**20 * 4  # a few temporaries of a million logits
    assert peak_bytes(lambda: step(False)) <= 1.1 * size + blocks
    assert peak_bytes(lambda: step(True)) <= 0.1 * size + blocks


def test_bad_input_is_named(monkeypatch):
    logits, target, mask = case(torch.float32)
    for message, arguments, options in [
        (r"logits is \(17,\)", (logits[0, 0], target[0, 0]), {}),
        (r"logits is .*int64", (logits.long(), target), {}),
        (r"logits is \(3, 5, 0\)", (logits[..., :0], target), {}),
        (r"target is \(3, 4\)", (logits, target[:, :4]), {}),
        (r"target is .*float32", (logits, target.float()), {}),
        ("target is on meta", (logits, target.to("meta")), {}),
        ("temperature is 0", (logits, target), {"temperature": 0}),
        ("temperature is nan", (logits, target), {"temperature": float("nan")}),
        (r"mask is \(3, 4\)", (logits, target), {"mask": mask[:, :4]}),
        (r"mask is .*int64", (logits, target), {"mask": mask.long()}),
        ("backend is 'cuda'", (logits, target), {"backend": "cuda"}),
    ]:
        with pytest.raises(ValueError, match=message):
            logprobs(*arguments, **options)
    with pytest.raises(ValueError, match=r"ignore_index is 1\.5; it must be an integer"):
        cross_entropy(logits, target, ignore_index=1.5)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"target has values from -7 to \d+; they must be in \[0, 17\)"):
        cross_entropy(logits, torch.where(mask, -7, target))
    with pytest.raises(ValueError, match="num_items is inf"):
        cross_entropy(logits, target, num_items=float("inf"))
    with pytest.raises(ValueError, match=r"logits is \(15, 17\); it must be \[R, T, V\]"):
        grpo_loss(logits.flatten(0, 1), target.flatten(), advantages=torch.ones(3), mask=mask.flatten())
    monkeypatch.setenv("FOURDTHINKER_DEBUG", "1")
    logprobs(logits, torch.where(mask, target, 99), mask=mask)
    with pytest.raises(ValueError, match=r"target has values from \d+ to 99; they must be in \[0, 17\)"):
        logprobs(logits, torch.where(mask, 99, target), mask=mask)
