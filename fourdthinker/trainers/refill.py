"""Dynamic sampling: groups that teach nothing are replaced by groups of other prompts.

Which prompt takes a place is a hash of the seed, the update, the round and the place: nothing is remembered,
so that a run that goes on draws the same ones, on any number of processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from fourdthinker.sampler import joined_groups, row_seed
from fourdthinker.trainers.experience import Scored


def other_prompt(seed: int, step: int, attempt: int, slot: int, size: int, seen: Collection[int]) -> int:
    """The prompt that is tried next.

    Args:
        seed: of the run.
        step: the update.
        attempt: the round, from 1 on.
        slot: the position of the prompt in the update of all ranks, from `update_slots`.
        size: number of prompts there are.
        seen: those that were tried for this slot; they come again only where there are no others.

    Returns:
        An index.
    """
    base = row_seed(seed, step, attempt)
    drawn = (row_seed(base, slot, -1 - number) % size for number in itertools.count())
    return next(index for index in drawn if index not in seen or len(set(seen)) >= size)


def without_variance(scored: Scored, size: int) -> list[int]:
    """The groups of which nothing can be learnt."""
    found: list[int] = scored.equal[::size].nonzero()[:, 0].tolist()
    return found


def to_replace(scored: Scored, size: int) -> list[int]:
    """The groups that shall make way for others: not those without two rewards where some came late.

    The rewards of others would hang likewise.

    Args:
        scored: the rollouts.
        size: rows of a group.

    Returns:
        Their numbers.
    """
    known = (~scored.rewards.view(-1, size).isnan()).sum(1) > 1
    return [group for group in without_variance(scored, size) if known[group] or not scored.late]


def with_groups(scored: Scored, replaced: Sequence[int], other: Scored, size: int, pad_id: int) -> Scored:
    """Rollouts, some of whose groups are replaced by those of others that vary.

    Args:
        scored: the rollouts.
        replaced: groups of them; the i-th makes way for the i-th group of `other`, if that one varies.
        other: the rollouts to take from.
        size: rows of a group.
        pad_id: fills up tokens.

    Returns:
        As many groups as `scored`, in the same order.
    """
    useless = without_variance(other, size)
    taken = {group: i for i, group in enumerate(replaced) if i not in useless}
    late, failure = scored.late or other.late, scored.failure or other.failure
    if not taken:
        return replace(scored, late=late, failure=failure)
    groups = len(scored.indices)
    source = [(other, taken[group]) if group in taken else (scored, group) for group in range(groups)]
    rows = [(one, range(group * size, (group + 1) * size)) for one, group in source]
    features = None
    if scored.features is not None and other.features is not None:
        features = [(one.features or [])[group] for one, group in source]
    return Scored(
        indices=[one.indices[group] for one, group in source],
        prompts=[one.prompts[group] for one, group in source],
        rollout=joined_groups([(one.rollout, chosen) for one, chosen in rows], pad_id),
        features=features,
        texts=[one.texts[row] for one, chosen in rows for row in chosen],
        rewards=torch.cat([one.rewards[list(chosen)] for one, chosen in rows]),
        parts={
            name: torch.cat([one.parts[name][list(chosen)] for one, chosen in rows]) for name in scored.parts
        },
        failed=torch.cat([one.failed[list(chosen)] for one, chosen in rows]),
        failure=failure,
        late=late,
        equal=torch.cat([one.equal[list(chosen)] for one, chosen in rows]),
    )
