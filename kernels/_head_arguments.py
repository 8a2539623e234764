"""What the ops on the language-model head do before the matmuls: checks, the rows that count, chunk sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import (
    check_distinct,
    check_floating,
    check_integer,
    check_number,
    check_range,
    check_temperature,
    check_tensors,
    use_triton,
)

CONVERTED_IDS = 4096  # of a head of 16 bits, whose weights a CPU converts to float32


def chunk_size(rows: int, vocabulary: int, chunk_rows: int | None, *, on_cpu: bool = False) -> int:
    """Rows of logits that exist at a time: a fixed rule, so that runs repeat on any machine.

    On a GPU the matmuls want thousands of rows. On a CPU a hundred keep them nearly as fast, and a chunk is
    what stands beside all that a step keeps at its worst moment: it gets 50 MB of float32, unless that are
    fewer than 64 rows.

    Args:
        rows: all rows that there are.
        vocabulary: V, the logits in a row.
        chunk_rows: the caller's choice, at least 1; None: the rule decides.
        on_cpu: whether the matmuls run on a CPU.

    Returns:
        A number of rows, at least 1.

    Raises:
        ValueError: ``chunk_rows`` is no whole number above 0.
    """
    check_integer("rows", rows, least=0)
    check_integer("vocabulary", vocabulary, least=0)
    if chunk_rows is not None:
        check_integer("chunk_rows", chunk_rows, least=1)
        return chunk_rows
    if on_cpu:
        return min(max(rows, 1), max(64, min(4096, 12_500_000 // max(vocabulary, 1) // 8 * 8)))
    return min(max(rows, 1), 2048 if vocabulary >= 65536 else 4096)


def whole_head(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a head that may be sliced over ranks (``DTensor``: FSDP2, tensor parallelism).

    Gathering is collective, and so is the backward, which gives each rank its slice of the mean of all ranks'
    gradients, as FSDP2 does for the other weights.

    Args:
        weight: [V, H].
        bias: [V], or None.

    Returns:
        Both as plain tensors.

    Raises:
        ValueError: DeepSpeed ZeRO-3 holds the weight sliced; an op cannot gather it for its backward.
    """
    for name, tensor in (("weight", weight), ("bias", bias)):
        shape = tuple(getattr(tensor, "ds_shape", ()))
        if shape and tuple(tensor.shape) != shape:  # type: ignore[union-attr]
            raise ValueError(
                f"{name} {shape} is sliced over ranks by ZeRO-3; call the op and the backward of its loss "
                f"within `with deepspeed.zero.GatheredParameters({name}):`"
            )
    return _whole(weight), None if bias is None else _whole(bias)


def _whole(tensor: Tensor) -> Tensor:
    if not hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(tensor, DTensor)
    mesh = tensor.device_mesh
    full: Tensor = tensor.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if full.requires_grad:
        full.register_hook(lambda grad: grad / mesh.size())
    return full


def check_head(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
) -> None:
    """Raise ``ValueError`` for shapes, dtypes, devices or coefficients that do not fit together.

    Args:
        input: [N, H] or [B, T, H] floating.
        weight: [V, H] floating.
        target: [N] or [B, T] int64.
        bias: [V] floating, or None.
        temperature: as ``check_temperature``.
        softcap: above 0, or None.
    """
    check_tensors("bias", input=input, weight=weight, target=target, bias=bias)
    check_temperature(temperature)
    check_number("softcap", softcap, above=0, optional=True)
    check_floating(input=input, weight=weight, bias=bias)
    if len({tensor.dtype == torch.float64 for tensor in (input, weight, bias) if tensor is not None}) > 1:
        raise ValueError(
            f"input is {input.dtype}, weight {weight.dtype}{'' if bias is None else f', bias {bias.dtype}'}; "
            "make all of them float64, or none"
        )
    if input.dim() not in (2, 3) or weight.dim() != 2 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"input {tuple(input.shape)} must be [N, H] or [B, T, H] and weight {tuple(weight.shape)} [V, H]"
        )
    if weight.shape[1] == 0:
        raise ValueError(
            f"input is {tuple(input.shape)} and weight {tuple(weight.shape)}; hidden states need a width of 1"
        )
    if target.shape != input.shape[:-1] or target.dtype != torch.int64:
        raise ValueError(
            f"target is {tuple(target.shape)} {target.dtype}; it must be {tuple(input.shape[:-1])} int64"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias is {tuple(bias.shape)}; it must be ({weight.shape[0]},)")


def check_rows(rows: Tensor, target: Tensor) -> None:
    """Raise ``ValueError`` unless ``rows`` can be indices into the flat ``target``, all different.

    Values are looked at where ``check_range`` looks at them.

    Args:
        rows: [M] int64.
        target: [N] or [B, T] int64.
    """
    check_tensors(rows=rows)
    if rows.dim() != 1 or rows.dtype != torch.int64:
        raise ValueError(f"rows is {tuple(rows.shape)} {rows.dtype}; it must be [M] int64 flat indices")
    if rows.device != target.device:
        raise ValueError(f"rows is on {rows.device} but target is on {target.device}; move one of them")
    check_range("rows", rows, 0, target.numel())
    check_distinct("rows", rows)


def gather(x: Tensor, target: Tensor, chosen: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and targets of the rows ``chosen``; 0 where not ``counted``, whatever is there.

    Args:
        x: [N, H] floating.
        target: [N] int64.
        chosen: [m] int64, indices of rows.
        counted: [m] bool.

    Returns:
        [m, H] in the dtype of ``x``, and [m] int64.
    """
    return x[chosen].masked_fill_(~counted[:, None], 0.0), torch.where(counted, target[chosen], 0)


def matmul_rows(input: Tensor, backend: str) -> Tensor:
    """``input`` as [N, H], in the dtype of the matmuls.

    Where the kernels run that is autocast's under autocast, whatever the dtype of the weights: logits, sums
    and dW stay float32, and dx and dW go to leaves of any dtype. The plain head is float32 anyway.

    Args:
        input: [N, H] or [B, T, H] floating.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.
    """
    rows = input.reshape(-1, input.shape[-1])
    kind = rows.device.type
    if not use_triton(backend, rows) or rows.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return rows
    return rows.to(torch.get_autocast_dtype(kind))
