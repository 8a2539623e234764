"""linear_cross_entropy and linear_logprobs against whole-logits float64, gradients, memory and cost."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from fourdthinker.kernels import chunk_size, linear_cross_entropy, linear_logprobs
from fourdthinker.kernels._head import Head
from tests.unit.kernels.memory import peak_bytes

WIDTH, VOCAB = 13, 29


def case(dtype, *, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    target = torch.randint(0, VOCAB, (3, 7), generator=generator)
    target[torch.rand(3, 7, generator=generator) < 0.4] = -100
    return randn(3, 7, WIDTH), randn(VOCAB, WIDTH), randn(VOCAB) if bias else None, target


def whole_scores(input, weight, bias, temperature=1.0, softcap=None, **chunks):
    z = input @ weight.T
    z = z if bias is None else z + bias
    z = z if softcap is None else softcap * (z / softcap).tanh()
    return z / temperature


OPTIONS = [
    {},
    {"temperature": 0.7},
    {"softcap": 3.0},
    {"softcap": 5.0, "temperature": 1.3, "chunk_rows": 2},
    {"chunk_rows": 1},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_items", [None, 50.0])
def test_cross_entropy_and_gradients(options, dtype, num_items):
    leaves = [t.requires_grad_() for t in case(dtype)[:3]]
    target = case(dtype)[3]
    loss = linear_cross_entropy(
        leaves[0], leaves[1], target, bias=leaves[2],
        num_items=None if num_items is None else torch.tensor(num_items), **options,
    )  # fmt: skip
    (loss * 2).backward()
    exact = [t.detach().double().requires_grad_() for t in leaves]
    z = whole_scores(*exact, **options)
    total = torch.nn.functional.cross_entropy(z.flatten(0, 1), target.flatten(), reduction="sum")
    expected = total / (num_items or (target >= 0).sum())
    (expected * 2).backward()
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-6, torch.bfloat16: 8e-3}[dtype]
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    for got, want in zip(leaves, exact, strict=True):
        assert got.grad.dtype == dtype
        torch.testing.assert_close(got.grad.double(), want.grad, rtol=tolerance, atol=tolerance * 0.2)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entropy", [False, True])
def test_logprobs_entropy_and_gradients(options, dtype, entropy):
    leaves = [t.requires_grad_() for t in case(dtype)[:3]]
    target = case(dtype)[3]
    mask = target >= 0
    up = torch.randn(2, 3, 7, dtype=torch.float64)
    got = linear_logprobs(
        leaves[0], leaves[1], target, bias=leaves[2], mask=mask, return_entropy=entropy, **options
    )
    got = got if entropy else (got,)
    sum((g * u.to(g.dtype)).sum() for g, u in zip(got, up, strict=False)).backward()
    exact = [t.detach().double().requires_grad_() for t in leaves]
    log_p = whole_scores(*exact, **options).log_softmax(-1)
    want = [log_p.gather(-1, target.clamp(min=0)[..., None])[..., 0]]
    if entropy:
        want.append(-(log_p.exp() * log_p).sum(-1))
    want = [torch.where(mask, w, 0.0) for w in want]
    sum((w * u).sum() for w, u in zip(want, up, strict=False)).backward()
    tolerance = {torch.float64: 1e-11, torch.float32: 4e-6, torch.bfloat16: 1e-2}[dtype]
    for g, w in zip(got, want, strict=True):
        assert g.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(g.double(), w, rtol=2e-6, atol=5e-6)
        assert not g[~mask].any()
    for g, w in zip(leaves, exact, strict=True):
        assert g.grad.dtype == dtype
        torch.testing.assert_close(g.grad.double(), w.grad, rtol=tolerance, atol=tolerance)


def test_gradcheck():
    input, weight, bias, target = case(torch.float64)
    input, weight, bias, target = input[:1, :4, :5], weight[:6, :5], bias[:6], target[:1, :4].clamp(max=5)
    leaves = [t.contiguous().requires_grad_() for t in (input, weight, bias)]
    options: dict[str, Any] = {"temperature": 0.8, "softcap": 4.0, "chunk_rows": 2}
    assert torch.autograd.gradcheck(
        lambda x, w, b: linear_cross_entropy(x, w, target, bias=b, **options), leaves
    )
    assert torch.autograd.gradcheck(
        lambda x, w, b: linear_logprobs(x, w, target.clamp(min=0), bias=b, return_entropy=True, **options),
        leaves,
    )


def test_rows_equal_mask_and_listed_but_ignored_rows_have_no_loss():
    input, weight, _, target = case(torch.float64)
    rows = (target.flatten() != -100).nonzero()[:, 0]
    plain = linear_cross_entropy(input, weight, target)
    assert torch.equal(plain, linear_cross_entropy(input, weight, target, rows=rows))
    every = torch.arange(target.numel())
    torch.testing.assert_close(plain, linear_cross_entropy(input, weight, target, rows=every))
    dirty = input.masked_fill((target == -100)[..., None], torch.nan).requires_grad_()
    loss = linear_cross_entropy(dirty, weight, target, rows=every)
    torch.testing.assert_close(loss, plain)
    assert torch.autograd.grad(loss, dirty)[0].isfinite().all()
    renamed = torch.where(target == -100, -7, target)
    assert torch.equal(plain, linear_cross_entropy(input, weight, renamed, ignore_index=-7))
    masked = linear_logprobs(input, weight, target, mask=target >= 0)
    assert torch.equal(masked, linear_logprobs(input, weight, target, rows=rows))
    unmasked = linear_logprobs(input, weight, target.clamp(min=0))
    torch.testing.assert_close(unmasked[target >= 0], masked[target >= 0])


@pytest.mark.parametrize("frozen", ["input", "weight", "both"])
def test_frozen_leaves_get_no_gradient(frozen):
    input, weight, _, target = case(torch.float32, bias=False)
    input.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "input")
    for value in (
        linear_cross_entropy(input, weight, target),
        linear_logprobs(input, weight, target.clamp(0)).sum(),
    ):
        if frozen == "both":
            assert not value.requires_grad
            continue
        input.grad = weight.grad = None
        value.backward()
        assert (input.grad is None) == (frozen == "input")
        assert (weight.grad is None) == (frozen == "weight")


def test_a_tied_head_gets_both_gradients():
    _, table, _, target = case(torch.float64)
    table.requires_grad_()
    ids = torch.arange(21).reshape(3, 7)
    linear_cross_entropy(torch.nn.functional.embedding(ids, table), table, target).backward()
    exact = table.detach().clone().requires_grad_()
    z = torch.nn.functional.embedding(ids, exact) @ exact.T
    torch.nn.functional.cross_entropy(z.flatten(0, 1), target.flatten()).backward()
    torch.testing.assert_close(table.grad, exact.grad)


def test_no_rows_is_zero_in_the_graph():
    input, weight, bias, _ = (t.requires_grad_() if t.is_floating_point() else t for t in case(torch.float32))
    nothing = torch.full((3, 7), -100)
    losses = [
        linear_cross_entropy(input, weight, nothing, bias=bias),
        linear_cross_entropy(input, weight, nothing, bias=bias, num_items=torch.tensor(0)),
        linear_cross_entropy(input[:0], weight, nothing[:0], bias=bias),
        linear_logprobs(input, weight, nothing, bias=bias, mask=nothing > 0).sum(),
    ]
    for loss in losses:
        assert loss.item() == 0
        for gradient in torch.autograd.grad(loss, (input, weight, bias)):
            assert not gradient.any()


def test_infinite_and_very_negative_logits():
    input = torch.eye(3, dtype=torch.float32, requires_grad=True)
    weight = torch.zeros(5, 3)
    bias = torch.tensor([0.0, -torch.inf, -1e30, 0.0, -3e38])
    logprobs, entropy = linear_logprobs(
        input, weight, torch.tensor([0, 3, 0]), bias=bias, return_entropy=True
    )
    (logprobs.sum() + entropy.sum()).backward()
    torch.testing.assert_close(logprobs, torch.full((3,), 0.5).log())
    torch.testing.assert_close(entropy, torch.full((3,), 2.0).log())
    assert torch.isfinite(input.grad).all()
    assert torch.isfinite(linear_cross_entropy(input, weight, torch.tensor([0, 3, 0]), bias=bias))


def test_autocast_does_not_lower_the_precision():
    input, weight, _, target = case(torch.float32)
    plain = linear_cross_entropy(input, weight, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain, linear_cross_entropy(input, weight, target))
        logprobs = linear_logprobs(input, weight, target.clamp(min=0))
    assert torch.equal(logprobs, linear_logprobs(input, weight, target.clamp(min=0)))


def test_chunking_changes_rounding_only():
    input, weight, bias, target = case(torch.float32)
    losses = [linear_cross_entropy(input, weight, target, bias=bias, chunk_rows=n) for n in (1, 3, 8, 1000)]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-6, atol=0)
    assert chunk_size(10, 151_936, None) == 10
    assert chunk_size(100_000, 151_936, None) == 2048
    assert chunk_size(100_000, 32_000, None) == 4096
    assert chunk_size(100_000, 151_936, None, on_cpu=True) == 80
    assert chunk_size(100_000, 8192, None, on_cpu=True) == 1520


def test_a_chunk_on_a_cpu_is_bounded_in_bytes():
    """50 MB, unless that are fewer rows than matmuls want."""
    for vocabulary in (8_192, 32_000, 65_536, 151_936, 262_144, 1_000_000):
        size = 4 * vocabulary * chunk_size(100_000, vocabulary, None, on_cpu=True)
        assert size <= max(50e6, 4 * vocabulary * 64)


def test_logits_exist_only_for_one_chunk():
    rows, vocabulary, width, chunk = 2048, 2048, 8, 256
    input = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    target = torch.randint(0, vocabulary, (rows,))
    given = (input.numel() + 2 * weight.numel()) * 4  # dX, the float32 dW and dW as the weight gets it
    for run in (
        lambda: linear_cross_entropy(input, weight, target, chunk_rows=chunk).backward(),
        lambda: (
            linear_logprobs(input, weight, target, chunk_rows=chunk, return_entropy=True)[1].sum().backward()
        ),
    ):
        assert peak_bytes(run) - given <= 1.1 * chunk * vocabulary * 4


def test_masked_rows_cost_nothing():
    rows, width, vocabulary = 256, 64, 4096
    input, weight = torch.randn(rows, width, requires_grad=True), torch.randn(vocabulary, width)
    full = torch.randint(0, vocabulary, (rows,))
    sparse = torch.where(torch.arange(rows) % 16 == 0, full, -100)

    def seconds(target):
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            linear_cross_entropy(input, weight, target).backward()
            best = min(best, time.process_time() - start)
        return best

    assert seconds(sparse) * 4 < seconds(full)


@pytest.mark.parametrize("debug", ["0", "1"])
def test_indices_are_checked(debug, monkeypatch):
    input, weight, _, target = case(torch.float32)
    monkeypatch.setenv("FOURDTHINKER_DEBUG", debug)
    linear_cross_entropy(input, weight, target)
    with pytest.raises(ValueError, match=r"target has values from .* to 29; they must be in \[0, 29\)"):
        linear_cross_entropy(input, weight, torch.where(target < 0, 29, target))
    with pytest.raises(ValueError, match=r"target has values from -1 to .*; they must be in \[0, 29\)"):
        linear_cross_entropy(input, weight, torch.where(target < 0, -1, target))
    with pytest.raises(ValueError, match=r"target has values from -100 to .*; they must be in \[0, 29\)"):
        linear_logprobs(input, weight, target)
    with pytest.raises(ValueError, match=r"rows has values from -1 to 20; they must be in \[0, 21\)"):
        linear_logprobs(input, weight, target, rows=torch.tensor([20, -1]))


def test_bad_input_is_named():
    input, weight, bias, target = case(torch.float32)
    bad = [
        ("temperature is 0", {"temperature": 0}),
        ("temperature is inf", {"temperature": float("inf")}),
        ("softcap is -1", {"softcap": -1}),
        ("chunk_rows is 0", {"chunk_rows": 0}),
        ("backend is 'cuda'", {"backend": "cuda"}),
        (r"bias is \(3,\)", {"bias": bias[:3]}),
        (r"rows is .*int32", {"rows": torch.zeros(2, dtype=torch.int32)}),
    ]
    for op in (linear_cross_entropy, linear_logprobs):
        for message, options in bad:
            with pytest.raises(ValueError, match=message):
                op(input, weight, target.clamp(min=0), **options)
        with pytest.raises(ValueError, match=r"weight \(29, 12\)"):
            op(input, weight[:, :12], target)
        with pytest.raises(ValueError, match=r"target is \(2, 7\)"):
            op(input, weight, target[:2])
        with pytest.raises(ValueError, match=r"weight \(29, 0\); hidden states need"):
            op(input[..., :0], weight[:, :0], target.clamp(min=0))
        with pytest.raises(ValueError, match=r"rows has 4 2 times; pass each index once"):
            op(input, weight, target.clamp(min=0), rows=torch.tensor([4, 1, 4]))
        with pytest.raises(ValueError, match="weight is on meta"):
            op(input, weight.to("meta"), target)
        with pytest.raises(ValueError, match=r"weight torch.float64; make all of them float64, or none"):
            op(input, weight.double(), target.clamp(min=0))
        with pytest.raises(ValueError, match=r"bias torch.float64; make all of them float64, or none"):
            op(input, weight, target.clamp(min=0), bias=bias.double())
    with pytest.raises(ValueError, match=r"ignore_index is 1.5; it must be an integer"):
        linear_cross_entropy(input, weight, target, ignore_index=1.5)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="num_items is -1"):
        linear_cross_entropy(input, weight, target, num_items=-1)
    with pytest.raises(ValueError, match="mask and rows say the same thing"):
        linear_logprobs(input, weight, target, mask=target >= 0, rows=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="mask is"):
        linear_logprobs(input, weight, target, mask=target)


def test_logits_of_a_large_vocabulary_are_as_exact_in_pieces():
    """32,768 ids and three more, of which the last piece is smaller."""
    generator = torch.Generator().manual_seed(0)
    input, weight = (torch.randn(n, 8, generator=generator) for n in (5, 32_771))
    for bias in (None, torch.randn(32_771, generator=generator)):
        made = Head(input, weight, bias, 0.7, 5.0).logits(input)
        exact = input.double() @ weight.double().T + (0.0 if bias is None else bias.double())
        torch.testing.assert_close(made.double(), (exact / 5).tanh() * 5 / 0.7, rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("vocabulary", [9_000, 40_000])
def test_a_head_of_fewer_bits_is_never_copied_as_a_whole(vocabulary):
    """4,096 ids are converted at a time, in one buffer; the backward of the log-probabilities as well."""
    rows, width = 8, 256
    input, weight = torch.randn(rows, width).bfloat16().requires_grad_(), torch.randn(vocabulary, width)
    weight, target = weight.bfloat16(), torch.randint(0, vocabulary, (rows,))
    chunk, converted = rows * vocabulary * 4, 4096 * width * 4
    for run in (
        lambda: linear_cross_entropy(input, weight, target).backward(),
        lambda: linear_logprobs(input, weight, target).sum().backward(),
    ):
        assert peak_bytes(run) <= 1.3 * (chunk + converted) < 4 * weight.numel()
    exact = input.detach().double().requires_grad_()
    linear_logprobs(exact, weight.double(), target).sum().backward()
    (gradient,) = torch.autograd.grad(linear_logprobs(input, weight, target).sum(), input)
    assert (gradient.double() - exact.grad).norm() <= 2.0**-8 * exact.grad.norm()
