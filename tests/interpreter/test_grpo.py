"""group_advantages and grpo_token_loss: kernels against float64."""

from __future__ import annotations

import math

import pytest
import torch

from fourdthinker.kernels import group_advantages, grpo_token_loss
from fourdthinker.kernels.group_advantages import SCALES
from tests.interpreter.numerics import assert_close
from tests.unit.kernels.options import KINDS, fits, with_options


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("groups", "size"), [(1, 2), (5, 8), (300, 7)])
def test_group_advantages(scale, groups, size):
    torch.manual_seed(groups)
    rewards = torch.randint(0, 3, (groups * size,)) * 0.6
    rewards[:size] = 0.1  # a group without variance
    rewards[-1] += 0.3
    got = group_advantages(rewards, size, scale=scale, backend="triton")
    assert_close(got, group_advantages(rewards.double(), size, scale=scale), floor=4e-6)
    equal = (rewards.reshape(groups, size) == rewards.reshape(groups, size)[:, :1]).all(dim=1)
    assert not got.reshape(groups, size)[equal].any()
    assert group_advantages(rewards[:0], size, scale=scale, backend="triton").shape == (0,)


def inputs(rows, length, dtype):
    generator = torch.Generator().manual_seed(rows + length)

    def noise(size):
        return torch.randn(rows, length, generator=generator) * size

    logprobs = -noise(1.0).abs() - 0.1
    mask = torch.rand(rows, length, generator=generator) < 0.7
    mask[rows // 2] = False
    tensors = {
        "logprobs": logprobs,
        "advantages": torch.randn(rows, generator=generator),
        "old_logprobs": logprobs + noise(0.4),
        "ref_logprobs": logprobs + noise(0.5),
        "sampler_logprobs": logprobs + noise(0.6),
        "entropy": noise(1.0).abs(),
    }
    tensors = {k: v.to(dtype) for k, v in tensors.items()}
    poisoned = {k: v if v.dim() == 1 else torch.where(mask, v, torch.nan) for k, v in tensors.items()}
    return {**poisoned, "mask": mask, "entropy_mask": torch.rand(rows, length, generator=generator) < 0.6}


OPTIONS = [
    {},
    {"epsilon": 0.1, "epsilon_high": 0.3, "beta": 0.3},
    {"delta": 1.5, "beta": 0.3, "kl": "k2"},
    {"entropy_coef": 0.05, "sampler_cap": 1.2, "num_items": 11, "num_tokens": torch.tensor(40)},
    {"entropy_coef": 0.05, "entropy_norm": "loss", "num_items": 11},
]
# What is the same in every loss type is tried in two of them.
LATER = [
    {"sampler_cap": 1.5, "sampler_floor": 0.4, "sampler_level": "sequence", "sampler_excess": "mask"},
    {"sampler_floor": 0.8, "off_policy_bound": 0.1, "sapo_negative": 2.0},
    {"beta": 0.3, "kl_weighting": "ratio", "off_policy_bound": 0.05},
]
CASES = [(kind, case) for kind in KINDS for case in OPTIONS if fits(kind, case)]
CASES += [("vespo token", {"sampler_cap": 1.9, "sampler_floor": 0.4, "sampler_excess": "mask"})]
CASES += [(k, case) for k in ("grpo sequence", "sapo token") for case in LATER if fits(k, case)]


def compare(data, options, *, upstream=0.7):
    results = []
    for backend, dtype in (("triton", None), ("torch", torch.float64)):
        tensors = {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in data.items()}
        leaves = {k: tensors[k].clone().requires_grad_() for k in ("logprobs", "entropy") if k in tensors}
        loss, metrics = grpo_token_loss(**{**tensors, **leaves}, **options, backend=backend)
        (loss * upstream).backward()
        results.append((loss.detach(), metrics, {k: v.grad for k, v in leaves.items()}))
    (loss, metrics, grads), (want, want_metrics, want_grads) = results
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=2e-6)  # terms of either sign
    assert metrics.keys() == want_metrics.keys()
    for name, value in want_metrics.items():
        torch.testing.assert_close(metrics[name].double(), value, rtol=1e-5, atol=1e-6, msg=name)
    for name, value in want_grads.items():
        if value is None or not value.any():
            assert grads[name] is None or not grads[name].any()
        else:
            assert_close(grads[name], value, floor=4e-6)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_grpo_token_loss(kind, options):
    options = with_options(kind, **options, max_length=9)
    data = inputs(5, 37, torch.float32)
    compare(data, options)
    absent = ["entropy_mask", "old_logprobs"]
    if not options["options"].corrected:
        absent.append("sampler_logprobs")
    compare({k: v for k, v in data.items() if k not in absent}, options)


@pytest.mark.parametrize("kind", ["grpo token", "grpo sequence", "cispo token"])
def test_long_rows_token_advantages_low_precision_and_single_tokens(kind):
    data = inputs(2, 1500, torch.bfloat16)
    compare(data, with_options(kind, sampler_cap=2.0))
    data["advantages"] = data["advantages"][:, None].expand(2, 1500)
    compare(data, with_options(kind, sampler_cap=2.0))
    single = inputs(3, 1, torch.float32)
    single = {k: v.nan_to_num(-0.5) if v.is_floating_point() else v for k, v in single.items()}
    single["mask"] = torch.ones(3, 1, dtype=torch.bool)
    compare(single, with_options(kind, beta=0.1, sampler_cap=2.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gap", [1e4, torch.nan])
def test_infinite_and_nan_ratios(kind, gap):
    """A ratio of infinity adds nothing without an advantage; NaN comes through."""
    data = {k: v for k, v in inputs(3, 37, torch.float32).items() if k in ("logprobs", "advantages", "mask")}
    old = data["logprobs"].clone()
    old[0] -= gap
    data["advantages"][0] = 0.0
    weighting = {"beta": 0.1, "kl_weighting": "ratio"}
    if not fits(kind, weighting):
        weighting = {}
    losses, metrics = [], []
    for backend in ("triton", "torch"):
        leaf = data["logprobs"].clone().requires_grad_()
        loss, found = grpo_token_loss(
            **{**data, "logprobs": leaf},
            old_logprobs=old,
            backend=backend,
            ref_logprobs=data["logprobs"],  # a KL of 0
            **with_options(kind, max_length=40, **weighting),
        )
        loss.backward()
        assert leaf.grad.isnan().any() == math.isnan(gap)
        assert leaf.grad[1:].isfinite().all()
        losses.append(loss.detach())
        metrics.append(found)
    torch.testing.assert_close(*losses, equal_nan=True)
    torch.testing.assert_close(*metrics, equal_nan=True)


@pytest.mark.parametrize("kind", ["grpo token", "grpo sequence"])
def test_what_is_left_out_or_only_measured_may_be_infinite(kind):
    data = inputs(5, 37, torch.float32)
    row = int(data["advantages"].masked_fill(~data["mask"].any(1), 1.0).argmin())
    assert data["advantages"][row] < 0
    data["ref_logprobs"] += 1e4
    data["old_logprobs"][row] -= 1e4
    data["sampler_logprobs"][row] = data["old_logprobs"][row] - 5.0
    compare(data, with_options(kind, sampler_cap=2.0, sampler_excess="mask"))


def test_nothing_counted_is_zero():
    for rows, length in ((3, 5), (0, 5), (2, 0)):
        logprobs = torch.full((rows, length), torch.nan, requires_grad=True)
        mask = torch.zeros(rows, length, dtype=torch.bool)
        loss, metrics = grpo_token_loss(logprobs, torch.randn(rows), mask, backend="triton")
        loss.backward()
        assert loss.item() == 0
        assert not logprobs.grad.any()
        assert all(value.item() == 0 for value in metrics.values())
