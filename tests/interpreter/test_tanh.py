"""The hyperbolic tangent of the soft cap, from the smallest to the largest numbers of float32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fourdthinker.kernels._logits import _tanh


@triton.jit
def tanh_kernel(given_ptr, made_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(made_ptr + at, _tanh(tl.load(given_ptr + at)))


def test_tanh_is_exact_to_some_units_in_the_last_place():
    size = torch.logspace(-38, 38, 4096, dtype=torch.float64)
    near = torch.linspace(0.0, 12.0, 4096, dtype=torch.float64)
    given = torch.cat((size, -size, near, -near)).float()
    made = torch.empty_like(given)
    tanh_kernel[(4,)](given, made, BLOCK=4096)
    torch.testing.assert_close(made.double(), given.double().tanh(), rtol=2.5 * 2.0**-23, atol=0)
    edges = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
    made = torch.empty_like(edges)
    tanh_kernel[(1,)](edges, made, BLOCK=4)
    torch.testing.assert_close(made, edges.tanh(), equal_nan=True)
