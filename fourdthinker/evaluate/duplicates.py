"""Questions that are there more than once, under several ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fourdthinker.evaluate.numeric import as_compared
from fourdthinker.records import Record, media_key


def without_duplicates(records: Iterable[Record]) -> tuple[list[Record], dict[str, str]]:
    """Each question once: of equal ones the first, of those that contradict each other none.

    Args:
        records: questions. Two are the same that show the same and have the same texts and options.

    Returns:
        What is left, in order; id -> why, of what is not.
    """
    groups: dict[Any, list[Record]] = {}
    for record in records:
        texts = record.question, record.system, repr(record.turns), tuple(record.options.items())
        groups.setdefault((media_key(record), *texts), []).append(record)
    kept: list[Record] = []
    left_out: dict[str, str] = {}
    for first, *others in groups.values():
        odd = next((other for other in others if _right(other) != _right(first)), None)
        if odd is None:
            kept.append(first)
            left_out |= {other.id: f"the same question as {first.id}" for other in others}
            continue
        for record in (first, *others):
            against = first if _right(record) != _right(first) else odd
            left_out[record.id] = f"the same question as {against.id}, with another answer"
    return kept, left_out


def _right(record: Record) -> Any:
    return as_compared(record.answer, record.options)
