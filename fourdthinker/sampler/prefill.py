"""Prompts to keys and values: each prompt through the decoder once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourdthinker.errors import ConfigError
from fourdthinker.sampler.attention import NAME
from fourdthinker.sampler.store import KVStore, PrefillCache, Segment
from fourdthinker.sampler.vision import describe, vision_index

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.samples import Prompt

PIECE_TOKENS = (1_024, 8_192)  # on CPU and GPU: of all prompts together in one forward of a prefill


def check_prompts(
    prompts: Sequence[Prompt],
    features: Sequence[Tensor | None],
    vision_ids: Sequence[int],
    *,
    new: int,
    context: int,
) -> None:
    """Refuse prompts that the model cannot take.

    Args:
        prompts: U prompts.
        features: of each its vision features [N, H], or None.
        vision_ids: ids of the vision pads.
        new: tokens that are to follow.
        context: positions that the model was made for.

    Raises:
        ConfigError: a prompt is empty, its pads and features differ in number, or with `new` ids after it it
            is longer than the model's `context`.
    """
    for index, prompt in enumerate(prompts):
        name, length = describe(prompt, index), prompt.input_ids.numel()
        if prompt.input_ids.dim() != 1 or length == 0:
            raise ConfigError(
                f"{name}: input_ids is {tuple(prompt.input_ids.shape)}; it must be [P] with P > 0"
            )
        if tuple(prompt.position_ids.shape) != (3, length):
            raise ConfigError(
                f"{name}: position_ids is {tuple(prompt.position_ids.shape)}; it must be (3, {length})"
            )
        if length + new > context:
            raise ConfigError(
                f"{name} has {length} tokens; with max_new_tokens={new} that is {length + new}, and the "
                f"model was made for {context} positions; lower max_new_tokens, or the frames and pixels of "
                "the clip"
            )
        pads, feature = vision_index(prompt, vision_ids).numel(), features[index]
        rows = 0 if feature is None else feature.shape[0]
        if rows != pads:
            raise ConfigError(
                f"{name}: {pads} vision pads in its ids but {rows} vision features; "
                "make ids and pictures with one Encoder, and give a prompt with pads its pictures"
            )


@torch.no_grad()
def prefill(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    features: Sequence[Tensor | None],
    store: KVStore,
    segment: Segment,
) -> Tensor:
    """Run the decoder over prompts of one segment of the store, in pieces of bounded size.

    Shorter prompts are padded on the right, where causality hides it.

    Args:
        backbone: the model.
        prompts: U prompts, those of `segment`.
        features: of each its vision features [N, H], or None.
        store: gets the keys and values.
        segment: where in the pool they go.

    Returns:
        The hidden state after each prompt's last token, [U, H] in the dtype of the model.
    """
    spec, device = backbone.vision, backbone.device
    vision_ids = (spec.image_token_id, spec.video_token_id)
    lengths, width = segment.lengths, segment.spacing
    input_ids = torch.full((len(prompts), width), spec.pad_id, dtype=torch.long)
    position_ids = torch.zeros(3, len(prompts), width, dtype=torch.long)
    index, values = [], []
    for row, (prompt, length, feature) in enumerate(zip(prompts, lengths, features, strict=True)):
        input_ids[row, :length] = prompt.input_ids
        position_ids[:, row, :length] = prompt.position_ids
        if feature is not None:
            index.append(row * width + vision_index(prompt, vision_ids))
            values.append(feature)
    batch: dict[str, Any] = {"input_ids": input_ids.to(device)}
    if values:
        batch["vision_index"] = torch.cat(index).to(device)
        batch["vision_features"] = torch.cat(values) if len(values) > 1 else values[0]
    inputs, position_ids = backbone.embed_inputs(batch), position_ids.to(device)
    embeds, deepstack, cache = inputs.embeds, inputs.deepstack, PrefillCache(store, segment)
    result = torch.empty(len(prompts), embeds.shape[2], dtype=backbone.dtype, device=device)
    piece = max(1, PIECE_TOKENS[device.type == "cuda"] // len(prompts))
    with backbone.set_attention(NAME):
        for start in range(0, width, piece):
            stop = min(start + piece, width)
            part = None if deepstack is None else deepstack.part(width, start, stop)
            hidden = backbone.decode(
                embeds[:, start:stop], position_ids[:, :, start:stop], None, cache, deepstack=part
            )
            cache.done = stop
            for row, length in enumerate(lengths):
                if start < length <= stop:
                    result[row] = hidden[row, length - 1 - start]
    return result
