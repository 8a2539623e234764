"""One training step of a packed group: ``python -m bench step``.

A model of random weights at true shapes runs forward and backward over one prompt and its completions in one
sequence, with gradient checkpointing: seconds, peak memory with and without the weights, and the share of the
machine's matmul rate. On a CPU a small model.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from torch import Tensor

from bench import _measure as measure
from bench._sampler_cases import SHAPES, build
from bench.kernels import rates
from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.packed import packed_mask
from fourdthinker.kernels import linear_cross_entropy


def group_segments(prompt: int, completions: int, length: int, device: torch.device) -> Tensor:
    """[1, S]: 0 in the prompt, then 1 + the number of the completion."""
    position = torch.arange(prompt + completions * length, device=device)
    return torch.where(position < prompt, 0, 1 + (position - prompt) // length)[None].int()


def step(backbone: Backbone, prompt: int, completions: int, length: int) -> None:
    """Forward and backward of the language model; the completions are the labels."""
    device, size = backbone.device, prompt + completions * length
    ids = torch.randint(0, 1000, (1, size), device=device)
    offset = torch.arange(size, device=device)
    offset = torch.where(offset < prompt, offset, prompt + (offset - prompt) % length)
    hidden = backbone.decode(
        backbone.embed_tokens(ids),
        offset.expand(3, 1, -1),
        packed_mask(group_segments(prompt, completions, length, device), backbone.dtype),
    )
    labels = torch.where(torch.arange(size, device=device) < prompt, -100, ids[0])
    loss = linear_cross_entropy(hidden[0, :-1], backbone.head_weight, labels[1:])
    loss.backward()
    backbone.zero_grad(set_to_none=True)


def flops(backbone: Backbone, prompt: int, completions: int, length: int) -> float:
    """Of a step that computes each layer's forward twice: 8 for each weight and token, 6 for the head."""
    size = prompt + completions * length
    weights = sum(p.numel() for p in backbone.hf.model.language_model.layers.parameters())
    pairs = prompt * prompt / 2 + completions * length * (prompt + length / 2)
    attention = 4 * backbone.num_layers * backbone.num_heads * backbone.head_dim * pairs
    head = 6 * completions * length * backbone.head_weight.numel()
    return 8 * weights * size + 4.5 * attention + head


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench step", description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), help="of bench sampler (default: 3b, on a CPU tiny)")
    parser.add_argument(
        "--sizes", nargs=3, type=measure.positive, metavar=("PROMPT", "COMPLETIONS", "LENGTH")
    )
    parser.add_argument("--repeats", type=measure.positive, default=3)
    measure.add_save(parser)
    options = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shape = options.shape or ("3b" if device == "cuda" else "tiny")
    prompt, completions, length = sizes = tuple(
        options.sizes or ((4096, 8, 512) if device == "cuda" else (64, 4, 16))
    )
    backbone = build(shape, device, dtype)
    backbone.freeze_vision()
    backbone.gradient_checkpointing_enable()
    backbone.train()

    def call() -> None:
        step(backbone, *sizes)

    taken = measure.interleaved({"ours": call}, repeats=options.repeats, device=device)["ours"]
    kept = {"shape": shape, "prompt": prompt, "completions": completions, "length": length}
    row: dict[str, object] = {**kept, **measure.summary(taken)}
    if options.save:  # what follows may run out of memory
        measure.save("step", [row], device)
    segments = group_segments(prompt, completions, length, backbone.device)
    rate = flops(backbone, *sizes) / min(taken)
    peak, weights = measure.peak_allocated(call, device), sum(p.nbytes for p in backbone.parameters())
    row |= {
        "mask": type(packed_mask(segments, backbone.dtype)).__name__,
        "peak_bytes": peak, "peak_with_weights_bytes": peak + weights,
        "share_of_matmul": round(rate / rates(device, dtype)["matmul"], 3),
    }  # fmt: skip
    measure.show(f"A packed training step on {device}", [row])
    if options.save:
        measure.save("step", [row], device)
    sys.stdout.write(json.dumps({"device": device, "rows": [row]}) + "\n")
    return 0
