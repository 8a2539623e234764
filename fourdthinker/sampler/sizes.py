"""How much the sampler takes at once, from numbers alone: for a plan of a run that is not loaded yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourdthinker.sampler.prefill import PIECE_TOKENS
from fourdthinker.sampler.schedule import CHUNK_TOKENS, completion_room
from fourdthinker.sampler.store import token_bytes
from fourdthinker.sampler.vision import PATCHES_PER_CALL

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone

MAX_ROWS = 256  # that are sampled at a time, unless a sampler is told another number


def clips_at_once(clips: int, patches: int, *, on_cpu: bool) -> int:
    """Clips that go through the vision tower in one call.

    Args:
        clips: that there are.
        patches: of each.
        on_cpu: whether the model is on a CPU.

    Returns:
        Their number, one at least.
    """
    return max(1, min(clips, PATCHES_PER_CALL[not on_cpu] // patches))


def prefilled_at_once(prompts: int, length: int, *, on_cpu: bool) -> tuple[int, int]:
    """How a prefill is cut.

    Args:
        prompts: that there are.
        length: tokens of each.
        on_cpu: whether the model is on a CPU.

    Returns:
        Prompts whose embeddings are there together, and the positions of each in one forward.
    """
    together = max(1, min(prompts, CHUNK_TOKENS // length))
    return together, max(1, min(length, PIECE_TOKENS[not on_cpu] // together))


def cache_bytes(backbone: Backbone, prompts: int, length: int, rows: int, new: int) -> int:
    """What keys and values take where memory has room for all of them.

    Args:
        backbone: says how much a token takes.
        prompts: each of them once.
        length: tokens of a prompt.
        rows: that continue them.
        new: ids that a row may come to have.

    Returns:
        Bytes.
    """
    return token_bytes(backbone) * (prompts * length + min(rows, MAX_ROWS) * completion_room(new))
