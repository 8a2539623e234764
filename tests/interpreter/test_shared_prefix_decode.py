"""The two kernels of shared-prefix decoding against float64."""

from __future__ import annotations

import pytest
import torch
from fourdthinker.kernels.shared_prefix_decode import shared_prefix_decode

from tests.interpreter.numerics import assert_close


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("groups", "size", "heads", "kv_heads", "prompt", "own"),
    [(1, 1, 1, 1, 1, 1), (2, 3, 4, 2, 70, 5), (1, 5, 16, 1, 1100, 66), (2, 2, 2, 2, 0, 3)],
)
def test_equals_the_reference(dtype, groups, size, heads, kv_heads, prompt, own):
    generator = torch.Generator().manual_seed(prompt)
    rows, width = groups * size, 16

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    query = randn(rows, heads, width)
    # Slices of longer caches, and beyond the lengths rubbish.
    cache = [randn(groups, kv_heads, prompt + 3, width)[:, :, :prompt] for _ in range(2)]
    cache += [randn(rows, own + 2, kv_heads, width).transpose(1, 2)[:, :, :own] for _ in range(2)]
    prompt_lengths = torch.randint(0, prompt + 1, (groups,), generator=generator, dtype=torch.int32)
    prompt_lengths[0] = prompt
    lengths = torch.randint(1, own + 1, (rows,), generator=generator)
    for group in range(groups):
        cache[0][group, :, int(prompt_lengths[group]) :] = torch.inf
        cache[1][group, :, int(prompt_lengths[group]) :] = torch.nan
    options = {"prompt_lengths": prompt_lengths, "lengths": lengths}
    got = shared_prefix_decode(query, *cache, **options, backend="triton")
    exact = shared_prefix_decode(query.double(), *[t.double() for t in cache], **options)
    assert_close(got, exact, ulps=1.5)


def test_nothing_to_attend_to_and_wrong_width():
    query, cache = torch.randn(2, 2, 16), torch.randn(1, 1, 4, 16)
    own = torch.randn(2, 1, 4, 16)
    zero = {"prompt_lengths": torch.zeros(1, dtype=torch.int32), "lengths": torch.tensor([0, 1])}
    got = shared_prefix_decode(query, cache, cache, own, own, **zero, backend="triton")
    assert not got[0].any()
    torch.testing.assert_close(got[1], own[1, :, 0].expand(2, 16))
    with pytest.raises(ValueError, match="query is 12 wide"):
        shared_prefix_decode(query[..., :12], cache[..., :12], cache[..., :12], own[..., :12], own[..., :12],
                             **zero, backend="triton")  # fmt: skip
