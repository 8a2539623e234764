"""The kernels bench under pytest-benchmark: ``pytest bench/test_kernels.py --benchmark-group-by=group``.

One benchmark for every candidate of every case, grouped by case. ``python -m bench kernels`` interleaves the
candidates and measures memory besides; this form is for pytest-benchmark's own comparisons between runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench._kernel_cases import FAMILIES
from bench._kernel_data import SIZES, Case

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = [
    pytest.param(family, number, candidate, id=f"{case.op}-{case.mode}-{candidate}")
    for family, cases in FAMILIES.items()
    for number, case in enumerate(cases(SIZES["tiny"], DEVICE, False))
    for candidate in case.calls
]


@functools.lru_cache(maxsize=1)
def made(family: str) -> list[Case]:
    return list(FAMILIES[family](SIZES["cuda" if DEVICE == "cuda" else "quick"], DEVICE, False))


def finished(call: Callable[[], object]) -> object:
    result = call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return result


@pytest.mark.parametrize(("family", "number", "candidate"), NAMES)
def test_kernel(family: str, number: int, candidate: str, benchmark: Any) -> None:
    case = made(family)[number]
    benchmark.group = f"{case.op}, {case.mode}: {case.size}"
    benchmark.pedantic(finished, args=(case.calls[candidate],), rounds=5, warmup_rounds=1)
