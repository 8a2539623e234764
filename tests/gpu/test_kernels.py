"""Every op on a GPU at production sizes, against its reference in float64 or float32 on the same device."""

from __future__ import annotations

import pytest
import torch
from fourdthinker.kernels import cosine_latent_loss as cosine_module
from fourdthinker.kernels import sample_tokens as sample_module
from fourdthinker.kernels.cosine_latent_loss import cosine_latent_loss
from fourdthinker.kernels.group_advantages import SCALES, group_advantages
from fourdthinker.kernels.grpo_token_loss import LOSS_TYPES, grpo_token_loss
from fourdthinker.kernels.latent_feedback import latent_feedback_step_, latent_state
from fourdthinker.kernels.linear_cross_entropy import linear_cross_entropy
from fourdthinker.kernels.linear_grpo_loss import linear_grpo_loss
from fourdthinker.kernels.linear_logprobs import linear_logprobs
from fourdthinker.kernels.pool_latents import pool_latents
from fourdthinker.kernels.sample_tokens import sample_tokens
from fourdthinker.kernels.shared_prefix_decode import shared_prefix_decode

CUDA = "cuda"


def rms(value):
    return value.double().square().mean().sqrt().item()


def assert_as_good_as(got, plain, exact):
    """At most twice the error of PyTorch in the same dtype, plus a quarter step of the output dtype."""
    quarter = torch.finfo(got.dtype).eps / 4 if got.dtype != torch.float32 else 1e-6
    assert torch.isfinite(got).all()
    assert rms(got - exact) <= 2 * rms(plain - exact) + quarter * rms(exact)


@pytest.mark.parametrize("mode", ["exact", "reference"])
@pytest.mark.parametrize("width", [2048, 2560, 3584, 4096])
def test_latent_feedback_eager_and_in_a_graph(mode, width):
    torch.manual_seed(0)
    rows, vocabulary, steps = 64, 1000, 40
    embedding = torch.randn(vocabulary, width, device=CUDA, dtype=torch.bfloat16)
    choices = torch.tensor([0, 1, 901, 901, 902, 900, 7], device=CUDA)
    sampled = choices[torch.randint(0, 7, (steps, rows), device=CUDA)]
    hidden = torch.randn(steps, rows, width, device=CUDA, dtype=torch.bfloat16)
    options = {"eos_ids": torch.tensor([7, 8], device=CUDA), "pad_id": 900, "start_id": 901, "end_id": 902,
               "fill_id": 3, "latent_size": 4, "mode": mode}  # fmt: skip
    ids, states = torch.zeros(rows, dtype=torch.int64, device=CUDA), torch.zeros_like(hidden[0])
    results = []
    for kind in ("torch", "triton", "graph"):
        state = latent_state(rows, width, 16, dtype=torch.bfloat16, device=CUDA)
        run = {**options, **state, "backend": "torch" if kind == "torch" else "triton"}
        graph, out = None, ()
        if kind == "graph":
            saved = {name: value.clone() for name, value in state.items()}
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = latent_feedback_step_(ids, states, embedding, **run)
            for name, value in saved.items():
                state[name].copy_(value)
        trace = []
        for step in range(steps):
            if graph is None:
                out = latent_feedback_step_(sampled[step], hidden[step], embedding, **run)
            else:
                ids.copy_(sampled[step])
                states.copy_(hidden[step])
                graph.replay()
            trace += [value.clone() for value in (*out, *state.values())]
        results.append(trace)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("width", [2048, 3584])
def test_latents(width):
    torch.manual_seed(0)
    counts = torch.tensor([144, 97, 256] * 200)
    features = torch.randn(int(counts.sum()), width, device=CUDA, dtype=torch.bfloat16)
    exact = pool_latents(features.double(), counts, 4, backend="torch")
    plain = pool_latents(features, counts, 4, backend="torch")
    assert_as_good_as(pool_latents(features, counts, 4), plain, exact)
    hidden = torch.randn(8, 4096, width, device=CUDA, dtype=torch.bfloat16)
    positions = torch.arange(8 * 4096, device=CUDA).reshape(8, 4096)[:, 1:].flatten()
    index = positions[torch.randperm(positions.numel(), device=CUDA)[:8000]]
    target = torch.randn(index.numel(), width, device=CUDA, dtype=torch.bfloat16)
    results = []
    for values, backend in ((hidden, "triton"), (hidden, "torch"), (hidden.double(), "torch")):
        leaf = values.clone().requires_grad_()
        loss, cosine = cosine_latent_loss(leaf, target.to(leaf.dtype), index, backend=backend)
        (loss * 0.7).backward()
        results.append((loss.detach(), cosine, leaf.grad))
    for got, plain, exact in zip(*results, strict=True):
        assert_as_good_as(got, plain, exact)


@pytest.mark.parametrize("vocabulary", [151_668, 151_936, 152_064])
@pytest.mark.parametrize("features", [(), ("top_k", "top_p", "min_p")])
def test_sample_tokens(vocabulary, features):
    torch.manual_seed(0)
    rows = 256
    logits = torch.randn(rows, vocabulary, device=CUDA) * 3
    arguments = {
        "seeds": torch.arange(rows, device=CUDA), "steps": torch.arange(rows, device=CUDA) * 7,
        "temperature": torch.rand(rows, device=CUDA) + 0.3,
        "forbidden": torch.randint(-1, vocabulary, (rows, 3), device=CUDA),
    }  # fmt: skip
    if features:
        arguments["top_k"] = torch.randint(0, 100, (rows,), device=CUDA, dtype=torch.int32)
        arguments["top_p"] = torch.rand(rows, device=CUDA) + 0.1
        arguments["min_p"] = torch.rand(rows, device=CUDA) * 0.1
    got = sample_tokens(logits, **arguments)
    want = sample_tokens(logits, **arguments, backend="torch")
    # A draw within a rounding error of a border may fall on either side of it.
    assert (got[0] != want[0]).sum() <= 1
    same = got[0] == want[0]
    for a, b in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(a[same], b[same], rtol=1e-5, atol=2e-5)
    alone = sample_tokens(logits[7:8], **{name: value[7:8] for name, value in arguments.items()})
    assert all(torch.equal(a[7:8], b) for a, b in zip(got, alone, strict=True))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_group_advantages_and_token_loss(loss_type):
    torch.manual_seed(0)
    rewards = torch.randint(0, 3, (4096,), device=CUDA).float()
    for scale in SCALES:
        exact = group_advantages(rewards.double(), 8, scale=scale)
        plain = group_advantages(rewards, 8, scale=scale, backend="torch")
        assert_as_good_as(group_advantages(rewards, 8, scale=scale), plain, exact)
    logprobs = -torch.rand(256, 2048, device=CUDA) * 3
    others = {name: logprobs + torch.randn_like(logprobs) * 0.2
              for name in ("old_logprobs", "ref_logprobs", "sampler_logprobs")}  # fmt: skip
    mask = torch.rand(256, 2048, device=CUDA) < 0.7
    results = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float32), ("torch", torch.float64)):
        leaf = logprobs.to(dtype).requires_grad_()
        loss, _ = grpo_token_loss(
            leaf, rewards[:256].to(dtype) - 1, mask, **{k: v.to(dtype) for k, v in others.items()},
            loss_type=loss_type, beta=0.04, max_length=2048, backend=backend,
        )  # fmt: skip
        loss.backward()
        results.append(leaf.grad)
    assert_as_good_as(*results)


@pytest.mark.parametrize("width", [2048, 3584])
@pytest.mark.parametrize("vocabulary", [151_668, 151_936])
def test_linear_head(width, vocabulary):
    torch.manual_seed(0)
    rows = 3000
    input = torch.randn(rows, width, device=CUDA, dtype=torch.bfloat16)
    weight = torch.randn(vocabulary, width, device=CUDA, dtype=torch.bfloat16) * width**-0.5
    target = torch.randint(0, vocabulary, (rows,), device=CUDA)
    mask = torch.rand(rows, device=CUDA) < 0.7
    labels = torch.where(mask, target, -100)
    results = []
    for kind in ("triton", "plain", "exact"):
        dtype = torch.float32 if kind == "exact" else torch.bfloat16
        x, w = input.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
        if kind == "plain":
            loss = torch.nn.functional.cross_entropy((x @ w.T).float(), labels)
        else:
            loss = linear_cross_entropy(x, w, labels, backend="triton" if kind == "triton" else "torch")
        loss.backward()
        results.append((loss.detach(), x.grad, w.grad))
    for got, plain, exact in zip(*results, strict=True):
        assert_as_good_as(got, plain, exact)
    del results
    ids = torch.zeros(rows, dtype=torch.int64, device=CUDA)
    options = {
        "advantages": torch.ones(1, device=CUDA),
        "mask": mask,
        "sequence_ids": ids,
        "entropy_coef": 0.01,
    }
    losses = [
        linear_grpo_loss(input, weight, target, **options, backend=backend, chunk_rows=chunk)[:2]
        for backend, chunk in (("triton", None), ("triton", 500), ("torch", None))
    ]
    for loss, logprobs in losses[:2]:
        torch.testing.assert_close(loss, losses[2][0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(logprobs, losses[2][1], rtol=0, atol=2e-3)
    again = linear_logprobs(input, weight, target, mask=mask)
    torch.testing.assert_close(again, losses[0][1], rtol=0, atol=0)


def test_more_than_two_to_the_31_elements():
    width, rows = 4096, 600_000
    hidden = torch.empty(rows, width, device=CUDA, dtype=torch.bfloat16)
    hidden[-2:] = 1.0
    target = torch.ones(1, width, device=CUDA, dtype=torch.bfloat16)
    index = torch.tensor([rows - 1], device=CUDA)
    loss, cosine = cosine_latent_loss(hidden.requires_grad_(), target, index)
    loss.backward()
    assert cosine.item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shared_prefix_decode(dtype):
    torch.manual_seed(0)
    groups, size, heads, kv_heads, prompt, own, width = 16, 8, 16, 2, 4096, 512, 128
    query = torch.randn(groups * size, heads, width, device=CUDA, dtype=dtype)
    cache = [torch.randn(groups, kv_heads, prompt, width, device=CUDA, dtype=dtype) for _ in range(2)]
    cache += [torch.randn(groups * size, kv_heads, own, width, device=CUDA, dtype=dtype) for _ in range(2)]
    lengths = {
        "prompt_lengths": torch.randint(0, prompt + 1, (groups,), device=CUDA, dtype=torch.int32),
        "lengths": torch.randint(1, own + 1, (groups * size,), device=CUDA),
    }
    exact = shared_prefix_decode(query.double(), *[t.double() for t in cache], **lengths)
    plain = exact.to(dtype)
    got = shared_prefix_decode(query, *cache, **lengths)
    assert rms(got - exact) <= 2 * rms(plain - exact) + 2 * torch.finfo(dtype).eps * rms(exact)


def test_lengths_and_row_counts_do_not_recompile():
    def compiled():
        caches = (cosine_module._forward_kernel, sample_module._kernel)
        return [sum(len(per[0]) for per in kernel.device_caches.values()) for kernel in caches]

    def run(rows):
        hidden, target = torch.randn(rows + 1, 256, device=CUDA), torch.randn(rows, 256, device=CUDA)
        cosine_latent_loss(hidden, target, torch.arange(1, rows + 1, device=CUDA))
        zero = torch.zeros(rows, dtype=torch.int64, device=CUDA)
        sample_tokens(torch.randn(rows, 4096, device=CUDA), seeds=zero, steps=zero,
                      temperature=torch.ones(rows, device=CUDA))  # fmt: skip

    run(1)
    before = compiled()
    for rows in (2, 3, 16, 17, 100, 4096):
        run(rows)
    assert compiled() == before
