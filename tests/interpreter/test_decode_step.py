"""The small kernels of a decode step: residual and norm, rotary embedding and cache, SiLU and product."""

from __future__ import annotations

import pytest
import torch

from fourdthinker.kernels import add_rms_norm, rotary_append_, silu_mul
from tests.interpreter.numerics import assert_close

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 33, 256])
def test_add_rms_norm(dtype, width):
    generator = torch.Generator().manual_seed(width)
    wide = torch.randn(3, 2 * width, generator=generator).to(dtype)
    x, weight = wide[:, :width], torch.randn(width, generator=generator).to(dtype)
    residual = torch.randn(3, width, generator=generator).to(dtype)
    for before in (residual, None):
        got, total = add_rms_norm(x, before, weight, 1e-6, backend="triton")
        exact, _ = add_rms_norm(total.double(), None, weight.double(), 1e-6)
        assert_close(got, exact, ulps=2.5)
        if before is None:
            assert total is x
        else:
            assert_close(total, x.double() + residual.double(), ulps=1.0)
    assert add_rms_norm(x[:0], None, weight, 1e-6, backend="triton")[0].shape == (0, width)
    assert not add_rms_norm(torch.zeros_like(x), None, weight, 1e-6, backend="triton")[0].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
def test_rotary_append(dtype, normed):
    generator = torch.Generator().manual_seed(int(normed))
    rows, heads, kv_heads, width, room = 3, 4, 2, 16, 9

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    query, key = randn(rows, heads, width), randn(rows, kv_heads * 2, width)[:, :kv_heads]
    value = randn(rows, kv_heads, width)
    angle = torch.randn(rows, width // 2, generator=generator).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    positions = torch.tensor([0, 8, 3])
    weights = {"query_weight": randn(width), "key_weight": randn(width)} if normed else {}
    caches = [randn(rows, room, kv_heads, width).transpose(1, 2) for _ in range(2)]
    before = [cache.clone() for cache in caches]
    got = rotary_append_(
        query, key, value, cos, sin, caches[0], caches[1], positions, **weights, backend="triton"
    )
    exact_caches = [cache.double() for cache in before]
    exact = rotary_append_(
        query.double(), key.double(), value.double(), cos.double(), sin.double(),
        exact_caches[0], exact_caches[1], positions,
        **{name: weight.double() for name, weight in weights.items()},
    )  # fmt: skip
    assert_close(got, exact, ulps=3.0)
    for cache, wanted, old in zip(caches, exact_caches, before, strict=True):
        for row, place in enumerate(positions.tolist()):
            assert_close(cache[row, :, place], wanted[row, :, place], ulps=3.0)
            cache[row, :, place] = old[row, :, place]
        assert torch.equal(cache, old)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype):
    generator = torch.Generator().manual_seed(0)
    gate, up = (4 * torch.randn(5, 666, generator=generator).to(dtype)).split(333, dim=1)
    gate[0, 0], gate[0, 1] = -1e4, 1e4
    got = silu_mul(gate, up, backend="triton")
    assert_close(got, torch.nn.functional.silu(gate.double()) * up.double(), ulps=2.0)
    assert silu_mul(gate[:0], up[:0], backend="triton").shape == (0, 333)
