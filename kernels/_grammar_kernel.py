"""The decode grammar of a step, row by row: the reference in torch, and the kernel."""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import check_integer, check_tensors

TEXT = 0
SEEN = 3  # the bits of sample_tokens, REPEATED | PRESENT


@dataclass(frozen=True)
class Recording:
    """What a step writes down of every row beside its state, for a caller that keeps whole rollouts.

    Attributes:
        tokens: int64 [B, T + 1]; column ``steps`` gets the emitted id. A row ends with its T-th id; what it
            emits after its end goes into one column past its last id, over and over.
        policy_mask: bool [B, T + 1], likewise: ``is_policy``.
        logprobs: float32 [B, T + 1], likewise: the log-probability of the id, 0 where it is no choice of the
            policy's. NaN stays NaN everywhere.
        sampled_logprobs: float32 [B, T + 1], likewise; 0 where the id is no choice of the policy's.
        positions: int64 [B], of the next input in the text; rows that go on are advanced by one.
        newest: int64 [B], ``steps - 1`` afterwards: the position of the next input among a row's own.
        forbidden: int64 [B, 3], afterwards what ``forbidden_tokens`` returns for the new state.
        seen: uint8 [B, V] as ``sample_tokens`` reads it, or None; both bits of the emitted id are set.
    """

    tokens: Tensor
    policy_mask: Tensor
    logprobs: Tensor
    sampled_logprobs: Tensor
    positions: Tensor
    newest: Tensor
    forbidden: Tensor
    seen: Tensor | None = None


def forbidden_tokens(
    phase: Tensor, blocks: Tensor, *, pad_id: int, start_id: int, end_id: int, max_blocks: int
) -> Tensor:
    """Ids that may not be sampled in this step, for ``sample_tokens``.

    In TEXT: PAD and END always, START once ``blocks >= max_blocks``. In LATENT nothing is forbidden: what is
    sampled there is ignored, or (mode ``"reference"``) may be END.

    Args:
        phase: [B] int32 of ``latent_state``.
        blocks: [B] int32 of ``latent_state``.
        pad_id: of the latent pad.
        start_id: opens a block.
        end_id: closes a block.
        max_blocks: blocks that a row may open.

    Returns:
        [B, 3] int64, -1 for none.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    check_tensors(phase=phase, blocks=blocks)
    if phase.dim() != 1 or phase.shape != blocks.shape or {phase.dtype, blocks.dtype} != {torch.int32}:
        raise ValueError(
            f"phase {tuple(phase.shape)} {phase.dtype} and blocks {tuple(blocks.shape)} {blocks.dtype} must "
            "be [B] int32"
        )
    for name, id in (("pad_id", pad_id), ("start_id", start_id), ("end_id", end_id)):
        check_integer(name, id, least=0)
    check_integer("max_blocks", max_blocks, least=0)
    ids = torch.stack(
        (
            torch.full_like(blocks, pad_id, dtype=torch.int64),
            torch.full_like(blocks, end_id, dtype=torch.int64),
            torch.where(blocks >= max_blocks, start_id, -1).to(torch.int64),
        ),
        dim=1,
    )
    return torch.where((phase == TEXT)[:, None], ids, -1)


def reference(
    sampled: Tensor, hidden: Tensor, embedding: Tensor, steps: Tensor, phase: Tensor, blocks: Tensor,
    finished: Tensor, latents: Tensor, latent_steps: Tensor, latent_count: Tensor, eos_ids: Tensor,
    emitted: Tensor, is_policy: Tensor, next_embeds: Tensor, logprobs: Tensor | None,
    sampled_logprobs: Tensor | None, recording: Recording | None, pad_id: int, start_id: int, end_id: int,
    fill_id: int, latent_size: int, early_end: bool, train_start: bool, max_blocks: int,
) -> None:  # fmt: skip
    """A step in plain PyTorch; all arguments but one are those of ``latent_feedback_step_``.

    ``early_end``: whether END that is sampled closes a block early.
    """
    live = ~finished
    text = live & (phase == TEXT)
    latent = live & (phase != TEXT)
    started = text & (sampled == start_id)
    closed = latent & (phase > latent_size)
    if early_end:
        closed = closed | (latent & (sampled == end_id))
    thinking = latent & ~closed
    ended = text & (sampled[:, None] == eos_ids[None, :]).any(dim=1) & ~started

    ids = torch.where(text, sampled, fill_id)
    ids = torch.where(thinking, pad_id, ids)
    ids = torch.where(closed, end_id, ids)
    emitted.copy_(ids)
    is_policy.copy_(text if train_start else text & ~started)
    next_embeds.copy_(torch.where(thinking[:, None], hidden, embedding[ids]))

    max_latents = latents.shape[1]
    if max_latents > 0:
        # Rows that are not thinking, or whose history is full, write back what stands in their slot.
        slot = latent_count.long().clamp(max=max_latents - 1)
        row = torch.arange(slot.shape[0], device=slot.device)
        write = thinking & (latent_count < max_latents)
        latents[row, slot] = torch.where(write[:, None], hidden.to(latents.dtype), latents[row, slot])
        latent_steps[row, slot] = torch.where(write, steps.to(torch.int32), latent_steps[row, slot])
    latent_count.add_(thinking)
    blocks.add_(started)
    next_phase = torch.where(thinking | started, phase + 1, TEXT)
    phase.copy_(torch.where(live, next_phase, phase))
    finished.logical_or_(ended)
    column = steps[:, None].clone()
    steps.add_(live)
    if recording is None or logprobs is None or sampled_logprobs is None:
        return
    kept = is_policy | logprobs.isnan()
    for history, value in (
        (recording.tokens, emitted),
        (recording.policy_mask, is_policy),
        (recording.logprobs, torch.where(kept, logprobs, 0.0).float()),
        (recording.sampled_logprobs, torch.where(is_policy, sampled_logprobs, 0.0).float()),
    ):
        history.scatter_(1, column, value[:, None])
    finished.logical_or_(steps >= recording.tokens.shape[1] - 1)
    recording.positions.add_(live)
    recording.newest.copy_(steps - 1)
    banned = forbidden_tokens(
        phase, blocks, pad_id=pad_id, start_id=start_id, end_id=end_id, max_blocks=max_blocks
    )
    recording.forbidden.copy_(banned)
    if recording.seen is not None:
        recording.seen.scatter_(1, emitted[:, None], SEEN)


@triton.jit(
    do_not_specialize=[
        "columns",
        "seen_stride",
        "eos_count",
        "max_latents",
        "pad_id",
        "start_id",
        "end_id",
        "fill_id",
        "latent_size",
        "max_blocks",
    ]
)
def latent_feedback_kernel(
    sampled_ptr,
    hidden_ptr,
    hidden_stride,
    embedding_ptr,
    embedding_stride,
    steps_ptr,
    phase_ptr,
    blocks_ptr,
    finished_ptr,
    latents_ptr,
    latents_stride,
    latent_steps_ptr,
    latent_count_ptr,
    eos_ptr,
    emitted_ptr,
    policy_ptr,
    next_ptr,
    next_stride,
    logprobs_ptr,
    sampled_logprobs_ptr,
    tokens_history_ptr,
    policy_history_ptr,
    logprobs_history_ptr,
    sampled_history_ptr,
    columns,
    positions_ptr,
    newest_ptr,
    forbidden_ptr,
    seen_ptr,
    seen_stride,
    eos_count,
    max_latents,
    pad_id,
    start_id,
    end_id,
    fill_id,
    latent_size,
    max_blocks,
    H: tl.constexpr,
    EARLY_END: tl.constexpr,
    TRAIN_START: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Program: one row. Its next state, emitted token and next input, and with a recording what is kept."""
    row = tl.program_id(0).to(tl.int64)
    sampled = tl.load(sampled_ptr + row)
    step = tl.load(steps_ptr + row)
    phase = tl.load(phase_ptr + row)
    blocks = tl.load(blocks_ptr + row)
    count = tl.load(latent_count_ptr + row)
    finished = tl.load(finished_ptr + row)
    slots = tl.arange(0, BLOCK_E)
    eos = tl.load(eos_ptr + slots, mask=slots < eos_count, other=-1)
    if tokens_history_ptr is not None:
        position = tl.load(positions_ptr + row)
    # Every warp of the program reads the row's state; none may write it before all have.
    tl.debug_barrier()

    live = finished == 0
    text = live & (phase == 0)
    latent = live & (phase != 0)
    started = text & (sampled == start_id)
    thinking = latent & (phase <= latent_size)
    if EARLY_END:
        thinking = thinking & (sampled != end_id)
    closed = latent ^ thinking
    is_eos = tl.max(((slots < eos_count) & (eos == sampled)).to(tl.int32), axis=0) != 0
    ended = text & is_eos & (sampled != start_id)

    token = tl.where(text, sampled, fill_id)
    token = tl.where(thinking, pad_id, token)
    token = tl.where(closed, end_id, token).to(tl.int64)
    policy = text
    if not TRAIN_START:
        policy = policy & (sampled != start_id)
    record = thinking & (count < max_latents)
    slot = row * max_latents + tl.where(record, count, 0)

    tl.store(emitted_ptr + row, token)
    tl.store(policy_ptr + row, policy.to(tl.uint8))
    tl.store(latent_steps_ptr + slot, step.to(tl.int32), mask=record)
    tl.store(latent_count_ptr + row, count + thinking.to(tl.int32))
    blocks += started.to(tl.int32)
    tl.store(blocks_ptr + row, blocks)
    next_phase = tl.where(live, tl.where(thinking | started, phase + 1, 0), phase)
    tl.store(phase_ptr + row, next_phase)
    next_step = step + live.to(tl.int64)
    tl.store(steps_ptr + row, next_step)
    if tokens_history_ptr is not None:
        cell = row * columns + step
        logprob = tl.load(logprobs_ptr + row)
        kept = policy | (logprob != logprob)
        tl.store(tokens_history_ptr + cell, token)
        tl.store(policy_history_ptr + cell, policy.to(tl.uint8))
        tl.store(logprobs_history_ptr + cell, tl.where(kept, logprob, 0.0))
        tl.store(sampled_history_ptr + cell, tl.where(policy, tl.load(sampled_logprobs_ptr + row), 0.0))
        ended = ended | (next_step >= columns - 1)
        tl.store(positions_ptr + row, position + live.to(tl.int64))
        tl.store(newest_ptr + row, next_step - 1)
        is_text = next_phase == 0
        no_more = is_text & (blocks >= max_blocks)
        tl.store(forbidden_ptr + 3 * row, tl.where(is_text, pad_id, -1).to(tl.int64))
        tl.store(forbidden_ptr + 3 * row + 1, tl.where(is_text, end_id, -1).to(tl.int64))
        tl.store(forbidden_ptr + 3 * row + 2, tl.where(no_more, start_id, -1).to(tl.int64))
        if seen_ptr is not None:
            tl.store(seen_ptr + row * seen_stride + token, tl.full([], 3, tl.uint8))
    tl.store(finished_ptr + row, finished | ended.to(tl.uint8))

    source = tl.where(thinking, hidden_ptr + row * hidden_stride, embedding_ptr + token * embedding_stride)
    for start in tl.static_range(0, H, BLOCK_H):
        columns = start + tl.arange(0, BLOCK_H)
        inside = columns < H
        values = tl.load(source + columns, mask=inside)
        tl.store(next_ptr + row * next_stride + columns, values, mask=inside)
        wide = values.to(latents_ptr.dtype.element_ty)
        tl.store(latents_ptr + slot * latents_stride + columns, wide, mask=inside & record)
