"""Cross entropy of logits that exist already, in two reads and one write of the rows that count."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from ._common import accumulation_dtype, check_flags, check_integer, check_tensors, reciprocal
from ._logits import TokenStatistics
from .logprobs import logprobs


@overload
def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    num_items: Tensor | float | None = None,
    temperature: float = 1.0,
    return_statistics: Literal[False] = False,
    inplace_backward: bool = False,
    backend: str = "auto",
) -> Tensor: ...
@overload
def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    num_items: Tensor | float | None = None,
    temperature: float = 1.0,
    return_statistics: Literal[True],
    inplace_backward: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, TokenStatistics]: ...
@overload
def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    num_items: Tensor | float | None = None,
    temperature: float = 1.0,
    return_statistics: bool,
    inplace_backward: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, TokenStatistics]: ...
def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    num_items: Tensor | float | None = None,
    temperature: float = 1.0,
    return_statistics: bool = False,
    inplace_backward: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, TokenStatistics]:
    """``sum of -log softmax(logits / temperature)[target] / num_items`` over targets not ``ignore_index``.

    Precision, launches and the gradient are those of ``logprobs``; there is no host synchronisation. Where
    the logits do not exist yet, ``linear_cross_entropy`` never makes them all.

    Args:
        logits: [N, V] or [B, T, V].
        target: [N] or [B, T] int64, already aligned: entry i is what row i predicts.
        ignore_index: rows with this target are not read.
        num_items: the global normaliser, a number or a scalar tensor, 0 or more; None: the number of rows
            that count.
        temperature: divides the logits; above 0.
        return_statistics: as in ``linear_cross_entropy``.
        inplace_backward: as in ``logprobs``.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        The scalar float32 loss (float64 for float64 logits); without rows that count it is 0, part of the
        graph, with zero gradients. With ``return_statistics`` a pair, as ``linear_cross_entropy``.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit.
    """
    check_tensors(logits=logits, target=target)
    check_integer("ignore_index", ignore_index)
    check_flags(return_statistics=return_statistics)
    mask = target != ignore_index
    found = logprobs(
        logits, target, mask=mask, temperature=temperature, return_statistics=return_statistics,
        inplace_backward=inplace_backward, backend=backend,
    )  # fmt: skip
    values, statistics = found if isinstance(found, tuple) else (found, ())
    count = mask.sum()
    scale = reciprocal(count if num_items is None else num_items, logits, accumulation_dtype(logits))
    loss = -torch.sum(values) * scale
    means = (each.detach().sum() / count.clamp(min=1) for each in statistics)
    return (loss, TokenStatistics(*means)) if return_statistics else loss
