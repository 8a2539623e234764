"""Which prompts and rows are in memory together: a plan made once, before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fourdthinker.errors import ConfigError
from fourdthinker.sampler.store import GRAIN, Segment

CHUNK_TOKENS = 16_384  # prompts prefilled together have at most so many, unless one alone has more


@dataclass
class Chunk:
    """Prompts of similar length that enter and leave the pool together, and the rows that continue them."""

    prompts: list[int]
    lengths: list[int]
    rows: list[tuple[int, int]]  # (row of the rollout, which of the chunk's prompts)
    segment: Segment | None = None
    hidden: Tensor | None = None  # [U, H] after each prompt's last token
    waiting: int = 0  # the first of `rows` that has not entered
    unfinished: int = field(init=False)  # rows that have not ended

    def __post_init__(self) -> None:
        self.unfinished = len(self.rows)

    @property
    def tokens(self) -> int:
        """Positions that the chunk takes in the pool, padding included."""
        return max(self.lengths) * len(self.lengths)


@dataclass
class Plan:
    """Chunks in the order they enter; slots for rows; positions in the pool of prompts."""

    chunks: list[Chunk]
    slots: int
    pool: int


def completion_room(max_new_tokens: int) -> int:
    """Positions that a row's own keys and values may come to take."""
    return math.ceil(max_new_tokens / GRAIN) * GRAIN


def make_plan(
    names: Sequence[str], lengths: Sequence[int], rows: Sequence[Sequence[int]], max_new_tokens: int,
    *, token_bytes: int, budget: int, max_rows: int,
) -> Plan:  # fmt: skip
    """Share the memory for keys and values between prompts and completions.

    A row is given room for all tokens that it may come to have, so that no row ever waits for memory half
    way.

    Args:
        names: of the prompts, in messages.
        lengths: tokens of each prompt.
        rows: of each prompt, the rows of the rollout that continue it.
        max_new_tokens: ids that a row may come to have.
        token_bytes: bytes of keys and values of one token.
        budget: bytes of keys and values in all.
        max_rows: rows in the batch at most.

    Raises:
        ConfigError: the longest prompt and one row of it do not fit.
    """
    own = completion_room(max_new_tokens)
    room = budget // token_bytes
    total = sum(len(mine) for mine in rows)
    longest = max(range(len(lengths)), key=lambda i: lengths[i])
    if lengths[longest] + own > room:
        needed = (lengths[longest] + own) * token_bytes
        raise ConfigError(
            f"out of KV memory: {names[longest]} has {lengths[longest]} tokens and a row of it may take "
            f"{own} more, {needed / 2**20:.1f} MiB at {token_bytes} bytes a token, and kv_budget is "
            f"{budget / 2**20:.1f} MiB; lower max_new_tokens or the frames and pixels of the clip, or raise "
            "kv_budget"
        )
    cap = max(lengths[longest], min(CHUNK_TOKENS, room // 4, room - own))
    chunks = _chunks(lengths, rows, cap)
    best = Plan(chunks, 0, 0)
    for together in range(len(chunks), 0, -1):
        pool = max(
            sum(chunk.tokens for chunk in chunks[i : i + together]) for i in range(len(chunks) - together + 1)
        )
        wanted = min(max_rows, total)
        if together < len(chunks):
            wanted = min(wanted, max(len(chunk.rows) for chunk in chunks) * together)
        slots = min(wanted, (room - pool) // own)
        if slots > best.slots:
            best = Plan(chunks, slots, pool)
    return best


def _chunks(lengths: Sequence[int], rows: Sequence[Sequence[int]], cap: int) -> list[Chunk]:
    """Prompts by length, longest first, cut where lengths differ by more than a quarter (or a grain)."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    parts: list[list[int]] = []
    for index in order:
        longest = lengths[parts[-1][0]] if parts else 0
        alike = lengths[index] >= min(0.8 * longest, longest - GRAIN)
        if parts and alike and longest * (len(parts[-1]) + 1) <= cap:
            parts[-1].append(index)
        else:
            parts.append([index])
    return [
        Chunk(
            part,
            [lengths[index] for index in part],
            [(row, number) for number, index in enumerate(part) for row in rows[index]],
        )
        for part in parts
    ]
