"""What rows are fed in the place of their own latents: data on the device, so that a step stays one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fourdthinker.errors import ConfigError

OWN, TABLE, FIRST, NONE = range(4)


@dataclass(frozen=True)
class Feed:
    """Of R rows, what each feeds back inside its blocks.

    Attributes:
        source: int64 [R]: OWN, the hidden state as always; TABLE, the row's l-th latent is `table[row, l]`;
            FIRST, the first latent of a block once more; NONE, a block is START and END alone.
        table: [R, L, H], L at least 1; read where `source` is TABLE.
        counts: int64 [R], latents of each row that come from the table, whose last vector repeats; further
            ones are the row's own.
    """

    source: Tensor
    table: Tensor
    counts: Tensor

    @classmethod
    def constant(cls, source: int, rows: int, hidden_size: int) -> Feed:
        """All rows alike, without a table.

        Args:
            source: OWN, FIRST or NONE.
            rows: R.
            hidden_size: H.

        Returns:
            The feed.
        """
        return cls(
            torch.full((rows,), source),
            torch.zeros(rows, 1, hidden_size),
            torch.zeros(rows, dtype=torch.long),
        )

    @classmethod
    def of_vectors(cls, vectors: Sequence[Tensor], hidden_size: int) -> Feed:
        """A table of given vectors.

        Args:
            vectors: of each row, [N, H] for its first N latents; N may be 0 and differ.
            hidden_size: H.

        Returns:
            The feed.
        """
        counts = torch.tensor([len(rows) for rows in vectors])
        table = torch.zeros(len(vectors), max(1, int(counts.max())), hidden_size)
        for row, given in enumerate(vectors):
            table[row, : len(given)] = given
        return cls(torch.full_like(counts, TABLE), table, counts)

    def check(self, rows: int, hidden_size: int) -> None:
        """Refuse a feed of other rows.

        Args:
            rows: R.
            hidden_size: H.

        Raises:
            ConfigError: its tensors are for another number of rows or of another width, or have values that
                mean nothing.
        """
        shape = tuple(self.table.shape)
        if len(shape) != 3 or shape[0] != rows or not shape[1] or shape[2] != hidden_size:
            raise ConfigError(
                f"the feed's table is {shape}; for {rows} rows of this model it is ({rows}, L, {hidden_size})"
            )
        for name, value in (("source", self.source), ("counts", self.counts)):
            if tuple(value.shape) != (rows,) or value.dtype != torch.int64:
                raise ConfigError(
                    f"the feed's {name} is {tuple(value.shape)} {value.dtype}; it is ({rows},) int64"
                )
        if not 0 <= int(self.source.min()) <= int(self.source.max()) <= NONE:
            raise ConfigError(f"the feed's source has values outside 0 to {NONE}")

    def rows(self, index: Sequence[int], like: Tensor) -> dict[str, Tensor]:
        """Some of the rows, as `fed` takes them.

        Args:
            index: r rows.
            like: a tensor of the dtype and on the device that they are wanted in.

        Returns:
            source [r], table [r, L, H] and counts [r].
        """
        picked = torch.tensor(index)
        return {
            "source": self.source.cpu()[picked].to(like.device),
            "table": self.table.cpu()[picked].to(like.device, like.dtype),
            "counts": self.counts.cpu()[picked].to(like.device),
        }


def fed(feed: dict[str, Tensor], state: dict[str, Tensor], hidden: Tensor, latent_size: int) -> Tensor:
    """What the rows are fed in this step, if they are inside a block; no value is read by the host.

    Args:
        feed: of r rows, see `Feed.rows`.
        state: of `latent_state`; the phase of rows whose blocks have no latents is set to that before END.
        hidden: [r, H], what they would feed back.
        latent_size: K.

    Returns:
        [r, H] in the dtype of `hidden`.
    """
    source, phase, count = feed["source"], state["phase"], state["latent_count"].long()
    row = torch.arange(source.numel(), device=source.device)
    given = feed["table"][row, count.clamp(max=feed["table"].shape[1] - 1)]
    replaced = (source == TABLE) & (count < feed["counts"])
    result = torch.where(replaced[:, None], given.to(hidden.dtype), hidden)
    if state["latents"].shape[1]:  # else no row has any
        begun = (count - phase + 1).clamp(0, state["latents"].shape[1] - 1)
        first = state["latents"][row, begun].to(hidden.dtype)
        result = torch.where(((source == FIRST) & (phase > 1))[:, None], first, result)
    closes = (source == NONE) & (phase > 0)
    phase.copy_(torch.where(closes, latent_size + 1, phase))
    return result
