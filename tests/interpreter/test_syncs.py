"""With the kernels, too, nothing waits but for the number of rows; with given logits not even for that."""

from __future__ import annotations

import pytest

from tests.unit.kernels.syncs import CASES, KERNELS_ONLY, waits


@pytest.mark.parametrize("name", CASES | KERNELS_ONLY)
def test_the_kernels_wait_only_for_the_number_of_rows(name):
    call, expected = (CASES | KERNELS_ONLY)[name]
    assert waits(call, "triton") == expected
