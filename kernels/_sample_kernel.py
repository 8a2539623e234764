"""The sampling kernels: reads of the logits by many programs a row, and a draw by one.

A row is cut into parts of BLOCK ids. The scan leaves of each part its largest logit and score and the sums of
exponentials over them; the draw merges those, finds the part in which the random number falls and reads that
part once more.

Truncation takes one more read, by as many programs. With the scan each part counts its scores in bins of
1 / PER_NAT nats below its largest, on a grid that all parts share, so that the counts of a row are sums. One
program a row finds from them in which bin the threshold of top-k lies, and, because the weights in a bin are
within a factor of exp(1 / PER_NAT), between which bins that of top-p does. The second read sums the weights
above those bins and lists the scores inside, which are few, and the draw bisects the list.
"""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from ._logits import _finite
from ._sample_assembly import BINS, store_counts
from ._sample_scores import (
    ABOVE,
    BEHIND,
    LISTED,
    RAW_SUM,
    RAW_TOP,
    SUM,
    TOP,
    _bin,
    _floor,
    _key,
    _merged,
    _penalised,
    _rate,
    _rules,
    _scores,
    _weight,
)
from ._sample_truncate import _kept_sums, _listed, _threshold


@triton.jit
def _with_forbidden(
    logits_ptr, forbidden_ptr, top, total, rate, start, end, F: tl.constexpr
):  # fmt: skip
    """Largest and sum of exponentials of a part with the forbidden ids from ``start`` to ``end`` as well."""
    raw_top = top
    for slot in tl.static_range(F):
        column = tl.load(forbidden_ptr + slot)
        own = (column >= start) & (column < end)
        raw = tl.load(logits_ptr + column, mask=own, other=float("-inf")).to(tl.float32)
        raw_top = tl.maximum(raw_top, raw)
    raw_total = total * _weight(_finite(top), _finite(raw_top), rate)
    for slot in tl.static_range(F):
        column = tl.load(forbidden_ptr + slot)
        own = (column >= start) & (column < end)
        for earlier in tl.static_range(slot):
            own = own & (column != tl.load(forbidden_ptr + earlier))
        raw = tl.load(logits_ptr + column, mask=own, other=float("-inf")).to(tl.float32)
        raw_total += _weight(raw, _finite(raw_top), rate)
    return raw_top, raw_total


@triton.jit
def sample_scan_kernel(
    logits_ptr,
    logits_stride,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    forbidden_ptr,
    seen_ptr,
    repetition_ptr,
    presence_ptr,
    figures_ptr,
    first_ptr,
    counts_ptr,
    V: tl.constexpr,
    F: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program: one part of a row. Its largest logit and score, where that is, both sums, and the counts."""
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    greedy, rate = _rate(temperature_ptr, row)
    logits_ptr += row * logits_stride
    columns = part * BLOCK + tl.arange(0, BLOCK)
    inside = columns < V
    raw = tl.load(logits_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
    score = _penalised(
        raw, row, part * BLOCK, columns, inside, forbidden_ptr, seen_ptr, repetition_ptr, presence_ptr, V, F,
        BLOCK,
    )  # fmt: skip
    top = tl.max(score, axis=0)
    total = tl.sum(_weight(score, _finite(top), rate), axis=0)
    raw_top = top
    raw_total = total
    if seen_ptr is not None:
        raw_top = tl.max(raw, axis=0)
        raw_total = tl.sum(_weight(raw, _finite(raw_top), rate), axis=0)
    elif F > 0:
        end = tl.minimum((part + 1) * BLOCK, V)
        raw_top, raw_total = _with_forbidden(
            logits_ptr, forbidden_ptr + row * F, top, total, rate, part * BLOCK, end, F
        )  # fmt: skip
    each = tl.num_programs(0).to(tl.int64)
    out = row * PARTS + part
    tl.store(figures_ptr + RAW_TOP * each + out, raw_top)
    tl.store(figures_ptr + RAW_SUM * each + out, raw_total)
    tl.store(figures_ptr + TOP * each + out, top)
    tl.store(figures_ptr + SUM * each + out, total)
    if greedy:
        tl.store(first_ptr + out, tl.min(tl.where(score == top, columns, V), axis=0))
    if counts_ptr is not None:
        wanted, mass, _ = _rules(row, greedy, top_k_ptr, top_p_ptr, None, V)
        if (wanted > 0) | (mass < 1.0):
            # What is -inf or behind the row counts in the last bin.
            store_counts(_bin(score, top, rate), counts_ptr + out * BINS, BLOCK)


@triton.jit
def _uniform(seed, step):
    """One random number in [0, 1) with 53 bits, float64: Philox4x32-10."""
    zero = tl.full([], 0, tl.uint32)
    word0, word1, _, _ = tl.philox(
        seed, (step & 0xFFFFFFFF).to(tl.uint32), ((step >> 32) & 0xFFFFFFFF).to(tl.uint32), zero, zero
    )  # fmt: skip
    bits = (word0.to(tl.int64) << 21) | (word1.to(tl.int64) >> 11)
    return bits.to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def sample_draw_kernel(
    logits_ptr,
    logits_stride,
    seeds_ptr,
    steps_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    forbidden_ptr,
    seen_ptr,
    repetition_ptr,
    presence_ptr,
    figures_ptr,
    first_ptr,
    plan_ptr,
    kept_ptr,
    listed_ptr,
    ids_ptr,
    logprobs_ptr,
    sampled_ptr,
    V: tl.constexpr,
    F: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program: one row. Merges its parts, truncates, draws, and weighs the id that was drawn."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_stride
    greedy, rate = _rate(temperature_ptr, row)
    parts = tl.arange(0, WIDTH)
    out = row * PARTS + parts
    each = tl.num_programs(0).to(tl.int64) * PARTS
    present = parts < PARTS
    raw_top, _, raw_sums = _merged(figures_ptr, out, each, rate, present, RAW_TOP)
    raw_sum = tl.sum(raw_sums, axis=0).to(tl.float32)
    top, tops, sums = _merged(figures_ptr, out, each, rate, present, TOP)
    shift = _finite(top)
    best = tl.full([], 0, tl.int32)
    if greedy:
        firsts = tl.load(first_ptr + out, mask=present, other=V)
        best = tl.min(tl.where(tops == top, firsts, V), axis=0)

    keep = _key(tl.full([], float("-inf"), tl.float32))
    if kept_ptr is not None:
        wanted, mass, fraction = _rules(row, greedy, top_k_ptr, top_p_ptr, min_p_ptr, V)
        if (wanted > 0) | (mass < 1.0) | (fraction > 0):
            total = tl.sum(sums, axis=0)
            sums = tl.load(kept_ptr + out, mask=present, other=0.0).to(tl.float64)
            keep = _key(_floor(top, rate, fraction))
            if plan_ptr is not None:
                plan_ptr += row * (PARTS + BEHIND)
                listed_ptr += row * PARTS * BLOCK
                listed = tl.load(plan_ptr + PARTS + LISTED)
                above = tl.load(plan_ptr + PARTS + ABOVE)
                if listed > 0:
                    key = _listed(listed_ptr, 0, listed, tl.arange(0, BLOCK))
                    least = _threshold(
                        key, listed_ptr, listed, above, tl.sum(sums, axis=0), total, wanted, mass, shift,
                        rate, BLOCK,
                    )  # fmt: skip
                    keep = tl.maximum(keep, least)
                    sums += _kept_sums(
                        key, listed_ptr, listed, plan_ptr, keep, shift, rate, PARTS, WIDTH, BLOCK
                    )

    # The part in which the threshold is passed, and the id.
    running = tl.cumsum(sums, axis=0)
    total = tl.max(running, axis=0)
    threshold = _uniform(tl.load(seeds_ptr + row), tl.load(steps_ptr + row)) * total
    chosen = tl.sum((running <= threshold).to(tl.int32), axis=0)
    # Sums in another order may round below the threshold: the last part or id with any weight is meant.
    chosen = tl.minimum(chosen, tl.max(tl.where(sums > 0, parts, 0), axis=0))
    rest = threshold - tl.sum(tl.where(parts == chosen - 1, running, 0.0), axis=0)
    columns = chosen * BLOCK + tl.arange(0, BLOCK)
    score = _scores(
        logits_ptr, row, chosen * BLOCK, columns, forbidden_ptr, seen_ptr, repetition_ptr, presence_ptr, V, F,
        BLOCK,
    )  # fmt: skip
    weight = tl.where(_key(score) >= keep, _weight(score, shift, rate), 0.0)
    passed = (tl.cumsum(weight, axis=0) > rest.to(tl.float32)) & (weight > 0)
    drawn = tl.min(tl.where(passed, columns, V), axis=0)
    drawn = tl.where(drawn < V, drawn, tl.max(tl.where(weight > 0, columns, 0), axis=0))

    token = tl.where(greedy, tl.minimum(best, V - 1), drawn)
    chosen_score = tl.max(tl.where(columns == token, score, float("-inf")), axis=0)
    sampled = (chosen_score - shift) * rate - tl.log(total.to(tl.float32))
    raw = tl.load(logits_ptr + token).to(tl.float32)
    tl.store(ids_ptr + row, token.to(tl.int64))
    tl.store(logprobs_ptr + row, (raw - raw_top) * rate - tl.log(raw_sum))
    tl.store(sampled_ptr + row, tl.where(greedy, 0.0, sampled))
