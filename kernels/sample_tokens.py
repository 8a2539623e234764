"""Sample one id per row: penalties, temperature, top-k, top-p, min-p, one counter-based random number.

Order as in Hugging Face's processors: penalties, (forbidden ids), temperature, top-k, top-p, min-p. Ties at
a threshold are all kept. The random number of a row is Philox4x32-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011) of key ``seed`` and counter ``step``, so a row's draw depends on nothing
but its own seed, step and logits.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from ._common import COLDEST, LARGEST, NAMESPACE, check_floating, check_tensors, debugging, tile, use_triton
from ._gpu_architectures import launching
from ._sample_assembly import BINS
from ._sample_kernel import sample_draw_kernel, sample_scan_kernel
from ._sample_reference import PRESENT, REPEATED, philox_uniform, reference
from ._sample_scores import BEHIND, FIGURES
from ._sample_truncate import sample_bracket_kernel, sample_list_kernel

__all__ = ["PRESENT", "REPEATED", "SAMPLING_LIMITS", "philox_uniform", "sample_tokens"]


def _in_use(values: Tensor | None, off: float, *, at_least: bool = False) -> Tensor | None:
    """None when every row has the feature switched off, which only a CPU tensor can tell for free."""
    if values is None or values.device.type != "cpu":
        return values
    inactive = values >= off if at_least else values <= off
    return None if bool(inactive.all()) else values


# name: off, lowest, highest and what to pass. A penalty beyond these turns logits into infinity or all alike;
# a temperature below is 0 on a processor that flushes float32's denormal numbers.
SAMPLING_LIMITS = {
    "temperature": (0.0, COLDEST, LARGEST, "0 (greedy), or 1e-38 to 1e38"),
    "top_k": (0, 0, math.inf, "0 (off) or more"),
    "top_p": (1.0, 0.0, 1.0, "0 to 1 (off)"),
    "min_p": (0.0, 0.0, 1.0, "0 (off) to 1"),
    "repetition_penalty": (1.0, 1e-3, 1e3, "0.001 to 1000; 1 is off"),
    "presence_penalty": (0.0, -1e30, 1e30, "-1e30 to 1e30; 0 is off"),
}


def _check_values(
    vocabulary: int, steps: Tensor, forbidden: Tensor | None, **parameters: Tensor | None
) -> None:
    """Raise ``ValueError`` naming the first parameter with a value that means nothing."""
    if bool((steps < 0).any()):
        row = int((steps < 0).nonzero()[0])
        raise ValueError(f"steps of row {row} is {int(steps[row])}; it must be 0 or more")
    for name, values in parameters.items():
        if values is None:
            continue
        off, low, high, allowed = SAMPLING_LIMITS[name]
        bad = ~((values == off) | (values >= low) & (values <= high))
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise ValueError(f"{name} of row {row} is {values[row].item()}; it must be {allowed}")
    if forbidden is not None:
        bad = (forbidden < -1) | (forbidden >= vocabulary)
        if bool(bad.any()):
            row, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"forbidden of row {row} has id {int(forbidden[row, column])}; ids are 0 to {vocabulary - 1} "
                "(-1: none)"
            )


def _launch_kernels(
    logits: Tensor, dense: list[Tensor | None], ids: Tensor, logprobs: Tensor, sampled: Tensor
) -> None:
    """Scan, truncate if asked for, draw; ``dense`` are the parameters of ``_sample_op`` from ``seeds`` on."""
    seeds, steps, temperature, top_k, top_p, min_p, forbidden, *penalties = dense
    rows, vocabulary = logits.shape
    rules, given, device = (top_k, top_p, min_p), (logits, logits.stride(0)), logits.device
    kept = counts = plan = listed = None
    with launching("sample_scan", logits) as launch:
        block = tile(vocabulary, launch.block)
        parts = triton.cdiv(vocabulary, block)
        split = {"V": vocabulary, "PARTS": parts}
        sizes = split | {"F": 0 if forbidden is None else forbidden.shape[1], "BLOCK": block}
        width = {"WIDTH": triton.next_power_of_2(parts)}
        figures = torch.empty(FIGURES, rows, parts, dtype=torch.float32, device=device)
        first = torch.empty(rows, parts, dtype=torch.int32, device=device)
        if top_k is not None or top_p is not None:
            counts = torch.empty(rows, parts, BINS.value, dtype=torch.int16, device=device)
        sample_scan_kernel[(rows * parts,)](
            *given, temperature, top_k, top_p, forbidden, *penalties, figures, first, counts, **sizes,
            **launch.options,
        )  # fmt: skip
    if counts is not None:
        plan = torch.empty(rows, parts + BEHIND.value, dtype=torch.int32, device=device)
        with launching("sample_bracket", logits) as launch:
            sample_bracket_kernel[(rows,)](
                temperature, *rules, figures, counts, plan, **split, **width, BLOCK=block, **launch.options
            )
    if any(rule is not None for rule in rules):
        kept = torch.empty(rows, parts, dtype=torch.float32, device=device)
        listed = torch.empty(rows, parts * block, dtype=torch.float32, device=device)
        with launching("sample_list", logits) as launch:
            sample_list_kernel[(rows * parts,)](
                *given, temperature, *rules, forbidden, *penalties, figures, plan, kept, listed, **sizes,
                **width, **launch.options,
            )  # fmt: skip
    with launching("sample_draw", logits) as launch:
        sample_draw_kernel[(rows,)](
            *given, seeds, steps, temperature, *rules, forbidden, *penalties, figures, first, plan, kept,
            listed, ids, logprobs, sampled, **sizes, **width, **launch.options,
        )  # fmt: skip


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
    fused = use_triton(backend, logits)
    if not fused or debugging():
        _check_values(
            logits.shape[1], steps, forbidden, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
        )  # fmt: skip
    if not fused:
        ids, logprobs, sampled = reference(
            logits, seeds, steps, temperature, _in_use(top_k, 0), _in_use(top_p, 1.0, at_least=True),
            _in_use(min_p, 0.0), forbidden, seen, repetition_penalty, presence_penalty,
        )  # fmt: skip
    else:
        rows = logits.shape[0]
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
            _launch_kernels(logits, dense, ids, logprobs, sampled)
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
    """Draw one id per row; every parameter is per row, and a row's result does not depend on the other rows.

    With the penalised logits z in float32 (float64 for float64 logits), w = exp((z - max z) / temperature)
    over what truncation keeps and u = ``philox_uniform(seed, step)``, the id is the first i with w_0 + ... +
    w_i > u * sum(w). Weights are float32 and summed so within a tile (reference 1,024, kernel 8,192), tiles
    in float64; so their ids differ where u * sum(w) falls within a rounding error of a border.

    Two launches on CUDA: many programs a row read the logits once, and one draws, for which it reads another
    8,192 of them. Truncation does not sort and takes two launches more: counts of the first read say between
    which scores the thresholds of top-k and top-p lie, a second read by many programs a row lists those, and
    the draw bisects the list.

    Args:
        logits: [B, V] floating.
        seeds: [B] int64; names the random number, with ``steps``.
        steps: [B] int64, 0 or more.
        temperature: [B] floating; 0: greedy, the first of equal maxima.
        top_k: [B] int32; 0 or None: off.
        top_p: [B] floating; 1 or None: off.
        min_p: [B] floating; 0 or None: off.
        forbidden: [B, F] int64, ids with weight zero (-1: none), as ``forbidden_tokens`` returns.
        seen: [B, V] uint8 of the bits ``REPEATED`` and ``PRESENT``, for the penalties. A generated id sets
            both: ``seen.scatter_(1, ids[:, None], REPEATED | PRESENT)``.
        repetition_penalty: [B]; logits of repeated ids are divided by it, or multiplied when negative.
        presence_penalty: [B]; subtracted once from the logits of ids that are present.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        ``ids`` [B] int64; ``logprobs`` [B] float32, the log-softmax of the untouched logits / temperature at
        the id (of the logits where the temperature is 0: no penalty, no truncation, no forbidden id counts);
        ``sampled_logprobs`` [B] float32, the log-probability under the distribution drawn from (0 where
        greedy).

    Raises:
        ValueError: wrong shapes; in the reference, and in the kernel with ``FOURDTHINKER_DEBUG=1`` because
            that synchronises, parameters out of range (``SAMPLING_LIMITS``), steps below 0 and forbidden ids
            outside [-1, V); on the CPU a row without a finite largest score (NaN or infinite logits, or
            nothing left to choose). On CUDA such a row returns a NaN log-probability.
    """
    optional = {
        "top_k": top_k, "top_p": top_p, "min_p": min_p, "forbidden": forbidden, "seen": seen,
        "repetition_penalty": repetition_penalty, "presence_penalty": presence_penalty,
    }  # fmt: skip
    check_tensors(*optional, logits=logits, seeds=seeds, steps=steps, temperature=temperature, **optional)
    check_floating(
        logits=logits, temperature=temperature, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
    )  # fmt: skip
    if logits.dim() != 2:
        raise ValueError(f"logits is {tuple(logits.shape)}; it must be [B, V]")
    rows, vocabulary = logits.shape
    if vocabulary == 0:
        raise ValueError(f"logits is {tuple(logits.shape)}; the vocabulary must not be empty")
    per_row = {
        "seeds": seeds, "steps": steps, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "min_p": min_p, "repetition_penalty": repetition_penalty, "presence_penalty": presence_penalty,
    }  # fmt: skip
    for name, value in per_row.items():
        if value is not None and tuple(value.shape) != (rows,):
            raise ValueError(f"{name} is {tuple(value.shape)}; it must be ({rows},), one entry a row")
    for name, value in (("seeds", seeds), ("steps", steps)):
        if value.dtype != torch.int64:
            raise ValueError(f"{name} is {value.dtype}; it must be torch.int64")
    if top_k is not None and top_k.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"top_k is {top_k.dtype}; it must be torch.int32 or torch.int64")
    if forbidden is not None and (
        forbidden.dim() != 2 or forbidden.shape[0] != rows or forbidden.dtype != torch.int64
    ):
        raise ValueError(
            f"forbidden is {tuple(forbidden.shape)} {forbidden.dtype}; it must be [{rows}, F] int64 ids, "
            "-1 for none"
        )
    if (seen is None) != (repetition_penalty is None and presence_penalty is None):
        raise ValueError("seen is needed with repetition_penalty or presence_penalty, and only with them")
    if seen is not None and (tuple(seen.shape) != (rows, vocabulary) or seen.dtype != torch.uint8):
        raise ValueError(f"seen is {tuple(seen.shape)} {seen.dtype}; it must be ({rows}, {vocabulary}) uint8")
    with torch.no_grad():
        return _sample_op(
            logits, seeds, steps, temperature, top_k, top_p, min_p, forbidden, seen, repetition_penalty,
            presence_penalty, backend,
        )  # fmt: skip
