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


def shared_prefix(
    prompts: Sequence[Prompt], features: Sequence[Tensor | None], vision_ids: Sequence[int]
) -> int:
    """How many positions prompts have in common at their beginning, such as a clip that all ask about.

    Args:
        prompts: U prompts.
        features: of each its vision features [N, H], or None.
        vision_ids: ids of the vision pads.

    Returns:
        At most all positions of the shortest prompt but the last; 0 where it is less than half of them, since
        the rest is then better done in one.
    """
    first, shortest = prompts[0], min(prompt.input_ids.numel() for prompt in prompts)
    if len(prompts) == 1:
        return 0
    common = shortest - 1
    pads = vision_index(first, vision_ids)
    for prompt, feature in zip(prompts[1:], features[1:], strict=True):
        same = prompt.input_ids[:common] == first.input_ids[:common]
        same &= (prompt.position_ids[:, :common] == first.position_ids[:, :common]).all(0)
        common = int(same.long().cumprod(0).sum())
        shown = int((pads < common).sum())
        mine = features[0]
        if shown and feature is not mine:
            alike = feature is not None and mine is not None and torch.equal(feature[:shown], mine[:shown])
            common = common if alike else int(pads[0])
    return common if 2 * common >= shortest else 0


@torch.no_grad()
def prefill(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    features: Sequence[Tensor | None],
    store: KVStore,
    segment: Segment,
) -> Tensor:
    """Run the decoder over prompts of one segment of the store, in pieces of bounded size.

    What all of them begin with is computed once. Shorter prompts are padded on the right, where causality
    hides it.

    Args:
        backbone: the model.
        prompts: U prompts, those of `segment`.
        features: of each its vision features [N, H], or None.
        store: gets the keys and values.
        segment: where in the pool they go.

    Returns:
        The hidden state after each prompt's last token, [U, H] in the dtype of the model.
    """
    spec = backbone.vision
    common = shared_prefix(prompts, features, (spec.image_token_id, spec.video_token_id))
    cache = PrefillCache(store, segment)
    result = torch.empty(len(prompts), backbone.hidden_size, dtype=backbone.dtype, device=backbone.device)
    if common:
        _run(backbone, prompts[:1], features[:1], cache, common, result[:0])
    _run(backbone, prompts, features, cache, segment.spacing, result)
    return result


def _run(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    features: Sequence[Tensor | None],
    cache: PrefillCache,
    end: int,
    result: Tensor,
) -> None:
    """The positions of prompts from `cache.done` to `end`; `result` [U, H] gets the last hidden states."""
    spec, device, begin = backbone.vision, backbone.device, cache.done
    width = end - begin
    input_ids = torch.full((len(prompts), width), spec.pad_id, dtype=torch.long)
    position_ids = torch.zeros(3, len(prompts), width, dtype=torch.long)
    lengths = [prompt.input_ids.numel() for prompt in prompts]
    index, values = [], []
    for row, (prompt, feature) in enumerate(zip(prompts, features, strict=True)):
        ids = prompt.input_ids[begin:end]
        input_ids[row, : len(ids)] = ids
        position_ids[:, row, : len(ids)] = prompt.position_ids[:, begin:end]
        if feature is not None:
            pads = vision_index(prompt, (spec.image_token_id, spec.video_token_id))
            inside = (pads >= begin) & (pads < end)
            index.append(row * width + pads[inside] - begin)
            values.append(feature if bool(inside.all()) else feature[inside.to(feature.device)])
    batch: dict[str, Any] = {"input_ids": input_ids.to(device)}
    if values:
        batch["vision_index"] = torch.cat(index).to(device)
        batch["vision_features"] = torch.cat(values) if len(values) > 1 else values[0]
    inputs, position_ids = backbone.embed_inputs(batch), position_ids.to(device)
    piece = max(1, PIECE_TOKENS[device.type == "cuda"] // len(prompts))
    with backbone.set_attention(NAME):
        for start in range(0, width, piece):
            stop = min(start + piece, width)
            part = None if inputs.deepstack is None else inputs.deepstack.part(width, start, stop)
            hidden = backbone.decode(
                inputs.embeds[:, start:stop], position_ids[:, :, start:stop], None, cache, deepstack=part
            )
            cache.done = begin + stop
            for row, length in enumerate(lengths[: len(result)]):
                if start < length - begin <= stop:
                    result[row] = hidden[row, length - begin - 1 - start]
