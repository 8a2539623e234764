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

from fourdthinker.backbones.decoding import Decoder
from fourdthinker.kernels import (
    REPEATED,
    Recording,
    forbidden_tokens,
    latent_feedback_step_,
    latent_state,
    sample_tokens,
)
from fourdthinker.latents import rescaled
from fourdthinker.sampler.attention import NAME
from fourdthinker.sampler.config import SamplingConfig
from fourdthinker.sampler.feed import fed
from fourdthinker.sampler.logits_processors import Processors
from fourdthinker.sampler.store import KVStore
from fourdthinker.sampler.vision import vision_index

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.samples import Prompt

_HEAD_CHUNK = 16_384  # rows of a low-precision head that are widened at a time on the CPU
HISTORY = ("tokens", "policy_mask", "logprobs", "sampled_logprobs")


@dataclass
class Slots:
    """The rows in the batch, [r] each: grammar, draws, what was emitted, and the input of the next step."""

    state: dict[str, Tensor]  # see latent_feedback_step_
    drawing: dict[str, Tensor]  # per-row parameters of sample_tokens, those in use only
    history: dict[str, Tensor]  # [r, max_new_tokens + 1] each, see Recording
    embeds: Tensor  # [r, H] input of the next step
    upcoming: dict[str, Tensor]  # of the next step: positions, newest and forbidden of Recording
    feed: dict[str, Tensor]  # what is fed instead of own latents, see Feed.rows; {}: nothing is

    @classmethod
    def fresh(
        cls, backbone: Backbone, config: SamplingConfig, prompts: Sequence[Prompt], seeds: Tensor,
        feed: dict[str, Tensor] | None = None,
    ) -> Slots:  # fmt: skip
        """Slots for rows that have emitted nothing yet.

        Args:
            backbone: the model.
            config: sampling settings.
            prompts: of each row the prompt that it continues, r of them.
            seeds: [r] int64.
            feed: see `Feed.rows`; None: every row feeds its own latents.
        """
        before = torch.tensor([prompt.next_position - 1 for prompt in prompts]).to(backbone.device)
        drawn = drawing(backbone, config, prompts, seeds)
        return cls._zeros(backbone, config, len(prompts), drawn, before, feed or {})

    @classmethod
    def empty(cls, backbone: Backbone, config: SamplingConfig, rows: int, like: Slots) -> Slots:
        """Slots that are empty: their rows have ended.

        Args:
            backbone: the model.
            config: sampling settings.
            rows: slots.
            like: slots with the same parameters of `sample_tokens` in use.
        """
        nothing = {name: value.new_ones(rows, *value.shape[1:]) for name, value in like.drawing.items()}
        feed = {name: value.new_zeros(rows, *value.shape[1:]) for name, value in like.feed.items()}
        slots = cls._zeros(backbone, config, rows, nothing, like.upcoming["positions"].new_zeros(rows), feed)
        slots.state["finished"].fill_(True)
        slots.state["steps"].fill_(1)
        slots.upcoming["newest"].fill_(0)
        return slots

    @classmethod
    def _zeros(
        cls, backbone: Backbone, config: SamplingConfig, rows: int, drawing: dict[str, Tensor],
        positions: Tensor, feed: dict[str, Tensor],
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
        ids = backbone.latents
        upcoming = {
            "positions": positions,
            "newest": torch.full((rows,), -1, device=device),
            "forbidden": forbidden_tokens(
                state["phase"], state["blocks"], pad_id=ids.pad_id, start_id=ids.start_id, end_id=ids.end_id,
                max_blocks=config.max_blocks,
            ),
        }  # fmt: skip
        return cls(state, drawing, history, embeds, upcoming, feed)

    @property
    def recording(self) -> Recording:
        """What a step writes down."""
        return Recording(**self.history, **self.upcoming, seen=self.drawing.get("seen"))

    def put(self, index: Tensor, fresh: Slots) -> None:
        """Let rows `fresh` [k] take the slots `index` [k]."""
        for mine, theirs in (
            (self.state, fresh.state),
            (self.drawing, fresh.drawing),
            (self.history, fresh.history),
            (self.upcoming, fresh.upcoming),
            (self.feed, fresh.feed),
        ):
            for name, value in mine.items():
                value.index_copy_(0, index, theirs[name])
        self.embeds.index_copy_(0, index, fresh.embeds)

    def select(self, index: Tensor) -> Slots:
        """The slots `index` [k] alone."""
        state, drawing, history, upcoming, feed = (
            {name: value.index_select(0, index) for name, value in part.items()}
            for part in (self.state, self.drawing, self.history, self.upcoming, self.feed)
        )
        return Slots(state, drawing, history, self.embeds.index_select(0, index), upcoming, feed)


@dataclass
class Stepper:
    """What all steps of a call have in common."""

    backbone: Backbone
    decoder: Decoder
    config: SamplingConfig
    eos_ids: Tensor  # [E] on the device
    processors: Processors | None = None

    def step(self, slots: Slots, store: KVStore, span: int) -> None:
        """Feed what the rows emitted last, and emit the next ids.

        Args:
            slots: r rows, changed in place.
            store: their keys and values, appended to.
            span: no row has more own tokens.
        """
        store.set_steps(slots.state["steps"], span)
        positions, newest = slots.upcoming["positions"], slots.upcoming["newest"]
        hidden = self.decoder.step(slots.embeds, positions, newest, store, NAME)
        self.emit(slots, hidden.to(slots.embeds.dtype))

    def emit(self, slots: Slots, hidden: Tensor) -> None:
        """Draw ids, apply the grammar, and write down what came out.

        Args:
            slots: r rows, changed in place.
            hidden: [r, H] after the final norm, in the dtype of the model.
        """
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
        forbidden = slots.upcoming["forbidden"]
        broken = _broken(scores, forbidden, self.processors is not None)
        if broken is not None:
            scores = scores.masked_fill(broken[:, None], 0.0)
        ids, logprobs, sampled = sample_tokens(
            scores, steps=state["steps"], forbidden=forbidden,
            **slots.drawing,  # type: ignore[arg-type]  # tensors; none is called backend
        )  # fmt: skip
        if self.processors is not None:  # the policy is what the model says, not what processors make of it
            scaled = raw / config.temperature if config.temperature > 0 else raw
            logprobs = scaled.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        if broken is not None:  # such a row ends here, and says so
            logprobs = logprobs.masked_fill(broken, torch.nan)
        thought = rescaled(hidden, latents.latent_norm)
        if slots.feed:  # of a call, not of a step
            thought = fed(slots.feed, state, thought, latents.latent_size)
        emitted, _, _ = latent_feedback_step_(
            ids,
            thought,
            backbone.embedding_weight,
            **state,  # type: ignore[arg-type]  # tensors; none is called backend or mode
            eos_ids=self.eos_ids,
            pad_id=latents.pad_id,
            start_id=latents.start_id,
            end_id=latents.end_id,
            fill_id=backbone.vision.pad_id,
            latent_size=latents.latent_size,
            max_blocks=config.max_blocks,
            mode=config.mode,
            train_start=config.train_start,
            next_embeds=slots.embeds,
            recording=slots.recording,
            logprobs=logprobs,
            sampled_logprobs=sampled,
        )
        if broken is not None:
            state["finished"].logical_or_(broken)
        if self.processors is not None:
            self.processors.remember(emitted)


def _broken(scores: Tensor, forbidden: Tensor, banned: bool) -> Tensor | None:
    """Rows [r] of `scores` [r, V] that are not finite, or where nothing can be drawn; None: there are none.

    On a GPU nothing looks, which would wait: NaN log-probabilities tell in the end. `banned`: whether ids may
    be banned (-inf), so that none may be left beside the `forbidden` [r, F].
    """
    if scores.device.type != "cpu":
        return None
    if banned:
        rows, columns = (forbidden >= 0).nonzero(as_tuple=True)
        scores = scores.clone()
        scores[rows, forbidden[rows, columns]] = -torch.inf
    broken = ~scores.amax(1).isfinite()
    return broken if bool(broken.any()) else None


def head_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """The logits of hidden states; a low-precision head is summed up in float32.

    Args:
        hidden: [r, H] in the dtype of `weight`.
        weight: [V, H] floating.

    Returns:
        [r, V] float32, float64 for a float64 head.
    """
    with torch.autocast(weight.device.type, enabled=False):  # it would round the logits to half precision
        wide = weight.dtype in (torch.float32, torch.float64)
        if weight.device.type == "cuda":
            return _cuda_logits(hidden, weight, weight.dtype if wide else torch.float32)
        if weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            # oneDNN is twice as fast as the BLAS of F.linear at few rows and many columns.
            return torch.ops.mkldnn._linear_pointwise(hidden, weight, None, "none", [], "")
        if wide:
            return F.linear(hidden, weight)
        rows = hidden.float()
        return torch.cat([F.linear(rows, part.float()) for part in weight.split(_HEAD_CHUNK)], dim=-1)


def _cuda_logits(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """In rows of a multiple of 16 elements, as kernels read them fast; V = 151,668 is none."""
    rows, vocabulary = hidden.shape[0], weight.shape[0]
    padded = torch.empty(rows, -(-vocabulary // 16) * 16, dtype=dtype, device=hidden.device)
    logits = padded[:, :vocabulary]
    if dtype == weight.dtype:
        return torch.mm(hidden, weight.t(), out=logits)
    return torch.mm(hidden, weight.t(), out_dtype=dtype, out=logits)


def drawing(
    backbone: Backbone, config: SamplingConfig, prompts: Sequence[Prompt], seeds: Tensor
) -> dict[str, Tensor]:
    """The parameters of `sample_tokens` that are in use.

    Args:
        backbone: the model.
        config: sampling settings.
        prompts: of each row the prompt that it continues, r of them.
        seeds: [r] int64.

    Returns:
        Name -> [r] on the model's device; `seen` [r, V].
    """
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
