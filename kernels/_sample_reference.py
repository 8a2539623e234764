"""Sampling in plain PyTorch, without a sort: the CPU path, and what the kernel is compared with.

Rows go through in blocks that stay in the cache. Every sum over a row is taken in an order that its length
alone decides (within a tile of 1,024, then over tiles), so that a row's result does not depend on the batch.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ._common import check_tensors

REPEATED = 1  # bit of `seen`: the repetition penalty applies (ids of the prompt's text and generated ids)
PRESENT = 2  # bit of `seen`: the presence penalty applies (generated ids)

_MASK32 = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85

_BLOCK = 2**19  # logits that are worked on at a time; the temporaries of larger blocks cost page faults
_TILE = 1024  # weights that are summed in their own precision
_BUCKETS = 4096
_FEW = 256  # a top-k up to which a heap of the largest is cheaper than histograms


def philox_uniform(seeds: Tensor, steps: Tensor) -> Tensor:
    """One random number for each (seed, step): Philox 4x32-10, as ``sample_tokens`` draws.

    Args:
        seeds: int64 of any shape: the key.
        steps: int64 of the same shape: the counter.

    Returns:
        float64 in [0, 1) of that shape, with 53 random bits.
    """
    check_tensors(seeds=seeds, steps=steps)
    if seeds.shape != steps.shape or {seeds.dtype, steps.dtype} != {torch.int64}:
        raise ValueError(
            f"seeds {tuple(seeds.shape)} {seeds.dtype} and steps {tuple(steps.shape)} {steps.dtype} must be "
            "int64 of one shape"
        )
    # int64 products wrap around modulo 2^64, and shifting then masking recovers the unsigned halves.
    key_a, key_b = seeds & _MASK32, (seeds >> 32) & _MASK32
    c0, c1 = steps & _MASK32, (steps >> 32) & _MASK32
    c2, c3 = torch.zeros_like(steps), torch.zeros_like(steps)
    for _ in range(10):
        product_a, product_b = c0 * _ROUND_A, c2 * _ROUND_B
        high_a, high_b = (product_a >> 32) & _MASK32, (product_b >> 32) & _MASK32
        c0, c1, c2, c3 = high_b ^ c1 ^ key_a, product_b & _MASK32, high_a ^ c3 ^ key_b, product_a & _MASK32
        key_a, key_b = (key_a + _KEY_A) & _MASK32, (key_b + _KEY_B) & _MASK32
    return ((c0 << 21) | (c1 >> 11)).to(torch.float64) * 2.0**-53


def reference(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, raw and sampled log-probabilities; arguments and results are those of ``sample_tokens``."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    ids = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(logits.shape[0], dtype=dtype, device=logits.device)
    sampled = torch.empty_like(logprobs)
    uniform = philox_uniform(seeds, steps)
    optional = (top_k, top_p, min_p, forbidden, seen, repetition_penalty, presence_penalty)
    step = max(1, _BLOCK // logits.shape[1])
    for start in range(0, logits.shape[0], step):
        rows = slice(start, start + step)
        ids[rows], logprobs[rows], sampled[rows] = _sample(
            logits[rows].to(dtype), uniform[rows], temperature[rows],
            *(None if value is None else value[rows] for value in optional),
        )  # fmt: skip
    return ids, logprobs, sampled


def _sample(
    raw: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    forbidden: Tensor | None,
    seen: Tensor | None,
    repetition: Tensor | None,
    presence: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    vocabulary = raw.shape[1]
    greedy = temperature == 0
    divisor = torch.where(greedy, 1.0, temperature.double())[:, None]
    truncates = top_k is not None or top_p is not None or min_p is not None
    raw_top = raw.amax(dim=1, keepdim=True)
    scores = raw if seen is None else _penalise(raw, seen, repetition, presence)
    penalised = scores is not raw
    # Scores without the forbidden ids are a copy, which a plain draw needs only where such an id is the best.
    if forbidden is not None and (
        penalised or truncates or bool(greedy.any()) or _forbids_best(raw, raw_top, forbidden)
    ):
        scores = _forbid_(scores if penalised else scores.clone(), forbidden, -torch.inf)
    top = raw_top if scores is raw else scores.amax(dim=1, keepdim=True)

    tile = min(_TILE, triton.next_power_of_2(vocabulary))
    tiles = -(-vocabulary // tile)
    weights = raw.new_empty(raw.shape[0], tiles * tile)
    weights[:, vocabulary:] = 0.0
    _weigh(raw, raw_top, divisor, weights)
    running, raw_total = _totals(weights, tile)
    if bool(greedy.all()):
        ids, sampled = scores.argmax(dim=1), (top - top)[:, 0].double()  # NaN where nothing is left
    else:
        if penalised or (scores is not raw and not torch.equal(top, raw_top)):
            _weigh(scores, top, divisor, weights)
        elif forbidden is not None:  # the same weights but for the forbidden ids
            _forbid_(weights[:, :vocabulary], forbidden, 0.0)
        if truncates:
            _truncate(scores, weights, top, divisor, tile, top_k, top_p, min_p)
        total = raw_total
        if truncates or scores is not raw or forbidden is not None:
            running, total = _totals(weights, tile)
        drawn = _draw(weights, running, total, uniform[:, None]).clamp_(max=vocabulary - 1)
        ids = torch.where(greedy, scores.argmax(dim=1), drawn) if bool(greedy.any()) else drawn
        sampled = ((scores.gather(1, ids[:, None]) - top).double() / divisor - total.log())[:, 0]
        sampled = torch.where(greedy, (top - top)[:, 0].double(), sampled)
    logprobs = (raw.gather(1, ids[:, None]) - raw_top).double() / divisor - raw_total.log()
    return ids, logprobs[:, 0], sampled


def _forbids_best(raw: Tensor, top: Tensor, forbidden: Tensor) -> bool:
    """Whether a forbidden id has the largest score of its row, or one that is not finite."""
    return not bool(((raw.gather(1, forbidden.clamp(min=0)) < top) | (forbidden < 0)).all())


def _forbid_(values: Tensor, forbidden: Tensor, least: float) -> Tensor:
    """Set the values [rows, V] of the forbidden ids [rows, F] (-1: none) to ``least``, in place."""
    for slot in forbidden.T[:, :, None]:  # -1 puts back what the first id has
        values.scatter_(1, slot.clamp(min=0), torch.where(slot < 0, values[:, :1], least))
    return values


def _penalise(raw: Tensor, seen: Tensor, repetition: Tensor | None, presence: Tensor | None) -> Tensor:
    """A copy of ``raw`` with the few ids that were seen changed."""
    rows, columns = seen.nonzero(as_tuple=True)
    bits, values = seen[rows, columns], raw[rows, columns]
    if repetition is not None:
        factor = repetition.to(raw.dtype)[rows]
        changed = values * torch.where(values < 0, factor, 1.0 / factor)
        values = torch.where((bits & REPEATED) != 0, changed, values)
    if presence is not None:
        values = torch.where((bits & PRESENT) != 0, values - presence.to(raw.dtype)[rows], values)
    return raw.index_put((rows, columns), values)


def _weigh(scores: Tensor, top: Tensor, divisor: Tensor, weights: Tensor) -> None:
    """exp((score - top) / divisor) into the first columns of ``weights``."""
    out = weights[:, : scores.shape[1]]
    torch.sub(scores, top, out=out)
    if bool((divisor != 1.0).any()):
        out.div_(divisor.to(scores.dtype))
    out.exp_()


def _totals(weights: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Running totals over tiles [rows, tiles] in float64, and the last of them [rows, 1]."""
    # cumsum walks each row in order whatever the batch is; sum does so within a tile.
    running = weights.view(weights.shape[0], -1, tile).sum(dim=2).double().cumsum(dim=1)
    return running, running[:, -1:]


def _draw(weights: Tensor, running: Tensor, total: Tensor, uniform: Tensor) -> Tensor:
    """The first id up to which the weights come to more than ``uniform`` of the total."""
    rows, tiles = running.shape
    # u * total may round up to total; the last tile with any weight is meant then.
    threshold = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    chosen = torch.searchsorted(running, threshold, right=True).clamp_(max=tiles - 1)
    before = torch.where(chosen > 0, running.gather(1, (chosen - 1).clamp(min=0)), 0.0)
    inside = weights.view(rows, tiles, -1)[torch.arange(rows, device=weights.device), chosen[:, 0]]
    inside = inside.double().cumsum(dim=1)
    offset = torch.searchsorted(inside, threshold - before, right=True)
    # Summed in another order the tile may come to less than the rest: its last id with any weight then.
    offset = torch.minimum(offset, torch.searchsorted(inside, inside[:, -1:].contiguous()))
    return (chosen * inside.shape[1] + offset)[:, 0]


def _truncate(
    scores: Tensor,
    weights: Tensor,
    top: Tensor,
    divisor: Tensor,
    tile: int,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
) -> None:
    """Set the weights of everything outside top-k, then top-p, then min-p to 0."""
    sound = torch.isfinite(top)
    if not bool(sound.all()):  # rows that are reported later must not disturb the selection
        scores, top = torch.where(sound, scores, 0.0), torch.where(sound, top, 0.0)
    inside = weights[:, : scores.shape[1]]
    keep = torch.full_like(top, -torch.inf)
    mask = torch.empty_like(scores)
    if top_k is not None:
        most = int(top_k.max())
        if most <= _FEW:
            ordered = scores.topk(min(max(most, 1), scores.shape[1]), dim=1).values
            found = ordered.gather(1, (top_k.long().clamp(1, ordered.shape[1]) - 1)[:, None])
        else:
            found = _select(scores, None, top_k.double(), top, torch.full_like(top, 32.0))
        keep = torch.where(top_k[:, None] > 0, found, keep)
        inside.mul_(torch.ge(scores, keep, out=mask))
    if top_p is not None:
        wanted = top_p.double() * _totals(weights, tile)[1][:, 0]
        found = _select(scores, inside, wanted, top, 64.0 * divisor.to(top.dtype))
        keep = torch.where(top_p[:, None] < 1.0, torch.maximum(keep, found), keep)
    if min_p is not None:
        keep = torch.maximum(keep, top + (divisor * min_p.double()[:, None].log()).to(top.dtype))
    if top_p is not None or min_p is not None:
        inside.mul_(torch.ge(scores, keep, out=mask))


def _select(scores: Tensor, weights: Tensor | None, wanted: Tensor, top: Tensor, width: Tensor) -> Tensor:
    """The largest score [rows, 1] such that all from it on weigh (None: count) at least ``wanted`` [rows].

    -inf where all of a row's finite scores weigh less. ``top`` [rows, 1], the largest scores, must be finite.
    A histogram of scores down to ``top - width`` says in which bucket the answer is; the members of that
    bucket are spread over a histogram of their own, until those of a bucket are all equal.
    """
    rows, vocabulary = scores.shape
    buckets = min(_BUCKETS, triton.next_power_of_2(vocabulary))
    rate = buckets / width.clamp(min=1e-30)  # an infinite rate would make NaN of the difference 0
    index = torch.sub(top, scores).mul_(rate).clamp_(max=buckets - 1).int()
    weigh = scores.new_ones(1, dtype=torch.float64).expand_as(scores) if weights is None else weights.double()
    held = torch.zeros(rows, buckets, dtype=torch.float64, device=scores.device)
    held.scatter_add_(1, index.long(), weigh)
    bucket, before = _crossing(held, wanted)
    row, column = (index == bucket.int()[:, None]).nonzero(as_tuple=True)
    value, weight = scores[row, column].double(), weigh[row, column]
    found = torch.full((rows,), -torch.inf, dtype=torch.float64, device=scores.device)
    inside = torch.isfinite(value)
    while bool(inside.any()):
        row, value, weight = row[inside], value[inside], weight[inside]
        wanted = wanted - before
        high = torch.full_like(found, -torch.inf).scatter_reduce_(0, row, value, "amax")
        low = torch.full_like(found, torch.inf).scatter_reduce_(0, row, value, "amin")
        alike = high == low
        span = torch.where(alike, 1.0, high - low)
        index = ((high[row] - value) / span[row] * (buckets - 1)).long()
        held = held.zero_().view(-1).index_add_(0, row * buckets + index, weight).view(rows, buckets)
        bucket, before = _crossing(held, wanted)
        found = torch.where(alike & (bucket < buckets), high, found)
        inside = (index == bucket[row]) & ~alike[row]
    return found[:, None].to(scores.dtype)


def _crossing(held: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The bucket of each row with which the sum reaches ``wanted`` (none: their number); the sum before."""
    running = held.cumsum(dim=1)
    bucket = (running < wanted[:, None]).sum(dim=1)
    before = running.gather(1, (bucket - 1).clamp(min=0)[:, None])[:, 0]
    return bucket, torch.where(bucket > 0, before, 0.0)
