"""shared_prefix_decode against scaled_dot_product_attention over each row's own concatenation."""

from __future__ import annotations

import pytest
import torch

from fourdthinker.kernels import shared_prefix_decode


def case(groups, size, heads, kv_heads, prompt, own, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(prompt)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    rows = groups * size
    tensors = [randn(rows, heads, width)]
    tensors += [randn(groups, kv_heads, prompt, width) for _ in range(2)]
    tensors += [randn(rows, kv_heads, own, width) for _ in range(2)]
    lengths = {
        "prompt_lengths": torch.randint(1, prompt + 1, (groups,), generator=generator),
        "lengths": torch.randint(1, own + 1, (rows,), generator=generator),
    }
    return tensors, lengths


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1, 1, 8), (2, 3, 4, 2, 11, 5, 8), (3, 2, 6, 6, 4, 9, 5)])
def test_equals_attention_over_the_concatenation(shape):
    (query, *cache), lengths = case(*shape)
    got = shared_prefix_decode(query, *cache, **lengths)
    repeat = shape[2] // shape[3]
    for row in range(query.shape[0]):
        group = row // shape[1]
        p, t = int(lengths["prompt_lengths"][group]), int(lengths["lengths"][row])
        key, value = (
            torch.cat((shared[group, :, :p], own[row, :, :t]), dim=1).repeat_interleave(repeat, dim=0)
            for shared, own in zip(cache[:2], cache[2:], strict=True)
        )
        want = torch.nn.functional.scaled_dot_product_attention(query[row][:, None], key, value)[:, 0]
        torch.testing.assert_close(got[row], want)


def test_positions_past_the_lengths_are_not_read_and_empty_rows_give_zero():
    (query, *cache), lengths = case(2, 2, 2, 1, 6, 4, 4)
    lengths["prompt_lengths"] = torch.tensor([0, 3])
    lengths["lengths"] = torch.tensor([0, 2, 0, 4], dtype=torch.int32)
    clean = shared_prefix_decode(query, *cache, **lengths)
    assert not clean[0].any()
    cache[0][1, :, 3:], cache[1][1, :, 3:] = torch.inf, torch.nan
    cache[2][1, :, 2:], cache[3][1, :, 2:] = torch.nan, torch.inf
    assert torch.equal(clean, shared_prefix_decode(query, *cache, **lengths))


def test_any_scale_autocast_and_nan_that_stays_visible():
    (query, *cache), lengths = case(2, 2, 4, 2, 6, 4, 4, torch.float32)
    plain = shared_prefix_decode(query, *cache, **lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(shared_prefix_decode(query, *cache, **lengths), plain)
    turned = shared_prefix_decode(-query, *cache, **lengths, scale=-0.5)
    torch.testing.assert_close(turned, shared_prefix_decode(query, *cache, **lengths, scale=0.5))
    prompt, own = int(lengths["prompt_lengths"][0]), int(lengths["lengths"][0])
    mean = torch.cat((cache[1][0, 0, :prompt], cache[3][0, 0, :own])).mean(dim=0)
    torch.testing.assert_close(shared_prefix_decode(query, *cache, **lengths, scale=0.0)[0, 0], mean)
    query[1] = torch.nan
    got = shared_prefix_decode(query, *cache, **lengths)
    assert got[1].isnan().all()
    assert torch.equal(got[2:], plain[2:])


def test_bad_input_is_named():
    (query, *cache), lengths = case(2, 2, 4, 2, 6, 4, 4)
    for message, arguments in [
        ("3 rows cannot be shared", (query[:3], *cache[:2], cache[2][:3], cache[3][:3])),
        ("4 query heads do not divide", (query, cache[0][:, :0], cache[1][:, :0], *cache[2:])),
        (r"value is \(4, 2, 3, 4\)", (query, *cache[:3], cache[3][:, :, :3])),
        ("key is torch.float32 but query", (query, *cache[:2], cache[2].float(), cache[3])),
        (
            "last dimension must be dense",
            (query, cache[0].transpose(2, 3).contiguous().transpose(2, 3), *cache[1:]),
        ),
        (r"must be \[R, heads, D\]", (query[0], *cache)),
    ]:
        with pytest.raises(ValueError, match=message):
            shared_prefix_decode(*arguments, **lengths)
    with pytest.raises(ValueError, match=r"lengths is torch\.float32"):
        shared_prefix_decode(query, *cache, **{**lengths, "lengths": torch.ones(4)})
    with pytest.raises(ValueError, match="scale is nan"):
        shared_prefix_decode(query, *cache, **lengths, scale=float("nan"))
