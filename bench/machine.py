"""What a machine offers: ``python -m bench machine`` prints versions, the rates of a large copy and a large
matmul, and whether videos can be decoded by the GPU. Its last line is one line of JSON."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Any

import torch

from bench import _measure as measure
from bench.kernels import rates
from fourdthinker.frames.gpu import nvdec

log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench machine", description=__doc__)
    measure.add_save(parser)
    options = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    found: dict[str, Any] = {"device": measure.device_name(device), "versions": measure.versions()}
    if device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        found |= {"multiprocessors": facts.multi_processor_count, "memory": facts.total_memory}
    speed = rates(device, dtype)
    found |= {
        "copy_gb_per_s": round(speed["copy"] / 1e9, 1),
        "matmul_tflop_per_s": round(speed["matmul"] / 1e12, 2),
    }
    found["nvdec"] = nvdec.missing() or "there"
    rows = [{"what": name, "found": value} for name, value in found.items() if name != "versions"]
    measure.show("This machine", rows)
    if options.save:
        measure.save("machine", rows, device)
    sys.stdout.write(json.dumps(found) + "\n")
    return 0
