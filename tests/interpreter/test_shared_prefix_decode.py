"""The two kernels of shared-prefix decoding against float64."""

from __future__ import annotations

import pytest
import torch

from fourdthinker.kernels import shared_prefix_decode
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


@pytest.mark.parametrize("own", [5, 700])
def test_groups_of_any_size_in_one_pool(own):
    """Three prompts, one of them without rows, six rows in no order; own positions in one part and in two."""
    generator = torch.Generator().manual_seed(own)
    sizes, prompts, width = [2, 0, 4], [70, 9, 540], 16
    starts, longest = torch.tensor([40, 20, 120], dtype=torch.int32), 540
    query = torch.randn(6, 4, width, generator=generator)
    pool = [torch.randn(1, 2, 700, width, generator=generator) for _ in range(2)]
    cache = [torch.randn(6, 2, own, width, generator=generator) for _ in range(2)]
    order = torch.tensor([3, 1, 5, 0, 2, 4], dtype=torch.int32)
    row_starts = torch.tensor([0, 2, 2, 6], dtype=torch.int32)
    options = {
        "prompt_lengths": torch.tensor(prompts, dtype=torch.int32),
        "lengths": torch.randint(1, own + 1, (6,), generator=generator),
        "prompt_starts": starts, "order": order, "row_starts": row_starts, "longest": longest,
    }  # fmt: skip
    got = shared_prefix_decode(query, *pool, *cache, **options, backend="triton")
    wide = [t.double() for t in (*pool, *cache)]
    assert_close(got, shared_prefix_decode(query.double(), *wide, **options), ulps=1.5)
    for group, size in enumerate(sizes):
        begin, length = int(starts[group]), prompts[group]
        for row in order[row_starts[group] : row_starts[group] + size].tolist():
            own_length = int(options["lengths"][row])
            key, value = (
                torch.cat((shared[0, :, begin : begin + length], mine[row, :, :own_length]), dim=1)
                .repeat_interleave(2, dim=0)
                for shared, mine in zip(pool, cache, strict=True)
            )  # fmt: skip
            want = torch.nn.functional.scaled_dot_product_attention(query[row][:, None], key, value)[:, 0]
            torch.testing.assert_close(got[row], want, atol=2e-5, rtol=1e-5)


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
