"""Every op on a GPU at production sizes; `kernel_cases` says what is asserted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import triton

from fourdthinker.kernels import (
    GrpoOptions,
    cosine_latent_loss,
    cross_entropy,
    linear_grpo_loss,
    pool_latents,
    sample_tokens,
    shared_prefix_decode,
)
from tests.gpu import kernel_cases as cases
from tests.unit.kernels.options import KINDS
from tests.unit.kernels.test_loss_scale import OPS, check_gradients

pytestmark = pytest.mark.gpu_only  # the interpreter lane runs the cases at its sizes
CUDA = "cuda"
WIDTHS = [2048, 2560, 3584, 4096]
VOCABULARIES = [151_668, 151_936, 152_064]
BF16 = torch.bfloat16


@pytest.mark.parametrize("mode", ["exact", "reference"])
@pytest.mark.parametrize("width", WIDTHS)
def test_latent_feedback_eager_and_in_a_graph(mode, width):
    cases.latent_feedback(CUDA, 64, width, 40, mode, BF16)


@pytest.mark.parametrize("width", WIDTHS)
def test_latents(width):
    cases.latents(CUDA, width, images=200, batch=8, length=4096, count=8000, dtype=BF16)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("features", [(), ("penalties",), ("top_k", "top_p", "min_p")])
def test_sample_tokens(vocabulary, features):
    cases.sampled_ids(CUDA, 256, vocabulary, features)


@pytest.mark.parametrize("vocabulary", [7, 300, 8192, 151_936])
@pytest.mark.parametrize("truncated", [False, True])
def test_draws_have_the_exact_distribution(vocabulary, truncated):
    cases.chi_square(CUDA, vocabulary, 1 << 20 if vocabulary > 8192 else 1 << 17, truncated)


@pytest.mark.parametrize("kind", KINDS)
def test_group_advantages_and_token_loss(kind):
    cases.advantages_and_token_loss(CUDA, 512, 256, 2048, kind)


@pytest.mark.parametrize(
    ("width", "vocabulary"), [(2048, 151_936), (2560, 151_668), (3584, 152_064), (4096, 151_668)]
)
def test_linear_head(width, vocabulary):
    cases.linear_head(CUDA, 3000, width, vocabulary, BF16)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_given_logits(vocabulary, dtype):
    cases.given_logits(CUDA, 1024, vocabulary, dtype)


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_shared_prefix_decode(dtype):
    cases.decode(CUDA, 16, 8, 4096, 512, 128, dtype)


@pytest.mark.parametrize("op", OPS)
def test_float16_gradients_under_a_loss_scale(op):
    """65,536 itself is infinite in float16."""
    check_gradients(op, 8_192.0, "triton", CUDA)


def test_65537_rows():
    cases.many_rows(CUDA, 65_537)


def test_more_than_two_to_the_31_elements():
    """What lies beyond is right: offsets are 64 bits wide."""
    width, rows = 4096, 600_000
    hidden = torch.empty(rows, width, device=CUDA, dtype=BF16)
    hidden[-2:] = 1.0
    index = torch.tensor([rows - 1], device=CUDA)
    loss, cosine = cosine_latent_loss(hidden.requires_grad_(), hidden[-1:].detach().clone(), index)
    loss.backward()
    assert cosine.item() == pytest.approx(1.0, abs=1e-5)
    counts = torch.tensor([rows - 2, 2])
    assert torch.equal(pool_latents(hidden.detach(), counts, 1)[1], torch.ones_like(hidden[0]))
    del hidden

    vocabulary, rows = 151_936, 15_000
    logits = torch.zeros(rows, vocabulary, device=CUDA, dtype=BF16)
    logits[-1, 5] = 30.0
    target = torch.full((rows,), 5, device=CUDA)
    rest = {"seeds": target, "steps": target, "temperature": torch.ones(rows, device=CUDA)}
    assert sample_tokens(logits, **rest)[0][-1].item() == 5
    leaf = logits.requires_grad_()
    loss = cross_entropy(leaf, torch.where(torch.arange(rows, device=CUDA) < rows - 2, -100, target),
                         inplace_backward=True)  # fmt: skip
    loss.backward()
    flat = torch.log(torch.tensor(float(vocabulary)))
    assert loss.item() == pytest.approx(flat.item() / 2, rel=1e-4)
    assert leaf.grad[-2, 5].item() == pytest.approx(-0.5, rel=1e-2)
    assert not leaf.grad[:-2].any()
    del logits, leaf, loss

    groups, prompt = 1, (1 << 31) // 128 + 512
    key = torch.zeros(groups, 1, prompt, 128, device=CUDA, dtype=BF16)
    value = torch.zeros_like(key)
    query = torch.ones(8, 1, 128, device=CUDA, dtype=BF16)
    key[0, 0, -1], value[0, 0, -1] = 4.0, 7.0
    own = torch.zeros(8, 1, 1, 128, device=CUDA, dtype=BF16)
    lengths = {"prompt_lengths": torch.tensor([prompt], device=CUDA),
               "lengths": torch.zeros(8, device=CUDA, dtype=torch.int32)}  # fmt: skip
    got = shared_prefix_decode(query, key, value, own, own, **lengths)
    torch.testing.assert_close(got, torch.full_like(got, 7.0))


def test_grpo_repeats_bit_for_bit():
    torch.manual_seed(0)
    input = torch.randn(4, 512, 256, device=CUDA, dtype=BF16, requires_grad=True)
    weight = torch.randn(4096, 256, device=CUDA, dtype=BF16, requires_grad=True)
    target = torch.randint(0, 4096, (4, 512), device=CUDA)
    mask = torch.rand(4, 512, device=CUDA) < 0.7
    gains = torch.randn(4, device=CUDA)
    results = []
    for _ in range(3):
        loss = linear_grpo_loss(
            input,
            weight,
            target,
            advantages=gains,
            mask=mask,
            options=GrpoOptions(ratio_level="sequence"),
            chunk_rows=300,
        )[0]
        results.append((loss.detach(), *torch.autograd.grad(loss, (input, weight))))
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


def test_lengths_and_row_counts_do_not_recompile(monkeypatch):
    """Counted at the compiler; `tests/compile/test_recompilation.py` says it of every op without a GPU."""
    compiled: list[str] = []
    hook: Callable[..., None] = lambda **what: compiled.append(what["fn"].name)  # noqa: E731
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", hook)

    def run(rows: int) -> None:
        hidden, target = torch.randn(rows + 1, 192, device=CUDA), torch.randn(rows, 192, device=CUDA)
        cosine_latent_loss(hidden, target, torch.arange(1, rows + 1, device=CUDA))
        zero = torch.zeros(rows, dtype=torch.int64, device=CUDA)
        logits = torch.randn(2, rows, 4160, device=CUDA, requires_grad=True)
        sample_tokens(logits[0].detach(), seeds=zero, steps=zero, temperature=torch.ones(rows, device=CUDA))
        cross_entropy(logits, zero.expand(2, rows)).backward()
        linear_grpo_loss(
            hidden[None, 1:], torch.randn(4160, 192, device=CUDA), zero[None], mask=zero[None] == 0,
            advantages=torch.ones(1, device=CUDA),
        )  # fmt: skip

    run(5)
    assert compiled  # the hook is called
    compiled.clear()
    for rows in (1, 2, 3, 16, 17, 100, 4096):
        run(rows)
    assert compiled == []
