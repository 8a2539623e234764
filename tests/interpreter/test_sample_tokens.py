"""The sampling kernel picks the ids of its reference."""

from __future__ import annotations

import importlib

import pytest
import torch

from fourdthinker.kernels import sample_tokens


def rules(rows, vocabulary, features, generator, dtype=torch.float32):
    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    out = {
        "seeds": torch.randint(-(2**62), 2**62, (rows,), generator=generator),
        "steps": torch.randint(0, 2**40, (rows,), generator=generator),
        "temperature": uniform(rows) + 0.3,
    }
    out["temperature"][3::7] = 0
    if "top_k" in features:
        out["top_k"] = (uniform(rows) * min(vocabulary, 60)).int()
    if "top_p" in features:
        out["top_p"] = (uniform(rows) * 1.2).clamp(max=1)
    if "min_p" in features:
        out["min_p"] = (uniform(rows) - 0.3).clamp(min=0)
    if "forbidden" in features:
        out["forbidden"] = torch.randint(-1, vocabulary, (rows, 3), generator=generator)
    if "penalties" in features:
        out["seen"] = torch.randint(0, 4, (rows, vocabulary), generator=generator, dtype=torch.uint8)
        out["repetition_penalty"] = uniform(rows) + 0.6
        out["presence_penalty"] = uniform(rows) - 0.2
    return out


def check(logits, arguments):
    got = sample_tokens(logits, **arguments, backend="triton")
    want = sample_tokens(logits, **arguments, backend="torch")
    assert got[0].tolist() == want[0].tolist()
    torch.testing.assert_close(got[1], want[1], rtol=2e-6, atol=4e-6)
    torch.testing.assert_close(got[2], want[2], rtol=2e-6, atol=4e-6)


SINGLE = [(), ("forbidden",), ("penalties",), ("top_k",), ("top_p",), ("min_p",)]
ALL = ("top_k", "top_p", "min_p", "forbidden", "penalties")


@pytest.mark.parametrize(
    "features", [(), ("forbidden",), ("penalties",), ("top_k",), ("top_p",), ("min_p",), ALL]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_reference_on_small_vocabularies(features, dtype):
    generator = torch.Generator().manual_seed(len(features))
    for rows, vocabulary in ((5, 300), (9, 7), (1, 1)):
        logits = (torch.randn(rows, vocabulary * 2, generator=generator) * 3).to(dtype)[:, :vocabulary]
        if vocabulary == 7:
            logits = logits.round()  # ties
        if vocabulary < 10:  # three random ids could be all there are
            features = [name for name in features if name != "forbidden"]
        check(logits, rules(rows, vocabulary, features, generator))


@pytest.mark.parametrize(("rows", "vocabulary", "truncated"), [(100, 4096, False), (30, 1024, True)])
def test_many_rows(rows, vocabulary, truncated):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(rows, vocabulary, generator=generator) * 2
    features = ("top_k", "top_p", "penalties") if truncated else ("forbidden",)
    check(logits, rules(rows, vocabulary, features, generator))


@pytest.mark.parametrize("features", [("forbidden",), ("top_p",)])
def test_the_real_vocabulary(features):
    generator = torch.Generator().manual_seed(6)
    rows = 8 if features == ("forbidden",) else 2
    check(torch.randn(rows, 151_936, generator=generator) * 3, rules(rows, 151_936, features, generator))


@pytest.mark.parametrize(
    "kind", ["flat", "ties", "peaked", "few finite", "equal", "far apart", "far from 0", "beyond the grid"]
)
def test_thresholds_over_several_tiles(kind):
    """Lists of few and of all ids, thresholds in any bin of the counts, masses from nothing to nearly all."""
    generator = torch.Generator().manual_seed(8)
    rows, vocabulary = 6, 9000
    logits = torch.randn(rows, vocabulary, generator=generator)
    if kind == "ties":
        logits = (logits * 2).round()
    if kind == "peaked":
        logits[:, 100:120] += 15
    if kind == "few finite":
        logits[torch.rand(rows, vocabulary, generator=generator) < 0.995] = -torch.inf
    if kind == "equal":
        logits[:] = 1.5
    if kind == "far apart":  # most scores lie below all bins but the last
        logits *= 40
    if kind == "far from 0":
        logits += 3e4
    if kind == "beyond the grid":  # where steps of the grid are lost in rounding
        logits += 3e5
    arguments = rules(rows, vocabulary, (), generator)
    check(logits, {**arguments, "top_k": torch.tensor([1, 20, 1500, 9000, 0, 3], dtype=torch.int32)})
    check(logits, {**arguments, "top_p": torch.tensor([0.0, 0.3, 0.9, 0.9999, 1.0, 0.99999999])})
    both = {"top_k": torch.tensor([0, 20, 1500, 9000, 4, 1], dtype=torch.int32)}
    check(logits, {**arguments, **both, "top_p": torch.tensor([0.5, 0.5, 0.9, 1.0, 0.1, 0.9])})


def test_min_p_beside_and_inside_the_others():
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(8, 9000, generator=generator) * 2
    arguments = rules(8, 9000, (), generator) | {
        "top_k": torch.tensor([0, 30, 2000, 0, 30, 2000, 9000, 1], dtype=torch.int32),
        "top_p": torch.tensor([0.9, 0.9, 0.99, 0.9, 1.0, 0.5, 0.95, 0.9]),
    }
    for fractions in ([0.5] * 8, [1e-6] * 8, [0.0, 0.02, 0.0, 0.0, 0.3, 0.05, 0.01, 1.0]):
        check(logits, arguments | {"min_p": torch.tensor(fractions)})


def test_a_row_does_not_depend_on_the_others():
    generator = torch.Generator().manual_seed(12)
    logits = torch.randn(5, 9000, generator=generator) * 3
    arguments = rules(5, 9000, ALL, generator)
    together = sample_tokens(logits, **arguments, backend="triton")
    for row in range(5):
        alone = {name: values[row : row + 1] for name, values in arguments.items()}
        for got, want in zip(sample_tokens(logits[row : row + 1], **alone, backend="triton"), together):
            assert torch.equal(got, want[row : row + 1])


@pytest.mark.parametrize(
    ("rule", "most"),
    [({"top_k": torch.full((2,), 20, dtype=torch.int32)}, 100), ({"top_p": torch.full((2,), 0.9)}, 12_000)],
)
def test_few_scores_are_listed(rule, most, monkeypatch):
    """The counts of the first read leave a bin to top-k, and three or four to top-p."""
    module = importlib.import_module("fourdthinker.kernels.sample_tokens")
    lists = []

    class Recorded:
        def __getitem__(self, grid):
            def run(*args, **options):
                kernel[grid](*args, **options)
                lists.append(args[kernel.arg_names.index("plan_ptr")][:, options["PARTS"]].tolist())

            return run

    kernel = module.sample_bracket_kernel
    monkeypatch.setattr(module, "sample_bracket_kernel", Recorded())
    logits = torch.randn(2, 151_936, generator=torch.Generator().manual_seed(13)) * 2
    names = torch.arange(2)
    check(logits, {"seeds": names, "steps": names, "temperature": torch.ones(2)} | rule)
    assert all(0 < listed <= most for listed in lists[0]), lists


def test_extremes_and_no_rows():
    logits = torch.full((2, 9), -torch.inf, dtype=torch.bfloat16)
    logits[0, 4], logits[1, 2], logits[1, 6] = -3e38, 0.0, -0.0
    arguments = {
        "seeds": torch.tensor([1, 2]), "steps": torch.tensor([0, 1]), "temperature": torch.ones(2),
        "top_k": torch.ones(2, dtype=torch.int32), "top_p": torch.tensor([0.0, 0.5]),
    }  # fmt: skip
    check(logits, arguments)
    empty = {k: v[:0] for k, v in arguments.items()}
    assert sample_tokens(logits[:0], **empty, backend="triton")[0].shape == (0,)
    plain = {k: arguments[k] for k in ("seeds", "steps", "temperature")}
    with pytest.raises(ValueError, match="logits of row 1"):
        sample_tokens(torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]), **plain, backend="triton")
