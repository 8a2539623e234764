"""What the GPU lane asserts of every op, at any size: the interpreter lane runs it small, without a GPU."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fourdthinker.kernels import (
    GrpoOptions,
    cosine_latent_loss,
    cross_entropy,
    grpo_loss,
    grpo_token_loss,
    latent_feedback_step_,
    latent_state,
    linear_cross_entropy,
    linear_grpo_loss,
    linear_logprobs,
    logprobs,
    pool_latents,
    sample_tokens,
    shared_prefix_decode,
)
from fourdthinker.kernels.group_advantages import SCALES, group_advantages
from tests.unit.kernels.options import with_options

# 1e-6 in float32, a quarter step of the other dtypes.
FLOOR = {torch.float32: 1e-6, torch.float16: 2.0**-12, torch.bfloat16: 2.0**-9}


def rms(value: Tensor) -> float:
    return value.double().square().mean().sqrt().item()


def assert_as_good_as(got: Tensor, plain: Tensor, exact: Tensor, *, floor: float | None = None) -> None:
    """At most twice the error of PyTorch in the same dtype, plus the floor."""
    floor = FLOOR[got.dtype] if floor is None else floor
    assert torch.isfinite(got).all()
    error, allowed = rms(got - exact), 2 * rms(plain - exact) + floor * rms(exact)
    assert error <= allowed, f"RMS error {error:.3g}, allowed {allowed:.3g}"


def graph_of(step: Any, state: dict[str, Tensor]) -> torch.cuda.CUDAGraph:
    """The capture of ``step()``, with ``state`` as it was before."""
    saved = {name: value.clone() for name, value in state.items()}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for name, value in saved.items():
        state[name].copy_(value)
    return graph


def latent_feedback(device: str, rows: int, width: int, steps: int, mode: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embedding = torch.randn(1000, width, device=device).to(dtype)
    choices = torch.tensor([0, 1, 901, 901, 902, 900, 7], device=device)
    sampled = choices[torch.randint(0, 7, (steps, rows), device=device)]
    hidden = torch.randn(steps, rows, width, device=device).to(dtype)
    options = {"eos_ids": torch.tensor([7, 8], device=device), "pad_id": 900, "start_id": 901, "end_id": 902,
               "fill_id": 3, "latent_size": 4, "mode": mode}  # fmt: skip
    results = []
    for kind in ("torch", "triton", "graph")[: 3 if device == "cuda" else 2]:
        state = latent_state(rows, width, 16, dtype=dtype, device=device)
        ids, states = sampled[0].clone(), hidden[0].clone()
        outputs = {
            "emitted": torch.empty_like(ids),
            "is_policy": torch.empty(rows, dtype=torch.bool, device=device),
            "next_embeds": torch.empty_like(states),
        }

        def advance(kind: str = kind, ids: Tensor = ids, states: Tensor = states, both: Any = None) -> None:
            backend = "torch" if kind == "torch" else "triton"
            latent_feedback_step_(ids, states, embedding, **options, **both, backend=backend)

        both = {**state, **outputs}
        graph = graph_of(lambda run=advance, both=both: run(both=both), state) if kind == "graph" else None
        trace = []
        for step in range(steps):
            ids.copy_(sampled[step])
            states.copy_(hidden[step])
            if graph is None:
                advance(both=both)
            else:
                graph.replay()
            trace += [value.clone() for value in both.values()]
        results.append(trace)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def latents(device: str, width: int, images: int, batch: int, length: int, count: int, dtype: torch.dtype,
            floor: float | None = None) -> None:  # fmt: skip
    torch.manual_seed(0)
    counts = torch.tensor([144, 97, 256] * images)
    features = torch.randn(int(counts.sum()), width, device=device).to(dtype)
    exact = pool_latents(features.double(), counts, 4, backend="torch")
    plain = pool_latents(features, counts, 4, backend="torch")
    assert_as_good_as(pool_latents(features, counts, 4, backend="triton"), plain, exact, floor=floor)
    hidden = torch.randn(batch, length, width, device=device).to(dtype)
    positions = torch.arange(batch * length, device=device).reshape(batch, length)[:, 1:].flatten()
    index = positions[torch.randperm(positions.numel(), device=device)[:count]]
    target = torch.randn(count, width, device=device).to(dtype)
    results = []
    for values, backend in ((hidden, "triton"), (hidden, "torch"), (hidden.double(), "torch")):
        leaf = values.clone().requires_grad_()
        loss, cosine = cosine_latent_loss(leaf, target.to(leaf.dtype), index, backend=backend)
        (loss * 0.7).backward()
        results.append((loss.detach(), cosine, leaf.grad))
    for got, plain, exact in zip(*results, strict=True):
        assert_as_good_as(got, plain, exact, floor=floor)


def sampling_rules(device: str, rows: int, vocabulary: int, features: tuple[str, ...]) -> dict[str, Tensor]:
    rules = {
        "seeds": torch.arange(rows, device=device), "steps": torch.arange(rows, device=device) * 7,
        "temperature": torch.rand(rows, device=device) + 0.3,
        "forbidden": torch.randint(-1, vocabulary, (rows, 2), device=device),
    }  # fmt: skip
    if "top_k" in features:
        rules["top_k"] = torch.randint(0, 100, (rows,), device=device, dtype=torch.int32)
    if "top_p" in features:
        rules["top_p"] = (torch.rand(rows, device=device) + 0.1).clamp(max=1)
    if "min_p" in features:
        rules["min_p"] = torch.rand(rows, device=device) * 0.1
    if "penalties" in features:
        rules["seen"] = torch.randint(0, 4, (rows, vocabulary), device=device, dtype=torch.uint8)
        rules["repetition_penalty"] = torch.rand(rows, device=device) + 0.6
        rules["presence_penalty"] = torch.rand(rows, device=device) - 0.2
    return rules


def sampled_ids(device: str, rows: int, vocabulary: int, features: tuple[str, ...]) -> None:
    """The ids of the reference, log-probabilities, and the same draw alone."""
    torch.manual_seed(0)
    logits = torch.randn(rows, vocabulary, device=device) * 3
    rules = sampling_rules(device, rows, vocabulary, features)
    got = sample_tokens(logits, **rules, backend="triton")
    want = sample_tokens(logits, **rules, backend="torch")
    # A draw within a rounding error of a border may fall on either side of it.
    assert (got[0] != want[0]).sum() <= 1
    same = got[0] == want[0]
    for a, b in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(a[same], b[same], rtol=1e-5, atol=2e-5)
    row = rows // 2
    one = {name: value[row : row + 1] for name, value in rules.items()}
    alone = sample_tokens(logits[row : row + 1], **one, backend="triton")
    assert all(torch.equal(a[row : row + 1], b) for a, b in zip(got, alone, strict=True))


def chi_square(device: str, vocabulary: int, draws: int, truncated: bool) -> None:
    """Draws against the exact truncated distribution, computed here by sorting in float64."""
    torch.manual_seed(vocabulary)
    logits = torch.randn(1, vocabulary, device=device) * 2
    temperature, top_k, top_p, min_p = 0.8, max(3, vocabulary // 4), 0.9, 0.02
    scores = logits[0].double() / temperature
    order = scores.argsort(descending=True)
    if truncated:
        kept = order[:top_k]
        p = scores[kept].softmax(0)
        kept = kept[p.cumsum(0) - p < top_p]
        kept = kept[scores[kept] >= scores.max() + math.log(min_p)]
    else:
        kept = order
    expected = torch.zeros(vocabulary, dtype=torch.float64, device=device)
    expected[kept] = scores[kept].softmax(0) * draws
    counts = torch.zeros_like(expected)
    batch = min(draws, 512)
    rules: dict[str, Any] = {"temperature": torch.full((batch,), temperature, device=device)}
    if truncated:
        rules |= {
            "top_k": torch.full((batch,), top_k, dtype=torch.int32, device=device),
            "top_p": torch.full((batch,), top_p, device=device),
            "min_p": torch.full((batch,), min_p, device=device),
        }
    rows = logits.expand(batch, vocabulary).contiguous()
    for start in range(0, draws, batch):
        steps = torch.arange(start, start + batch, device=device)
        ids = sample_tokens(rows, seeds=steps * 7919 + 13, steps=steps, **rules, backend="triton")[0]
        counts += torch.bincount(ids, minlength=vocabulary)
    assert counts[expected == 0].sum() == 0
    cells = expected > 5
    statistic = ((counts[cells] - expected[cells]) ** 2 / expected[cells]).sum()
    freedom = int(cells.sum())
    rest, wanted = counts[~cells].sum(), expected[~cells].sum()
    if wanted > 5:
        statistic, freedom = statistic + (rest - wanted) ** 2 / wanted, freedom + 1
    assert freedom > 1
    # Six standard deviations of the chi-square distribution: never by chance, at once with a wrong CDF.
    assert float(statistic) < freedom + 6 * math.sqrt(2 * freedom)


def advantages_and_token_loss(device: str, groups: int, rows: int, length: int, kind: str) -> None:
    torch.manual_seed(0)
    rewards = torch.randint(0, 3, (groups * 8,), device=device).float()
    for scale in SCALES:
        exact = group_advantages(rewards.double(), 8, scale=scale)
        plain = group_advantages(rewards, 8, scale=scale, backend="torch")
        assert_as_good_as(group_advantages(rewards, 8, scale=scale, backend="triton"), plain, exact)
    values = -torch.rand(rows, length, device=device) * 3
    others = {name: values + torch.randn_like(values) * 0.2
              for name in ("old_logprobs", "ref_logprobs", "sampler_logprobs")}  # fmt: skip
    mask = torch.rand(rows, length, device=device) < 0.7
    results = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float32), ("torch", torch.float64)):
        leaf = values.to(dtype, copy=True).requires_grad_()
        loss, _ = grpo_token_loss(
            leaf, rewards[:rows].to(dtype) - 1, mask, **{k: v.to(dtype) for k, v in others.items()},
            **with_options(kind, beta=0.04, max_length=length, sampler_cap=2.0), backend=backend,
        )  # fmt: skip
        loss.backward()
        results.append(leaf.grad)
    assert_as_good_as(*results)


def linear_head(device: str, rows: int, width: int, vocabulary: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    input = torch.randn(rows, width, device=device).to(dtype)
    weight = (torch.randn(vocabulary, width, device=device) * width**-0.5).to(dtype)
    target = torch.randint(0, vocabulary, (rows,), device=device)
    mask = torch.rand(rows, device=device) < 0.7
    labels = torch.where(mask, target, -100)
    results = []
    for kind in ("triton", "plain", "exact"):
        kept = torch.float64 if kind == "exact" else dtype
        x, w = (t.to(kept, copy=True).requires_grad_() for t in (input, weight))
        if kind == "plain":
            loss = torch.nn.functional.cross_entropy((x @ w.T).float(), labels)
        else:
            loss = linear_cross_entropy(x, w, labels, backend="triton" if kind == "triton" else "torch")
        loss.backward()
        results.append((loss.detach(), x.grad, w.grad))
    for got, plain, exact in zip(*results, strict=True):
        assert_as_good_as(got, plain, exact)
    del results
    ids = torch.zeros(rows, dtype=torch.int64, device=device)
    options: dict[str, Any] = {
        "advantages": torch.ones(1, device=device), "mask": mask, "sequence_ids": ids,
        "options": GrpoOptions(entropy_coef=0.01),
    }  # fmt: skip
    losses = [
        linear_grpo_loss(input, weight, target, **options, backend=backend, chunk_rows=chunk)[:2]
        for backend, chunk in (("triton", None), ("triton", rows // 5), ("torch", None))
    ]
    for loss, values in losses[:2]:
        torch.testing.assert_close(loss, losses[2][0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(values, losses[2][1], rtol=0, atol=2e-3)
    again = linear_logprobs(input, weight, target, mask=mask, backend="triton")
    torch.testing.assert_close(again, losses[0][1], rtol=0, atol=2e-3)  # another compilation, other chunks


def given_logits(device: str, rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    """Values and gradients of the three ops on a slice of longer logits, against float64."""
    torch.manual_seed(0)
    length = 8
    whole = (torch.randn(rows // length, length + 1, vocabulary, device=device) * 2).to(dtype)
    logits = whole[:, :-1]
    target = torch.randint(0, vocabulary, logits.shape[:2], device=device)
    mask = torch.rand(target.shape, device=device) < 0.7
    gains = torch.randn(target.shape[0], device=device)
    old = logprobs(logits, target, mask=mask, backend="torch") + 0.1

    def run(leaf: Tensor, op: str, backend: str) -> tuple[Tensor, Tensor]:
        leaf = leaf.detach().requires_grad_()
        if op == "cross_entropy":
            loss = cross_entropy(leaf, torch.where(mask, target, -100), backend=backend)
        elif op == "logprobs":
            value, entropy = logprobs(leaf, target, mask=mask, return_entropy=True, backend=backend)
            loss = value.mean() + entropy.mean()
        else:
            loss = grpo_loss(
                leaf, target, advantages=gains, mask=mask, old_logprobs=old, ref_logprobs=old,
                **with_options(op, beta=0.1), backend=backend,
            )[0]  # fmt: skip
        loss.backward()
        assert leaf.grad is not None
        return loss.detach(), leaf.grad

    for op in ("cross_entropy", "logprobs", "dapo token", "grpo sequence"):
        got = run(logits, op, "triton")
        plain, exact = run(logits, op, "torch"), run(logits.double(), op, "torch")
        assert_as_good_as(got[1], plain[1], exact[1])
        torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-4, atol=1e-5)
        assert not got[1][~mask].any()


def decode(
    device: str, groups: int, size: int, prompt: int, own: int, width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    heads, kv_heads = 16, 2
    query = torch.randn(groups * size, heads, width, device=device).to(dtype)
    cache = [torch.randn(groups, kv_heads, prompt, width, device=device).to(dtype) for _ in range(2)]
    cache += [torch.randn(groups * size, kv_heads, own, width, device=device).to(dtype) for _ in range(2)]
    lengths = {
        "prompt_lengths": torch.randint(0, prompt + 1, (groups,), device=device, dtype=torch.int32),
        "lengths": torch.randint(1, own + 1, (groups * size,), device=device),
    }
    exact = shared_prefix_decode(query.double(), *[t.double() for t in cache], **lengths, backend="torch")
    got = shared_prefix_decode(query, *cache, **lengths, backend="triton")
    assert_as_good_as(got, exact.to(dtype), exact, floor=2 * torch.finfo(dtype).eps)


def head_of_many_rows(device: str, rows: int, backend: str) -> None:
    """Forward and backward of the head's losses and log-probabilities, all rows in one chunk."""
    torch.manual_seed(0)
    given = [torch.randn(rows, 4, device=device), torch.randn(11, 4, device=device)]
    target = torch.randint(0, 11, (rows,), device=device)
    results = []
    for dtype in (torch.float32, torch.float64):
        x, weight = (each.to(dtype, copy=True).requires_grad_() for each in given)
        if dtype == torch.float64:
            values = (x @ weight.T).log_softmax(-1).gather(1, target[:, None])[:, 0]
            policy = -(values - values.detach()).exp().mean()
            ce = -values.mean()
        else:
            more: dict[str, Any] = {"chunk_rows": rows, "backend": backend}
            mask = torch.ones(1, rows, dtype=torch.bool, device=device)
            policy, _, _ = linear_grpo_loss(
                x[None], weight, target[None], advantages=torch.ones(1, device=device), mask=mask, **more
            )
            values = linear_logprobs(x, weight, target, **more)
            ce = linear_cross_entropy(x, weight, target, **more)
        loss = policy + 2 * ce + 5 * values.mean()
        results.append([loss, *torch.autograd.grad(loss, (x, weight))])
    for got, exact in zip(*results, strict=True):
        error = (got.double() - exact).detach().norm() / exact.detach().norm()
        assert error < 1e-4, f"relative error {float(error):.3g}"


def many_rows(device: str, rows: int) -> None:
    """More rows than a grid's second axis has, for every kernel with a row to the program."""
    head_of_many_rows(device, rows, "triton")
    torch.manual_seed(0)
    width, last = 64, slice(rows - 2, rows)
    hidden, target = (torch.randn(rows, width, device=device) for _ in range(2))
    index = torch.arange(1, rows + 1, device=device)
    cosine = cosine_latent_loss(hidden, target, index, backend="triton")[1]
    want = torch.nn.functional.cosine_similarity(hidden[last], target[last])
    torch.testing.assert_close(cosine[last], want, rtol=1e-4, atol=1e-5)
    counts = torch.full((rows,), 1)
    torch.testing.assert_close(pool_latents(hidden, counts, 1, backend="triton"), hidden)
    ids = torch.randint(0, width, (rows,), device=device)
    exact = hidden.log_softmax(1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(logprobs(hidden, ids, backend="triton"), exact, rtol=1e-4, atol=1e-4)
    whole = linear_logprobs(hidden, torch.eye(width, device=device), ids, chunk_rows=rows, backend="triton")
    torch.testing.assert_close(whole, exact, rtol=1e-4, atol=1e-3)
    zero = torch.zeros(rows, dtype=torch.int64, device=device)
    greedy = sample_tokens(hidden, seeds=zero, steps=zero, temperature=zero.float(), backend="triton")[0]
    assert torch.equal(greedy, hidden.argmax(1))
    state = latent_state(rows, width, 1, dtype=torch.float32, device=device)
    emitted, _, inputs = latent_feedback_step_(
        ids.clamp(max=width - 4), hidden, hidden[:width], **state, eos_ids=zero[:0], pad_id=61, start_id=62,
        end_id=63, fill_id=0, latent_size=2, backend="triton",
    )  # fmt: skip
    assert torch.equal(inputs, hidden[emitted])
    rewards = torch.arange(2 * rows, device=device).float() % 7
    advantages = group_advantages(rewards, 2, backend="triton")
    torch.testing.assert_close(advantages, group_advantages(rewards, 2, backend="torch"))
    loss, _ = grpo_token_loss(exact[:, None], advantages[:rows], zero[:, None] == 0, backend="triton")
    torch.testing.assert_close(loss, -advantages[:rows].mean(), rtol=1e-4, atol=1e-6)
