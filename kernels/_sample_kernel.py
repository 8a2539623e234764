"""The two sampling kernels: a read of the logits by many programs a row, and a draw by one.

A row is cut into parts of BLOCK ids. The scan leaves of each part its largest logit and score and the sums of
exponentials over them; the draw merges those, finds the part in which the random number falls and reads that
part once more.

Truncation reads the row twice more: to list the scores that can matter, which are few (for top-k those from
the k-th largest of the maxima of GROUPS groups a part on, for top-p those that are not too small even if all
of them were together), over which alone the threshold is bisected, and for the weights from it on.
"""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


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
def _listed(listed_ptr, start, count, lanes):
    """A tile of the listed keys; the least key, which is that of no number, past the end."""
    index = start + lanes
    return tl.load(listed_ptr + index, mask=index < count, other=-2147483648)


@triton.jit
def _penalised(raw, columns, inside, seen_ptr, forbidden_ptr, repetition, inverse, presence, F: tl.constexpr):
    """Logits of a tile after the penalties, forbidden ids at -inf."""
    score = raw
    if seen_ptr is not None:
        seen = tl.load(seen_ptr + columns, mask=inside, other=0)
        if repetition is not None:
            factor = tl.where(score < 0, repetition, inverse)
            score = tl.where((seen & 1) != 0, score * factor, score)
        if presence is not None:
            score = tl.where((seen & 2) != 0, score - presence, score)
    for slot in tl.static_range(F):
        score = tl.where(columns == tl.load(forbidden_ptr + slot), float("-inf"), score)
    return score


@triton.jit
def _scores(
    logits_ptr, columns, V, seen_ptr, forbidden_ptr, repetition, inverse, presence, F: tl.constexpr
):  # fmt: skip
    inside = columns < V
    raw = tl.load(logits_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
    return _penalised(raw, columns, inside, seen_ptr, forbidden_ptr, repetition, inverse, presence, F)


@triton.jit
def _finite(value):
    """A number to subtract: 0 in place of -inf, so that -inf - -inf never happens."""
    return tl.where(value == float("-inf"), 0.0, value)


# Where the scan leaves the figures of a part, in units of [rows, parts] float32.
RAW_TOP: tl.constexpr = tl.constexpr(0)  # the largest logit as it came
RAW_SUM: tl.constexpr = tl.constexpr(1)  # sum of exp((logit - RAW_TOP) / temperature)
TOP: tl.constexpr = tl.constexpr(2)  # the largest score, and so on
SUM: tl.constexpr = tl.constexpr(3)
FIGURES = 4
GROUPS: tl.constexpr = tl.constexpr(64)  # of a part, whose largest scores top-k starts from


@triton.jit
def _rate(temperature_ptr, row):
    """Whether the row is greedy, and by what its scores are multiplied."""
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    greedy = temperature == 0
    return greedy, 1.0 / tl.where(greedy, 1.0, temperature)


@triton.jit
def sample_scan_kernel(
    logits_ptr,
    logits_stride,
    temperature_ptr,
    forbidden_ptr,
    seen_ptr,
    repetition_ptr,
    presence_ptr,
    figures_ptr,
    first_ptr,
    groups_ptr,
    V: tl.constexpr,
    F: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program: one part of a row. Its largest logit and score, where that is, and both sums."""
    row = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    rows = (tl.num_programs(0) // PARTS).to(tl.int64)
    logits_ptr += row * logits_stride
    if seen_ptr is not None:
        seen_ptr += row * V
    if forbidden_ptr is not None:
        forbidden_ptr += row * F
    repetition = None
    inverse = None
    if repetition_ptr is not None:
        repetition = tl.load(repetition_ptr + row).to(tl.float32)
        inverse = tl.div_rn(1.0, repetition)
    presence = None
    if presence_ptr is not None:
        presence = tl.load(presence_ptr + row).to(tl.float32)
    _, rate = _rate(temperature_ptr, row)
    columns = part * BLOCK + tl.arange(0, BLOCK)
    inside = columns < V
    raw = tl.load(logits_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
    score = _penalised(raw, columns, inside, seen_ptr, forbidden_ptr, repetition, inverse, presence, F)
    top, first = tl.max(score, axis=0, return_indices=True)
    total = tl.sum(tl.exp((score - _finite(top)) * rate), axis=0)
    raw_top = top
    raw_total = total
    if F > 0 or seen_ptr is not None:
        raw_top = tl.max(raw, axis=0)
        raw_total = tl.sum(tl.exp((raw - _finite(raw_top)) * rate), axis=0)
    each = rows * PARTS
    out = row * PARTS + part
    tl.store(figures_ptr + RAW_TOP * each + out, raw_top)
    tl.store(figures_ptr + RAW_SUM * each + out, raw_total)
    tl.store(figures_ptr + TOP * each + out, top)
    tl.store(figures_ptr + SUM * each + out, total)
    tl.store(first_ptr + out, part * BLOCK + first)
    if groups_ptr is not None:
        N: tl.constexpr = BLOCK if BLOCK < GROUPS else GROUPS
        largest = tl.max(tl.reshape(score, [N, BLOCK // N]), axis=1)
        tl.store(groups_ptr + out * N + tl.arange(0, N), largest)


@triton.jit
def _merged(figures_ptr, out, each, rate, inside, WHICH: tl.constexpr):
    """The largest of all parts, the parts' largest, and their sums brought to that scale, float64."""
    tops = tl.load(figures_ptr + WHICH * each + out, mask=inside, other=float("-inf"))
    sums = tl.load(figures_ptr + (WHICH + 1) * each + out, mask=inside, other=0.0)
    top = tl.max(tops, axis=0)
    lower = tl.minimum(_finite(tops) - _finite(top), 0.0)  # a part may have nothing but -inf
    return top, tops, sums.to(tl.float64) * tl.exp(lower * rate).to(tl.float64)


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
    groups_ptr,
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
    if seen_ptr is not None:
        seen_ptr += row * V
    if forbidden_ptr is not None:
        forbidden_ptr += row * F
    repetition = None
    inverse = None
    if repetition_ptr is not None:
        repetition = tl.load(repetition_ptr + row).to(tl.float32)
        inverse = tl.div_rn(1.0, repetition)
    presence = None
    if presence_ptr is not None:
        presence = tl.load(presence_ptr + row).to(tl.float32)
    greedy, rate = _rate(temperature_ptr, row)
    lanes = tl.arange(0, BLOCK)
    STEP: tl.constexpr = BLOCK if BLOCK < 1024 else BLOCK // 2

    parts = tl.arange(0, WIDTH)
    out = row * PARTS + parts
    each = tl.num_programs(0).to(tl.int64) * PARTS
    present = parts < PARTS
    raw_top, _, raw_sums = _merged(figures_ptr, out, each, rate, present, RAW_TOP)
    raw_sum = tl.sum(raw_sums, axis=0).to(tl.float32)
    top, tops, sums = _merged(figures_ptr, out, each, rate, present, TOP)
    shift = _finite(top)
    firsts = tl.load(first_ptr + out, mask=present, other=V)
    best = tl.min(tl.where(tops == top, firsts, V), axis=0)

    # Truncation: the key from which on scores are kept, found by bisection over the keys of the listed.
    least = _key(tl.full([], float("-inf"), tl.float32))
    keep = least
    if listed_ptr is not None:
        listed_ptr += row * V
        wanted = tl.full([], 0, tl.int32)
        mass = tl.full([], 1.0, tl.float64)
        if top_k_ptr is not None:
            wanted = tl.minimum(tl.load(top_k_ptr + row).to(tl.int32), V)
        if top_p_ptr is not None:
            mass = tl.load(top_p_ptr + row).to(tl.float64)
        if (wanted > 0) | (mass < 1.0):
            from_ = least
            if wanted > 0:
                N: tl.constexpr = BLOCK if BLOCK < GROUPS else GROUPS
                if wanted <= PARTS * N:
                    # Each group's largest is another score, so at least k scores reach their k-th largest.
                    slots = tl.arange(0, WIDTH * N)
                    largest = tl.load(
                        groups_ptr + row * PARTS * N + slots, mask=slots < PARTS * N, other=float("-inf")
                    )
                    low, high = least.to(tl.int64), _key(top).to(tl.int64)
                    while low < high:
                        middle = (low + high + 1) >> 1
                        reached = (_key(largest) >= middle.to(tl.int32)) & (slots < PARTS * N)
                        count = tl.sum(reached.to(tl.int32), axis=0)
                        low = tl.where(count >= wanted, middle, low)
                        high = tl.where(count >= wanted, high, middle - 1)
                    from_ = low.to(tl.int32)
            else:
                # All scores below, V of them at most, come to half of what top-p leaves out at most.
                rest = tl.maximum((1.0 - mass).to(tl.float32), 1e-30)
                from_ = _key(shift - tl.log(2.0 * V / rest) / rate)
            listed = tl.full([], 0, tl.int32)
            total = tl.full([], 0.0, tl.float64)
            for start in range(0, V, STEP):  # not a whole part, or registers run out
                columns = start + tl.arange(0, STEP)
                score = _scores(
                    logits_ptr, columns, V, seen_ptr, forbidden_ptr, repetition, inverse, presence, F
                )
                taken = ((_key(score) >= from_) & (score > float("-inf"))).to(tl.int32)
                position = listed + tl.cumsum(taken, axis=0) - 1
                tl.store(listed_ptr + position, _key(score), mask=taken != 0)
                listed += tl.sum(taken, axis=0)
                total += tl.sum(tl.exp((score - shift) * rate), axis=0).to(tl.float64)
            tl.debug_barrier()  # other threads read what these have written
            if wanted > 0:
                low, high = from_.to(tl.int64), _key(top).to(tl.int64)
                while low < high:
                    middle = (low + high + 1) >> 1
                    count = tl.full([], 0, tl.int32)
                    for start in range(0, listed, BLOCK):
                        above = _listed(listed_ptr, start, listed, lanes) >= middle.to(tl.int32)
                        count += tl.sum(above.to(tl.int32), axis=0)
                    low = tl.where(count >= wanted, middle, low)
                    high = tl.where(count > wanted, high, tl.where(count == wanted, low, middle - 1))
                keep = low.to(tl.int32)
                total = tl.full([], 0.0, tl.float64)
                for start in range(0, listed, BLOCK):
                    key = _listed(listed_ptr, start, listed, lanes)
                    weight = tl.where(key >= keep, tl.exp((_score(key) - shift) * rate), 0.0)
                    total += tl.sum(weight, axis=0).to(tl.float64)
            if mass < 1.0:
                low, high = tl.maximum(keep, from_).to(tl.int64), _key(top).to(tl.int64)
                while low < high:
                    middle = (low + high) >> 1
                    above = tl.full([], 0.0, tl.float64)
                    for start in range(0, listed, BLOCK):
                        key = _listed(listed_ptr, start, listed, lanes)
                        weight = tl.exp((_score(key) - shift) * rate)
                        weight = tl.where(key > middle.to(tl.int32), weight, 0.0)
                        above += tl.sum(weight, axis=0).to(tl.float64)
                    enough = above < mass * total
                    high = tl.where(enough, middle, high)
                    low = tl.where(enough, low, middle + 1)
                keep = low.to(tl.int32)
    if min_p_ptr is not None:
        fraction = tl.load(min_p_ptr + row).to(tl.float32)
        floor = top + tl.log(tl.where(fraction > 0, fraction, 1.0)) / rate
        keep = tl.where(fraction > 0, tl.maximum(keep, _key(floor)), keep)

    # The weights of the parts, if not those of the scan, and the part in which the threshold is passed.
    if keep > least:
        sums = tl.zeros([WIDTH], tl.float64)
        for start in range(0, V, BLOCK):
            columns = start + lanes
            score = _scores(logits_ptr, columns, V, seen_ptr, forbidden_ptr, repetition, inverse, presence, F)
            weight = tl.where(_key(score) >= keep, tl.exp((score - shift) * rate), 0.0)
            sums = tl.where(parts == start // BLOCK, tl.sum(weight, axis=0).to(tl.float64), sums)
    running = tl.cumsum(sums, axis=0)
    total = tl.max(running, axis=0)
    step = tl.load(steps_ptr + row)
    zero = tl.full([], 0, tl.uint32)
    word0, word1, _, _ = tl.philox(
        tl.load(seeds_ptr + row),
        (step & 0xFFFFFFFF).to(tl.uint32), ((step >> 32) & 0xFFFFFFFF).to(tl.uint32), zero, zero,
    )  # fmt: skip
    bits = (word0.to(tl.int64) << 21) | (word1.to(tl.int64) >> 11)
    threshold = bits.to(tl.float64) * 1.1102230246251565e-16 * total
    chosen = tl.sum((running <= threshold).to(tl.int32), axis=0)
    # Sums in another order may round below the threshold: the last part or id with any weight is meant.
    chosen = tl.minimum(chosen, tl.max(tl.where(sums > 0, parts, 0), axis=0))
    rest = threshold - tl.sum(tl.where(parts == chosen - 1, running, 0.0), axis=0)
    columns = chosen * BLOCK + lanes
    score = _scores(logits_ptr, columns, V, seen_ptr, forbidden_ptr, repetition, inverse, presence, F)
    weight = tl.where(_key(score) >= keep, tl.exp((score - shift) * rate), 0.0)
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
