"""What several ops share: op names, the choice of backend, precision, the global normaliser."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd import function

if __name__.startswith("kernels."):
    raise ImportError(
        "import fourdthinker.kernels: the folder has one name, under which its ops are registered"
    )
NAMESPACE = f"{__name__.partition('.')[0]}_kernels"  # tests copy the folder to a package of another name
BACKENDS = ("auto", "triton", "torch")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (int, torch.SymInt)
NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
LARGEST = 1e38  # of a number: kernels take them as float32
COLDEST = 1e-38  # temperature: what is smaller is 0 where float32's denormal numbers are flushed


def use_triton(backend: str, tensor: Tensor) -> bool:
    """Whether the Triton kernels run: on CUDA tensors, or anywhere when asked for (CPU: the interpreter).

    float64 is for checking the references and never takes a kernel.
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"backend is {shown(backend)}; use one of {BACKENDS}")
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


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's, which refuses a second derivative only where the upstream gradient requires one itself.

    That of a loss is 1 and does not: its gradients would be constants, without a word, in whatever a caller
    with ``create_graph=True`` adds to the loss.
    """
    refusing = function.once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Any, *upstream: Tensor) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # whose graphs refuse it themselves
            upstream = tuple(each.detach().requires_grad_() for each in upstream)
        return refusing(ctx, *upstream)

    return run


def tile(width: int, largest: int) -> int:
    """The power of two that covers ``width``, at most ``largest``."""
    return min(triton.next_power_of_2(max(width, 1)), largest)


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 when any tensor is float64 (so that gradcheck works), float32 otherwise."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def reciprocal(items: Tensor | float, like: Tensor, dtype: torch.dtype, name: str = "num_items") -> Tensor:
    """``1 / items`` as a scalar tensor on ``like``'s device, and 0 where ``items`` is 0.

    Raises ``ValueError``, with ``name``, for a number that is NaN, infinite or negative. A tensor on a
    device is read only with ``FOURDTHINKER_DEBUG=1``, which waits for it; without, such a number gives NaN.
    """
    smallest = torch.finfo(dtype).tiny
    if not isinstance(items, Tensor):
        check_number(name, items, minimum=0)
        rate = 1.0 / max(items, smallest) if items else 0.0
        return torch.full((), rate, dtype=dtype, device=like.device)
    if items.numel() != 1 or items.dtype == torch.bool or items.is_complex():
        raise ValueError(f"{name} is {tuple(items.shape)} {items.dtype}; pass a number or a scalar tensor")
    checked = debugging() or readable(items)
    items = items.detach().reshape(()).to(device=like.device, dtype=dtype)
    if checked and not 0 <= float(items) < math.inf:
        raise ValueError(f"{name} is {float(items)}; pass a finite number of items, zero or more")
    broken = torch.where((items >= 0) & (items < math.inf), 0.0, math.nan).to(dtype)
    return torch.where(items > 0, 1.0 / items.clamp(min=smallest), 0.0) + broken


def check_tensors(*optional: str, **tensors: object) -> None:
    """Raise ``ValueError`` unless all are dense tensors on one device; those named first may be None."""
    first: tuple[str, Tensor] | None = None
    for name, value in tensors.items():
        if value is None and name in optional:
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is {shown(value)}; pass a tensor{' or None' * (name in optional)}")
        if hasattr(value, "full_tensor"):
            raise ValueError(f"{name} is a DTensor; pass {name}.to_local() or {name}.full_tensor()")
        if value.layout != torch.strided:
            raise ValueError(f"{name} is a {value.layout} tensor; pass a dense one, {name}.to_dense()")
        first = first or (name, value)
        if value.device != first[1].device:
            raise ValueError(
                f"{name} is on {value.device} but {first[0]} is on {first[1].device}; move one of them"
            )


def check_inference(op: str, **tensors: Tensor | None) -> None:
    """Raise ``ValueError`` where autograd would want a gradient of an op that has none, on any backend."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise ValueError(
                f"{op} has no gradient, but {name} requires one; call it under torch.no_grad(), or pass "
                f"{name}.detach()"
            )


def check_floating(**tensors: Tensor | None) -> None:
    """Raise ``ValueError`` naming the first tensor whose dtype is none of ``FLOATS``."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in FLOATS:
            raise ValueError(
                f"{name} is {tensor.dtype}; it must hold floating-point numbers of 16, 32 or 64 bits"
            )


def check_number(
    name: str,
    value: object,
    *,
    minimum: float | None = None,
    above: float | None = None,
    integer: bool = False,
    optional: bool = False,
) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number in range, or None where that is allowed.

    A bool is no number here. ``LARGEST`` bounds all numbers, since kernels take them as float32.

    Args:
        name: of the argument, for the message.
        value: what was given.
        minimum: the least number that is allowed; None: no bound.
        above: a number that is too small by itself; None: no bound.
        integer: whether it must be an integer.
        optional: whether it may be None.
    """
    if value is None and optional:
        return
    if not isinstance(value, INTEGERS if integer else NUMBERS) or isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}; pass {'an integer' if integer else 'a number'}")
    # Not math.isfinite, on which torch.compile breaks once a number has changed between calls.
    bound = 2**63 if isinstance(value, INTEGERS) else LARGEST
    if not -bound < value < bound:
        raise ValueError(f"{name} is {shown(value)}; pass a finite number, below {bound:g}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} is {value}; it must be {minimum} or more")
    if above is not None and value <= above:
        raise ValueError(f"{name} is {value}; it must be above {above}")


def check_temperature(value: object) -> None:
    """Raise ``ValueError`` for what no logits can be divided by in float32."""
    check_number("temperature", value, minimum=COLDEST)


def check_integer(name: str, value: object, *, least: int = -(2**63)) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of 64 bits, at least ``least``."""
    if not isinstance(value, INTEGERS) or isinstance(value, bool) or not least <= value < 2**63:
        bound = "" if least < 0 else f", at least {least}"
        raise ValueError(f"{name} is {shown(value)}; it must be an integer{bound}")


def check_flags(**flags: object) -> None:
    """Raise ``ValueError`` naming the first that is not True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {shown(value)}; pass True or False")


def shown(value: object) -> str:
    """An argument as a message shows it: short, and never an error of its own."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} {value.dtype}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    text = " ".join(repr(value).split())
    kind = "" if value is None or isinstance(value, (int, float, str)) else f" ({type(value).__name__})"
    return f"{text if len(text) <= 40 else text[:37] + '...'}{kind}"


def debugging() -> bool:
    """Whether values on the device are checked, which waits for it."""
    return os.environ.get("FOURDTHINKER_DEBUG") == "1"


def readable(values: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device; those of a traced call do not exist."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def debug_ranges(**values: tuple[Tensor | None, int]) -> None:
    """With ``FOURDTHINKER_DEBUG=1``, on the CPU too: ``ValueError`` unless all are in [0, their bound).

    For what every layer of a decode step calls.
    """
    for name, (tensor, bound) in values.items():
        if debugging() and tensor is not None:
            check_range(name, tensor, 0, bound)


def check_range(
    name: str, values: Tensor, low: int, high: int, *, rows: Tensor | None = None, where: Tensor | None = None
) -> None:
    """Raise ``ValueError`` unless all ``values`` are in [low, high).

    Values on a device are read only with ``FOURDTHINKER_DEBUG=1``, which waits for it; those of a traced call
    do not exist.

    Args:
        name: of the argument, for the message.
        values: integers of any shape.
        low: the least that is allowed.
        high: the least that is too large.
        rows: int64 indices into the first dimension of those that matter; None: all.
        where: bool, of the shape of what ``rows`` leaves: those that matter; None: all.
    """
    if not debugging() and not readable(values):
        return
    values = values if rows is None else values[rows]
    values = values if where is None else values[where]
    if values.numel() == 0:
        return
    smallest, largest = int(values.min()), int(values.max())
    if smallest < low or largest >= high:
        raise ValueError(f"{name} has values from {smallest} to {largest}; they must be in [{low}, {high})")


def check_distinct(name: str, indices: Tensor) -> None:
    """Raise ``ValueError`` where one of the ``indices`` [M], 0 or more, comes twice; as ``check_range``."""
    if indices.numel() == 0 or not (debugging() or readable(indices)):
        return
    times = torch.bincount(indices)
    if int(times.max()) > 1:
        raise ValueError(f"{name} has {int(times.argmax())} {int(times.max())} times; pass each index once")
