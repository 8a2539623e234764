"""When a kernel's result is as good as PyTorch's."""

from __future__ import annotations

import torch
from torch import Tensor

# Relative steps of the output dtype: float32 sums round, and the interpreter truncates bf16 on storing.
ULP = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def assert_close(got: Tensor, exact: Tensor, *, ulps: float = 1.0, floor: float = 1e-6) -> None:
    """RMS error relative to the RMS of the float64 value: within ``ulps`` steps of the dtype or ``floor``."""
    assert got.shape == exact.shape
    assert torch.isfinite(got).all()
    if not got.numel():
        return
    size = exact.double().square().mean().sqrt()
    error = (got.double() - exact.double()).square().mean().sqrt()
    limit = max(ulps * ULP[got.dtype], floor) * size
    assert error <= limit, f"RMS error {error / size:.3g} of the size, limit {limit / size:.3g}"
