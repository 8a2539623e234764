"""Which items each rank sees, in which order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fourdthinker.errors import RecordError, VideoError
from fourdthinker.records import Record
from fourdthinker.trainers.batches import REPEAT, Items, ShardedBatches


def epoch(sampler: ShardedBatches, number: int = 0) -> list[list[int]]:
    sampler.set_epoch(number)
    return list(sampler)


@pytest.mark.parametrize(
    ("size", "batch", "world"), [(16, 2, 2), (16, 4, 1), (13, 3, 2), (5, 2, 4), (1, 2, 3)]
)
def test_every_item_is_seen_and_the_ranks_share_the_work(size: int, batch: int, world: int) -> None:
    shares = [epoch(ShardedBatches(size, batch, rank=r, world_size=world)) for r in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert all(len(share) == len(ShardedBatches(size, batch, world_size=world)) for share in shares)
    seen = [i for share in shares for indices in share for i in indices]
    assert set(seen) == set(range(size))
    assert len(seen) < size + world
    assert all(indices for share in shares for indices in share), "no rank stands empty"


def test_two_ranks_see_together_what_one_sees() -> None:
    one = epoch(ShardedBatches(22, 4, seed=7))
    first, second = (epoch(ShardedBatches(22, 2, rank=r, world_size=2, seed=7)) for r in range(2))
    assert [a + b for a, b in zip(first, second, strict=True)] == one


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = ShardedBatches(50, 5, seed=1)
    assert epoch(sampler, 3) == epoch(sampler, 3) == epoch(ShardedBatches(50, 5, seed=1), 3)
    different = [epoch(ShardedBatches(50, 5, seed=s), e) for s in range(3) for e in range(3)]
    assert len({str(order) for order in different}) == 9


def test_items_in_their_own_order() -> None:
    whole = ShardedBatches(11, 2, shuffle=False, whole_updates=True)
    assert epoch(whole, 0) == epoch(whole, 1) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    shares = [epoch(ShardedBatches(5, 2, rank=r, world_size=2, shuffle=False)) for r in range(2)]
    assert shares == [[[0, 1], [4]], [[2, 3], [0]]]


def test_whole_updates_leave_out_the_rest_and_repeat() -> None:
    options = {"world_size": 2, "accumulation": 3, "repeats": 2, "whole_updates": True}
    shares = [epoch(ShardedBatches(30, 2, rank=r, **options)) for r in range(2)]  # type: ignore[arg-type]
    for share in shares:
        assert len(share) == len(ShardedBatches(30, 2, **options)) == 2 * 3 * 2  # type: ignore[arg-type]
        assert share[3:6] == share[9:12] == [[REPEAT]] * 3
        assert all(len(indices) == 2 for indices in share[0:3] + share[6:9])
    fresh = [i for share in shares for indices in share for i in indices if i != REPEAT]
    assert len(fresh) == len(set(fresh)) == 24


def test_what_is_sampled_together_comes_with_the_first_update() -> None:
    options: dict[str, Any] = {"accumulation": 2, "together": 3, "repeats": 2, "whole_updates": True}
    one = epoch(ShardedBatches(50, 4, **options))
    shares = [epoch(ShardedBatches(50, 2, rank=r, world_size=2, **options)) for r in range(2)]
    assert len(one) == len(ShardedBatches(50, 4, **options)) == 2 * 2 * 3 * 2
    for start in (0, 12):
        assert all(share[start + 2 : start + 12] == [[REPEAT]] * 10 for share in (one, *shares))
        given = [share[start] + share[start + 1] for share in (one, *shares)]
        assert [len(indices) for indices in given] == [24, 12, 12]
        # Of each micro-batch of one rank two have a half each.
        halves = [given[1 + r][2 * i : 2 * i + 2] for i in range(6) for r in range(2)]
        assert [index for half in halves for index in half] == given[0]
    fresh = [i for indices in one for i in indices if i != REPEAT]
    assert len(set(fresh)) == 48


def test_a_data_set_smaller_than_an_update_starts_again() -> None:
    shares = [
        epoch(ShardedBatches(3, 2, rank=r, world_size=2, accumulation=2, whole_updates=True))
        for r in range(2)
    ]
    fresh = [i for share in shares for indices in share for i in indices]
    assert len(fresh) == 8
    assert {fresh.count(i) for i in range(3)} <= {2, 3}


def test_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        ShardedBatches(0, 2)


def test_items() -> None:
    items: Items[str] = Items(["a", "b"], str.upper)
    assert len(items) == 2
    assert items[1] == (1, "B")
    assert items[REPEAT] == (REPEAT, None)
    assert Items(["a"])[0] == (0, "a")


@pytest.mark.parametrize("kind", [VideoError, RecordError])
def test_a_record_that_broke_or_shrank_since_it_was_checked_is_left_out_when_asked(
    tmp_path: Path, kind: type[Exception]
) -> None:
    records = [Record(id=name, kind="rl", question="?", where=f"data.jsonl:{name}") for name in "ab"]

    def encode(record: Record) -> str:
        if record.id == "a":
            raise kind("data.jsonl:a: overlay 0 has 1 features")
        return record.id

    with pytest.raises(
        RecordError, match=r"^record 'a' \(data.jsonl:a\): overlay 0 has 1 features; it could"
    ):
        Items(records, encode)[0]
    assert Items(records, encode, tmp_path / "rejected.jsonl")[0] == (1, "b")
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["where"] == "data.jsonl:a"
