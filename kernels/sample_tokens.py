"""Sample one id per row: penalties, temperature, top-k, top-p, min-p, one counter-based random number.

Order as in Hugging Face's processors: penalties, (forbidden ids), temperature, top-k, top-p, min-p. Ties at
a threshold are all kept. The random number of a row is Philox4x32-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011) of key ``seed`` and counter ``step``, so a row's draw depends on nothing
but its own seed, step and logits.
"""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import NAMESPACE, tile, use_triton
from ._sample_reference import PRESENT, REPEATED, philox_uniform, reference

__all__ = ["PRESENT", "REPEATED", "philox_uniform", "sample_tokens"]

TILE = 8192


def _in_use(values: Tensor | None, off: float, *, at_least: bool = False) -> Tensor | None:
    """None when every row has the feature switched off, which only a CPU tensor can tell for free."""
    if values is None or values.device.type != "cpu":
        return values
    inactive = values >= off if at_least else values <= off
    return None if bool(inactive.all()) else values


@triton.jit
def _key(score):
    """An int32 that orders as the float32 does (-0 counts as +0)."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


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


@triton.jit
def _kernel(
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
    ids_ptr,
    logprobs_ptr,
    sampled_ptr,
    V: tl.constexpr,
    F: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
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
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    greedy = temperature == 0
    rate = 1.0 / tl.where(greedy, 1.0, temperature)
    lanes = tl.arange(0, BLOCK)

    # First read: largest raw logit and sum of exponentials, largest score and where it first stands.
    raw_top = tl.full([], float("-inf"), tl.float32)
    raw_sum = tl.full([], 0.0, tl.float32)
    top = tl.full([], float("-inf"), tl.float32)
    best = tl.full([], V, tl.int32)
    for start in range(0, V, BLOCK):
        columns = start + lanes
        inside = columns < V
        raw = tl.load(logits_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
        score = _penalised(raw, columns, inside, seen_ptr, forbidden_ptr, repetition, inverse, presence, F)
        highest = tl.maximum(raw_top, tl.max(raw, axis=0))
        part = tl.sum(tl.exp((raw - _finite(highest)) * rate), axis=0)
        grown = tl.minimum(_finite(raw_top) - _finite(highest), 0.0)  # the first tile starts from -inf
        raw_sum = raw_sum * tl.exp(grown * rate) + part
        raw_top = highest
        tile_top = tl.max(score, axis=0)
        first = tl.min(tl.where(score == tile_top, columns, V), axis=0)
        best = tl.where(tile_top > top, first, best)
        top = tl.maximum(top, tile_top)
    shift = _finite(top)

    # Truncation: the key from which on scores are kept, found by bisection over all float32 keys.
    keep = _key(tl.full([], float("-inf"), tl.float32))
    if top_k_ptr is not None:
        wanted = tl.minimum(tl.load(top_k_ptr + row).to(tl.int32), V)
        if wanted > 0:
            low = keep.to(tl.int64)
            high = _key(top).to(tl.int64)
            while low < high:
                middle = (low + high + 1) >> 1
                count = tl.full([], 0, tl.int32)
                for start in range(0, V, BLOCK):
                    columns = start + lanes
                    score = _scores(
                        logits_ptr, columns, V, seen_ptr, forbidden_ptr, repetition, inverse, presence, F
                    )
                    above = (_key(score) >= middle.to(tl.int32)) & (columns < V)
                    count += tl.sum(above.to(tl.int32), axis=0)
                low = tl.where(count >= wanted, middle, low)
                high = tl.where(count > wanted, high, tl.where(count == wanted, low, middle - 1))
            keep = low.to(tl.int32)
    if top_p_ptr is not None:
        mass = tl.load(top_p_ptr + row).to(tl.float64)
        if mass < 1.0:
            total = tl.full([], 0.0, tl.float64)
            for start in range(0, V, BLOCK):
                columns = start + lanes
                score = _scores(
                    logits_ptr, columns, V, seen_ptr, forbidden_ptr, repetition, inverse, presence, F
                )
                weight = tl.where(_key(score) >= keep, tl.exp((score - shift) * rate), 0.0)
                total += tl.sum(weight, axis=0).to(tl.float64)
            low = keep.to(tl.int64)
            high = _key(top).to(tl.int64)
            while low < high:
                middle = (low + high) >> 1
                above = tl.full([], 0.0, tl.float64)
                for start in range(0, V, BLOCK):
                    columns = start + lanes
                    score = _scores(
                        logits_ptr, columns, V, seen_ptr, forbidden_ptr, repetition, inverse, presence, F
                    )
                    weight = tl.where(_key(score) > middle.to(tl.int32), tl.exp((score - shift) * rate), 0.0)
                    above += tl.sum(weight, axis=0).to(tl.float64)
                enough = above < mass * total
                high = tl.where(enough, middle, high)
                low = tl.where(enough, low, middle + 1)
            keep = low.to(tl.int32)
    if min_p_ptr is not None:
        fraction = tl.load(min_p_ptr + row).to(tl.float32)
        floor = top + tl.log(tl.where(fraction > 0, fraction, 1.0)) / rate
        keep = tl.where(fraction > 0, tl.maximum(keep, _key(floor)), keep)

    # Second read: the weight of every tile; then the tile in which the threshold is passed once more.
    sums = tl.zeros([TILES], tl.float64)
    tiles = tl.arange(0, TILES)
    for start in range(0, V, BLOCK):
        columns = start + lanes
        score = _scores(logits_ptr, columns, V, seen_ptr, forbidden_ptr, repetition, inverse, presence, F)
        weight = tl.where(_key(score) >= keep, tl.exp((score - shift) * rate), 0.0)
        sums = tl.where(tiles == start // BLOCK, tl.sum(weight, axis=0).to(tl.float64), sums)
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
    # Sums in another order may round below the threshold: the last tile or id with any weight is meant.
    chosen = tl.minimum(chosen, tl.max(tl.where(sums > 0, tiles, 0), axis=0))
    rest = threshold - tl.sum(tl.where(tiles == chosen - 1, running, 0.0), axis=0)
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


@torch.library.custom_op(f"{NAMESPACE}::sample_tokens", mutates_args=())
def _sample_op(
    logits: Tensor,
    seeds: Tensor,
    steps: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    forbidden: Tensor | None,
    seen: Tensor | None,
    repetition_penalty: Tensor | None,
    presence_penalty: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if not use_triton(backend, logits):
        ids, logprobs, sampled = reference(
            logits, seeds, steps, temperature, _in_use(top_k, 0), _in_use(top_p, 1.0, at_least=True),
            _in_use(min_p, 0.0), forbidden, seen, repetition_penalty, presence_penalty,
        )  # fmt: skip
    else:
        rows, vocabulary = logits.shape
        ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
        logprobs = torch.empty(rows, dtype=torch.float32, device=logits.device)
        sampled = torch.empty_like(logprobs)
        if rows:
            logits = logits if logits.stride(1) == 1 else logits.contiguous()
            dense = [
                None if t is None else t.contiguous()
                for t in (seeds, steps, temperature, top_k, top_p, min_p, forbidden, seen, repetition_penalty,
                          presence_penalty)
            ]  # fmt: skip
            block = tile(vocabulary, TILE)
            _kernel[(rows,)](
                logits, logits.stride(0), *dense, ids, logprobs, sampled, V=vocabulary,
                F=0 if forbidden is None else forbidden.shape[1],
                TILES=triton.next_power_of_2(triton.cdiv(vocabulary, block)), BLOCK=block, num_warps=32,
            )  # fmt: skip
    if logits.device.type == "cpu":
        bad = ~(torch.isfinite(logprobs) & torch.isfinite(sampled))
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"logits of row {row} leave nothing to sample from (largest {float(logits[row].max())}); "
                "look for NaN or infinite logits, or for processors that ban every id"
            )
    return ids, logprobs, sampled


@_sample_op.register_fake
def _(logits: Tensor, seeds: Tensor, *rest: Tensor | str | None) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    values = logits.new_empty(logits.shape[:1], dtype=dtype)
    return seeds.new_empty(logits.shape[:1]), values, torch.empty_like(values)


def sample_tokens(
    logits: Tensor,
    *,
    seeds: Tensor,
    steps: Tensor,
    temperature: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    forbidden: Tensor | None = None,
    seen: Tensor | None = None,
    repetition_penalty: Tensor | None = None,
    presence_penalty: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one id per row of ``logits`` [B, V]; every parameter is per row.

    ``seeds``, ``steps`` [B] int64 name the random number; ``temperature`` [B] float (0: greedy, the first of
    equal maxima); ``top_k`` [B] int32 (0: off), ``top_p`` [B] (1: off), ``min_p`` [B] (0: off);
    ``forbidden`` [B, F] int64 ids with weight zero (-1: none), as ``forbidden_tokens`` returns;
    ``seen`` [B, V] uint8 of the bits ``REPEATED`` and ``PRESENT``, for ``repetition_penalty`` [B] (logits
    are divided by it, or multiplied when negative) and ``presence_penalty`` [B] (subtracted once). A
    generated id sets both bits: ``seen.scatter_(1, ids[:, None], REPEATED | PRESENT)``. None switches a
    feature off for all rows.

    With the penalised logits z in float32 (float64 for float64 logits), w = exp((z - max z) / temperature)
    over what truncation keeps and u = ``philox_uniform(seed, step)``, the id is the first i with
    w_0 + ... + w_i > u * sum(w). Weights are float32 and summed so within a tile (reference 1,024, kernel
    8,192), tiles in float64; so their ids differ where u * sum(w) falls within a rounding error of a border.

    Returns ``ids`` [B] int64; ``logprobs`` [B] float32, the log-softmax of the untouched logits / temperature
    at the id (of the logits where the temperature is 0: no penalty, no truncation, no forbidden id counts);
    ``sampled_logprobs`` [B] float32, the log-probability under the distribution drawn from (0 where greedy).
    A row's result does not depend on the other rows.

    One launch on CUDA: logits are read twice without truncation; top-k and top-p each bisect for their
    threshold (up to 32 more reads, from the L2 cache) instead of sorting.

    Raises ``ValueError`` for wrong shapes, and on the CPU for a row without a finite largest score (NaN or
    infinite logits, or nothing left to choose). On CUDA such a row returns a NaN log-probability.
    """
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ValueError(f"logits is {tuple(logits.shape)} {logits.dtype}; it must be floating point [B, V]")
    rows, vocabulary = logits.shape
    if vocabulary == 0:
        raise ValueError(f"logits is {tuple(logits.shape)}; the vocabulary must not be empty")
    per_row = {
        "seeds": seeds, "steps": steps, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "min_p": min_p, "repetition_penalty": repetition_penalty, "presence_penalty": presence_penalty,
    }  # fmt: skip
    for name, value in per_row.items():
        if value is not None and (tuple(value.shape) != (rows,) or value.device != logits.device):
            raise ValueError(
                f"{name} is {tuple(value.shape)} on {value.device}; it must be ({rows},) on {logits.device}"
            )
    for name, value in (("seeds", seeds), ("steps", steps)):
        if value.dtype != torch.int64:
            raise ValueError(f"{name} is {value.dtype}; it must be torch.int64")
    if forbidden is not None and (forbidden.dim() != 2 or forbidden.shape[0] != rows):
        raise ValueError(f"forbidden is {tuple(forbidden.shape)}; it must be [{rows}, F] ids, -1 for none")
    if (seen is None) != (repetition_penalty is None and presence_penalty is None):
        raise ValueError("seen is needed with repetition_penalty or presence_penalty, and only with them")
    if seen is not None and (tuple(seen.shape) != (rows, vocabulary) or seen.dtype != torch.uint8):
        raise ValueError(f"seen is {tuple(seen.shape)} {seen.dtype}; it must be ({rows}, {vocabulary}) uint8")
    with torch.no_grad():
        return _sample_op(
            logits, seeds, steps, temperature, top_k, top_p, min_p, forbidden, seen, repetition_penalty,
            presence_penalty, backend,
        )  # fmt: skip
