"""The kernels of the head losses under drawn combinations of all that they take, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.unit.kernels.options import KINDS
from tests.unit.kernels.test_head_combinations import check, draw


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_combinations_against_float64(kind):
    for case in draw(2, (torch.float32, torch.bfloat16)):
        if case.kind == kind:
            check(case, "triton")
