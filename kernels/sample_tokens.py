"""Sample one id per row: penalties, temperature, top-k, top-p, min-p, one counter-based random number.

Order as in Hugging Face's processors: penalties, (forbidden ids), temperature, top-k, top-p, min-p. Ties at
a threshold are all kept. The random number of a row is Philox4x32-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011) of key ``seed`` and counter ``step``, so a row's draw depends on nothing
but its own seed, step and logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

REPEATED = 1  # bit of `seen`: the repetition penalty applies (ids of the prompt's text and generated ids)
PRESENT = 2  # bit of `seen`: the presence penalty applies (generated ids)

_MASK32 = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85


def philox_uniform(seeds: Tensor, steps: Tensor) -> Tensor:
    """One float64 in [0, 1) with 53 random bits for each (seed, step), both int64 of the same shape."""
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


def _row_total(weights: Tensor) -> tuple[Tensor, Tensor]:
    # cumsum walks each row in order whatever the batch is, unlike sum, so rows stay independent bit for bit.
    running = weights.cumsum(dim=1)
    return running, running[:, -1:]


def _log_total(scores: Tensor) -> Tensor:
    top = scores.amax(dim=1, keepdim=True)
    return top + _row_total((scores - top).exp())[1].log()


def _truncate(scores: Tensor, top_k: Tensor | None, top_p: Tensor | None, min_p: Tensor | None) -> Tensor:
    """Scores with everything outside top-k, then top-p, then min-p set to -inf."""
    keep_from = torch.full_like(scores[:, :1], -torch.inf)
    top = scores.amax(dim=1, keepdim=True)
    if top_k is not None or top_p is not None:
        ordered = scores.sort(dim=1, descending=True).values
        if top_k is not None:
            last = (top_k.long().clamp(max=scores.shape[1]) - 1).clamp(min=0)[:, None]
            keep_from = torch.where(top_k[:, None] > 0, ordered.gather(1, last), keep_from)
        if top_p is not None:
            weights = (ordered - top).double().exp().masked_fill(ordered < keep_from, 0.0)
            running, total = _row_total(weights)
            before = running - weights
            # Kept: what starts below the mass p. The first one always is.
            kept = (before < top_p.double()[:, None] * total) & (ordered >= keep_from)
            last = (kept.sum(dim=1, keepdim=True) - 1).clamp(min=0)
            keep_from = torch.where(top_p[:, None] < 1.0, ordered.gather(1, last), keep_from)
    if min_p is not None:
        keep_from = torch.maximum(keep_from, top + min_p.to(scores.dtype)[:, None].log())
    return scores.masked_fill(scores < keep_from, -torch.inf)


def _reference(
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
    raw = logits if logits.dtype == torch.float64 else logits.float()
    greedy = (temperature == 0)[:, None]
    divisor = torch.where(greedy, 1.0, temperature[:, None]).to(raw.dtype)

    scores = raw
    if seen is not None and repetition_penalty is not None:
        penalty = repetition_penalty.to(raw.dtype)[:, None]
        penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
        scores = torch.where((seen & REPEATED) != 0, penalised, scores)
    if seen is not None and presence_penalty is not None:
        penalised = scores - presence_penalty.to(raw.dtype)[:, None]
        scores = torch.where((seen & PRESENT) != 0, penalised, scores)
    if forbidden is not None:
        banned = torch.zeros(logits.shape[0], logits.shape[1] + 1, dtype=torch.bool, device=logits.device)
        banned.scatter_(1, torch.where(forbidden < 0, logits.shape[1], forbidden), True)
        scores = scores.masked_fill(banned[:, :-1], -torch.inf)
    best = scores.argmax(dim=1)
    scores = scores / divisor
    if top_k is not None or top_p is not None or min_p is not None:
        scores = _truncate(scores, top_k, top_p, min_p)

    scores = scores.double()
    top = scores.amax(dim=1, keepdim=True)
    running, total = _row_total((scores - top).exp())
    threshold = philox_uniform(seeds, steps)[:, None] * total
    # u * total may round up to total; the last id with any weight is meant then.
    threshold = torch.minimum(threshold, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(running, threshold, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    ids = torch.where(greedy[:, 0], best, drawn)

    chosen = ids[:, None]
    scaled = (raw / divisor).double()
    logprobs = scaled.gather(1, chosen) - _log_total(scaled)
    sampled = scores.gather(1, chosen) - top - total.log()
    sampled = torch.where(greedy, torch.zeros_like(sampled), sampled)
    return ids, logprobs[:, 0].to(raw.dtype), sampled[:, 0].to(raw.dtype)


def _in_use(values: Tensor | None, off: float, *, at_least: bool = False) -> Tensor | None:
    """None when every row has the feature switched off, which only a CPU tensor can tell for free."""
    if values is None or values.device.type != "cpu":
        return values
    inactive = values >= off if at_least else values <= off
    return None if bool(inactive.all()) else values


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one id per row of ``logits`` [B, V]; every parameter is per row.

    ``seeds``, ``steps`` [B] int64 name the random number; ``temperature`` [B] float (0: greedy, the first of
    equal maxima); ``top_k`` [B] int32 (0: off), ``top_p`` [B] (1: off), ``min_p`` [B] (0: off);
    ``forbidden`` [B, F] int64 ids with weight zero (-1: none), as ``forbidden_tokens`` returns;
    ``seen`` [B, V] uint8 of the bits ``REPEATED`` and ``PRESENT``, for ``repetition_penalty`` [B] (logits
    are divided by it, or multiplied when negative) and ``presence_penalty`` [B] (subtracted once). A
    generated id sets both bits: ``seen.scatter_(1, ids[:, None], REPEATED | PRESENT)``. None switches a
    feature off for all rows.

    With z = penalised logits / temperature in float32 (float64 for float64 logits), w = exp(z - max z) over
    what truncation keeps and u = ``philox_uniform(seed, step)``, the id is the first i with
    w_0 + ... + w_i > u * sum(w), in float64.

    Returns ``ids`` [B] int64; ``logprobs`` [B] float32, the log-softmax of the untouched logits / temperature
    at the id (of the logits where the temperature is 0: no penalty, no truncation, no forbidden id counts);
    ``sampled_logprobs`` [B] float32, the log-probability under the distribution drawn from (0 where greedy).
    A row's result does not depend on the other rows.

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
        ids, logprobs, sampled = _reference(
            logits, seeds, steps, temperature,
            _in_use(top_k, 0), _in_use(top_p, 1.0, at_least=True), _in_use(min_p, 0.0),
            forbidden, seen, repetition_penalty, presence_penalty,
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
