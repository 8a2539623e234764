"""Both objectives against plain loops in float64 over a tiny model."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fourdthinker.backbones.qwen2_5_vl import Qwen2_5_VL
from fourdthinker.kernels import GrpoOptions
from fourdthinker.objectives import (
    LatentTerm,
    dift_objective,
    grpo_objective,
    latent_objective,
    normed_dift_objective,
    policy_logprobs,
)
from tests.tiny import tiny_checkpoint

K = 4


@cache
def backbone() -> Qwen2_5_VL:
    return tiny_checkpoint(hidden=32, layers=1, tied=False).backbone


def dift_batch(lengths: list[int], blocks: list[int], *, seed: int = 0) -> dict[str, Any]:
    """Rows of those lengths, with blocks[r] blocks of K latents in row r; the second half is supervised."""
    generator = torch.Generator().manual_seed(seed)
    width, rows = max(lengths), len(lengths)
    ids = torch.randint(0, 300, (rows, width), generator=generator)
    mask = torch.zeros(rows, width, dtype=torch.long)
    target = torch.full((rows, width), -100)
    latent_index = []
    for r, length in enumerate(lengths):
        mask[r, :length] = 1
        pads = [3 + b * (K + 2) + k for b in range(blocks[r]) for k in range(K)]
        latent_index += [r * width + p for p in pads]
        for p in range(length // 2, length - 1):
            if p + 1 not in pads:
                target[r, p] = ids[r, p + 1]
    index = torch.tensor(latent_index, dtype=torch.long)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": torch.arange(width).expand(3, rows, width),
        "target": target,
        "rows": (target.flatten() != -100).nonzero()[:, 0],
        "latent_index": index,
        "latents": torch.randn(len(latent_index), 32, generator=generator),
    }


def hidden_of(batch: dict[str, Any]) -> Tensor:
    out: Tensor = backbone()(batch, lambda _, hidden, __: hidden)
    return out


def dift_by_loops(batch: dict[str, Any]) -> tuple[float, float, list[float]]:
    """Sum of the cross-entropies, sum of 1 - cos, and the cosines, one position at a time in float64."""
    hidden = hidden_of(batch).detach().double()
    logits = hidden @ backbone().head_weight.detach().double().T
    ce = 0.0
    rows, width = batch["target"].shape
    for r in range(rows):
        for p in range(width):
            token = int(batch["target"][r, p])
            if token != -100:
                ce += float(logits[r, p].logsumexp(0) - logits[r, p, token])
    cosines = []
    for place, latent in zip(batch["latent_index"].tolist(), batch["latents"].double(), strict=True):
        before = hidden[place // width, place % width - 1]
        cosines.append(float(before @ latent / before.norm() / latent.norm()))
    return ce, sum(1 - c for c in cosines), cosines


@pytest.mark.parametrize("weights", [(None, None), (0.7, 0.2)])
def test_dift_equals_loops(weights: tuple[float | None, float | None]) -> None:
    batch = dift_batch([30, 21, 25], [2, 1, 3])
    ce, sim, cosines = dift_by_loops(batch)
    objective = partial(
        dift_objective, num_tokens=50, num_latents=40, ce_weight=weights[0], sim_weight=weights[1]
    )
    loss, metrics = backbone()(batch, objective)
    ce_weight, sim_weight = (0.1, 1.0) if weights[0] is None else weights
    assert loss.item() == pytest.approx(ce_weight * ce / 50 + sim_weight * sim / 40, rel=1e-5)
    count = len(batch["rows"])
    assert metrics["ce"][0].item() == pytest.approx(ce, rel=1e-5)
    assert metrics["ce"][1].item() == count
    assert metrics["cosine"][0].item() == pytest.approx(sim, rel=1e-5)
    assert metrics["latent_cos"][0].item() == pytest.approx(sum(cosines), rel=1e-4, abs=1e-5)
    hidden = hidden_of(batch).detach().flatten(0, 1)
    thought = [hidden[index - 1] for index in batch["latent_index"].tolist()]
    ratios = [float(h.norm() / t.norm()) for h, t in zip(thought, batch["latents"], strict=True)]
    assert metrics["latent_norm_ratio"][0].item() == pytest.approx(sum(ratios), rel=1e-4)
    assert metrics["latent_norm_ratio"][1].item() == len(ratios)
    direction = (sum(h / h.norm() for h in thought) / len(thought)).norm().item()
    assert metrics["latent_direction"][0].item() == pytest.approx(direction, rel=1e-4)
    for k in range(K):
        total, weight = metrics[f"latent_cos_{k}"]
        assert total.item() == pytest.approx(sum(cosines[k::K]), rel=1e-4, abs=1e-5)
        assert weight.item() == len(cosines) // K


def test_a_target_of_zeros_leaves_finite_metrics() -> None:
    batch = dift_batch([30], [2])
    batch["latents"][0] = 0.0
    _, metrics = backbone()(batch, partial(dift_objective, num_tokens=5, num_latents=8))
    values = {name: float(total / weight) for name, (total, weight) in metrics.items()}
    assert {name: value for name, value in values.items() if not math.isfinite(value)} == {}


def test_dift_shares_of_parts_add_up_to_the_whole() -> None:
    parts = [dift_batch([30], [2], seed=1), dift_batch([12, 17], [0, 1], seed=2)]
    tokens = sum(len(p["rows"]) for p in parts)
    latents = sum(len(p["latents"]) for p in parts)
    results = [backbone()(p, partial(dift_objective, num_tokens=tokens, num_latents=latents)) for p in parts]
    loops = [dift_by_loops(p) for p in parts]
    whole = 0.1 * sum(c for c, _, _ in loops) / tokens + sum(s for _, s, _ in loops) / latents
    assert sum(loss.item() for loss, _ in results) == pytest.approx(whole, rel=1e-5)


def test_dift_without_latents_and_without_tokens() -> None:
    batch = dift_batch([20, 20], [0, 0])
    batch.pop("latents")
    loss, metrics = backbone()(batch, partial(dift_objective, num_tokens=10, num_latents=0))
    assert metrics["latent_cos"][1].item() == 0
    ce = dift_by_loops(batch | {"latents": torch.zeros(0, 32)})[0]
    assert loss.item() == pytest.approx(0.1 * ce / 10, rel=1e-5)

    batch["rows"] = batch["rows"][:0]
    batch["target"] = torch.full_like(batch["target"], -100)
    backbone().zero_grad()
    loss, _ = backbone()(batch, partial(dift_objective, num_tokens=10, num_latents=0))
    loss.backward()
    assert loss.item() == 0
    # Data parallelism waits for every parameter, so all must be in the graph, with a gradient of zero.
    missing = [name for name, p in backbone().named_parameters() if "visual" not in name and p.grad is None]
    assert missing == []


def grpo_batch(*, old: bool, ref: bool) -> dict[str, Any]:
    """Five completions of at most 6 tokens; the first two follow the same position of the first row."""
    batch = dift_batch([30, 21, 25, 28], [2, 1, 0, 3])
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(5, 6, generator=generator) < 0.7
    mask[4] = False
    source = torch.randint(0, 4 * 30, (5, 6), generator=generator)
    source[0, 0] = source[1, 0] = 17
    mask[0, 0] = mask[1, 0] = True
    batch |= {
        "policy_mask": mask,
        "source_index": source[mask],
        "chosen_ids": torch.randint(0, 300, (5, 6), generator=generator)[mask],
        "completion_index": mask.flatten().nonzero()[:, 0],
        "advantages": torch.tensor([1.0, -0.5, 0.25, -2.0, 3.0]),
    }
    current = policy_logprobs(backbone(), hidden_of(batch), batch).detach()
    batch["rollout_logprobs"] = current + 0.01
    if old:
        batch["old_logprobs"] = current + 0.4 * torch.randn(5, 6, generator=generator)
    if ref:
        batch["ref_logprobs"] = current + 0.3 * torch.randn(5, 6, generator=generator)
    return batch


def grpo_by_loops(
    batch: dict[str, Any], *, temperature: float, beta: float, per_token: bool
) -> dict[str, float]:
    hidden = hidden_of(batch).detach().double().flatten(0, 1)
    logits = hidden @ backbone().head_weight.detach().double().T / temperature
    sums = dict.fromkeys(("loss", "kl", "entropy", "clipped", "tokens", "sampler_gap"), 0.0)
    terms: list[list[float]] = [[] for _ in range(5)]
    for source, token, place in zip(
        batch["source_index"], batch["chosen_ids"], batch["completion_index"], strict=True
    ):
        r, t = divmod(int(place), 6)
        logprobs = logits[source].log_softmax(0)
        new = float(logprobs[token])
        old = float(batch["old_logprobs"][r, t]) if "old_logprobs" in batch else new
        ratio = math.exp(new - old)
        advantage = float(batch["advantages"][r])
        limited = min(max(ratio, 0.8), 1.2)
        term = -min(ratio * advantage, limited * advantage)
        sums["clipped"] += (ratio > 1.2 and advantage > 0) or (ratio < 0.8 and advantage < 0)
        if "ref_logprobs" in batch:
            d = float(batch["ref_logprobs"][r, t]) - new
            sums["kl"] += math.exp(d) - d - 1
            term += beta * (math.exp(d) - d - 1)
        terms[r].append(term)
        sums["entropy"] -= float((logprobs.exp() * logprobs).sum())
        sums["sampler_gap"] += abs(old - float(batch["rollout_logprobs"][r, t]))
        sums["tokens"] += 1
    sums["loss"] = sum(sum(row) if per_token else sum(row) / max(1, len(row)) for row in terms)
    return sums


@pytest.mark.parametrize("norm", ["tokens", "loss"])
def test_the_entropy_bonus_is_a_mean_over_the_tokens_of_the_update(norm: str) -> None:
    batch = grpo_batch(old=False, ref=False)
    share = {}
    for coef in (0.0, 0.5):
        options = GrpoOptions(entropy_coef=coef, entropy_norm=norm)
        objective = partial(grpo_objective, options=options, num_items=9, num_tokens=31)
        loss, metrics, _ = backbone()(batch, objective)
        share[coef] = loss.item()
    total, lengths = metrics["entropy"][0].item(), batch["policy_mask"].sum(1)
    bonus = (share[0.0] - share[0.5]) / 0.5
    if norm == "tokens":
        assert bonus == pytest.approx(total / 31, rel=1e-4)
    else:  # a mean over each completion first: nearly the same for each, there are four of nine
        assert bonus == pytest.approx(total / lengths.sum().item() * 4 / 9, rel=0.05)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
@pytest.mark.parametrize(("old", "ref"), [(False, False), (True, True)])
def test_grpo_equals_loops(loss_type: str, old: bool, ref: bool) -> None:
    batch = grpo_batch(old=old, ref=ref)
    beta = 0.3 if ref else 0.0
    expected = grpo_by_loops(batch, temperature=0.7, beta=beta, per_token=loss_type == "dapo")
    options = GrpoOptions(loss_type=loss_type, beta=beta)
    objective = partial(grpo_objective, options=options, num_items=9, temperature=0.7)
    loss, metrics, logprobs = backbone()(batch, objective)
    assert loss.item() == pytest.approx(expected["loss"] / 9, rel=1e-4)
    for name in ("entropy", "sampler_gap") + (("kl",) if ref else ()):
        assert metrics[name][0].item() == pytest.approx(expected[name], rel=1e-4)
        assert metrics[name][1].item() == expected["tokens"]
    clipped = metrics["clip_low"][0] + metrics["clip_high"][0]
    assert clipped.item() == pytest.approx(expected["clipped"], rel=1e-5)
    same = policy_logprobs(backbone(), hidden_of(batch), batch, temperature=0.7)
    torch.testing.assert_close(logprobs, same)
    assert not logprobs.requires_grad
    assert (logprobs[~batch["policy_mask"]] == 0).all()


def test_grpo_gradient_on_policy_is_minus_advantage_times_that_of_the_logprobs() -> None:
    batch = grpo_batch(old=False, ref=False)
    model = backbone()
    model.zero_grad()
    model(batch, partial(grpo_objective, options=GrpoOptions(loss_type="dapo"), num_items=4))[0].backward()
    fused = model.head_weight.grad.clone()  # type: ignore[union-attr]
    model.zero_grad()
    logits = hidden_of(batch).flatten(0, 1)[batch["source_index"]] @ model.head_weight.T
    chosen = logits.log_softmax(-1).gather(-1, batch["chosen_ids"][:, None])[:, 0]
    advantages = batch["advantages"][batch["completion_index"] // 6]
    (-(advantages * chosen).sum() / 4).backward()
    torch.testing.assert_close(fused, model.head_weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "gaussian"])
def test_latent_terms_equal_loops_and_their_gradients_finite_differences(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    batch = {
        "latent_rows": torch.tensor([0, 1, -1, 1, 0]),
        "latents": own + 0.5 * torch.randn(5, 4, generator=generator, dtype=torch.float64),
        "anchors": torch.randn(5, 4, generator=generator, dtype=torch.float64),
        "advantages": torch.tensor([1.5, -0.5], dtype=torch.float64),
    }
    term = LatentTerm(kind, weight=0.3, sigma=1.2)
    wide = {name: value.double() for name, value in batch.items() if value.is_floating_point()}
    total, shown = 0.0, []
    for i, row in enumerate(batch["latent_rows"].tolist()):
        if row < 0:
            continue
        if kind == "cosine":
            a, b = own[i].tolist(), wide["anchors"][i].tolist()
            norm = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
            shown.append(sum(x * y for x, y in zip(a, b, strict=True)) / norm)
            total += 1 - shown[-1]
        else:
            distance = sum(
                (x - y) ** 2 for x, y in zip(own[i].tolist(), wide["latents"][i].tolist(), strict=True)
            )
            shown.append(math.exp(-distance / (2 * 1.2**2)))
            gain = float(batch["advantages"][row])
            total -= min(shown[-1] * gain, max(shown[-1], 0.8) * gain)
    loss, metrics = latent_objective(term, own, batch, GrpoOptions(), num_latents=7)
    assert loss.item() == pytest.approx(0.3 * total / 7, rel=1e-10)
    (mean, weight), (lost, number) = metrics.values()
    assert (mean / weight).item() == pytest.approx(sum(shown) / 4, rel=1e-10)
    assert (lost / number).item() == pytest.approx(0.3 * total / 4, rel=1e-10)
    leaf = own.clone().requires_grad_()
    latent_objective(term, leaf, batch, GrpoOptions(), num_latents=7)[0].backward()
    assert leaf.grad is not None
    assert not leaf.grad[2].any(), "what does not count has no gradient"
    assert leaf.grad[0].any()
    assert torch.autograd.gradcheck(
        lambda own: latent_objective(term, own, batch, GrpoOptions(), num_latents=7)[0], leaf
    )


@pytest.mark.parametrize("norm", [None, 2.5])
def test_the_norm_term_equals_loops_in_value_and_gradient(
    norm: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = backbone()
    monkeypatch.setattr(model, "latents", replace(model.latents, latent_norm=norm))
    batch, numbers = dift_batch([30, 21], [2, 1]), {"num_tokens": 20, "num_latents": 15}
    leaf = hidden_of(batch).detach().requires_grad_()
    plain, _ = dift_objective(model, leaf, batch, **numbers)
    loss, metrics, sums = normed_dift_objective(model, leaf, batch, norm_weight=0.7, **numbers)
    (gradient,) = torch.autograd.grad(loss - plain, leaf)
    expected, total = torch.zeros(2 * 30, 32, dtype=torch.float64), []
    own = leaf.detach().double().flatten(0, 1)
    for index, target in zip(batch["latent_index"].tolist(), batch["latents"].double(), strict=True):
        h = own[index - 1]
        total.append(math.log(h.norm().item()) - math.log(target.norm().item() if norm is None else norm))
        expected[index - 1] = 0.7 / 15 * 2 * total[-1] * h / h.norm().square()
    assert (loss - plain).item() == pytest.approx(0.7 * sum(t * t for t in total) / 15, rel=1e-4)
    torch.testing.assert_close(gradient.flatten(0, 1).double(), expected, rtol=1e-3, atol=1e-6)
    means = {name: float(a / b) for name, (a, b) in metrics.items()}
    assert means["latent_log_norm"] == pytest.approx(sum(total) / 12, rel=1e-4)
    assert means["latent_norm_loss"] == pytest.approx(sum(t * t for t in total) / 12, rel=1e-4)
    logs = batch["latents"].double().norm(dim=-1).log()
    assert sums.tolist() == pytest.approx([logs.sum().item(), 12], rel=1e-5)


@pytest.mark.parametrize("norm", [None, 2.5])
def test_gradcheck_of_the_terms_of_dift(norm: float | None) -> None:
    """All three in float64, of a head and hidden states that are leaves."""
    generator = torch.Generator().manual_seed(2)

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    batch = {
        "target": torch.randint(0, 7, (1, 6), generator=generator),
        "rows": torch.tensor([0, 2, 4]),
        "latent_index": torch.tensor([1, 2, 3, 5]),
        "latents": noise(4, 5),
    }
    spec = replace(backbone().latents, latent_norm=norm, latent_size=4)

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        model: Any = SimpleNamespace(latents=spec, head_weight=head, head_bias=None)
        return normed_dift_objective(model, hidden, batch, norm_weight=0.7, num_tokens=3, num_latents=4)[0]

    leaves = [noise(1, 6, 5).requires_grad_(), noise(7, 5).requires_grad_()]
    assert torch.autograd.gradcheck(loss, leaves)
