"""What the sampling kernels share: a row's parameters, scores after the penalties, weights and bins."""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from ._logits import INTERPRETED, LOG2_E, _exp2, _finite
from ._sample_assembly import BINS

# Where the scan leaves the figures of a part, in units of [rows, parts] float32.
RAW_TOP: tl.constexpr = tl.constexpr(0)  # the largest logit as it came
RAW_SUM: tl.constexpr = tl.constexpr(1)  # sum of exp((logit - RAW_TOP) / temperature)
TOP: tl.constexpr = tl.constexpr(2)  # the largest score, and so on
SUM: tl.constexpr = tl.constexpr(3)
FIGURES = 4

PER_NAT: tl.constexpr = tl.constexpr(8)

# Behind the starts of a row's parts in its list.
LISTED: tl.constexpr = tl.constexpr(0)  # how many are listed
ABOVE: tl.constexpr = tl.constexpr(1)  # how many scores are above them
FIRST_BIN: tl.constexpr = tl.constexpr(2)  # the bins of those that are listed
LAST_BIN: tl.constexpr = tl.constexpr(3)
BEHIND: tl.constexpr = tl.constexpr(4)


@triton.jit
def _key(score):
    """An int32 that orders as the float32 does (-0 counts as +0)."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _score(key):
    """The float32 of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _penalised(
    raw, row, start, columns, inside, forbidden_ptr, seen_ptr, repetition_ptr, presence_ptr,
    V: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Logits of the BLOCK ids from ``start`` on after the penalties, forbidden ids at -inf."""
    score = raw
    if seen_ptr is not None:
        seen = tl.load(seen_ptr + row * V + columns, mask=inside, other=0)
        if repetition_ptr is not None:
            repetition = tl.load(repetition_ptr + row).to(tl.float32)
            factor = tl.where(score < 0, repetition, tl.div_rn(1.0, repetition))
            score = tl.where((seen & 1) != 0, score * factor, score)
        if presence_ptr is not None:
            presence = tl.load(presence_ptr + row).to(tl.float32)
            score = tl.where((seen & 2) != 0, score - presence, score)
    if F > 0:
        some = start < 0
        for slot in tl.static_range(F):
            forbidden = tl.load(forbidden_ptr + row * F + slot)
            some = some | ((forbidden >= start) & (forbidden < start + BLOCK))
        if some:  # few parts hold any, and to compare costs two instructions a score
            for slot in tl.static_range(F):
                column = tl.load(forbidden_ptr + row * F + slot).to(tl.int32)
                score = tl.where(columns == column, float("-inf"), score)
    return score


@triton.jit
def _scores(
    logits_ptr, row, start, columns, forbidden_ptr, seen_ptr, repetition_ptr, presence_ptr,
    V: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The scores of ``columns``, the BLOCK ids from ``start`` on."""
    inside = columns < V
    raw = tl.load(logits_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
    return _penalised(
        raw, row, start, columns, inside, forbidden_ptr, seen_ptr, repetition_ptr, presence_ptr, V, F, BLOCK
    )  # fmt: skip


@triton.jit
def _rate(temperature_ptr, row):
    """Whether the row is greedy, and by what its scores are multiplied."""
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    greedy = temperature == 0
    return greedy, 1.0 / tl.where(greedy, 1.0, temperature)


@triton.jit
def _rules(row, greedy, top_k_ptr, top_p_ptr, min_p_ptr, V: tl.constexpr):
    """How many of the largest scores stay (0: all), what share of the mass, what share of the largest weight.

    A greedy row is not truncated: its largest score stays in any case.
    """
    wanted = tl.full([], 0, tl.int32)
    mass = tl.full([], 1.0, tl.float64)
    fraction = tl.full([], 0.0, tl.float32)
    if top_k_ptr is not None:
        wanted = tl.where(greedy, 0, tl.minimum(tl.load(top_k_ptr + row), V).to(tl.int32))
    if top_p_ptr is not None:
        mass = tl.where(greedy, 1.0, tl.load(top_p_ptr + row).to(tl.float64))
    if min_p_ptr is not None:
        fraction = tl.where(greedy, 0.0, tl.load(min_p_ptr + row).to(tl.float32))
    return wanted, mass, fraction


@triton.jit
def _floor(top, rate, fraction):
    """The least score that min-p keeps; -inf where it is off."""
    least = top + tl.log(tl.where(fraction > 0, fraction, 1.0)) / rate
    return tl.where(fraction > 0, least, float("-inf"))


@triton.jit
def _weight(score, shift, rate):
    """exp((score - shift) rate)."""
    return _exp2((score - shift) * (rate * LOG2_E))


@triton.jit
def _cell(score, rate):
    """The cell of a score on the grid of 1 / PER_NAT nats: int32, the same wherever it is asked for."""
    steps = score * tl.minimum(rate * PER_NAT, 1e38)
    if INTERPRETED:
        nearest = tl.minimum(tl.maximum(tl.floor(steps), -2147483648.0), 2147483520.0)
        return tl.where(nearest == nearest, nearest, 0.0).to(tl.int32)
    else:  # the same, for conversions saturate, and NaN becomes 0
        return tl.inline_asm_elementwise(
            "cvt.rmi.s32.f32 $0, $1;", "=r,f", [steps], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def _below(cell, top):
    """By how many cells ``cell`` lies below ``top``; unsigned, so that no difference is too large."""
    return top.to(tl.uint32, bitcast=True) - cell.to(tl.uint32, bitcast=True)


@triton.jit
def _bin(score, top, rate):
    """The bin of a score below ``top``."""
    return tl.minimum(_below(_cell(score, rate), _cell(top, rate)), BINS - 1).to(tl.int32)


@triton.jit
def _merged(figures_ptr, out, each, rate, inside, WHICH: tl.constexpr):
    """The largest of all parts, the parts' largest, and their sums brought to that scale, float64."""
    tops = tl.load(figures_ptr + WHICH * each + out, mask=inside, other=float("-inf"))
    sums = tl.load(figures_ptr + (WHICH + 1) * each + out, mask=inside, other=0.0)
    top = tl.max(tops, axis=0)
    lower = tl.minimum(_finite(tops) - _finite(top), 0.0)  # a part may have nothing but -inf
    return top, tops, sums.to(tl.float64) * _weight(lower, 0.0, rate).to(tl.float64)
