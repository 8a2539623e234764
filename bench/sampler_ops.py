"""The two ops that grow with a decode step's sizes: ``python -m bench sampler_ops``.

Drawing from rows of 151,668 logits, padded as the sampler's are, by rows and truncation; and attention over
shared prompts, by prompt length and rows of a prompt. Microseconds, and the share of the copy bandwidth that
one read of the logits, or of keys and values, is. On a CPU small sizes.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench import _measure as measure
from bench.kernels import rates
from fourdthinker.kernels import sample_tokens, shared_prefix_decode

VOCABULARY = 151_668
HEADS, KV_HEADS, WIDTH, OWN = 16, 2, 128, 512  # of Qwen2.5-VL-3B
ROWS = {"cuda": (1, 8, 64, 128, 256), "cpu": (2,)}
PROMPTS = {
    "cuda": ((1, 64, 1024), (1, 64, 4096), (8, 8, 4096), (64, 1, 4096), (1, 64, 16_384)),
    "cpu": ((1, 4, 128), (2, 2, 128)),
}  # (prompts, rows of each, positions of each)
Call = Callable[[], object]


def draws(device: str, rows: int) -> Iterator[tuple[str, float, Call]]:
    """Of each truncation its name, the bytes of one read, and the call."""
    logits = torch.randn(rows, -(-VOCABULARY // 16) * 16, device=device).mul_(3)[:, :VOCABULARY]
    seeds, ones = torch.arange(rows, device=device), torch.ones(rows, device=device)
    forbidden = torch.tensor([[151_665, 151_667, -1]], device=device).repeat(rows, 1)
    more: dict[str, dict[str, Tensor]] = {
        "plain": {},
        "top-p 0.95": {"top_p": ones * 0.95},
        "top-k 20": {"top_k": (ones * 20).int()},
    }
    for name, rules in more.items():

        def call(rules: dict[str, Tensor] = rules) -> object:
            return sample_tokens(
                logits, seeds=seeds, steps=seeds, temperature=ones, forbidden=forbidden, **rules
            )

        yield f"sample_tokens, {rows} rows, {name}", float(rows * VOCABULARY * 4), call


def attention(device: str, prompts: int, rows: int, length: int) -> tuple[str, float, Call]:
    """As `draws`, of one layer's attention."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    pool = [randn(prompts, KV_HEADS, length, WIDTH) for _ in range(2)]
    own = [randn(prompts * rows, KV_HEADS, OWN, WIDTH) for _ in range(2)]
    query = randn(prompts * rows, HEADS, WIDTH)
    lengths = torch.full((prompts * rows,), OWN // 2, device=device)
    prompt_lengths = torch.full((prompts,), length, device=device)

    def call() -> object:
        return shared_prefix_decode(query, *pool, *own, prompt_lengths=prompt_lengths, lengths=lengths)

    read = 2 * (pool[0].nbytes + own[0].nbytes / 2)
    return f"shared_prefix_decode, {prompts} x {rows} rows, prompt {length}", read, call


def main(argv: list[str]) -> int:
    """Measure every size, and print one line of JSON last."""
    parser = argparse.ArgumentParser(prog="python -m bench sampler_ops", description=__doc__)
    parser.add_argument("--repeats", type=measure.positive, default=15)
    measure.add_save(parser)
    options = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    copy = rates(device, torch.float32)["copy"]
    rows: list[dict[str, object]] = []
    batches: list[Callable[[], list[tuple[str, float, Call]]]] = [
        *(partial(lambda count: list(draws(device, count)), count) for count in ROWS[device]),
        *(partial(lambda sizes: [attention(device, *sizes)], sizes) for sizes in PROMPTS[device]),
    ]
    for batch in batches:
        rows += _measured(batch, options.repeats, device, copy)
        if options.save:
            measure.save("sampler ops", rows, device)
    measure.show(f"Ops of a decode step on {device}", rows)
    sys.stdout.write(json.dumps({"device": device, "rows": rows}) + "\n")
    return 1 if any("error" in row for row in rows) else 0


def _measured(
    batch: Callable[[], list[tuple[str, float, Call]]], repeats: int, device: str, copy: float
) -> list[dict[str, object]]:
    """A row for each case; one that says why, when they fail: the others go on."""
    try:
        cases = batch()
        taken = measure.interleaved({n: c for n, _, c in cases}, repeats=repeats, device=device)
    except Exception as error:
        logging.exception("cases that fail")
        return [{"op": "cases that fail", "error": f"{type(error).__name__}: {str(error)[:80]}"}]
    return [_row(name, read, taken[name], copy) for name, read, _ in cases]


def _row(name: str, read: float, seconds: list[float], copy: float) -> dict[str, object]:
    found = measure.summary(seconds)
    return {
        "op": name, "us": round(found["median"] * 1e6, 1), "lowest_us": round(found["low"] * 1e6, 1),
        "share_of_copy": round(read / found["median"] / copy, 3),
    }  # fmt: skip
