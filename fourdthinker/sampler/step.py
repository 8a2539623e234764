"""One decode step of all rows in the batch.

The host reads no value in it, so the same function runs on the CPU and is captured by a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from fourdthinker.backbones.decoding import decode_layers
from fourdthinker.kernels import (
    PRESENT,
    REPEATED,
    forbidden_tokens,
    latent_feedback_step_,
    latent_state,
    sample_tokens,
)
from fourdthinker.sampler.attention import NAME
from fourdthinker.sampler.config import SamplingConfig
from fourdthinker.sampler.processors import Processors
from fourdthinker.sampler.store import KVStore
from fourdthinker.sampler.vision import vision_index

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.prompts import Prompt

_HEAD_CHUNK = 16_384  # rows of a low-precision head that are widened at a time on the CPU
HISTORY = ("tokens", "policy_mask", "logprobs", "sampled_logprobs")


@dataclass
class Slots:
    """The rows in the batch, [r] each: grammar, draws, what was emitted, and the input of the next step."""

    state: dict[str, Tensor]  # see latent_feedback_step_
    drawing: dict[str, Tensor]  # per-row parameters of sample_tokens, those in use only
    history: dict[str, Tensor]  # [r, max_new_tokens + 1] each; the last column takes what ended rows emit
    embeds: Tensor  # [r, H] input of the next step
    positions: Tensor  # [r] text position of the first emitted id

    @classmethod
    def fresh(
        cls, backbone: Backbone, config: SamplingConfig, prompts: Sequence[Prompt], seeds: Tensor
    ) -> Slots:
        """Slots for rows that continue `prompts` [r], none of which has emitted anything; `seeds` [r]."""
        rows, device = len(prompts), backbone.device
        positions = torch.tensor([prompt.next_position for prompt in prompts])
        return cls._zeros(
            backbone, config, rows, drawing(backbone, config, prompts, seeds), positions.to(device)
        )

    @classmethod
    def empty(cls, backbone: Backbone, config: SamplingConfig, rows: int, like: Slots) -> Slots:
        """`rows` slots that are empty: their rows have ended."""
        nothing = {name: value.new_ones(rows, *value.shape[1:]) for name, value in like.drawing.items()}
        slots = cls._zeros(backbone, config, rows, nothing, like.positions.new_zeros(rows))
        slots.state["finished"].fill_(True)
        slots.state["steps"].fill_(1)
        return slots

    @classmethod
    def _zeros(
        cls, backbone: Backbone, config: SamplingConfig, rows: int, drawing: dict[str, Tensor],
        positions: Tensor,
    ) -> Slots:  # fmt: skip
        device, columns = backbone.device, config.max_new_tokens + 1
        max_latents = min(config.max_blocks * backbone.latents.latent_size, config.max_new_tokens)
        kinds = (torch.int64, torch.bool, torch.float32, torch.float32)
        history = {
            name: torch.zeros(rows, columns, dtype=kind, device=device)
            for name, kind in zip(HISTORY, kinds, strict=True)
        }
        state = latent_state(rows, backbone.hidden_size, max_latents, dtype=backbone.dtype, device=device)
        embeds = torch.zeros(rows, backbone.hidden_size, dtype=backbone.dtype, device=device)
        return cls(state, drawing, history, embeds, positions)

    @property
    def rows(self) -> int:
        """How many slots there are, whether their rows have ended or not."""
        return self.positions.numel()

    def put(self, index: Tensor, fresh: Slots) -> None:
        """Let rows `fresh` [k] take the slots `index` [k]."""
        for mine, theirs in (
            (self.state, fresh.state),
            (self.drawing, fresh.drawing),
            (self.history, fresh.history),
        ):
            for name, value in mine.items():
                value.index_copy_(0, index, theirs[name])
        self.embeds.index_copy_(0, index, fresh.embeds)
        self.positions.index_copy_(0, index, fresh.positions)

    def select(self, index: Tensor) -> Slots:
        """The slots `index` [k] alone."""
        state, drawing, history = (
            {name: value.index_select(0, index) for name, value in part.items()}
            for part in (self.state, self.drawing, self.history)
        )
        return Slots(
            state, drawing, history, self.embeds.index_select(0, index), self.positions.index_select(0, index)
        )


@dataclass
class Stepper:
    """What all steps of a call have in common."""

    backbone: Backbone
    config: SamplingConfig
    eos_ids: Tensor  # [E] on the device
    processors: Processors | None = None

    def step(self, slots: Slots, store: KVStore, span: int) -> None:
        """Feed what the rows emitted last, and emit the next ids; no row has more than `span` own tokens."""
        steps = slots.state["steps"]
        store.set_steps(steps, span)
        newest = steps - 1
        hidden = decode_layers(self.backbone, slots.embeds, slots.positions + newest, newest, store, NAME)
        self.emit(slots, hidden.to(slots.embeds.dtype))

    def emit(self, slots: Slots, hidden: Tensor) -> None:
        """Draw ids from hidden states [r, H], apply the grammar, and write down what came out."""
        backbone, config, state, latents = self.backbone, self.config, slots.state, self.backbone.latents
        raw = head_logits(hidden, backbone.head_weight)
        scores = raw
        if self.processors is not None:
            scores = self.processors(raw)
            # What an ended row or one inside an exact block draws is ignored: it must not fail there because
            # a processor leaves it nothing to draw.
            ignored = (
                state["finished"] | (state["phase"] != 0) if config.mode == "exact" else state["finished"]
            )
            scores = scores.masked_fill(ignored[:, None], 0.0)
        forbidden = forbidden_tokens(
            state["phase"], state["blocks"], pad_id=latents.pad_id, start_id=latents.start_id,
            end_id=latents.end_id, max_blocks=config.max_blocks,
        )  # fmt: skip
        broken = None
        if scores.device.type == "cpu":  # on a GPU nothing looks: NaN log-probabilities tell in the end
            broken = ~_best(scores, forbidden, self.processors is not None).isfinite()
            scores = scores.masked_fill(broken[:, None], 0.0)
        ids, logprobs, sampled = sample_tokens(
            scores, steps=state["steps"], forbidden=forbidden,
            **slots.drawing,  # type: ignore[arg-type]  # tensors; none is called backend
        )  # fmt: skip
        if self.processors is not None:  # the policy is what the model says, not what processors make of it
            scaled = raw / config.temperature if config.temperature > 0 else raw
            logprobs = scaled.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        column = state["steps"].clone()
        emitted, is_policy, _ = latent_feedback_step_(
            ids,
            hidden,
            backbone.embedding_weight,
            **state,  # type: ignore[arg-type]  # tensors; none is called backend or mode
            eos_ids=self.eos_ids,
            pad_id=latents.pad_id,
            start_id=latents.start_id,
            end_id=latents.end_id,
            fill_id=backbone.vision.pad_id,
            latent_size=latents.latent_size,
            mode=config.mode,
            train_start=config.train_start,
            next_embeds=slots.embeds,
        )
        state["finished"].logical_or_(state["steps"] >= config.max_new_tokens)
        if "seen" in slots.drawing:
            slots.drawing["seen"].scatter_(1, emitted[:, None], REPEATED | PRESENT)
        if self.processors is not None:
            self.processors.remember(emitted)
        values = (
            emitted,
            is_policy,
            logprobs.masked_fill(~is_policy, 0.0).float(),
            sampled.masked_fill(~is_policy, 0.0).float(),
        )
        if broken is not None:  # such a row ends here, and says so
            state["finished"].logical_or_(broken)
            values[2].masked_fill_(broken, torch.nan)
        # An ended row's steps stand still, one past its last id: what it emits now is never read.
        for name, value in zip(HISTORY, values, strict=True):
            slots.history[name].scatter_(1, column[:, None], value[:, None])


def _best(scores: Tensor, forbidden: Tensor, banned: bool) -> Tensor:
    """The largest score [r] of each row of `scores` [r, V], NaN or infinite where nothing can be drawn.

    `banned`: whether ids may be banned (-inf), so that none may be left beside the `forbidden` [r, F].
    """
    if banned:
        rows, columns = (forbidden >= 0).nonzero(as_tuple=True)
        scores = scores.clone()
        scores[rows, forbidden[rows, columns]] = -torch.inf
    return scores.amax(1)


def head_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Logits [r, V] float32 of hidden states [r, H]; a low-precision head is summed up in float32."""
    with torch.autocast(weight.device.type, enabled=False):  # it would round the logits to half precision
        wide = weight.dtype in (torch.float32, torch.float64)
        if weight.device.type == "cuda":
            return F.linear(hidden, weight) if wide else torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        if weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            # oneDNN is twice as fast as the BLAS of F.linear at few rows and many columns.
            return torch.ops.mkldnn._linear_pointwise(hidden, weight, None, "none", [], "")
        if wide:
            return F.linear(hidden, weight)
        rows = hidden.float()
        return torch.cat([F.linear(rows, part.float()) for part in weight.split(_HEAD_CHUNK)], dim=-1)


def drawing(
    backbone: Backbone, config: SamplingConfig, prompts: Sequence[Prompt], seeds: Tensor
) -> dict[str, Tensor]:
    """The parameters of `sample_tokens` that are in use, [r] each, for rows that continue `prompts` [r]."""
    rows, device, spec = len(prompts), backbone.device, backbone.vision

    def full(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((rows,), value, dtype=dtype, device=device)

    drawn = {"seeds": seeds.to(device), "temperature": full(config.temperature)}
    if config.top_k:
        drawn["top_k"] = full(config.top_k, torch.int32)
    if config.top_p < 1:
        drawn["top_p"] = full(config.top_p)
    if config.min_p:
        drawn["min_p"] = full(config.min_p)
    if config.presence_penalty != 0 or config.repetition_penalty != 1:
        drawn["presence_penalty"] = full(config.presence_penalty)
        drawn["repetition_penalty"] = full(config.repetition_penalty)
        seen = torch.zeros(rows, backbone.head_weight.shape[0], dtype=torch.uint8)
        for row, prompt in enumerate(prompts):
            text = torch.ones(prompt.input_ids.numel(), dtype=torch.bool)
            text[vision_index(prompt, (spec.image_token_id, spec.video_token_id))] = False
            seen[row, prompt.input_ids[text]] = REPEATED
        drawn["seen"] = seen.to(device)
    return drawn
