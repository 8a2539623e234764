"""The two kernels over rows of logits: one read for log-probabilities, one read and write for the gradient.

With a the logits (a bias added), c = cap * tanh(a / cap) or a, and z = c / temperature, the log-probability
of id t in a row is z_t - n with n = log sum exp z, and the row's entropy n - sum p z with p = exp(z - n).
d logprob / d z = onehot - p and d entropy / d z = -p * (log p + entropy).
"""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import tile
from ._gpu_architectures import launching

INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))  # which knows no assembly
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


class TokenStatistics(NamedTuple):
    """What the read of a row of logits tells about its softmax; float32, one number a token."""

    entropy: Tensor  # nats; the only one with a gradient
    top1: Tensor  # 1 where no id has a larger logit than the token's, else 0
    sum_p2: Tensor  # sum of squared probabilities: the chance that two draws are the same id
    mean_logit: Tensor  # mean over the vocabulary of the logits after softcap and temperature


MORE = TokenStatistics._fields[1:]


class RowStats(NamedTuple):
    """What ``stats`` gives, each of the shape of the targets."""

    logprob: Tensor
    normaliser: Tensor  # log of the sum of exponentials
    entropy: Tensor | None
    more: Tensor | None  # [3, ...]: ``MORE``


@triton.jit
def _finite(value):
    return tl.where(value == float("-inf"), 0.0, value)


@triton.jit
def _exp2(value):
    """2 to the power of ``value``; 0 instead of a denormal number, which would cost three instructions."""
    if INTERPRETED:
        return tl.exp2(value)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [value], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def _reciprocal(value):
    """1 / ``value`` to one unit in the last place."""
    if INTERPRETED:
        return 1.0 / value
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [value], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def _tanh(y):
    """The hyperbolic tangent, to some units in the last place of float32.

    Near 0 the form with an exponential would lose the digits of y: below 0.55 it is y + y^3 p(y^2), whose p
    has the least largest relative error, 4e-8.
    """
    square = y * y
    p = (0.016437436 * square - 0.05267174) * square + 0.13320725
    near = y + y * (square * (p * square - 0.33332947))
    far = 1.0 - 2.0 * _reciprocal(1.0 + _exp2(y * (2.0 * LOG2_E)))
    return tl.where(square < 0.3025, near, far)


@triton.jit
def _capped(logits_ptr, bias_ptr, columns, inside, softcap, SOFTCAP: tl.constexpr):
    """Logits with their bias under the soft cap, -inf outside; None: all are inside."""
    if inside is None:
        score = tl.load(logits_ptr + columns).to(tl.float32)
    else:
        score = tl.load(logits_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
    if bias_ptr is not None:
        if inside is None:
            score += tl.load(bias_ptr + columns).to(tl.float32)
        else:
            score += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if SOFTCAP:
        score = softcap * _tanh(score * tl.div_rn(1.0, softcap))
        if inside is not None:
            score = tl.where(inside, score, float("-inf"))
    return score


@triton.jit
def _grown(lower, rate):
    """The exponent by which older sums are scaled down; they may be of nothing but -inf, and then are 0."""
    return tl.maximum(tl.minimum(lower, 0.0) * rate, -1000.0)


@triton.jit
def _accumulated(sums, score, inside, rate, ENTROPY: tl.constexpr, MORE: tl.constexpr):
    """The running figures of lanes [L] after scores [L, VECTOR] more, -inf where not ``inside`` (None: all).

    Of ``sums`` the first is the largest score, then come the sums of w = 2^((score - largest) rate), of
    w log2 w, of w^2 and of the scores.
    """
    top, total, moment, square, linear = sums
    highest = tl.maximum(top, tl.max(score, axis=1))
    shift = _finite(highest)
    exponent = (score - shift[:, None]) * rate
    weight = _exp2(exponent)
    grown = _grown(_finite(top) - shift, rate)
    scale = _exp2(grown)
    if ENTROPY:
        # 0 times -inf would be NaN.
        added = tl.sum(weight * tl.maximum(exponent, -1000.0), axis=1)
        moment = (moment + total * grown) * scale + added
    if MORE:
        square = square * scale * scale + tl.sum(weight * weight, axis=1)
        linear += tl.sum(score if inside is None else tl.where(inside, score, 0.0), axis=1)
    total = total * scale + tl.sum(weight, axis=1)
    return highest, total, moment, square, linear


@triton.jit
def _joined(sums, rate, ENTROPY: tl.constexpr, MORE: tl.constexpr):
    """The figures of all lanes together."""
    tops, total, moment, square, linear = sums
    top = tl.max(tops, axis=0)
    grown = _grown(_finite(tops) - _finite(top), rate)
    scale = _exp2(grown)
    if ENTROPY:
        moment = tl.sum((moment + total * grown) * scale, axis=0)
    if MORE:
        square = tl.sum(square * scale * scale, axis=0)
        linear = tl.sum(linear, axis=0)
    return top, tl.sum(total * scale, axis=0), moment, square, linear


@triton.jit(do_not_specialize=["length", "batch_rows", "rate", "softcap"])
def logits_stats_kernel(
    logits_ptr, batch_rows, row_stride: tl.constexpr, length, bias_ptr, target_ptr, mask_ptr, logprob_ptr,
    normaliser_ptr, entropy_ptr, more_ptr, rate, softcap, V: tl.constexpr, SOFTCAP: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0).to(tl.int64)
    counted = True
    if mask_ptr is not None:
        counted = tl.load(mask_ptr + row) != 0
    if counted:
        logits_ptr += (row // length * batch_rows + row % length) * row_stride
        LANES: tl.constexpr = BLOCK // VECTOR
        WHOLE: tl.constexpr = V // BLOCK * BLOCK
        ENTROPY: tl.constexpr = entropy_ptr is not None
        MORE: tl.constexpr = more_ptr is not None
        lanes = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
        fast = rate * LOG2_E
        zero = tl.zeros([LANES], tl.float32)
        sums = (tl.full([LANES], float("-inf"), tl.float32), zero, zero, zero, zero)
        for start in range(0, WHOLE, BLOCK):
            score = _capped(logits_ptr, bias_ptr, start + lanes, None, softcap, SOFTCAP)
            sums = _accumulated(sums, score, None, fast, ENTROPY, MORE)
        if WHOLE < V:
            columns = WHOLE + lanes
            score = _capped(logits_ptr, bias_ptr, columns, columns < V, softcap, SOFTCAP)
            sums = _accumulated(sums, score, columns < V, fast, ENTROPY, MORE)
        top, total, moment, square, linear = _joined(sums, fast, ENTROPY, MORE)
        target = tl.load(target_ptr + row)
        chosen = _capped(logits_ptr, bias_ptr, target, (target >= 0) & (target < V), softcap, SOFTCAP)
        tl.store(logprob_ptr + row, (chosen - top) * rate - tl.log(total))
        tl.store(normaliser_ptr + row, top * rate + tl.log(total))
        if ENTROPY:
            tl.store(entropy_ptr + row, tl.log(total) - moment / total * LN_2)
        if MORE:
            tl.store(more_ptr + row, (chosen >= top).to(tl.float32))
            tl.store(more_ptr + rows + row, square / (total * total))
            tl.store(more_ptr + 2 * rows + row, linear * rate / V)
    else:
        tl.store(logprob_ptr + row, 0.0)
        tl.store(normaliser_ptr + row, 0.0)
        if entropy_ptr is not None:
            tl.store(entropy_ptr + row, 0.0)
        if more_ptr is not None:
            for index in tl.static_range(3):
                tl.store(more_ptr + index * rows + row, 0.0)


@triton.jit
def _slopes(score, normaliser, fast, base, tilt, added, softcap, inside, SOFTCAP: tl.constexpr):
    """The gradient of logits, p (base + tilt log2 p) + added under the soft cap; ``added`` for the target."""
    # Not 2^(score fast - normaliser fast), one instruction less: that overflows for scores below -2.4e38.
    exponent = (score - normaliser) * fast
    grad = _exp2(exponent)
    if tilt is not None:
        # 0 times -inf would be NaN.
        grad *= base + tilt * tl.maximum(exponent, -1000.0)
    else:
        grad *= base
    if added is not None:
        grad += added
    if SOFTCAP:
        ratio = (score if inside is None else tl.where(inside, score, 0.0)) * tl.div_rn(1.0, softcap)
        grad *= 1.0 - ratio * ratio
    return grad


@triton.jit
def _write_slopes(
    grad_ptr, logits_ptr, bias_ptr, columns, inside, written, normaliser, fast, base, tilt, softcap,
    SOFTCAP: tl.constexpr,
):  # fmt: skip
    """``_slopes`` of a tile, of logits that are all ``inside`` where that is None, and likewise written."""
    score = _capped(logits_ptr, bias_ptr, columns, inside, softcap, SOFTCAP)
    grad = _slopes(score, normaliser, fast, base, tilt, None, softcap, inside, SOFTCAP)
    if grad_ptr.dtype.element_ty != logits_ptr.dtype.element_ty:
        # A narrower gradient in the memory of the logits: a tile then covers bytes that belonged to its own
        # logits or to earlier ones, which every warp must have read.
        tl.debug_barrier()
    tl.store(grad_ptr + columns, grad.to(grad_ptr.dtype.element_ty), mask=written)


@triton.jit
def _clear(grad_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        zero = tl.zeros([BLOCK], grad_ptr.dtype.element_ty)
        tl.store(grad_ptr + columns, zero, mask=columns < WIDTH)


@triton.jit(do_not_specialize=["length", "batch_rows", "grad_batch_rows", "rate", "softcap"])
def logits_grad_kernel(
    logits_ptr,
    batch_rows,
    row_stride: tl.constexpr,
    grad_ptr,
    grad_batch_rows,
    grad_row_stride: tl.constexpr,
    length,
    bias_ptr,
    target_ptr,
    mask_ptr,
    normaliser_ptr,
    entropy_ptr,
    grad_logprob_ptr,
    grad_entropy_ptr,
    rate,
    softcap,
    V: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    grad_ptr += (row // length * grad_batch_rows + row % length) * grad_row_stride
    lanes = tl.arange(0, BLOCK)
    counted = True
    if mask_ptr is not None:
        counted = tl.load(mask_ptr + row) != 0
    if counted:
        logits_ptr += (row // length * batch_rows + row % length) * row_stride
        WHOLE: tl.constexpr = V // BLOCK * BLOCK
        target = tl.load(target_ptr + row)
        target_inside = (target >= 0) & (target < V)
        normaliser = tl.div_rn(tl.load(normaliser_ptr + row), rate)
        upstream = tl.load(grad_logprob_ptr + row) * rate
        base = -upstream
        tilt = None
        if grad_entropy_ptr is not None:
            weight = tl.load(grad_entropy_ptr + row) * rate
            base -= weight * tl.load(entropy_ptr + row)
            tilt = -weight * LN_2
        fast = rate * LOG2_E
        chosen = _capped(logits_ptr, bias_ptr, target, target_inside, softcap, SOFTCAP)
        tl.debug_barrier()  # every warp has read it before another writes the gradient there
        for start in range(0, WHOLE, BLOCK):
            _write_slopes(
                grad_ptr, logits_ptr, bias_ptr, start + lanes, None, None, normaliser, fast, base, tilt,
                softcap, SOFTCAP,
            )  # fmt: skip
        if WHOLE < WIDTH:
            columns = WHOLE + lanes
            _write_slopes(
                grad_ptr, logits_ptr, bias_ptr, columns, columns < V, columns < WIDTH, normaliser, fast, base,
                tilt, softcap, SOFTCAP,
            )  # fmt: skip
        tl.debug_barrier()  # the target's comes last
        grad = _slopes(chosen, normaliser, fast, base, tilt, upstream, softcap, target_inside, SOFTCAP)
        tl.store(grad_ptr + target, grad.to(grad_ptr.dtype.element_ty), mask=target_inside)
    else:
        _clear(grad_ptr, WIDTH, BLOCK)


def padded(width: int) -> int:
    """Rows that we allocate begin on multiples of 16 elements, so that accesses stay 16 bytes wide."""
    return -(-width // 16) * 16


def rows_of(logits: Tensor) -> tuple[int, int] | None:
    """Where the rows of [N, V] or [B, T, V] begin: entry b and row t at (b * first + t) * second elements.

    A flat tensor has a row to the entry. None where that is not enough to say it. The second number is
    compiled into the kernels, so it shall not depend on lengths: ``logits[:, -1]`` has (T, V), not (1, T V).

    Args:
        logits: [N, V] or [B, T, V].

    Returns:
        (first, second), or None.
    """
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        return None
    between = logits.stride(0)
    row = logits.stride(1) if logits.dim() == 3 else 0
    if logits.dim() == 2 or logits.shape[1] <= 1:
        widths = (logits.shape[-1], padded(logits.shape[-1]), max(between, 1))
        row = next(width for width in widths if between % width == 0)
    elif logits.shape[0] <= 1:
        return 0, row
    return (between // row, row) if row and between % row == 0 else None


def empty_rows(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty tensor with ``padded`` rows.

    Args:
        shape: of the tensor, its last dimension V.
        dtype: of the tensor.
        device: of the tensor.

    Returns:
        A view of ``shape``.
    """
    return torch.empty(*shape[:-1], padded(shape[-1]), dtype=dtype, device=device)[..., : shape[-1]]


def in_memory_of(z: Tensor, dtype: torch.dtype) -> Tensor:
    """A view of the memory of ``z`` [m, V] as another, not wider ``dtype``, for a gradient that replaces z.

    It has z's shape, and its rows begin where z's rows begin, so that a kernel may write row by row what it
    has read.

    Args:
        z: [m, V], rows dense.
        dtype: at most as wide as that of z.
    """
    stride = z.stride(0) * z.element_size() // dtype.itemsize
    storage = z.as_strided((z.shape[0], z.stride(0)), (z.stride(0), 1))
    return storage.view(dtype).as_strided(z.shape, (stride, 1))


def stats(
    logits: Tensor, target: Tensor, mask: Tensor | None, rate: float, with_entropy: bool, *,
    with_more: bool = False, bias: Tensor | None = None, softcap: float | None = None,
) -> RowStats:  # fmt: skip
    """Log-probability of ``target``, log normaliser and what is asked for; 0 where ``mask`` is false.

    One launch, one read of the rows in ``mask``.

    Args:
        logits: [N, V] or [B, T, V] floating, in a layout that ``rows_of`` knows.
        target: [N] or [B, T] int64.
        mask: bool of the shape of ``target``; None: all rows count.
        rate: 1 / temperature.
        with_entropy: whether the entropy is computed.
        with_more: whether ``MORE`` is.
        bias: [V] floating, added to the logits; None: none.
        softcap: bounds the logits; None: no bound.

    Returns:
        Float32 tensors of the shape of ``target``; None what was not asked for.
    """
    vocabulary, rows = logits.shape[-1], target.numel()
    length = target.shape[1] if target.dim() == 2 else 1
    logprob = torch.empty(target.shape, dtype=torch.float32, device=logits.device)
    normaliser = torch.empty_like(logprob)
    entropy = torch.empty_like(logprob) if with_entropy else None
    more = logprob.new_empty(len(MORE), *target.shape) if with_more else None
    layout = rows_of(logits)
    assert layout is not None
    if rows:
        with launching("logits_stats", logits) as launch:
            block = tile(vocabulary, launch.block)
            logits_stats_kernel[(rows,)](
                logits, *layout, length, bias, target.contiguous(),
                None if mask is None else mask.contiguous().view(torch.uint8), logprob, normaliser, entropy,
                more, rate, softcap or 1.0, V=vocabulary, SOFTCAP=softcap is not None, BLOCK=block,
                VECTOR=min(math.gcd(layout[1], 16 // logits.element_size()), block), **launch.options,
            )  # fmt: skip
    return RowStats(logprob, normaliser, entropy, more)


def grad_(
    grad: Tensor, logits: Tensor, target: Tensor, mask: Tensor | None, normaliser: Tensor,
    entropy: Tensor | None, grad_logprob: Tensor, grad_entropy: Tensor | None, rate: float, *,
    bias: Tensor | None = None, softcap: float | None = None, has_padding: bool = False,
) -> None:  # fmt: skip
    """Write the gradient of the logits into ``grad``, which may lie in their memory; 0 outside ``mask``.

    One launch, one read of the rows in ``mask``, one write of all.

    Args:
        grad: of the shape of ``logits``, in a layout that ``rows_of`` knows; written.
        logits: [N, V] or [B, T, V] floating, likewise.
        target: [N] or [B, T] int64.
        mask: bool of the shape of ``target``; None: all rows count.
        normaliser: float32 of that shape, from ``stats``.
        entropy: float32 of that shape, from ``stats``; None if it has no gradient.
        grad_logprob: gradient of the loss in each log-probability, of that shape.
        grad_entropy: the same in each entropy, or None.
        rate: 1 / temperature.
        bias: [V] floating, added to the logits; None: none.
        softcap: bounds the logits; None: no bound.
        has_padding: whether the rows of ``grad`` are ``padded``, and what lies between them may be written.
    """
    vocabulary, rows = logits.shape[-1], target.numel()
    length = target.shape[1] if target.dim() == 2 else 1
    layout, grad_layout = rows_of(logits), rows_of(grad)
    assert layout is not None
    assert grad_layout is not None
    if rows:
        with launching("logits_grad", logits) as launch:
            logits_grad_kernel[(rows,)](
                logits, *layout, grad, *grad_layout, length, bias, target.contiguous(),
                None if mask is None else mask.contiguous().view(torch.uint8), normaliser,
                None if grad_entropy is None else entropy, grad_logprob.float().contiguous(),
                None if grad_entropy is None else grad_entropy.float().contiguous(), rate, softcap or 1.0,
                V=vocabulary, WIDTH=padded(vocabulary) if has_padding else vocabulary,
                SOFTCAP=softcap is not None, BLOCK=tile(vocabulary, launch.block), **launch.options,
            )  # fmt: skip
