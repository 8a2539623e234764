"""Switch on Triton's interpreter, which has to happen before any kernel is imported."""

from __future__ import annotations

import os
import sys

import pytest

from tests.poison import poisoned_memory  # noqa: F401

_LATE = os.environ.get("TRITON_INTERPRET") != "1" and any(
    "kernels.latent_feedback" in name for name in sys.modules
)
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _LATE:
        reason = "kernels were imported for compilation already; run this lane in a process of its own"
        for item in items:
            if "/interpreter/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=reason))
