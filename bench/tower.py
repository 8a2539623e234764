"""The vision tower's attention against transformers': ``python -m bench tower``.

Towers of random weights at true shapes read one clip of 50 frames of 336 x 588; on a CPU a small one. Host
seconds are those until the call returns, before the device is waited for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench import _measure as measure
from bench._sampler_cases import SHAPES, build
from fourdthinker.backbones import tower
from fourdthinker.backbones.common import Backbone

GRIDS = {"cuda": (25, 24, 42), "cpu": (2, 12, 20)}


def _plain(backbone: Backbone, patches: Tensor, grid: Tensor) -> Tensor:
    """The tower as transformers runs it by itself."""
    config = backbone.visual.config
    config._attn_implementation = "sdpa"
    try:
        return backbone.visual(patches, grid_thw=grid.to(patches.device)).pooler_output
    finally:
        config._attn_implementation = tower.NAME


def _host_seconds(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    taken = time.perf_counter() - begin
    if device == "cuda":
        torch.cuda.synchronize()
    return taken


@torch.no_grad()
def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench tower", description=__doc__)
    parser.add_argument(
        "--shapes",
        nargs="+",
        choices=list(SHAPES),
        help="of bench sampler (default: 3b and 4b, on a CPU tiny)",
    )
    parser.add_argument("--repeats", type=measure.positive, default=3)
    measure.add_save(parser)
    options = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    grid, rows = torch.tensor([GRIDS[device]]), []
    for shape in options.shapes or (["3b", "4b"] if device == "cuda" else ["tiny"]):
        backbone = build(shape, device, dtype, layers=1)
        patches = torch.randn(int(grid.prod()), backbone.vision.patch_dim, device=device, dtype=dtype)
        calls: dict[str, Callable[[], object]] = {
            "ours": lambda b=backbone, p=patches: b.encode_vision(p, grid),  # type: ignore[misc]
            "transformers": lambda b=backbone, p=patches: _plain(b, p, grid),  # type: ignore[misc]
        }
        taken = measure.interleaved(calls, repeats=options.repeats, device=device)
        for name, seconds in taken.items():
            host = min(_host_seconds(calls[name], device) for _ in range(3 if name == "ours" else 1))
            rows.append({"shape": shape, "patches": len(patches), "candidate": name,
                         "host_seconds": round(host, 4), **measure.summary(seconds)})  # fmt: skip
        del backbone, calls
        if options.save:
            measure.save("tower", rows, device)
    measure.show(f"Vision towers on {device}", rows)
    sys.stdout.write(json.dumps({"device": device, "rows": rows}) + "\n")
    return 0
