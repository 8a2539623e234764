"""What several ops share: op names, the choice of backend, precision, the global normaliser."""

from __future__ import annotations

import math
import os

import torch
import triton
from torch import Tensor

if __name__.startswith("kernels."):
    raise ImportError(
        "import fourdthinker.kernels: the folder has one name, under which its ops are registered"
    )
NAMESPACE = f"{__name__.partition('.')[0]}_kernels"  # tests copy the folder to a package of another name
BACKENDS = ("auto", "triton", "torch")


def use_triton(backend: str, tensor: Tensor) -> bool:
    """Whether the Triton kernels run: on CUDA tensors, or anywhere when asked for (CPU: the interpreter).

    float64 is for checking the references and never takes a kernel.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; use one of {BACKENDS}")
    if backend == "auto":
        return tensor.is_cuda and tensor.dtype != torch.float64
    if backend == "triton" and tensor.dtype == torch.float64:
        raise ValueError("backend is 'triton' but the tensors are float64; use 'auto' or 'torch' for those")
    if backend == "triton" and not tensor.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"backend is 'triton' but the tensors are on {tensor.device}; move them to CUDA, or set "
            "TRITON_INTERPRET=1 before importing the kernels"
        )
    return backend == "triton"


def tile(width: int, largest: int) -> int:
    """The power of two that covers ``width``, at most ``largest``."""
    return min(triton.next_power_of_2(max(width, 1)), largest)


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 when any tensor is float64 (so that gradcheck works), float32 otherwise."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def reciprocal(num_items: Tensor | float, like: Tensor, dtype: torch.dtype) -> Tensor:
    """``1 / num_items`` as a scalar tensor on ``like``'s device, and 0 where ``num_items`` is 0.

    A tensor is not looked at from the host, so this never synchronises: one that is NaN, infinite or negative
    gives NaN, and with ``FOURDTHINKER_DEBUG=1`` a ``ValueError``.
    """
    if not isinstance(num_items, Tensor):
        if not 0 <= num_items < math.inf:
            raise ValueError(f"num_items is {num_items}; pass a finite number of items, zero or more")
        return torch.full((), 1.0 / num_items if num_items else 0.0, dtype=dtype, device=like.device)
    if num_items.numel() != 1:
        raise ValueError(f"num_items has shape {tuple(num_items.shape)}; pass a number or a scalar")
    items = num_items.detach().reshape(()).to(device=like.device, dtype=dtype)
    if debugging() and not 0 <= float(items) < math.inf:
        raise ValueError(f"num_items is {float(items)}; pass a finite number of items, zero or more")
    broken = torch.where((items >= 0) & (items < math.inf), 0.0, math.nan).to(dtype)
    return torch.where(items > 0, 1.0 / items.clamp(min=torch.finfo(dtype).tiny), 0.0) + broken


def check_finite(**values: float | None) -> None:
    """Raise ``ValueError`` naming the first coefficient that is NaN or infinite."""
    for name, value in values.items():
        # Not math.isfinite, on which torch.compile breaks once a number has changed between calls.
        if value is not None and not -math.inf < value < math.inf:
            raise ValueError(f"{name} is {value}; pass a finite number")


def check_floating(**tensors: Tensor | None) -> None:
    """Raise ``ValueError`` naming the first tensor that holds no floating-point numbers."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}; it must hold floating-point numbers")


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer, at least ``least``."""
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be an integer, at least {least}")


def check_integer(name: str, value: object) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer."""
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be an integer")


def debugging() -> bool:
    """Whether values on the device are checked, which waits for it."""
    return os.environ.get("FOURDTHINKER_DEBUG") == "1"


def readable(values: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device; those of a traced call do not exist."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def check_range(
    name: str, values: Tensor, low: int, high: int, *, at: Tensor | None = None, where: Tensor | None = None
) -> None:
    """Raise ``ValueError`` unless all ``values`` are in [low, high).

    Values on a device are looked at only with ``FOURDTHINKER_DEBUG=1``, which waits for it; those of a traced
    call do not exist. ``at`` (indices) and after it ``where`` (bool) say which of them matter.
    """
    if not debugging() and not readable(values):
        return
    values = values if at is None else values[at]
    values = values if where is None else values[where]
    if values.numel() == 0:
        return
    smallest, largest = int(values.min()), int(values.max())
    if smallest < low or largest >= high:
        raise ValueError(f"{name} has values from {smallest} to {largest}; they must be in [{low}, {high})")
