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

from __future__ import annotations

import torch
from torch import Tensor

from ._common import (
    FLOATS,
    NAMESPACE,
    check_flags,
    check_floating,
    check_integer,
    check_range,
    check_tensors,
    shown,
    tile,
    use_triton,
)
from ._gpu_architectures import launching
from ._grammar_kernel import Recording, forbidden_tokens, latent_feedback_kernel, reference

__all__ = ["Recording", "forbidden_tokens", "latent_feedback_step_", "latent_state"]

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

    Raises:
        ValueError: a size is no integer of 0 or more, or ``dtype`` no floating-point one.
    """
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATS:
        raise ValueError(f"dtype is {shown(dtype)}; pass that of the hidden states, such as torch.bfloat16")
    for name, count in (("rows", rows), ("hidden_size", hidden_size), ("max_latents", max_latents)):
        check_integer(name, count, least=0)

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


@torch.library.custom_op(
    f"{NAMESPACE}::latent_feedback_step_",
    mutates_args=(
        "steps", "phase", "blocks", "finished", "latents", "latent_steps", "latent_count",
        "emitted", "is_policy", "next_embeds", "history_tokens", "history_policy", "history_logprobs",
        "history_sampled", "positions", "newest", "forbidden", "seen",
    ),
)  # fmt: skip
def _step_op(
    sampled: Tensor, hidden: Tensor, embedding: Tensor, steps: Tensor, phase: Tensor, blocks: Tensor,
    finished: Tensor, latents: Tensor, latent_steps: Tensor, latent_count: Tensor, eos_ids: Tensor,
    emitted: Tensor, is_policy: Tensor, next_embeds: Tensor, logprobs: Tensor | None,
    sampled_logprobs: Tensor | None, history_tokens: Tensor | None, history_policy: Tensor | None,
    history_logprobs: Tensor | None, history_sampled: Tensor | None, positions: Tensor | None,
    newest: Tensor | None, forbidden: Tensor | None, seen: Tensor | None, pad_id: int, start_id: int,
    end_id: int, fill_id: int, latent_size: int, early_end: bool, train_start: bool, max_blocks: int,
    backend: str,
) -> None:  # fmt: skip
    recorded = (
        history_tokens, history_policy, history_logprobs, history_sampled, positions, newest, forbidden, seen
    )  # fmt: skip
    if not use_triton(backend, hidden):
        recording = None if history_tokens is None else Recording(*recorded)  # type: ignore[arg-type]
        reference(
            sampled, hidden, embedding, steps, phase, blocks, finished, latents, latent_steps, latent_count,
            eos_ids, emitted, is_policy, next_embeds, logprobs, sampled_logprobs, recording, pad_id, start_id,
            end_id, fill_id, latent_size, early_end, train_start, max_blocks,
        )  # fmt: skip
        return
    rows, width = hidden.shape
    if rows == 0:
        return
    policies = None if history_policy is None else history_policy.view(torch.uint8)
    columns = 0 if history_tokens is None else history_tokens.shape[1]
    with launching("latent_feedback", hidden) as launch:
        latent_feedback_kernel[(rows,)](
            sampled, hidden, hidden.stride(0), embedding, embedding.stride(0), steps, phase, blocks,
            finished.view(torch.uint8), latents, latents.stride(1), latent_steps, latent_count, eos_ids,
            emitted, is_policy.view(torch.uint8), next_embeds, next_embeds.stride(0), logprobs,
            sampled_logprobs, history_tokens, policies, history_logprobs, history_sampled, columns, positions,
            newest, forbidden, seen, 0 if seen is None else seen.stride(0), eos_ids.numel(), latents.shape[1],
            pad_id, start_id, end_id, fill_id, latent_size, max_blocks, H=width, EARLY_END=early_end,
            TRAIN_START=train_start, BLOCK_E=tile(eos_ids.numel(), MOST_EOS),
            BLOCK_H=tile(width, launch.block), **launch.options,
        )  # fmt: skip


@_step_op.register_fake
def _(*arguments: Tensor | int | bool | str | None) -> None:
    return None


def _check_vectors(hidden: Tensor, embedding: Tensor, latents: Tensor) -> None:
    if hidden.dim() != 2 or embedding.dim() != 2 or hidden.shape[1] != embedding.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and embedding {tuple(embedding.shape)} must be [B, H] and [V, H]"
        )
    if hidden.dtype != embedding.dtype:
        raise ValueError(f"hidden is {hidden.dtype} but embedding is {embedding.dtype}; cast one of them")
    check_floating(hidden=hidden, latents=latents)
    if latents.dim() != 3:
        raise ValueError(f"latents is {tuple(latents.shape)}; it must be [B, L, H]")


def _check_switches(mode: str, latent_size: int, train_start: bool, max_blocks: int) -> None:
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"mode is {shown(mode)}; use one of {MODES}")
    check_integer("latent_size", latent_size, least=1)
    check_integer("max_blocks", max_blocks, least=0)
    check_flags(train_start=train_start)


def _check_ids(vocabulary: int, **ids: int) -> None:
    for name, id in ids.items():
        check_integer(name, id, least=0)
        if id >= vocabulary:
            raise ValueError(f"{name} is {id}; embedding has rows 0 to {vocabulary - 1}")


def _check_layouts(expected: dict[str, Expected], hidden: Tensor, embedding: Tensor) -> None:
    check_tensors(hidden=hidden, embedding=embedding, **{name: t for name, (t, _, _) in expected.items()})
    for name, (tensor, shape, dtype) in expected.items():
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}; it must be {shape} {dtype}")
    for name, (tensor, _, _) in expected.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}; pass it contiguous")
    for name, tensor in (("hidden", hidden), ("embedding", embedding)):
        if tensor.shape[1] > 1 and tensor.stride(1) != 1:
            raise ValueError(f"{name} has strides {tensor.stride()}; its rows must be dense")
    eos_ids = expected["eos_ids"][0]
    if eos_ids.numel() > MOST_EOS:
        raise ValueError(f"eos_ids has {eos_ids.numel()} ids; at most {MOST_EOS} are supported")


def _tensors(recording: Recording | None) -> list[Tensor | None]:
    if recording is None:
        return [None] * 8
    r = recording
    return [
        r.tokens, r.policy_mask, r.logprobs, r.sampled_logprobs, r.positions, r.newest, r.forbidden, r.seen
    ]  # fmt: skip


def _expected_recording(
    recording: Recording, logprobs: Tensor, sampled_logprobs: Tensor, rows: int
) -> dict[str, Expected]:
    wide = logprobs.dtype  # float64 logits have float64 log-probabilities, and no kernel
    history = (rows, recording.tokens.shape[-1])
    expected: dict[str, Expected] = {
        "logprobs": (logprobs, (rows,), wide),
        "sampled_logprobs": (sampled_logprobs, (rows,), wide),
        "recording.tokens": (recording.tokens, history, torch.int64),
        "recording.policy_mask": (recording.policy_mask, history, torch.bool),
        "recording.logprobs": (recording.logprobs, history, torch.float32),
        "recording.sampled_logprobs": (recording.sampled_logprobs, history, torch.float32),
        "recording.positions": (recording.positions, (rows,), torch.int64),
        "recording.newest": (recording.newest, (rows,), torch.int64),
        "recording.forbidden": (recording.forbidden, (rows, 3), torch.int64),
    }
    if recording.seen is not None:
        expected["recording.seen"] = (recording.seen, (rows, recording.seen.shape[-1]), torch.uint8)
    return expected


def latent_feedback_step_(
    sampled: Tensor, hidden: Tensor, embedding: Tensor, *, steps: Tensor, phase: Tensor, blocks: Tensor,
    finished: Tensor, latents: Tensor, latent_steps: Tensor, latent_count: Tensor, eos_ids: Tensor,
    pad_id: int, start_id: int, end_id: int, fill_id: int, latent_size: int, mode: str = "exact",
    train_start: bool = False, emitted: Tensor | None = None, is_policy: Tensor | None = None,
    next_embeds: Tensor | None = None, recording: Recording | None = None, logprobs: Tensor | None = None,
    sampled_logprobs: Tensor | None = None, max_blocks: int = 0, backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
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
        recording: what a step writes down besides; None: nothing.
        logprobs: [B] float32, of ``sampled``, for the recording.
        sampled_logprobs: [B] float32, likewise.
        max_blocks: blocks that a row may open, for the recording's ``forbidden``.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``, the reference.

    Returns:
        ``emitted``; ``is_policy``, true where an unfinished row in TEXT chose the id; ``next_embeds``, the
        next inputs.

    Raises:
        ValueError: a shape, dtype, layout or mode does not fit. Ids are range-checked only with
            ``FOURDTHINKER_DEBUG=1`` because that synchronises.
    """
    _check_switches(mode, latent_size, train_start, max_blocks)
    check_tensors(
        hidden=hidden, embedding=embedding, latents=latents, sampled=sampled, finished=finished,
        eos_ids=eos_ids,
    )  # fmt: skip
    _check_vectors(hidden, embedding, latents)
    _check_ids(embedding.shape[0], pad_id=pad_id, start_id=start_id, end_id=end_id, fill_id=fill_id)
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
    if (recording is None) != (logprobs is None) or (logprobs is None) != (sampled_logprobs is None):
        raise ValueError("recording, logprobs and sampled_logprobs go together; give all three or none")
    if recording is not None and logprobs is not None and sampled_logprobs is not None:
        check_tensors(logprobs=logprobs, sampled_logprobs=sampled_logprobs)
        expected |= _expected_recording(recording, logprobs, sampled_logprobs, rows)
    _check_layouts(expected, hidden, embedding)
    check_range("sampled", sampled, 0, embedding.shape[0])
    with torch.no_grad():
        _step_op(
            sampled, hidden, embedding, steps, phase, blocks, finished, latents, latent_steps, latent_count,
            eos_ids, emitted, is_policy, next_embeds, logprobs, sampled_logprobs, *_tensors(recording),
            pad_id, start_id, end_id, fill_id, latent_size, mode == "reference", train_start, max_blocks,
            backend,
        )  # fmt: skip
    return emitted, is_policy, next_embeds
