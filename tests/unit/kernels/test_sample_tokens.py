"""Sampling against brute force in Python floats, the exact distribution, and row independence."""

from __future__ import annotations

import math

import pytest
import torch

from fourdthinker.kernels import PRESENT, REPEATED, philox_uniform, sample_tokens
from fourdthinker.kernels._sample_reference import _select


def parameters(rows: int, **changes):
    base = {
        "seeds": torch.arange(rows) * 7919 + 13,
        "steps": torch.zeros(rows, dtype=torch.int64),
        "temperature": torch.ones(rows),
    }
    return {**base, **changes}


def philox_words(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x32-10 in Python integers, straight from the paper."""
    k, c = list(key), list(counter)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_philox_is_the_published_generator():
    assert philox_words((0, 0), (0, 0, 0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    seeds = [0, 1, -1, 2**62 + 12345, -(2**63), 0x5EED_0000_0001]
    steps = [0, 5, 2**40 + 3, 7, 0, 99]
    drawn = philox_uniform(torch.tensor(seeds), torch.tensor(steps))
    for seed, step, value in zip(seeds, steps, drawn.tolist(), strict=True):
        key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
        words = philox_words(key, (step & 0xFFFFFFFF, (step >> 32) & 0xFFFFFFFF, 0, 0))
        assert value == ((words[0] << 21) | (words[1] >> 11)) / 2**53
        assert 0.0 <= value < 1.0


def brute_force(logits, *, temperature, top_k, top_p, min_p, banned, seen, repetition, presence):
    """Scores per id after every rule (a dict of the kept ids), in the order of the docstring."""
    scores = []
    for i, z in enumerate(logits):
        if seen[i] & REPEATED:
            z = z * repetition if z < 0 else z / repetition
        if seen[i] & PRESENT:
            z -= presence
        scores.append(-math.inf if i in banned else z / (temperature or 1.0))
    kept = [i for i, z in enumerate(scores) if z > -math.inf]
    if top_k:
        threshold = sorted((scores[i] for i in kept), reverse=True)[:top_k][-1]
        kept = [i for i in kept if scores[i] >= threshold]
    top = max(scores)
    total = math.fsum(math.exp(scores[i] - top) for i in kept)
    if top_p < 1:
        kept = [i for i in kept if math.fsum(math.exp(scores[j] - top) for j in kept if scores[j] > scores[i])
                < top_p * total]  # fmt: skip
    if min_p:
        kept = [i for i in kept if scores[i] >= top + math.log(min_p)]
    total = math.fsum(math.exp(scores[i] - top) for i in kept)
    return {i: math.exp(scores[i] - top) / total for i in kept}


@pytest.mark.parametrize("case", range(6))
def test_draws_equal_brute_force(case):
    rows, vocabulary = 40, 23
    generator = torch.Generator().manual_seed(case)
    logits = torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64) * 3
    if case == 1:
        logits = logits.round()  # many ties
    random = torch.rand(8, rows, generator=generator, dtype=torch.float64)
    temperature = random[0] * 2 + 0.1
    temperature[::5] = 0
    top_k = (random[1] * 12).int() if case != 2 else torch.zeros(rows, dtype=torch.int32)
    top_p = random[2] if case != 3 else torch.ones(rows, dtype=torch.float64)
    min_p = random[3] * 0.3 if case != 4 else torch.zeros(rows, dtype=torch.float64)
    forbidden = (torch.rand(rows, 3, generator=generator) * (vocabulary + 4)).long() - 4
    forbidden = forbidden.clamp(min=-1)
    seen = torch.randint(0, 4, (rows, vocabulary), generator=generator, dtype=torch.uint8)
    repetition, presence = random[4] + 0.6, random[5] * 2 - 0.5
    rules = parameters(
        rows, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, forbidden=forbidden, seen=seen,
        repetition_penalty=repetition, presence_penalty=presence,
    )  # fmt: skip
    ids, logprobs, sampled = sample_tokens(logits, **rules)
    uniform = philox_uniform(rules["seeds"], rules["steps"])
    for row in range(rows):
        probability = brute_force(
            logits[row].tolist(), temperature=float(temperature[row]), top_k=int(top_k[row]),
            top_p=float(top_p[row]), min_p=float(min_p[row]),
            banned={i for i in forbidden[row].tolist() if i >= 0}, seen=seen[row].tolist(),
            repetition=float(repetition[row]), presence=float(presence[row]),
        )  # fmt: skip
        chosen = int(ids[row])
        if temperature[row] == 0:
            assert probability[chosen] == max(probability.values())
            assert float(sampled[row]) == 0
        else:
            running = 0.0
            for i, p in sorted(probability.items()):
                running += p
                if running > float(uniform[row]):
                    assert chosen == i
                    break
            assert float(sampled[row]) == pytest.approx(math.log(probability[chosen]), abs=1e-9)
        raw = (logits[row] / (temperature[row] if temperature[row] else 1)).log_softmax(0)[chosen]
        assert float(logprobs[row]) == pytest.approx(float(raw), abs=1e-9)


@pytest.mark.parametrize(
    ("vocabulary", "draws", "spread"), [(7, 20_000, 1.5), (512, 20_000, 1.5), (151_936, 3000, 3)]
)
@pytest.mark.parametrize("truncated", [False, True])
def test_chi_square_against_the_exact_distribution(vocabulary, draws, spread, truncated):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(vocabulary, generator=generator) * spread
    rules = parameters(draws, steps=torch.arange(draws), seeds=torch.full((draws,), 5))
    scores = logits.double() / 0.7
    rules["temperature"] = torch.full((draws,), 0.7)
    if truncated:
        rules["top_k"] = torch.full((draws,), 5, dtype=torch.int32)
        scores = scores.masked_fill(scores < scores.topk(5).values[-1], -torch.inf)
    expected = scores.softmax(0) * draws
    counts = torch.zeros(vocabulary, dtype=torch.float64)
    ids, _, _ = sample_tokens(logits.expand(draws, -1), **rules)
    counts.scatter_add_(0, ids, torch.ones(draws, dtype=torch.float64))
    assert counts[expected == 0].sum() == 0
    cells = expected > 5
    rest = torch.stack([counts[~cells].sum(), expected[~cells].sum()])
    statistic = ((counts[cells] - expected[cells]) ** 2 / expected[cells]).sum()
    freedom = int(cells.sum()) - 1
    if rest[1] > 5:
        statistic, freedom = statistic + (rest[0] - rest[1]) ** 2 / rest[1], freedom + 1
    # Six standard deviations of the chi-square distribution: never by chance, at once with a wrong CDF.
    assert float(statistic) < freedom + 6 * math.sqrt(2 * freedom)


SCORES = {
    "normal": lambda rows, width: torch.randn(rows, width) * 3,
    "ties": lambda rows, width: torch.randn(rows, width).mul(4).round(),
    "all equal": lambda rows, width: torch.full((rows, width), -7.5),
    "one far above": lambda rows, width: torch.cat(
        (torch.full((rows, 1), 3e38), torch.randn(rows, width - 1)), 1
    ),
    "far apart": lambda rows, width: torch.randn(rows, width) * 1e30,
    "close together": lambda rows, width: 1e3 + torch.randn(rows, width) * 1e-3,
    "few finite": lambda rows, width: torch.randn(rows, width).masked_fill(
        torch.rand(rows, width) < 0.99, -torch.inf
    ),
}


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_threshold_is_that_of_a_sort(kind, dtype):
    """The largest score such that all from it on come to the wanted count or mass."""
    torch.manual_seed(1)
    rows, width = 12, 5000
    scores = SCORES[kind](rows, width).to(dtype)
    scores[:, 7] = 0.0
    top = scores.amax(dim=1, keepdim=True)
    ordered = scores.sort(dim=1, descending=True).values
    count = torch.tensor([1, 2, 50, 300, 2500, 5000] * 2)
    mass = torch.linspace(0.0, 0.999, rows, dtype=torch.float64)
    weights = (scores - top).exp()
    for weighed, wanted in ((None, count.double()), (weights, mass * weights.double().sum(dim=1))):
        got = _select(scores, weighed, wanted, top, torch.full_like(top, 32.0))
        running = torch.ones_like(ordered).double() if weighed is None else (ordered - top).exp().double()
        position = (running.cumsum(dim=1) < wanted[:, None] * (1 - 1e-12)).sum(dim=1, keepdim=True)
        expected = ordered.gather(1, position.clamp(max=width - 1))
        assert torch.equal(got, expected)


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("vocabulary", [5, 1000, 3001, 151_668])
def test_a_row_does_not_depend_on_its_neighbours_or_slot(truncated, vocabulary):
    rows = 9
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, vocabulary, generator=generator) * 4
    rules = parameters(rows, steps=torch.arange(rows) * 3, temperature=torch.linspace(0.4, 1.7, rows))
    rules["forbidden"] = torch.tensor([[1, 2, -1]]).repeat(rows, 1)
    logits[4, 1] = 60.0  # this row's largest is forbidden
    if truncated:
        rules["top_k"] = torch.arange(rows, dtype=torch.int32) * 400
        rules["top_p"] = torch.linspace(0.3, 1.0, rows)
    together = sample_tokens(logits, **rules)
    order = torch.randperm(rows, generator=generator)
    shuffled = sample_tokens(logits[order], **{k: v[order] for k, v in rules.items()})
    for name, all_rows, moved in zip(("ids", "logprobs", "sampled"), together, shuffled, strict=True):
        assert torch.equal(all_rows[order], moved), name
    for row in range(rows):
        alone = sample_tokens(logits[row : row + 1], **{k: v[row : row + 1] for k, v in rules.items()})
        for all_rows, single in zip(together, alone, strict=True):
            assert torch.equal(all_rows[row : row + 1], single)


def test_switched_off_equals_absent():
    logits = torch.randn(6, 50)
    off = {
        "top_k": torch.zeros(6, dtype=torch.int32), "top_p": torch.ones(6), "min_p": torch.zeros(6),
        "forbidden": torch.full((6, 2), -1),
        "seen": torch.full((6, 50), 3, dtype=torch.uint8), "repetition_penalty": torch.ones(6),
        "presence_penalty": torch.zeros(6),
    }  # fmt: skip
    for plain, switched in zip(
        sample_tokens(logits, **parameters(6)), sample_tokens(logits, **parameters(6), **off), strict=True
    ):
        assert torch.equal(plain, switched)


def test_extreme_temperatures():
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(2)) * 3
    zero, half = torch.zeros(4, dtype=torch.int64), torch.full((4,), 0.5)
    for temperature in (1e-6, 1e-30, 1e-38):
        rate = torch.full((4,), temperature)
        ids, _, sampled = sample_tokens(
            logits, seeds=zero, steps=zero, temperature=rate, top_p=half, min_p=half
        )  # fmt: skip
        assert torch.equal(ids, logits.argmax(dim=1))
        assert not sampled.any()
    for temperature in (1e30, 1e38):
        rate = torch.full((4,), temperature)
        _, raw, sampled = sample_tokens(logits, seeds=zero, steps=zero, temperature=rate, min_p=half)
        torch.testing.assert_close(raw, torch.full((4,), -math.log(300)))
        torch.testing.assert_close(sampled, raw)


def test_low_precision_negative_infinity_and_ties():
    logits = torch.full((4, 9), -torch.inf, dtype=torch.bfloat16)
    logits[:, 4] = -3e38
    ids, logprobs, sampled = sample_tokens(logits, **parameters(4))
    assert ids.tolist() == [4] * 4
    assert logprobs.tolist() == [0.0] * 4
    assert sampled.tolist() == [0.0] * 4
    assert logprobs.dtype == torch.float32
    tied = torch.zeros(200, 5)
    tied[:, 3:] = -9
    rules = parameters(200, top_k=torch.ones(200, dtype=torch.int32))
    assert set(sample_tokens(tied, **rules)[0].tolist()) == {0, 1, 2}  # all three ties kept
    greedy = sample_tokens(tied, **parameters(200, temperature=torch.zeros(200)))
    assert greedy[0].tolist() == [0] * 200  # the first of equal maxima


def test_bad_input_is_named():
    logits = torch.randn(3, 8)
    bad = torch.where(torch.arange(3)[:, None] == 1, torch.nan, logits)
    rules, greedy = parameters(3), parameters(3, temperature=torch.zeros(3))
    with pytest.raises(ValueError, match="logits of row 1"):
        sample_tokens(bad, **rules)
    with pytest.raises(ValueError, match="leave nothing to sample from"):
        sample_tokens(logits, **rules, forbidden=torch.arange(8).repeat(3, 1))
    with pytest.raises(ValueError, match="leave nothing to sample from"):
        sample_tokens(logits, **greedy, forbidden=torch.arange(8).repeat(3, 1))
    with pytest.raises(ValueError, match="logits of row 1"):
        sample_tokens(bad, **rules, top_p=torch.full((3,), 0.5))
    with pytest.raises(ValueError, match=r"logits is \(8,\)"):
        sample_tokens(logits[0, :8], **rules)
    with pytest.raises(ValueError, match="must not be empty"):
        sample_tokens(logits[:, :0], **rules)
    with pytest.raises(ValueError, match=r"top_p is \(2,\)"):
        sample_tokens(logits, **rules, top_p=torch.ones(2))
    with pytest.raises(ValueError, match=r"seeds is torch.float32"):
        sample_tokens(logits, **{**rules, "seeds": torch.zeros(3)})
    with pytest.raises(ValueError, match="seen is needed"):
        sample_tokens(logits, **rules, repetition_penalty=torch.ones(3))
    with pytest.raises(ValueError, match=r"seen is .*uint8"):
        sample_tokens(logits, **rules, repetition_penalty=torch.ones(3), seen=torch.zeros(3, 7))
    with pytest.raises(ValueError, match="forbidden is"):
        sample_tokens(logits, **rules, forbidden=torch.zeros(2, 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0), ("temperature", 1e-40), ("temperature", math.nan), ("top_k", -1),
        ("top_p", math.nan), ("top_p", 1.5), ("min_p", 2.0), ("min_p", math.nan),
        ("repetition_penalty", 1e-38), ("repetition_penalty", 0.0), ("presence_penalty", math.nan),
    ],
)  # fmt: skip
def test_a_parameter_is_named_not_the_logits(name, value):
    rules = parameters(3)
    good = {"temperature": 1.0, "top_k": 0, "repetition_penalty": 1.0, "presence_penalty": 0.0}.get(name, 0.5)
    rules[name] = torch.tensor([good, value, good])
    if "penalty" in name:
        rules["seen"] = torch.zeros(3, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"{name} of row 1 is .*; it must be "):
        sample_tokens(torch.randn(3, 8), **rules)


def test_forbidden_ids_are_ids():
    for bad in (8, -2):
        with pytest.raises(ValueError, match=f"forbidden of row 2 has id {bad}; ids are 0 to 7"):
            sample_tokens(torch.randn(3, 8), **parameters(3), forbidden=torch.tensor([[-1], [7], [bad]]))


def test_steps_count_from_zero():
    with pytest.raises(ValueError, match="steps of row 2 is -1; it must be 0 or more"):
        sample_tokens(torch.randn(3, 8), **parameters(3, steps=torch.tensor([0, 5, -1])))
