"""No op makes the host wait for the device, but for the number of rows when nobody passes them."""

from __future__ import annotations

import pytest
import torch

from tests.unit.kernels.syncs import CASES, counting_syncs, waits


@pytest.mark.parametrize("name", CASES)
def test_the_reference_waits_only_for_the_number_of_rows(name):
    call, expected = CASES[name]
    assert waits(call, "torch") == expected


def test_waiting_is_seen():
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, True])
    with counting_syncs() as seen:
        x.sum().item()
        bool(mask.any())
        x[mask]
        x.masked_select(mask)
        torch.where(mask)
        x.tolist()
        x.cpu()
        x.numpy()
        float(x[0])
        x.repeat_interleave(torch.tensor([1, 0, 2, 1]))
    assert len(seen) >= 10
    with counting_syncs() as seen:
        x.repeat_interleave(2)
        x[torch.tensor([0, 2])] * x.sum()
        torch.where(mask, x, 0.0)
    assert seen == []
