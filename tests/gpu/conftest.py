"""The GPU lane skips, with a reason, where there is no GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

LANE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "no CUDA device"
    if torch.cuda.is_available():
        reason = "TRITON_INTERPRET=1 is set" if os.environ.get("TRITON_INTERPRET") == "1" else ""
    for item in items:
        if LANE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
