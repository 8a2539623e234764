"""What the language model is fed: embeddings, and vision features that later layers get."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DeepStack:
    """Vision features that are added to the hidden states after the first D decoder layers (Qwen3-VL).

    Attributes:
        index: int64 [M], ascending: flat positions b * S + p of the vision pads in a batch [B, S].
        features: [D, M, H], what is added at these positions, level by level.
    """

    index: Tensor
    features: Tensor

    def part(self, width: int, start: int, stop: int) -> DeepStack | None:
        """The features at positions ``start <= p < stop``, for a prefill in pieces; None when there are none.

        ``width`` is S of the batch [B, S] that ``index`` counts in.
        """
        row, column = self.index // width, self.index % width
        inside = (column >= start) & (column < stop)
        if not inside.any():
            return None
        index = row[inside] * (stop - start) + column[inside] - start
        return DeepStack(index, self.features[:, inside])


@dataclass(frozen=True)
class Inputs:
    """What the language model is fed.

    Attributes:
        embeds: [B, S, H].
        deepstack: the levels of the vision features; None where there are none.
        latents: [N, H], the targets at the latent pads of the batch; None where there are none.
    """

    embeds: Tensor
    deepstack: DeepStack | None
    latents: Tensor | None
