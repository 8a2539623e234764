"""group_advantages and grpo_token_loss against loops over tokens in Python floats."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdthinker.kernels import GrpoOptions, group_advantages, grpo_token_loss, top_entropy_mask
from fourdthinker.kernels._grpo_losses import KL_ESTIMATES
from tests.unit.kernels.options import KINDS, NAMES, fits, with_options

ROWS, LENGTH = 5, 7


@settings(max_examples=40, deadline=None)
@given(
    rewards=st.lists(
        st.lists(st.sampled_from([0.0, 0.2, 1.0, 1.2]), min_size=4, max_size=4), min_size=1, max_size=4
    ),
    scale=st.sampled_from(["group", "none", "batch", "leave_one_out"]),
)
def test_advantages(rewards, scale):
    flat = [r for group in rewards for r in group]
    got = group_advantages(torch.tensor(flat, dtype=torch.float64), 4, scale=scale).tolist()
    for g, group in enumerate(rewards):
        for i, reward in enumerate(group):
            want = reward - statistics.fmean(group)
            if scale == "group":
                want /= statistics.stdev(group) + 1e-4
            elif scale == "batch":
                want /= statistics.stdev(flat) + 1e-4
            elif scale == "leave_one_out":
                want = reward - statistics.fmean(group[:i] + group[i + 1 :])
            if len(set(group)) == 1:
                assert got[g * 4 + i] == 0.0
            else:
                assert got[g * 4 + i] == pytest.approx(want, abs=1e-9)


def test_equal_rewards_are_exactly_zero_in_float32():
    for value in (0.1, 1.2, 1 / 3, 1e-3):
        for scale in ("group", "none", "batch", "leave_one_out"):
            rewards = torch.cat([torch.full((7,), value), torch.arange(7.0)])
            got = group_advantages(rewards, 7, scale=scale)
            assert got.dtype == torch.float32
            assert got[:7].tolist() == [0.0] * 7
            assert got[7:].any()
    assert group_advantages(torch.zeros(0), 4).shape == (0,)


def test_advantages_name_bad_input():
    with pytest.raises(ValueError, match="group_size 3 does not divide the 4 rewards"):
        group_advantages(torch.zeros(4), 3)
    with pytest.raises(ValueError, match="group_size is 1"):
        group_advantages(torch.zeros(4), 1)
    assert group_advantages(torch.ones(4), 1, scale="none").tolist() == [0.0] * 4
    with pytest.raises(ValueError, match="scale is 'std'"):
        group_advantages(torch.zeros(4), 2, scale="std")
    with pytest.raises(ValueError, match="a single reward"):
        group_advantages(torch.zeros(1), 1, scale="batch")
    with pytest.raises(ValueError, match="eps is nan"):
        group_advantages(torch.zeros(4), 2, eps=float("nan"))
    with pytest.raises(ValueError, match="eps is -1"):
        group_advantages(torch.zeros(4), 2, eps=-1)
    with pytest.raises(ValueError, match=r"group_size is 2\.5"):
        group_advantages(torch.zeros(5), 2.5)
    with pytest.raises(ValueError, match=r"rewards is \(2, 2\)"):
        group_advantages(torch.zeros(2, 2), 2)


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def noise(size):
        return torch.randn(ROWS, LENGTH, generator=generator, dtype=torch.float64) * size

    logprobs = -noise(1.0).abs() - 0.1
    mask = torch.rand(ROWS, LENGTH, generator=generator) < 0.7
    mask[2] = False
    return {
        "logprobs": logprobs,
        "advantages": torch.randn(ROWS, generator=generator, dtype=torch.float64),
        "mask": mask,
        "old_logprobs": logprobs + noise(0.4),
        "ref_logprobs": logprobs + noise(0.5),
        "sampler_logprobs": logprobs + noise(0.6),
        "entropy": noise(1.0).abs(),
        "entropy_mask": torch.rand(ROWS, LENGTH, generator=generator) < 0.6,
    }


def by_hand(data, *, kind, kl="k3", kl_weighting="none", beta=0.0, epsilon=0.2, epsilon_high=None, delta=None,
            sampler_cap=None, sampler_floor=None, sampler_level="token", sampler_excess="truncate",
            off_policy_bound=None, sapo_positive=1.0, sapo_negative=1.05,
            vespo_k_positive=2.0, vespo_lambda_positive=3.0, vespo_k_negative=3.0, vespo_lambda_negative=2.0,
            entropy_coef=0.0, entropy_norm="tokens", max_length=None, num_items=None,
            num_tokens=None):  # fmt: skip
    """The loss with math functions on one token at a time."""
    loss_type, level = kind.split()
    high = epsilon if epsilon_high is None else epsilon_high
    tokens = int(data["mask"].sum())
    by_sequences = loss_type in ("grpo", "dr_grpo", "sapo", "luspo")
    items = num_items or (ROWS if by_sequences else tokens)
    total = entropies = 0.0
    for r in range(ROWS):
        counted = [t for t in range(LENGTH) if data["mask"][r, t]]

        def at(name, t, r=r):
            return None if data.get(name) is None else float(data[name][r, t])

        def old(t, at=at):
            return at("logprobs", t) if at("old_logprobs", t) is None else at("old_logprobs", t)

        def drawn(t, at=at, old=old):
            return old(t) if at("sampler_logprobs", t) is None else at("sampler_logprobs", t)

        def correction(tokens, old=old, drawn=drawn):
            weight = math.exp(sum(old(t) - drawn(t) for t in tokens))
            held = min(max(weight, sampler_floor or 0.0), sampler_cap or math.inf)
            return held if sampler_excess == "truncate" or held == weight else 0.0

        corrects = sampler_cap is not None or sampler_floor is not None
        sequence = sum(at("logprobs", t) - old(t) for t in counted) / max(len(counted), 1)
        drift = sum(drawn(t) - at("logprobs", t) for t in counted) / max(len(counted), 1)
        for t in counted:
            lp, a = at("logprobs", t), float(data["advantages"][r])
            ratio = math.exp(sequence if level == "sequence" else lp - old(t))
            if loss_type == "cispo":
                term = -min(ratio, 1 + high) * a * lp
            elif loss_type == "sapo":
                heat = sapo_positive if a > 0 else sapo_negative
                term = -4 / heat / (1 + math.exp(-heat * (ratio - 1))) * a
            elif loss_type == "vespo":
                k, rate = (
                    (vespo_k_positive, vespo_lambda_positive)
                    if a > 0
                    else (vespo_k_negative, vespo_lambda_negative)
                )
                product = math.prod(
                    math.exp(at("logprobs", i) - old(i)) * (correction([i]) if corrects else 1.0)
                    for i in counted
                )
                term = -(product**k) * math.exp(rate * (1 - product)) * a * lp
            else:
                clipped = min(max(ratio, 1 - epsilon), 1 + high)
                objective = min(ratio * a, clipped * a)
                if delta is not None and a < 0:
                    objective = max(objective, delta * a)
                term = -objective
            if data.get("entropy_mask") is not None and not data["entropy_mask"][r, t]:
                term = 0.0
            if off_policy_bound is not None and a < 0 and drift > off_policy_bound:
                term = 0.0
            if corrects and loss_type != "vespo":
                term *= correction(counted if sampler_level == "sequence" else [t])
            if beta:
                d = at("ref_logprobs", t) - lp
                cost = math.exp(d) - d - 1 if kl == "k3" else d * d / 2
                term += beta * cost * (ratio if kl_weighting == "ratio" else 1.0)
            if entropy_coef and entropy_norm == "loss":
                term -= entropy_coef * at("entropy", t)
            elif entropy_coef:
                entropies += at("entropy", t)
            share = {"dr_grpo": 1 / (max_length or 1)} | dict.fromkeys(("grpo", "sapo"), 1 / len(counted))
            total += term * share.get(loss_type, 1.0)
    # Where the loss is a mean over tokens, the caller's number of them is `num_items`.
    whole = num_tokens or tokens if by_sequences else items
    return total / items - entropy_coef * entropies / whole


OPTIONS: list[dict[str, object]] = [
    {},
    {"epsilon": 0.1, "epsilon_high": 0.3},
    {"delta": 1.5},
    {"beta": 0.3},
    {"beta": 0.3, "kl": "k2"},
    {"entropy_coef": 0.05},
    {"entropy_coef": 0.05, "num_items": 11, "num_tokens": 40},
    {"entropy_coef": 0.05, "entropy_norm": "loss", "num_items": 11, "num_tokens": 40},
    {"sampler_cap": 1.2, "num_items": 11},
    {"sampler_cap": 1.5, "sampler_floor": 0.7, "sampler_excess": "mask"},
    {"sampler_floor": 0.5, "sampler_level": "sequence", "off_policy_bound": 0.2},
    {"sampler_cap": 1.5, "sampler_floor": 0.4, "sampler_level": "sequence", "sampler_excess": "mask"},
    {
        "off_policy_bound": 0.1,
        "sapo_positive": 0.7,
        "sapo_negative": 1.4,
        "vespo_k_positive": 1.4,
        "vespo_lambda_positive": 0.6,
        "vespo_k_negative": 0.5,
        "vespo_lambda_negative": 2.5,
    },
    {"beta": 0.3, "kl_weighting": "ratio"},
]


@pytest.mark.parametrize(
    ("kind", "options"), [(kind, options) for kind in KINDS for options in OPTIONS if fits(kind, options)]
)
def test_loss_equals_the_loop(kind, options):
    options = {**options, "kind": kind, "max_length": 9}
    for absent in ((), ("sampler_logprobs", "entropy_mask"), ("old_logprobs",)):
        if "sampler_logprobs" in absent and not {"sampler_cap", "sampler_floor"}.isdisjoint(options):
            continue
        data = {k: v for k, v in inputs().items() if k not in absent}
        loss, metrics = grpo_token_loss(**data, **with_options(**options))
        assert loss.item() == pytest.approx(by_hand(data, **options), rel=1e-12)
        assert all(m.dtype == torch.float64 and not m.requires_grad for m in metrics.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delta", [None, 1.5])
@pytest.mark.parametrize("kl", ["k2", "k3"])
def test_gradcheck(kind, delta, kl):
    data = inputs(4)
    counted = data["mask"] & data["entropy_mask"]
    ratio = (data["logprobs"] - data["old_logprobs"]).exp()[counted]
    gains = data["advantages"][:, None].expand(-1, LENGTH)[counted]
    # Every case is there: clipped below, above, twice, and between the two upper bounds.
    for case in (ratio < 0.8, (ratio > 1.2) & (ratio < 1.5), ratio > 1.5):
        assert (case & (gains < 0)).any()
        assert (case & (gains > 0)).any()
    if "cispo" in kind:  # its ratio is a constant, which finite differences cannot know
        data["old_logprobs"] = data["logprobs"].clone() - 1.0
    if "vespo" in kind:  # so is its weight: here a product of corrections that are all at the bound
        del data["old_logprobs"]
        data["sampler_logprobs"] = data["logprobs"].clone() - 1.0
    delta = delta if fits(kind, {"delta": delta}) else None
    leaves = [data.pop("logprobs").requires_grad_(), data.pop("entropy").requires_grad_()]

    options = with_options(
        kind, kl=kl, beta=0.2, entropy_coef=0.1, delta=delta, max_length=9, sampler_cap=1.3
    )

    def loss(logprobs, entropy):
        return grpo_token_loss(logprobs, entropy=entropy, **data, **options)[0]

    assert torch.autograd.gradcheck(loss, leaves)


def test_every_option_is_compared_with_the_loop():
    told = {name for options in OPTIONS for name in options}
    assert NAMES - told == {"loss_type", "ratio_level", "max_length"}, "which every case has"


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_every_option(kind):
    for options in (options for options in OPTIONS if fits(kind, options)):
        data = inputs(4)
        if "cispo" in kind:  # constant factors, as in `test_gradcheck`
            data["old_logprobs"] = data["logprobs"].clone() - 1.0
        if "vespo" in kind:
            del data["old_logprobs"]
            data["sampler_logprobs"] = data["logprobs"].clone() - 1.0
        leaves = [data.pop("logprobs").requires_grad_(), data.pop("entropy").requires_grad_()]
        given = data | with_options(kind, max_length=9, **options)

        def loss(logprobs, entropy, given=given):
            return grpo_token_loss(logprobs, entropy=entropy, **given)[0]

        assert torch.autograd.gradcheck(loss, leaves, fast_mode=True), options


def test_first_update_has_ratio_one_and_policy_gradient():
    data = inputs()
    logprobs = data["logprobs"].requires_grad_()
    loss, metrics = grpo_token_loss(logprobs, data["advantages"], data["mask"], GrpoOptions(loss_type="bnpo"))
    loss.backward()
    tokens = data["mask"].sum()
    want = torch.where(data["mask"], -data["advantages"][:, None] / tokens, 0.0)
    torch.testing.assert_close(logprobs.grad, want)
    assert metrics["ratio"].item() == pytest.approx(1.0)
    assert metrics["clip_low"].item() == metrics["clip_high"].item() == 0.0


def test_masked_entries_may_be_anything():
    data = inputs()
    poisoned = {
        k: torch.where(data["mask"], v, torch.nan) if v.is_floating_point() and v.dim() == 2 else v
        for k, v in data.items()
    }
    for kind in KINDS:
        clean_leaf, dirty_leaf = data["logprobs"].clone(), poisoned["logprobs"].clone()
        options = with_options(kind, beta=0.1, entropy_coef=0.1, max_length=9, sampler_cap=2.0)
        clean, _ = grpo_token_loss(**{**data, "logprobs": clean_leaf.requires_grad_()}, **options)
        dirty, metrics = grpo_token_loss(**{**poisoned, "logprobs": dirty_leaf.requires_grad_()}, **options)
        clean.backward()
        dirty.backward()
        assert torch.equal(clean, dirty)
        assert torch.equal(clean_leaf.grad, dirty_leaf.grad)
        assert all(torch.isfinite(m) for m in metrics.values())


def test_token_advantages_and_metrics():
    data = inputs()
    spread = data["advantages"][:, None].expand(-1, LENGTH)
    data["old_logprobs"] = data["logprobs"] - math.log(1.5)  # every ratio is 1.5
    loss, metrics = grpo_token_loss(**data, options=GrpoOptions(delta=1.4, beta=0.1))
    same, _ = grpo_token_loss(**{**data, "advantages": spread}, options=GrpoOptions(delta=1.4, beta=0.1))
    assert torch.equal(loss, same)
    share = (data["mask"] & (spread > 0)).sum() / data["mask"].sum()
    assert metrics["ratio"].item() == pytest.approx(1.5)
    assert metrics["clip_high"].item() == pytest.approx(share.item())
    assert metrics["clip_delta"].item() == pytest.approx(1 - share.item())
    assert metrics["clip_low"].item() == 0
    gap = (data["old_logprobs"] - data["sampler_logprobs"]).abs()[data["mask"]]
    assert metrics["sampler_gap"].item() == pytest.approx(gap.mean().item())
    assert metrics["sampler_gap_max"].item() == pytest.approx(gap.max().item())
    assert metrics["entropy"].item() == pytest.approx(data["entropy"][data["mask"]].mean().item())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_counted_is_zero_in_the_graph(kind):
    for rows in (0, 3):
        logprobs = torch.randn(rows, 4, requires_grad=True)
        loss, metrics = grpo_token_loss(
            logprobs, torch.randn(rows), torch.zeros(rows, 4, dtype=torch.bool),
            sampler_logprobs=torch.zeros(rows, 4), **with_options(kind, max_length=4, sampler_cap=2.0),
        )  # fmt: skip
        loss.backward()
        assert loss.item() == 0
        assert not logprobs.grad.any()
        assert loss.dtype == torch.float32
        assert all(torch.isfinite(m) for m in metrics.values())


def test_top_entropy_mask():
    entropy = torch.tensor([[1.0, 5.0, 3.0, 3.0], [2.0, 9.0, 0.0, 4.0]])
    mask = torch.tensor([[True, True, True, True], [True, False, True, True]])
    assert top_entropy_mask(entropy, mask, 0.4).tolist() == [
        [False, True, True, True],
        [False, False, False, True],
    ]
    assert torch.equal(top_entropy_mask(entropy, mask, 1.0), mask)
    assert top_entropy_mask(entropy[:0], mask[:0], 0.5).shape == (0, 4)
    with pytest.raises(ValueError, match="fraction is 0"):
        top_entropy_mask(entropy, mask, 0)


def test_top_entropy_mask_keeps_nan():
    entropy = torch.tensor([[math.nan, 1.0, 2.0, 3.0]])
    assert top_entropy_mask(entropy, torch.ones(1, 4, dtype=torch.bool), 0.2).tolist() == [
        [True, False, False, False]
    ]
    assert top_entropy_mask(entropy, torch.tensor([[False, True, True, True]]), 0.2).tolist() == [
        [False, False, False, True]
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_an_infinite_ratio_adds_nothing_without_an_advantage(kind):
    """One such token of a group of equal rewards would else make the whole update NaN."""
    data = {k: v for k, v in inputs().items() if k in ("logprobs", "advantages", "mask", "old_logprobs")}
    data["advantages"][0] = 0.0
    options = with_options(kind, max_length=9)
    quiet, _ = grpo_token_loss(**data, **options)
    data["old_logprobs"][0, data["mask"][0]] = -1e4
    logprobs = data.pop("logprobs").requires_grad_()
    loss, metrics = grpo_token_loss(logprobs, **data, **options)
    loss.backward()
    assert 1e6 < metrics["ratio"] <= math.exp(20), "it is not one token that is shown alone"
    torch.testing.assert_close(loss, quiet)
    assert logprobs.grad.isfinite().all()
    assert not logprobs.grad[0].any()


INFINITE = [  # what multiplies the ratio, or a term that it makes infinite
    {"beta": beta, "kl": kl, "kl_weighting": weighting, **sampler}
    for beta, kl in ((0.0, "k3"), *((0.3, kl) for kl in KL_ESTIMATES))
    for weighting in ("none", "ratio")
    for sampler in ({}, {"sampler_cap": 1.5}, {"sampler_floor": 0.5, "sampler_excess": "mask"})
]


@pytest.mark.parametrize("kind", KINDS)
def test_zero_times_infinity_is_nothing_in_any_combination(kind):
    """A ratio of infinity or 0 beside an advantage, a KL term or a weight of 0."""
    for options in (options for options in INFINITE if fits(kind, options)):
        for old in (-1e4, 1e4):
            data = inputs()
            data["advantages"][0] = 0.0
            data["ref_logprobs"] = data["logprobs"].clone()  # a KL of 0
            data["old_logprobs"][0, data["mask"][0]] = old
            logprobs = data.pop("logprobs").requires_grad_()
            loss, _ = grpo_token_loss(logprobs, **data, **with_options(kind, max_length=9, **options))
            loss.backward()
            assert loss.isfinite(), (options, old)
            assert logprobs.grad.isfinite().all(), (options, old)


@pytest.mark.parametrize("kind", [k for k in KINDS if k.split()[0] in ("bnpo", "dapo", "cispo", "vespo")])
def test_a_loss_by_tokens_is_the_sum_of_its_parts(kind):
    options = {"beta": 0.3, "entropy_coef": 0.05, "sampler_cap": 1.2, "off_policy_bound": 0.2}
    loss, metrics = grpo_token_loss(**inputs(), **with_options(kind, **options))
    parts = metrics["policy_loss"] + 0.3 * metrics["kl"] - 0.05 * metrics["entropy"]
    torch.testing.assert_close(loss, parts)
    assert abs(metrics["policy_loss"]) > 1e-3


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    options=st.sampled_from(OPTIONS),
    size=st.sampled_from([1.0, 300.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_metrics_of_finite_inputs_are_finite(kind, options, size, seed):
    """In float32, log-probs that differ by up to some 10,000 nats."""
    data = {k: v.float() if v.is_floating_point() else v for k, v in inputs(seed).items()}
    data["advantages"][seed % ROWS] = 0.0
    for name in ("old_logprobs", "ref_logprobs", "sampler_logprobs"):
        data[name] = data["logprobs"] + size * (data[name] - data["logprobs"])
    if fits(kind, options):
        _, metrics = grpo_token_loss(**data, **with_options(kind, **options, max_length=9))
        assert {name: value for name, value in metrics.items() if not value.isfinite()} == {}


def test_what_is_left_out_or_only_measured_may_be_infinite():
    data = {k: v for k, v in inputs().items() if k in ("logprobs", "advantages", "mask", "old_logprobs")}
    leaf = data.pop("logprobs").requires_grad_()
    want, _ = grpo_token_loss(leaf, **data)
    (gradient,) = torch.autograd.grad(want, leaf)
    loss, metrics = grpo_token_loss(leaf, **data, ref_logprobs=leaf.detach() + 1e4)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], gradient)
    assert metrics["kl"].item() == pytest.approx(math.exp(20), rel=1e-6)
    row = int(data["advantages"].masked_fill(~data["mask"].any(1), 1.0).argmin())
    assert data["advantages"][row] < 0
    data["old_logprobs"][row] -= 1e4
    options = GrpoOptions(sampler_cap=2.0, sampler_excess="mask")
    sampler = data["old_logprobs"].clone()
    sampler[row] -= 5.0  # a weight above the bound
    loss, metrics = grpo_token_loss(leaf, **data, sampler_logprobs=sampler, options=options)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.isfinite()
    assert not gradient[row].any()
    assert gradient.any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_comes_through(kind):
    data = {k: v for k, v in inputs().items() if k in ("logprobs", "advantages", "mask", "old_logprobs")}
    data["advantages"][0] = 0.0  # whatever the advantage
    data["logprobs"][0, data["mask"][0]] = torch.nan
    assert grpo_token_loss(**data, **with_options(kind, max_length=9))[0].isnan()


def test_vespo_forgets_sequences_far_from_what_was_sampled():
    """The weight of a sequence is 1 where nothing has changed, and 0 for products of 0 and of infinity."""
    data = {k: v for k, v in inputs().items() if k in ("logprobs", "advantages", "mask")}
    options = GrpoOptions(loss_type="vespo")
    want = torch.where(data["mask"], -data["advantages"][:, None], 0.0) / data["mask"].sum()
    for shift, factor in ((0.0, 1.0), (-900.0, 0.0), (900.0, 0.0)):
        leaf = data["logprobs"].clone().requires_grad_()
        given = {**data, "logprobs": leaf, "old_logprobs": data["logprobs"] + shift}
        loss, _ = grpo_token_loss(**given, options=options)
        loss.backward()
        torch.testing.assert_close(leaf.grad, want * factor)


@pytest.mark.parametrize("tokens", [math.nan, -2.0])
def test_a_number_of_tokens_that_is_none_is_named(tokens):
    data = {**inputs(), "options": GrpoOptions(entropy_coef=0.1)}
    for number in (tokens, torch.tensor(tokens)):
        with pytest.raises(ValueError, match="num_tokens is"):
            grpo_token_loss(**data, num_tokens=number)


def test_bad_input_is_named():
    data = inputs()
    base = {k: data[k] for k in ("logprobs", "advantages", "mask")}
    bad = [
        ("zero-mean gradient", {"kl": "k1"}),
        ("kl is 'k4'", {"kl": "k4"}),
        ("loss_type is 'ppo'", {"loss_type": "ppo"}),
        ("GSPO is loss_type='grpo' with ratio_level='sequence'", {"loss_type": "gspo"}),
        ("ratio_level is 'word'", {"ratio_level": "word"}),
        ("epsilon is None", {"epsilon": None}),
        ("epsilon is True; pass a number", {"epsilon": True}),
        ("epsilon is '0.2'; pass a number", {"epsilon": "0.2"}),
        (r"max_length is 1\.5; pass an integer", {"max_length": 1.5}),
        ("max_length is True; pass an integer", {"max_length": True}),
        ("entropy_norm is 'none'", {"entropy_norm": "none"}),
        ("beta is nan", {"beta": float("nan")}),
        ("beta is -1", {"beta": -1}),
        ("no ref_logprobs", {"beta": 0.1}),
        ("no entropy", {"entropy_coef": 0.1}),
        ("epsilon is -0.1", {"epsilon": -0.1}),
        ("delta is 1.1", {"delta": 1.1}),
        ("delta has no meaning for cispo", {"delta": 3.0, "loss_type": "cispo"}),
        ("delta has no meaning for sapo", {"delta": 3.0, "loss_type": "sapo"}),
        ("ratio_level is 'sequence'; vespo", {"ratio_level": "sequence", "loss_type": "vespo"}),
        ("sampler_level is 'sequence'; vespo", {"sampler_level": "sequence", "loss_type": "vespo"}),
        ("unbiased for ratios of tokens only", {"kl_weighting": "ratio", "loss_type": "vespo"}),
        ("vespo_k_negative is 0", {"vespo_k_negative": 0}),
        ("sampler_cap is 0", {"sampler_cap": 0}),
        ("there are no sampler_logprobs", {"sampler_floor": 0.5}),
        (
            r"sampler_floor is 3\.0; it must be below sampler_cap = 2",
            {"sampler_floor": 3.0, "sampler_cap": 2.0},
        ),
        ("unbiased for ratios of tokens only", {"kl_weighting": "ratio", "ratio_level": "sequence"}),
        ("max_length is None", {"loss_type": "dr_grpo"}),
        (r"old_logprobs is \(5, 6\)", {"old_logprobs": data["logprobs"][:, :6]}),
        (r"advantages is \(4,\)", {"advantages": data["advantages"][:4]}),
        ("mask is torch.int64", {"mask": data["mask"].long()}),
        ("entropy_mask is torch.uint8", {"entropy_mask": data["mask"].byte()}),
        ("logprobs is torch.int64", {"logprobs": data["logprobs"].long()}),
        (r"logprobs is \(5,\)", {"logprobs": data["logprobs"][:, 0]}),
    ]
    for message, change in bad:
        with pytest.raises(ValueError, match=message):
            grpo_token_loss(**{**base, **with_options(**change)})
    for options in ("grpo", {"loss_type": "grpo"}, None):
        with pytest.raises(ValueError, match=r"options is .*; pass GrpoOptions"):
            grpo_token_loss(**base, options=options)
