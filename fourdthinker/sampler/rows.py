"""The rows of a batch and one decode step of all of them, without a host synchronisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fourdthinker.kernels.latent_feedback import forbidden_tokens, latent_feedback_step_, latent_state
from fourdthinker.kernels.sample_tokens import PRESENT, REPEATED, sample_tokens
from fourdthinker.sampler.config import SamplingConfig
from fourdthinker.sampler.prefill import vision_index

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.prompts import Prompt

Processor = Callable[
    [Tensor, Tensor], Tensor
]  # (input_ids [b, S] long, scores [b, V] float32) -> scores [b, V]

_HEAD_CHUNK = 16_384  # rows of a low-precision head that are widened at a time on the CPU


@dataclass
class Rows:
    """The rows in the batch: where they are, what they draw with, and the input of their next step."""

    index: Tensor  # [r] place in the rollout
    state: dict[str, Tensor]  # of the grammar: see latent_feedback_step_
    hidden: Tensor  # [r, H] after the final norm, at the last position
    embeds: Tensor  # [r, H] input of the next forward
    cache: Any
    mask: Tensor | None  # [r, P + max_new_tokens] bool, what of the cache may be seen; None: everything
    width: int  # P, positions in the cache before the first step
    positions: Tensor  # [r] text position of the first emitted id
    drawing: dict[str, Tensor]  # per-row parameters of sample_tokens, those in use only

    @classmethod
    def begin(
        cls,
        backbone: Backbone,
        config: SamplingConfig,
        prompts: Sequence[Prompt],
        slots: Tensor,
        seeds: Tensor,
        prefilled: tuple[Tensor, Any, Tensor | None],
    ) -> Rows:
        """One row for every entry of `prompts` [r]; `slots` [r]: which prefilled prompt each continues."""
        hidden, cache, mask = prefilled
        rows, device = len(prompts), backbone.device
        slots = slots.to(device)
        if not torch.equal(slots, torch.arange(hidden.shape[0], device=device)):
            cache.batch_select_indices(slots)
        if mask is not None:
            mask = F.pad(mask[slots], (0, config.max_new_tokens), value=True)
        max_latents = min(config.max_blocks * backbone.latents.latent_size, config.max_new_tokens)
        hidden = hidden[slots].to(backbone.dtype)  # autocast may have left another one
        return cls(
            index=torch.arange(rows, device=device),
            state=latent_state(rows, backbone.hidden_size, max_latents, dtype=hidden.dtype, device=device),
            hidden=hidden,
            embeds=torch.empty_like(hidden),
            cache=cache,
            mask=mask,
            width=max(prompt.input_ids.numel() for prompt in prompts),
            positions=torch.tensor([prompt.next_position for prompt in prompts], device=device),
            drawing=_drawing(backbone, config, prompts, seeds.to(device)),
        )

    def emit(
        self, backbone: Backbone, config: SamplingConfig, eos_ids: Tensor, processors: Processors | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw and apply the grammar: ids [r], whether the policy chose them, and both log-probabilities."""
        state, latents = self.state, backbone.latents
        raw = head_logits(self.hidden, backbone.head_weight)
        scores = raw
        if processors is not None:
            scores = processors(raw)
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
        ids, logprobs, sampled = sample_tokens(
            scores, steps=state["steps"], forbidden=forbidden, **self.drawing
        )
        if processors is not None:  # the policy is what the model says, not what processors make of it
            scaled = raw / config.temperature if config.temperature > 0 else raw
            logprobs = scaled.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        emitted, is_policy, _ = latent_feedback_step_(
            ids,
            self.hidden,
            backbone.embedding_weight,
            **state,
            eos_ids=eos_ids,
            pad_id=latents.pad_id,
            start_id=latents.start_id,
            end_id=latents.end_id,
            fill_id=backbone.vision.pad_id,
            latent_size=latents.latent_size,
            mode=config.mode,
            train_start=config.train_start,
            next_embeds=self.embeds,
        )
        if "seen" in self.drawing:
            self.drawing["seen"].scatter_(1, emitted[:, None], REPEATED | PRESENT)
        if processors is not None:
            processors.remember(emitted)
        return emitted, is_policy, logprobs.masked_fill(~is_policy, 0.0), sampled.masked_fill(~is_policy, 0.0)

    def advance(self, backbone: Backbone, step: int) -> None:
        """Run the decoder over what step number `step` emitted."""
        mask = None if self.mask is None else self.mask[:, : self.width + step + 1]
        positions = (self.positions + step).expand(3, -1)[..., None]
        hidden = backbone.decode(self.embeds[:, None], positions, mask, self.cache)[:, -1]
        self.hidden = hidden.to(self.embeds.dtype)

    def keep(self, rows: Tensor) -> None:
        """Leave only the rows at `rows` [k] in the batch."""
        self.cache.batch_select_indices(rows)
        self.state = {name: value[rows] for name, value in self.state.items()}
        self.drawing = {name: value[rows] for name, value in self.drawing.items()}
        self.index, self.positions, self.embeds = self.index[rows], self.positions[rows], self.embeds[rows]
        self.mask = None if self.mask is None else self.mask[rows]


class Processors:
    """Logits processors, called once for all rows whose prompts have the same length.

    So no padding stands in the ids they see, and nothing of a row depends on the length of another's prompt.
    """

    def __init__(
        self,
        processors: Sequence[Processor],
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        device: torch.device,
    ) -> None:
        self.processors, self.step = processors, 0
        by_length: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            by_length.setdefault(prompt.input_ids.numel(), []).append(row)
        self.calls: list[tuple[Tensor, int, Tensor]] = []  # rows, prompt length, ids with room for all steps
        for length, rows in by_length.items():
            ids = torch.zeros(len(rows), length + max_new_tokens, dtype=torch.long, device=device)
            ids[:, :length] = torch.stack([prompts[row].input_ids for row in rows]).to(device)
            self.calls.append((torch.tensor(rows, device=device), length, ids))

    def __call__(self, raw: Tensor) -> Tensor:
        scores = torch.empty_like(raw)
        for rows, length, ids in self.calls:
            part = raw[rows]
            for processor in self.processors:
                part = processor(ids[:, : length + self.step], part)
            scores[rows] = part.to(scores.dtype)
        return scores

    def remember(self, emitted: Tensor) -> None:
        """The ids [r] of this step."""
        for rows, length, ids in self.calls:
            ids[:, length + self.step] = emitted[rows]
        self.step += 1


def head_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Logits [r, V] float32 of hidden states [r, H]; a low-precision head is summed up in float32."""
    with torch.autocast(weight.device.type, enabled=False):  # it would round the logits to half precision
        if weight.dtype in (torch.float32, torch.float64):
            return F.linear(hidden, weight)
        if weight.device.type == "cuda":
            return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        wide = hidden.float()
        return torch.cat([F.linear(wide, part.float()) for part in weight.split(_HEAD_CHUNK)], dim=-1)


def _drawing(
    backbone: Backbone, config: SamplingConfig, prompts: Sequence[Prompt], seeds: Tensor
) -> dict[str, Tensor]:
    rows, device, spec = len(prompts), backbone.device, backbone.vision

    def full(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((rows,), value, dtype=dtype, device=device)

    drawing = {"seeds": seeds, "temperature": full(config.temperature)}
    if config.top_k:
        drawing["top_k"] = full(config.top_k, torch.int32)
    if config.top_p < 1:
        drawing["top_p"] = full(config.top_p)
    if config.min_p:
        drawing["min_p"] = full(config.min_p)
    if config.presence_penalty != 0 or config.repetition_penalty != 1:
        drawing["presence_penalty"] = full(config.presence_penalty)
        drawing["repetition_penalty"] = full(config.repetition_penalty)
        seen = torch.zeros(rows, backbone.head_weight.shape[0], dtype=torch.uint8)
        for row, prompt in enumerate(prompts):
            text = torch.ones(prompt.input_ids.numel(), dtype=torch.bool)
            text[vision_index(prompt, (spec.image_token_id, spec.video_token_id))] = False
            seen[row, prompt.input_ids[text]] = REPEATED
        drawing["seen"] = seen.to(device)
    return drawing
