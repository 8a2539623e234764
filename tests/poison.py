"""Memory that nobody has written holds NaN, so that an output left unwritten is seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # torch.empty then fills with NaN, integers with their largest
    yield
    torch.use_deterministic_algorithms(False)
