"""Truncation of sampling, top-k, top-p and min-p, from counts of scores and without a sort."""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from ._logits import INTERPRETED, _finite
from ._sample_assembly import BINS, store_near
from ._sample_scores import (
    ABOVE,
    BEHIND,
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
def _counts(counts_ptr, out, tops, top, rate, present):
    """[parts, BINS]: how many scores of each part are in each of the row's bins but the last, and 0 there."""
    bins = tl.arange(0, BINS)[None, :]
    index = bins - tl.minimum(_below(_cell(tops, rate), _cell(top, rate)), BINS).to(tl.int32)[:, None]
    inside = present[:, None] & (index >= 0) & (bins < BINS - 1)
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
    BLOCK: tl.constexpr,
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
        present = parts < PARTS
        counts = _counts(counts_ptr, out, tops, top, rate, present)
        reached = tl.cumsum(tl.sum(counts, axis=0), axis=0)
        reached = tl.where(tl.arange(0, BINS) == BINS - 1, PARTS * BLOCK, reached)
        total = tl.sum(sums, axis=0).to(tl.float32)
        low, high = _bracket(reached, total, top, rate, wanted, mass)
        if _bin(_floor(top, rate, fraction), top, rate) >= low:  # else min-p alone decides
            bins = tl.arange(0, BINS)[None, :]
            higher = tl.sum(tl.where(bins < low, counts, 0), axis=1)
            within = tl.sum(tl.where(bins <= high, counts, 0), axis=1)
            within = tl.where(present & (high == BINS - 1), BLOCK, within) - higher
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
    """Program: one part of a row. The mass of what stays in any case, and the scores that may stay."""
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    greedy, rate = _rate(temperature_ptr, row)
    wanted, mass, fraction = _rules(row, greedy, top_k_ptr, top_p_ptr, min_p_ptr, V)
    if (wanted > 0) | (mass < 1.0) | (fraction > 0):
        columns = part * BLOCK + tl.arange(0, BLOCK)
        score = _scores(
            logits_ptr + row * logits_stride, row, part * BLOCK, columns, forbidden_ptr, seen_ptr,
            repetition_ptr, presence_ptr, V, F, BLOCK,
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
        below = _below(_cell(score, rate), _cell(top, rate))
        weight = _weight(score, _finite(top), rate)
        kept = tl.full([], 0.0, tl.float32)
        if first < BINS:  # what is above is above min-p too, or nothing would be listed
            kept = tl.sum(tl.where(below < first.to(tl.uint32), weight, 0.0), axis=0)
        else:
            kept = tl.sum(tl.where(score >= _floor(top, rate, fraction), weight, 0.0), axis=0)
        tl.store(kept_ptr + row * PARTS + part, kept)
        if listed > 0:
            # Cells below the first that is listed: those before it wrap around, beyond the span. The last bin
            # holds all that is below it.
            distance = below - first.to(tl.uint32)
            span = tl.where(last < BINS - 1, last, -1).to(tl.uint32) - first.to(tl.uint32)
            # NaN logits, which are reported later, may be counted as another number than are near.
            store_near(score, distance, span, listed, listed_ptr + row * PARTS * BLOCK + begin, BLOCK)


@triton.jit
def _listed(listed_ptr, start, count, lanes):
    """The keys of a tile of the listed scores; the least key, which is that of no number, past the end."""
    index = start + lanes
    score = tl.load(listed_ptr + index, mask=index < count, other=0.0)
    return tl.where(index < count, _key(score), -2147483648)


@triton.jit
def _both(left_sum, left_low, left_high, right_sum, right_low, right_high):
    return left_sum + right_sum, tl.maximum(left_low, right_low), tl.minimum(left_high, right_high)


@triton.jit
def _split(key, worth, middle):
    """What a tile's keys above ``middle`` are worth, the largest of the others, and the least of them."""
    above = key > middle
    heavy = tl.where(above, worth, 0.0)
    below = tl.where(above, -2147483648, key)
    beyond = tl.where(above, key, 2147483647)
    if INTERPRETED:  # where a reduction by a function of one's own is a loop in Python
        return tl.sum(heavy, axis=0), tl.max(below, axis=0), tl.min(beyond, axis=0)
    else:
        return tl.reduce((heavy, below, beyond), 0, _both)


@triton.jit
def _listed_split(
    key, worth, listed_ptr, listed, middle, shift, rate, WEIGH: tl.constexpr, BLOCK: tl.constexpr
):
    """``_split`` of the whole list, whose first tile is ``key`` and worth ``worth``: float64.

    The others, which only flat rows have, are read again. A key is worth its weight, or without WEIGH 1.
    """
    first, low, high = _split(key, worth, middle)
    total = first.to(tl.float64)
    for start in range(BLOCK, listed, BLOCK):
        other = _listed(listed_ptr, start, listed, tl.arange(0, BLOCK))
        if WEIGH:
            added, lower, higher = _split(other, _weight(_score(other), shift, rate), middle)
        else:
            added, lower, higher = _split(other, tl.full([BLOCK], 1.0, tl.float32), middle)
        total += added.to(tl.float64)
        low = tl.maximum(low, lower)
        high = tl.minimum(high, higher)
    return total, low, high


@triton.jit
def _threshold(
    key, listed_ptr, listed, above, mass_above, total, wanted, mass, shift, rate, BLOCK: tl.constexpr
):  # fmt: skip
    """The key from which on top-k and then top-p keep scores, by bisection between keys of the list.

    ``key`` is the list's first tile. ``above`` scores, whose weights come to ``mass_above``, are higher than
    all that are listed; all of the row's come to ``total``.
    """
    one = tl.full([BLOCK], 1.0, tl.float32)
    weight = _weight(_score(key), shift, rate)
    _, _, lowest = _listed_split(key, one, listed_ptr, listed, -2147483648, shift, rate, False, BLOCK)
    _, highest, _ = _listed_split(key, one, listed_ptr, listed, 2147483646, shift, rate, False, BLOCK)
    if wanted > 0:
        low, high = lowest, highest
        while low < high:
            # Between two keys of the list, which both may be it: the mean, rounded down, without overflow.
            middle = (low & high) + ((low ^ high) >> 1)
            count, lower, higher = _listed_split(
                key, one, listed_ptr, listed, middle, shift, rate, False, BLOCK
            )
            enough = count >= (wanted - above).to(tl.float64)
            low = tl.where(enough, higher, low)
            high = tl.where(enough, high, lower)
        lowest = low
        # All from it on: those above the key before it.
        kept, _, _ = _listed_split(key, weight, listed_ptr, listed, lowest - 1, shift, rate, True, BLOCK)
        total = mass_above + kept
    keep = lowest
    if mass < 1.0:
        low, high = lowest, highest
        while low < high:
            middle = (low & high) + ((low ^ high) >> 1)
            heavier, lower, higher = _listed_split(
                key, weight, listed_ptr, listed, middle, shift, rate, True, BLOCK
            )
            enough = mass_above + heavier < mass * total
            high = tl.where(enough, lower, high)
            low = tl.where(enough, low, higher)
        keep = low
    return keep


@triton.jit
def _kept_sums(
    key, listed_ptr, listed, plan_ptr, keep, shift, rate,
    PARTS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """[WIDTH] float64: of each part the weights of its listed scores whose key is at least ``keep``.

    ``key`` is the list's first tile. Parts follow each other in the list.
    """
    parts = tl.arange(0, WIDTH)
    begin = tl.load(plan_ptr + parts, mask=parts < PARTS, other=listed)
    end = tl.load(
        plan_ptr + parts + 1, mask=parts < PARTS, other=listed
    )  # behind the last: the list's length
    sums = _between(key, begin, end, 0, keep, shift, rate, BLOCK)
    for start in range(BLOCK, listed, BLOCK):
        other = _listed(listed_ptr, start, listed, tl.arange(0, BLOCK))
        sums += _between(other, begin, end, start, keep, shift, rate, BLOCK)
    return sums


@triton.jit
def _between(key, begin, end, start, keep, shift, rate, BLOCK: tl.constexpr):
    """The weights of a tile's keys, ``start`` and on in the list, from each ``begin`` to ``end``: float64."""
    weight = tl.where(key >= keep, _weight(_score(key), shift, rate), 0.0)
    running = tl.cumsum(weight, axis=0)
    return _running(running, end - start, BLOCK) - _running(running, begin - start, BLOCK)


@triton.jit
def _running(running, count, BLOCK: tl.constexpr):
    """The sum of the first ``count`` values of a tile, of which all up to each are ``running``."""
    index = tl.minimum(tl.maximum(count - 1, 0), BLOCK - 1)
    return tl.where(count > 0, tl.gather(running, index, axis=0), 0.0).to(tl.float64)
