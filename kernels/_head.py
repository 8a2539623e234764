"""What the ops on the language-model head share: the rows that count, chunking, and a chunk's logits."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from ._common import accumulation_dtype, check_finite


def chunk_size(rows: int, vocabulary: int, chunk_rows: int | None) -> int:
    """Rows of logits that exist at a time: a fixed rule, so that runs repeat on any machine."""
    if chunk_rows is not None:
        if chunk_rows < 1:
            raise ValueError(f"chunk_rows is {chunk_rows}; it must be at least 1")
        return chunk_rows
    return min(max(rows, 1), 2048 if vocabulary >= 65536 else 4096)


def check_head(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
) -> None:
    """Raise ``ValueError`` for shapes, dtypes, devices or coefficients that do not fit together."""
    check_finite(temperature=temperature, softcap=softcap)
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap is {softcap}; it must be above 0, or None for no cap")
    if input.dim() not in (2, 3) or weight.dim() != 2 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"input {tuple(input.shape)} must be [N, H] or [B, T, H] and weight {tuple(weight.shape)} [V, H]"
        )
    if target.shape != input.shape[:-1] or target.dtype != torch.int64:
        raise ValueError(
            f"target is {tuple(target.shape)} {target.dtype}; it must be {tuple(input.shape[:-1])} int64"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias is {tuple(bias.shape)}; it must be ({weight.shape[0]},)")
    for name, tensor in (("weight", weight), ("target", target), ("bias", bias)):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{name} is on {tensor.device} but input is on {input.device}; move one of them")


def check_rows(rows: Tensor) -> None:
    if rows.dim() != 1 or rows.dtype != torch.int64:
        raise ValueError(f"rows is {tuple(rows.shape)} {rows.dtype}; it must be [M] int64 flat indices")


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast would turn the float32 matmuls below back into low precision."""
    return torch.autocast(device.type, enabled=False)


class Head:
    """The head in accumulation precision: logits of a chunk, and from their gradient those of its inputs.

    With a = x . W^T + b, the soft-capped c = cap * tanh(a / cap) (or a), the scores are z = c / temperature.
    """

    def __init__(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, softcap: float | None
    ) -> None:
        self.dtype = accumulation_dtype(input, weight)
        self.weight = weight.to(self.dtype)
        self.bias = None if bias is None else bias.to(self.dtype)
        self.temperature = temperature
        self.softcap = softcap

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """z [m, V] of x [m, H] (in ``dtype``), and d c / d a when there is a soft cap."""
        z = x @ self.weight.T
        if self.bias is not None:
            z += self.bias
        slope = None
        if self.softcap is not None:
            z.div_(self.softcap).tanh_()
            slope = 1.0 - z * z
            z.mul_(self.softcap)
        if self.temperature != 1.0:
            z.div_(self.temperature)
        return z, slope

    def scores_grad_(self, dz: Tensor, slope: Tensor | None) -> Tensor:
        """Turn d loss / d z into d loss / d a, in place."""
        if self.temperature != 1.0:
            dz.div_(self.temperature)
        if slope is not None:
            dz.mul_(slope)
        return dz
