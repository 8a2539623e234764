"""One decoding step of the latent grammar for a whole batch, in place.

Per row the state is TEXT (``phase`` 0) or LATENT(k) (``phase`` 1 + k). With K = ``latent_size``:

=============  =====================  =========  ==========================  ==========
state          sampled                emitted    next input                  next state
=============  =====================  =========  ==========================  ==========
TEXT           START                  START      embedding of START          LATENT(0)
TEXT           an EOS id              that id    its embedding               finished
TEXT           any other id           that id    its embedding               TEXT
LATENT(k<K)    anything (see below)   PAD        this step's hidden state    LATENT(k+1)
LATENT(K)      anything               END        embedding of END            TEXT
finished       anything               fill id    embedding of the fill id    unchanged
=============  =====================  =========  ==========================  ==========

In mode ``"reference"`` an END sampled in LATENT(k<K) is emitted and closes the block early. START and EOS
inside a block are ignored in both modes.
"""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import NAMESPACE, check_integer, check_range, tile, use_triton
from ._launch import launching

TEXT = 0
MOST_EOS = 1024  # ids that end a row
MODES = ("exact", "reference")
Expected = tuple[Tensor, tuple[int, ...], torch.dtype]  # an argument, and what its shape and dtype must be


def latent_state(
    rows: int, hidden_size: int, max_latents: int, *, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    """The state tensors of ``rows`` new rows, to be passed on as ``latent_feedback_step_(..., **state)``.

    Args:
        rows: B.
        hidden_size: H.
        max_latents: L, the latents that a row can have: ``max_blocks * latent_size``.
        dtype: of the hidden states.
        device: where the rows are.

    Returns:
        Zeros: ``steps`` [B] int64 ids emitted, ``phase`` [B] int32 (0: TEXT, 1 + k: LATENT(k)),
        ``blocks`` [B] int32 opened, ``finished`` [B] bool, ``latents`` [B, L, H] in ``dtype``,
        ``latent_steps`` [B, L] int32 the step of each, ``latent_count`` [B] int32.
    """

    def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    return {
        "steps": zeros(rows, dtype=torch.int64),
        "phase": zeros(rows, dtype=torch.int32),
        "blocks": zeros(rows, dtype=torch.int32),
        "finished": zeros(rows, dtype=torch.bool),
        "latents": zeros(rows, max_latents, hidden_size, dtype=dtype),
        "latent_steps": zeros(rows, max_latents, dtype=torch.int32),
        "latent_count": zeros(rows, dtype=torch.int32),
    }


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
    """
    ids = torch.stack(
        (
            torch.full_like(blocks, pad_id, dtype=torch.int64),
            torch.full_like(blocks, end_id, dtype=torch.int64),
            torch.where(blocks >= max_blocks, start_id, -1).to(torch.int64),
        ),
        dim=1,
    )
    return torch.where((phase == TEXT)[:, None], ids, -1)


def _reference(
    sampled: Tensor,
    hidden: Tensor,
    embedding: Tensor,
    steps: Tensor,
    phase: Tensor,
    blocks: Tensor,
    finished: Tensor,
    latents: Tensor,
    latent_steps: Tensor,
    latent_count: Tensor,
    eos_ids: Tensor,
    emitted: Tensor,
    is_policy: Tensor,
    next_embeds: Tensor,
    pad_id: int,
    start_id: int,
    end_id: int,
    fill_id: int,
    latent_size: int,
    early_end: bool,
    train_start: bool,
) -> None:
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
    steps.add_(live)


@triton.jit(
    do_not_specialize=["eos_count", "max_latents", "pad_id", "start_id", "end_id", "fill_id", "latent_size"]
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
    eos_count,
    max_latents,
    pad_id,
    start_id,
    end_id,
    fill_id,
    latent_size,
    H: tl.constexpr,
    EARLY_END: tl.constexpr,
    TRAIN_START: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Program: one row. Its next state, the token emitted, the next input (embedding or hidden state)."""
    row = tl.program_id(0).to(tl.int64)
    sampled = tl.load(sampled_ptr + row)
    step = tl.load(steps_ptr + row)
    phase = tl.load(phase_ptr + row)
    blocks = tl.load(blocks_ptr + row)
    count = tl.load(latent_count_ptr + row)
    finished = tl.load(finished_ptr + row)
    slots = tl.arange(0, BLOCK_E)
    eos = tl.load(eos_ptr + slots, mask=slots < eos_count, other=-1)
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
    tl.store(blocks_ptr + row, blocks + started.to(tl.int32))
    next_phase = tl.where(thinking | started, phase + 1, 0)
    tl.store(phase_ptr + row, tl.where(live, next_phase, phase))
    tl.store(finished_ptr + row, finished | ended.to(tl.uint8))
    tl.store(steps_ptr + row, step + live.to(tl.int64))

    source = tl.where(thinking, hidden_ptr + row * hidden_stride, embedding_ptr + token * embedding_stride)
    for start in tl.static_range(0, H, BLOCK_H):
        columns = start + tl.arange(0, BLOCK_H)
        inside = columns < H
        values = tl.load(source + columns, mask=inside)
        tl.store(next_ptr + row * next_stride + columns, values, mask=inside)
        wide = values.to(latents_ptr.dtype.element_ty)
        tl.store(latents_ptr + slot * latents_stride + columns, wide, mask=inside & record)


@torch.library.custom_op(
    f"{NAMESPACE}::latent_feedback_step_",
    mutates_args=(
        "steps", "phase", "blocks", "finished", "latents", "latent_steps", "latent_count",
        "emitted", "is_policy", "next_embeds",
    ),
)  # fmt: skip
def _step_op(
    sampled: Tensor,
    hidden: Tensor,
    embedding: Tensor,
    steps: Tensor,
    phase: Tensor,
    blocks: Tensor,
    finished: Tensor,
    latents: Tensor,
    latent_steps: Tensor,
    latent_count: Tensor,
    eos_ids: Tensor,
    emitted: Tensor,
    is_policy: Tensor,
    next_embeds: Tensor,
    pad_id: int,
    start_id: int,
    end_id: int,
    fill_id: int,
    latent_size: int,
    early_end: bool,
    train_start: bool,
    backend: str,
) -> None:
    if not use_triton(backend, hidden):
        _reference(
            sampled, hidden, embedding, steps, phase, blocks, finished, latents, latent_steps, latent_count,
            eos_ids, emitted, is_policy, next_embeds, pad_id, start_id, end_id, fill_id, latent_size,
            early_end, train_start,
        )  # fmt: skip
        return
    rows, width = hidden.shape
    if rows == 0:
        return
    with launching("latent_feedback", hidden) as launch:
        latent_feedback_kernel[(rows,)](
            sampled, hidden, hidden.stride(0), embedding, embedding.stride(0), steps, phase, blocks,
            finished.view(torch.uint8), latents, latents.stride(1), latent_steps, latent_count, eos_ids,
            emitted, is_policy.view(torch.uint8), next_embeds, next_embeds.stride(0), eos_ids.numel(),
            latents.shape[1], pad_id, start_id, end_id, fill_id, latent_size, H=width, EARLY_END=early_end,
            TRAIN_START=train_start, BLOCK_E=tile(eos_ids.numel(), MOST_EOS),
            BLOCK_H=tile(width, launch.block), **launch.options,
        )  # fmt: skip


@_step_op.register_fake
def _(*arguments: Tensor | int | bool | str) -> None:
    return None


def _check_vectors(hidden: Tensor, embedding: Tensor, latents: Tensor) -> None:
    if hidden.dim() != 2 or embedding.dim() != 2 or hidden.shape[1] != embedding.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and embedding {tuple(embedding.shape)} must be [B, H] and [V, H]"
        )
    if hidden.dtype != embedding.dtype:
        raise ValueError(f"hidden is {hidden.dtype} but embedding is {embedding.dtype}; cast one of them")
    if latents.dim() != 3:
        raise ValueError(f"latents is {tuple(latents.shape)}; it must be [B, L, H]")


def _check_layouts(expected: dict[str, Expected], hidden: Tensor, embedding: Tensor) -> None:
    for name, (tensor, shape, dtype) in expected.items():
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != hidden.device:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}; "
                f"it must be {shape} {dtype} on {hidden.device}"
            )
    for name, (tensor, _, _) in expected.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}; pass it contiguous")
    for name, tensor in (("hidden", hidden), ("embedding", embedding)):
        if tensor.shape[1] > 1 and tensor.stride(1) != 1:
            raise ValueError(f"{name} has strides {tensor.stride()}; its rows must be dense")
    eos_ids = expected["eos_ids"][0]
    if eos_ids.numel() > MOST_EOS:
        raise ValueError(f"eos_ids has {eos_ids.numel()} ids; at most {MOST_EOS} are supported")


def latent_feedback_step_(
    sampled: Tensor,
    hidden: Tensor,
    embedding: Tensor,
    *,
    steps: Tensor,
    phase: Tensor,
    blocks: Tensor,
    finished: Tensor,
    latents: Tensor,
    latent_steps: Tensor,
    latent_count: Tensor,
    eos_ids: Tensor,
    pad_id: int,
    start_id: int,
    end_id: int,
    fill_id: int,
    latent_size: int,
    mode: str = "exact",
    train_start: bool = False,
    emitted: Tensor | None = None,
    is_policy: Tensor | None = None,
    next_embeds: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Advance the decode grammar of every row by one step, without a host synchronisation.

    Rows never depend on each other. One launch on CUDA, which a CUDA graph may capture; it reads and writes B
    * H elements. There rows of ``hidden``, ``embedding`` and ``next_embeds`` must be dense, everything else
    contiguous, and ``eos_ids`` at most 1024.

    The state is changed in place; ``latent_state`` allocates it.

    Args:
        sampled: [B] int64, the ids sampled from the logits of ``hidden``.
        hidden: [B, H], after the final norm.
        embedding: [V, H], the input embedding matrix, in the dtype of ``hidden``.
        steps: state, [B] int64, ids emitted so far: the index of the id emitted now, and in the end the
            length.
        phase: state, [B] int32, 0 TEXT or 1 + k LATENT(k).
        blocks: state, [B] int32, blocks begun.
        finished: state, [B] bool; the caller may set it too, for example on a stop string.
        latents: state, [B, L, H], the hidden states that were fed back.
        latent_steps: state, [B, L] int32, the step whose emitted PAD the latent stands for.
        latent_count: state, [B] int32. A row that has more than L latents keeps counting but records no more:
            check ``latent_count <= L`` when the batch is done.
        eos_ids: [E] int64, each of which ends a row in TEXT; E may be 0.
        pad_id: emitted for a latent.
        start_id: opens a block when it is sampled in TEXT.
        end_id: closes a block.
        fill_id: emitted by rows that are finished.
        latent_size: K, the latents of a block.
        mode: ``"exact"``: always K latents; ``"reference"``: END that is sampled closes a block early.
        train_start: whether START counts as chosen by the policy.
        emitted: [B] int64 to write into; None: a new tensor.
        is_policy: [B] bool to write into; None: a new tensor.
        next_embeds: [B, H] to write into; None: a new tensor.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``, the reference.

    Returns:
        ``emitted``; ``is_policy``, true where an unfinished row in TEXT chose the id; ``next_embeds``, the
        next inputs.

    Raises:
        ValueError: a shape, dtype, layout or mode does not fit. Ids are range-checked only with
            ``FOURDTHINKER_DEBUG=1`` because that synchronises.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; use one of {MODES}")
    check_integer("latent_size", latent_size, least=1)
    _check_vectors(hidden, embedding, latents)
    rows, width = hidden.shape
    expected: dict[str, Expected] = {
        "sampled": (sampled, (rows,), torch.int64),
        "steps": (steps, (rows,), torch.int64),
        "phase": (phase, (rows,), torch.int32),
        "blocks": (blocks, (rows,), torch.int32),
        "finished": (finished, (rows,), torch.bool),
        "latents": (latents, (rows, latents.shape[1], width), latents.dtype),
        "latent_steps": (latent_steps, (rows, latents.shape[1]), torch.int32),
        "latent_count": (latent_count, (rows,), torch.int32),
        "eos_ids": (eos_ids, (eos_ids.numel(),), torch.int64),
    }
    if emitted is None:
        emitted = torch.empty_like(sampled)
    if is_policy is None:
        is_policy = torch.empty_like(finished)
    if next_embeds is None:
        next_embeds = torch.empty(rows, width, dtype=hidden.dtype, device=hidden.device)
    expected["emitted"] = (emitted, (rows,), torch.int64)
    expected["is_policy"] = (is_policy, (rows,), torch.bool)
    expected["next_embeds"] = (next_embeds, (rows, width), hidden.dtype)
    _check_layouts(expected, hidden, embedding)
    check_range("sampled", sampled, 0, embedding.shape[0])
    with torch.no_grad():
        _step_op(
            sampled, hidden, embedding, steps, phase, blocks, finished, latents, latent_steps, latent_count,
            eos_ids, emitted, is_policy, next_embeds, pad_id, start_id, end_id, fill_id, latent_size,
            mode == "reference", train_start, backend,
        )  # fmt: skip
    return emitted, is_policy, next_embeds
