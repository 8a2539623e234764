"""Advantages where some rollouts have no reward, and those of GDPO."""

from __future__ import annotations

import importlib.util
import math
import statistics

import pytest
import torch

from fourdthinker.kernels import group_advantages
from fourdthinker.trainers.advantages import (
    advantages_of,
    equal_groups,
    normalised,
    normalised_sum,
    rounding,
)

NAN = math.nan
REWARDS = [1.0, NAN, 0.0, 0.2, 0.5, 0.5, NAN, 0.5, NAN, NAN, 1.2, NAN, 0.1, 0.3, 0.1, 0.9]


@pytest.mark.parametrize("scale", ["group", "none", "batch", "leave_one_out"])
def test_rows_without_a_reward_are_no_part_of_their_group(scale: str) -> None:
    got = advantages_of(torch.tensor(REWARDS, dtype=torch.float64), 4, scale).tolist()
    everything = [r for r in REWARDS if not math.isnan(r)]
    for first in range(0, 16, 4):
        group = [r for r in REWARDS[first : first + 4] if not math.isnan(r)]
        for row in range(first, first + 4):
            mine = REWARDS[row]
            if math.isnan(mine) or len(set(group)) < 2:
                assert got[row] == 0.0
                continue
            want = mine - statistics.fmean(group)
            if scale == "group":
                want /= statistics.stdev(group) + 1e-4
            elif scale == "batch":
                want /= statistics.stdev(everything) + 1e-4
            elif scale == "leave_one_out":
                others = list(group)
                others.remove(mine)
                want = mine - statistics.fmean(others)
            assert got[row] == pytest.approx(want, abs=1e-12)


def test_with_all_rewards_it_is_the_kernel() -> None:
    rewards = torch.tensor([0.0, 1.0, 0.5, 0.5])
    assert torch.equal(advantages_of(rewards, 2, "group"), group_advantages(rewards, 2))
    assert advantages_of(torch.full((4,), NAN), 2, "batch").tolist() == [0.0] * 4


def test_groups_that_teach_nothing() -> None:
    assert equal_groups(torch.tensor(REWARDS), 4)[::4].tolist() == [False, True, True, False]
    assert (
        equal_groups(torch.tensor([0.1, 0.1, 0.1, 1.2, 1.2, 1.2000002]), 3).tolist()
        == [True] * 3 + [False] * 3
    )


def test_advantages_that_cancel_are_equal_but_for_rounding() -> None:
    """B is 0.3 - A, so that both weigh each other up; and groups that differ a little stay different."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 3, (2000, 4), generator=generator).float().mul(0.1).reshape(-1)
    for weights in ([1.0, 1.0], [100.0, 100.0], [0.01, 0.01]):
        sums = normalised_sum([first, 0.3 - first], weights, 4)
        assert equal_groups(sums, 4, rounding(weights)).all()
        different = normalised_sum([first, torch.zeros_like(first)], weights, 4)
        assert torch.equal(equal_groups(different, 4, rounding(weights)), equal_groups(first, 4))


def test_gdpo_as_in_trl() -> None:
    """`normalize_then_sum` of `_generate_and_score_completions`, which cannot be run alone."""
    if importlib.util.find_spec("trl") is None:
        pytest.skip("trl is not installed")
    generator = torch.Generator().manual_seed(0)
    parts = torch.rand(2, 8, generator=generator, dtype=torch.float64)
    parts[0, 3] = parts[1, 3] = NAN
    weights = [1.0, 0.2]
    grouped = parts.T.reshape(2, 4, 2)
    own = []
    for k in range(2):
        for g in range(2):
            values = grouped[g, :, k]
            known = values[~values.isnan()]
            own.append((values - known.mean()) / (known.std() + 1e-4))
    first, second = torch.cat(own[:2]), torch.cat(own[2:])
    total = weights[0] * first + weights[1] * second
    known = total[~total.isnan()]
    want = ((total - known.mean()) / (known.std() + 1e-4)).nan_to_num(0.0)
    got = normalised(normalised_sum(list(parts), weights, 4))
    torch.testing.assert_close(got, want)
    assert normalised(torch.tensor([NAN, 3.0])).tolist() == [0.0, 0.0]
