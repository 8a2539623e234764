"""Log-probabilities (and entropies) of chosen ids under logits that exist already."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from ._common import (
    NAMESPACE,
    accumulation_dtype,
    check_flags,
    check_floating,
    check_range,
    check_temperature,
    check_tensors,
    once_differentiable,
    use_triton,
)
from ._logits import MORE, TokenStatistics, empty_rows, grad_, rows_of, stats


def _blocks(target: Tensor, mask: Tensor | None, vocabulary: int) -> list[tuple[Tensor, ...]]:
    """Indices into the leading dimensions of the rows that count, about a million logits at a time."""
    kept = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
    return list(
        zip(*(index.split(max(1, 2**20 // max(vocabulary, 1))) for index in kept.nonzero(as_tuple=True)))
    )


def _reference(
    logits: Tensor, target: Tensor, mask: Tensor | None, temperature: float, with_entropy: bool,
    with_more: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    wide = accumulation_dtype(logits)
    logprobs = torch.zeros(target.shape, dtype=wide, device=logits.device)
    normalisers = torch.zeros_like(logprobs)
    entropies = torch.zeros_like(logprobs) if with_entropy else logprobs.new_empty(0)
    more = logprobs.new_zeros(len(MORE), *target.shape) if with_more else logprobs.new_empty(0)
    for rows in _blocks(target, mask, logits.shape[-1]):
        z = logits[rows].to(wide).div_(temperature)
        normaliser = z.logsumexp(dim=1)
        normalisers[rows] = normaliser
        chosen = z.gather(1, target[rows][:, None])[:, 0]
        logprobs[rows] = chosen - normaliser
        if with_more:
            sum_p2 = (z - normaliser[:, None]).exp_().square_().sum(dim=1)
            top1 = (chosen >= z.amax(dim=1)).to(wide)
            for values, found in zip(more, (top1, sum_p2, z.mean(dim=1)), strict=True):
                values[rows] = found
        if with_entropy:
            log_p = z.sub_(normaliser[:, None])
            # A logit of -inf has probability 0 and adds nothing; 0 * -inf would be NaN.
            entropies[rows] = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(dim=1)
    return logprobs, normalisers, entropies, more


def _reference_grad_(
    grad: Tensor, logits: Tensor, target: Tensor, mask: Tensor | None, normalisers: Tensor,
    entropies: Tensor, grad_logprobs: Tensor, grad_entropies: Tensor | None, temperature: float,
) -> None:  # fmt: skip
    wide = accumulation_dtype(logits)
    if mask is not None:
        grad.masked_fill_(~mask[..., None], 0.0)
    for rows in _blocks(target, mask, logits.shape[-1]):
        log_p = logits[rows].to(wide).div_(temperature).sub_(normalisers[rows][:, None])
        p, upstream = log_p.exp(), grad_logprobs[rows].to(wide)[:, None]
        slope = upstream
        if grad_entropies is not None:
            surprise = log_p.masked_fill_(p == 0, 0.0).add_(entropies[rows][:, None])
            slope = upstream + surprise.mul_(grad_entropies[rows].to(wide)[:, None])
        dz = p.mul_(slope).neg_().scatter_add_(1, target[rows][:, None], upstream).div_(temperature)
        grad[rows] = dz.to(grad.dtype)


@torch.library.custom_op(f"{NAMESPACE}::logprobs", mutates_args=())
def _forward_op(
    logits: Tensor, target: Tensor, mask: Tensor | None, temperature: float, with_entropy: bool,
    with_more: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Log-probabilities, log normalisers, entropies and ``MORE`` (empty unless asked for), as ``target``."""
    if not use_triton(backend, logits):
        return _reference(logits, target, mask, temperature, with_entropy, with_more)
    logprobs, normalisers, entropies, more = stats(
        logits, target, mask, 1.0 / temperature, with_entropy, with_more=with_more
    )  # fmt: skip
    return (
        logprobs, normalisers, logprobs.new_empty(0) if entropies is None else entropies,
        logprobs.new_empty(0) if more is None else more,
    )  # fmt: skip


@_forward_op.register_fake
def _(
    logits: Tensor, target: Tensor, mask: Tensor | None, temperature: float, with_entropy: bool,
    with_more: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    values = torch.empty(target.shape, dtype=accumulation_dtype(logits), device=logits.device)
    more = values.new_empty(len(MORE), *target.shape) if with_more else values.new_empty(0)
    entropies = torch.empty_like(values) if with_entropy else values.new_empty(0)
    return values, torch.empty_like(values), entropies, more


@torch.library.custom_op(f"{NAMESPACE}::logprobs_backward_", mutates_args=("grad",))
def _backward_op(
    grad: Tensor,
    logits: Tensor | None,
    target: Tensor,
    mask: Tensor | None,
    normalisers: Tensor,
    entropies: Tensor,
    grad_logprobs: Tensor,
    grad_entropies: Tensor | None,
    temperature: float,
    backend: str,
) -> None:
    """Write the gradient of the logits into ``grad``; without ``logits`` that is where they are."""
    source = grad if logits is None else logits
    if use_triton(backend, grad):
        grad_(
            grad, source, target, mask, normalisers, entropies, grad_logprobs, grad_entropies,
            1.0 / temperature, has_padding=logits is not None,
        )  # fmt: skip
    else:
        _reference_grad_(
            grad, source, target, mask, normalisers, entropies, grad_logprobs, grad_entropies, temperature
        )


@_backward_op.register_fake
def _(*arguments: object) -> None:
    return None


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        mask: Tensor | None,
        temperature: float,
        with_entropy: bool,
        with_more: bool,
        inplace_backward: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logprobs, normalisers, entropies, more = _forward_op(
            logits, target, mask, temperature, with_entropy, with_more, backend
        )
        ctx.save_for_backward(logits, target, mask, normalisers, entropies)
        ctx.temperature, ctx.with_entropy, ctx.backend = temperature, with_entropy, backend
        ctx.inplace = inplace_backward
        ctx.mark_non_differentiable(*([more] if with_entropy else [more, entropies]))
        return logprobs, entropies, more

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        logits, target, mask, normalisers, entropies = ctx.saved_tensors
        grad = logits.detach() if ctx.inplace else empty_rows(logits.shape, logits.dtype, logits.device)
        _backward_op(
            grad, None if ctx.inplace else logits, target, mask, normalisers, entropies, grad_logprobs,
            grad_entropies if ctx.with_entropy else None, ctx.temperature, ctx.backend,
        )  # fmt: skip
        return grad, None, None, None, None, None, None, None


@overload
def logprobs(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    return_entropy: Literal[False] = False,
    inplace_backward: bool = False,
    backend: str = "auto",
) -> Tensor: ...
@overload
def logprobs(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    return_entropy: Literal[True],
    inplace_backward: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...
@overload
def logprobs(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    return_entropy: bool,
    inplace_backward: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]: ...
@overload
def logprobs(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    return_entropy: Literal[False] = False,
    return_statistics: Literal[True],
    inplace_backward: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, TokenStatistics]: ...
@overload
def logprobs(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    return_entropy: bool = False,
    return_statistics: bool = False,
    inplace_backward: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, TokenStatistics]: ...
def logprobs(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    return_entropy: bool = False,
    return_statistics: bool = False,
    inplace_backward: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, TokenStatistics]:
    """``log softmax(logits / temperature)[target]``, and the entropy of that softmax if asked for.

    One launch that reads the rows in ``mask`` once; the backward is one more that reads them once and writes
    the gradient, 0 outside ``mask``, without a host synchronisation (the reference finds the rows with one).
    Where the logits do not exist yet, ``linear_logprobs`` never makes them all.

    Args:
        logits: [N, V] or [B, T, V], float32, float16 or bfloat16; a slice (``logits[:, :-1]``) is taken as it
            lies.
        target: [N] or [B, T] int64; entry i is what row i predicts.
        mask: bool, shaped as ``target``; entries where it is false are not read. None: all are.
        temperature: divides the logits; above 0.
        return_entropy: whether the entropy is returned too.
        return_statistics: whether ``TokenStatistics`` are returned too, entropy included, from the same read.
        inplace_backward: whether the gradient takes the memory of the logits, which saves as much as they
            have: nothing else may need them afterwards, and autograd raises if it does.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        Log-probabilities, float32 (float64 for float64 logits), shaped as ``target``; with ``return_entropy``
        a pair with the entropies in nats, with ``return_statistics`` a pair with ``TokenStatistics``. Masked
        entries are 0 and may hold any target.

    Raises:
        ValueError: shapes, dtypes, devices or the temperature do not fit. Targets are range-checked on the
            CPU, and on CUDA with ``FOURDTHINKER_DEBUG=1`` because that synchronises.
    """
    check_tensors("mask", logits=logits, target=target, mask=mask)
    check_floating(logits=logits)
    check_temperature(temperature)
    check_flags(
        return_entropy=return_entropy, return_statistics=return_statistics, inplace_backward=inplace_backward
    )
    if logits.dim() not in (2, 3) or logits.shape[-1] == 0:
        raise ValueError(f"logits is {tuple(logits.shape)}; it must be [N, V] or [B, T, V] with a vocabulary")
    if target.shape != logits.shape[:-1] or target.dtype != torch.int64:
        raise ValueError(
            f"target is {tuple(target.shape)} {target.dtype}; it must be {tuple(logits.shape[:-1])} int64"
        )
    if mask is not None and (mask.shape != target.shape or mask.dtype != torch.bool):
        raise ValueError(f"mask is {tuple(mask.shape)} {mask.dtype}; it must be {tuple(target.shape)} bool")
    check_range("target", target, 0, logits.shape[-1], where=mask)
    shared = any(n > 1 and step < logits.shape[-1] for n, step in zip(target.shape, logits.stride()))
    if rows_of(logits) is None or (inplace_backward and shared):  # rows in one place have a gradient each
        logits = logits.contiguous()
    values, entropies, more = _Logprobs.apply(
        logits, target, mask, temperature, return_entropy or return_statistics, return_statistics,
        inplace_backward, backend,
    )  # fmt: skip
    if return_statistics:
        return values, TokenStatistics(entropies, *more)
    return (values, entropies) if return_entropy else values
