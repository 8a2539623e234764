"""Truncation of sampling, top-k, top-p and min-p, from counts of scores and without a sort."""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from ._logits import _finite
from ._sample_scores import (
    ABOVE,
    BEHIND,
    BINS,
    FIRST_BIN,
    LAST_BIN,
    LISTED,
    PER_NAT,
    TOP,
    _below,
    _bin,
    _cell,
    _floor,
    _key,
    _merged,
    _rate,
    _rules,
    _score,
    _scores,
    _weight,
)


@triton.jit
def _reached(counts_ptr, out, tops, top, rate, present):
    """[parts, BINS]: how many scores of each part are in each of the row's bins or above."""
    bins = tl.arange(0, BINS)[None, :]
    lower = tl.minimum(_below(_cell(tops, rate), _cell(top, rate)), BINS).to(tl.int32)[:, None]
    index = tl.where(bins == BINS - 1, bins, bins - lower)
    inside = present[:, None] & (index >= 0)
    return tl.load(counts_ptr + out[:, None] * BINS + index, mask=inside, other=0).to(tl.int32)


@triton.jit
def _masses(reached, heavy, next_heavy):
    """The mass in each bin and above if the scores of a bin weigh ``heavy`` each; ``next`` is one bin on."""
    return tl.cumsum(reached * (heavy - next_heavy), axis=0) + reached * next_heavy


@triton.jit
def _bracket(reached, total, top, rate, wanted, mass):
    """The first and the last bin between which the thresholds of top-k and top-p lie.

    ``reached`` [BINS] counts the row's scores in each bin or above, and ``total`` is their mass.
    """
    bins = tl.arange(0, BINS)
    limited = wanted > 0
    kth = tl.minimum(tl.sum((reached < wanted).to(tl.int32), axis=0), BINS - 1)
    first = tl.where(limited, kth, BINS - 1)
    last = first
    if mass < 1.0:
        cell = _cell(top, rate)
        steps = top * tl.minimum(rate * PER_NAT, 1e38)
        # Scores of bin b are b - 1 + into to b + into steps below the largest, and a rounding error more.
        into = tl.minimum(tl.maximum(steps - cell.to(tl.float32), 0.0), 1.0)
        error = 0.015625 + tl.abs(cell).to(tl.float32) * 2.384185791015625e-07
        low = bins + into + error
        light = tl.where(bins < BINS - 1, tl.exp(-low / PER_NAT), 0.0)
        next_light = tl.where(bins < BINS - 2, tl.exp(-(low + 1) / PER_NAT), 0.0)
        high = bins - 1 + into - error
        heavy = tl.minimum(tl.exp(-high / PER_NAT), 1.0)
        next_heavy = tl.minimum(tl.exp(-(high + 1) / PER_NAT), 1.0)
        most = _masses(reached.to(tl.float32), heavy, next_heavy)
        least = _masses(reached.to(tl.float32), light, next_light)
        # What is not below a bin is in it or above; the total is known.
        slack = total * 1e-5
        upper = tl.minimum(most, total - (tl.max(least, axis=0) - least)) + slack
        lower = tl.maximum(least, total - (tl.max(most, axis=0) - most)) - slack
        few = tl.where(limited, tl.sum(tl.where(bins == kth - 1, lower, 0.0), axis=0), total)
        many = tl.where(limited, tl.sum(tl.where(bins == kth, upper, 0.0), axis=0), total)
        share = mass.to(tl.float32)
        fine = tl.abs(steps) < 1048576.0  # beyond, a step is lost in rounding
        nearest = tl.where(fine, tl.sum((upper < share * few).to(tl.int32), axis=0), 0)
        farthest = tl.where(fine, tl.sum((lower < share * many).to(tl.int32), axis=0), BINS - 1)
        first = tl.minimum(first, nearest)
        last = tl.maximum(first, tl.where(limited, kth, tl.minimum(farthest, BINS - 1)))
    return first, last


@triton.jit
def sample_bracket_kernel(
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    figures_ptr,
    counts_ptr,
    plan_ptr,
    V: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Program: one row. Which bins are listed, where each part begins in the list, how many come before."""
    row = tl.program_id(0).to(tl.int64)
    greedy, rate = _rate(temperature_ptr, row)
    wanted, mass, fraction = _rules(row, greedy, top_k_ptr, top_p_ptr, min_p_ptr, V)
    parts = tl.arange(0, WIDTH)
    out = row * PARTS + parts
    each = tl.num_programs(0).to(tl.int64) * PARTS
    top, tops, sums = _merged(figures_ptr, out, each, rate, parts < PARTS, TOP)
    plan_ptr += row * (PARTS + BEHIND)
    first = tl.full([], BINS, tl.int32)
    last = first
    starts = tl.zeros([WIDTH], tl.int32)
    listed = tl.full([], 0, tl.int32)
    above = listed
    if (wanted > 0) | (mass < 1.0):
        reached = _reached(counts_ptr, out, tops, top, rate, parts < PARTS)
        total = tl.sum(sums, axis=0).to(tl.float32)
        low, high = _bracket(tl.sum(reached, axis=0), total, top, rate, wanted, mass)
        if _bin(_floor(top, rate, fraction), top, rate) >= low:  # else min-p alone decides
            bins = tl.arange(0, BINS)[None, :]
            higher = tl.sum(tl.where(bins == low - 1, reached, 0), axis=1)
            within = tl.sum(tl.where(bins == high, reached, 0), axis=1) - higher
            starts = tl.cumsum(within, axis=0) - within
            listed = tl.sum(within, axis=0)
            above = tl.sum(higher, axis=0)
            first = low
            last = high
    tl.store(plan_ptr + parts, starts, mask=parts < PARTS)
    tl.store(plan_ptr + PARTS + LISTED, listed)
    tl.store(plan_ptr + PARTS + ABOVE, above)
    tl.store(plan_ptr + PARTS + FIRST_BIN, first)
    tl.store(plan_ptr + PARTS + LAST_BIN, last)


@triton.jit
def sample_list_kernel(
    logits_ptr,
    logits_stride,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    forbidden_ptr,
    seen_ptr,
    repetition_ptr,
    presence_ptr,
    figures_ptr,
    plan_ptr,
    kept_ptr,
    listed_ptr,
    V: tl.constexpr,
    F: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program: one part of a row. The mass of what stays in any case, and the keys of what may stay."""
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    greedy, rate = _rate(temperature_ptr, row)
    wanted, mass, fraction = _rules(row, greedy, top_k_ptr, top_p_ptr, min_p_ptr, V)
    if (wanted > 0) | (mass < 1.0) | (fraction > 0):
        columns = part * BLOCK + tl.arange(0, BLOCK)
        score = _scores(
            logits_ptr + row * logits_stride, row, columns, forbidden_ptr, seen_ptr, repetition_ptr,
            presence_ptr, V, F,
        )  # fmt: skip
        parts = tl.arange(0, WIDTH)
        each = tl.num_programs(0).to(tl.int64)
        tops = figures_ptr + TOP * each + row * PARTS + parts
        top = tl.max(tl.load(tops, mask=parts < PARTS, other=float("-inf")), axis=0)
        first = tl.full([], BINS, tl.int32)
        last = first
        begin = tl.full([], 0, tl.int32)
        listed = begin
        if plan_ptr is not None:
            plan_ptr += row * (PARTS + BEHIND)
            first = tl.load(plan_ptr + PARTS + FIRST_BIN)
            last = tl.load(plan_ptr + PARTS + LAST_BIN)
            begin = tl.load(plan_ptr + part)
            listed = tl.load(plan_ptr + part + 1) - begin  # behind the starts: how many are listed in all
        bin = _bin(score, top, rate)
        stays = (bin < first) & (score >= _floor(top, rate, fraction))
        weight = tl.where(stays, _weight(score, _finite(top), rate), 0.0)
        tl.store(kept_ptr + row * PARTS + part, tl.sum(weight, axis=0))
        if listed > 0:
            taken = (bin >= first) & (bin <= last)
            index = begin + tl.cumsum(taken.to(tl.int32), axis=0) - 1
            # NaN logits, which are reported later, may be counted as another number than are taken.
            taken = taken & (index < PARTS * BLOCK)
            tl.store(listed_ptr + row * PARTS * BLOCK + index, _key(score), mask=taken)


@triton.jit
def _listed(listed_ptr, start, count, lanes):
    """A tile of the listed keys; the least key, which is that of no number, past the end."""
    index = start + lanes
    return tl.load(listed_ptr + index, mask=index < count, other=-2147483648)


@triton.jit
def _listed_mass(listed_ptr, listed, keep, shift, rate, BLOCK: tl.constexpr):
    """The weights of the listed scores whose key is at least ``keep``, float64."""
    lanes = tl.arange(0, BLOCK)
    total = tl.full([], 0.0, tl.float64)
    for start in range(0, listed, BLOCK):
        key = _listed(listed_ptr, start, listed, lanes)
        weight = tl.where(key >= keep, _weight(_score(key), shift, rate), 0.0)
        total += tl.sum(weight, axis=0).to(tl.float64)
    return total


@triton.jit
def _threshold(
    listed_ptr, listed, above, mass_above, total, wanted, mass, shift, rate, BLOCK: tl.constexpr
):  # fmt: skip
    """The key from which on top-k and then top-p keep scores, by bisection over the listed keys.

    ``above`` scores, whose weights come to ``mass_above``, are higher than all that are listed; all of the
    row's come to ``total``.
    """
    lanes = tl.arange(0, BLOCK)
    lowest = tl.full([], 2147483647, tl.int32)
    highest = tl.full([], -2147483648, tl.int32)
    for start in range(0, listed, BLOCK):
        key = _listed(listed_ptr, start, listed, lanes)
        highest = tl.maximum(highest, tl.max(key, axis=0))
        lowest = tl.minimum(lowest, tl.min(tl.where(start + lanes < listed, key, 2147483647), axis=0))
    missing = wanted - above
    if wanted > 0:
        low, high = lowest.to(tl.int64), highest.to(tl.int64)
        while low < high:
            middle = (low + high + 1) >> 1
            count = tl.full([], 0, tl.int32)
            for start in range(0, listed, BLOCK):
                reached = _listed(listed_ptr, start, listed, lanes) >= middle.to(tl.int32)
                count += tl.sum(reached.to(tl.int32), axis=0)
            low = tl.where(count >= missing, middle, low)
            high = tl.where(count > missing, high, tl.where(count == missing, low, middle - 1))
        lowest = low.to(tl.int32)
        total = mass_above + _listed_mass(listed_ptr, listed, lowest, shift, rate, BLOCK)
    keep = lowest
    if mass < 1.0:
        low, high = lowest.to(tl.int64), highest.to(tl.int64)
        while low < high:
            middle = (low + high) >> 1
            higher = _listed_mass(listed_ptr, listed, middle.to(tl.int32) + 1, shift, rate, BLOCK)
            enough = mass_above + higher < mass * total
            high = tl.where(enough, middle, high)
            low = tl.where(enough, low, middle + 1)
        keep = low.to(tl.int32)
    return keep


@triton.jit
def _kept_sums(
    listed_ptr, listed, plan_ptr, sums, keep, shift, rate,
    PARTS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``sums`` [WIDTH] of the parts and the weights of their listed scores whose key is at least ``keep``."""
    lanes = tl.arange(0, BLOCK)
    parts = tl.arange(0, WIDTH)
    for start in range(0, listed, BLOCK):
        key = _listed(listed_ptr, start, listed, lanes)
        weight = tl.where(key >= keep, _weight(_score(key), shift, rate), 0.0)
        for part in range(PARTS):
            begin = tl.load(plan_ptr + part)
            end = tl.load(plan_ptr + part + 1)  # behind the last part: how many are listed
            if (begin < start + BLOCK) & (end > start):
                own = (start + lanes >= begin) & (start + lanes < end)
                added = tl.sum(tl.where(own, weight, 0.0), axis=0).to(tl.float64)
                sums = tl.where(parts == part, sums + added, sums)
    return sums
