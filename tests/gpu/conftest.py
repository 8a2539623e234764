"""The GPU lane skips, with a reason, where there is no GPU.

``FOURDTHINKER_GPU_LANE=cpu`` runs there what a CPU can run, which is all that is not marked ``gpu_only``: a
test that would fail before it meets the GPU is found.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

LANE = Path(__file__).parent


def reason_to_skip(item: pytest.Item) -> str:
    if torch.cuda.is_available():
        return "TRITON_INTERPRET=1 is set" if os.environ.get("TRITON_INTERPRET") == "1" else ""
    rehearsed = os.environ.get("FOURDTHINKER_GPU_LANE") == "cpu"
    return "" if rehearsed and item.get_closest_marker("gpu_only") is None else "no CUDA device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if LANE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason := reason_to_skip(item):
                item.add_marker(pytest.mark.skip(reason=reason))
