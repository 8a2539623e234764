"""Prompts that begin alike are prefilled once as far as they do, and give what each gives alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fourdthinker.backbones import FAMILIES, Checkpoint
from fourdthinker.sampler import LatentSampler, SamplingConfig, encode_prompts
from fourdthinker.sampler.prefill import shared_prefix
from fourdthinker.samples import Prompt
from tests.unit.sampler.cases import compare, make_prompt, talkative, text_ids

CONFIG = SamplingConfig(max_new_tokens=8, max_blocks=1)


def asked(checkpoint: Checkpoint, number: int, clip: int = 0) -> list[Prompt]:
    """Questions of different lengths about one clip."""
    prompts = []
    for i in range(number):
        whole = make_prompt(checkpoint, 0, 5, clip)
        tail = text_ids(50 + i, 2 + i)
        more = torch.arange(len(tail)) + whole.next_position
        prompts.append(
            Prompt(
                torch.cat([whole.input_ids, tail]), torch.cat([whole.position_ids, more.expand(3, -1)], 1),
                whole.next_position + len(tail), prompts[0].vision if prompts else whole.vision,
            )
        )  # fmt: skip
    return prompts


def ids_of(checkpoint: Checkpoint) -> tuple[int, int]:
    spec = checkpoint.backbone.vision
    return spec.image_token_id, spec.video_token_id


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_is_shared_is_computed_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = talkative(family=family, layers=1)
    prompts, sampler = asked(checkpoint, 3), LatentSampler(checkpoint.backbone)
    alone = [
        sampler.sample([prompt], 2, CONFIG, seeds=[2 * i, 2 * i + 1]) for i, prompt in enumerate(prompts)
    ]
    sizes = []
    decode = type(checkpoint.backbone).decode

    def counting(self: Any, embeds: Tensor, *rest: Any, **options: Any) -> Tensor:
        sizes.append(tuple(embeds.shape[:2]))
        return decode(self, embeds, *rest, **options)

    monkeypatch.setattr(type(checkpoint.backbone), "decode", counting)
    together = sampler.sample(prompts, 2, CONFIG, seeds=range(6))
    prefix = len(make_prompt(checkpoint, 0, 5, 0).input_ids)
    assert sizes[:2] == [(1, prefix), (3, 4)]  # the longest tail has 4 ids
    for i, one in enumerate(alone):
        compare(one, together, [0, 1], [2 * i, 2 * i + 1])


def test_as_far_as_ids_positions_and_pictures_are_the_same() -> None:
    checkpoint = talkative(layers=1)
    prompts = asked(checkpoint, 2)
    features: list[Any] = encode_prompts(checkpoint.backbone, prompts)
    spec, prefix = ids_of(checkpoint), len(make_prompt(checkpoint, 0, 5, 0).input_ids)
    assert shared_prefix(prompts, features, spec) == prefix
    assert shared_prefix(prompts, [features[0], features[0].clone()], spec) == prefix
    assert shared_prefix(prompts, [features[0], features[0] + 1], spec) == 0  # three ids are less than half
    assert shared_prefix(prompts[:1], features[:1], spec) == 0
    moved = replace(prompts[1], position_ids=prompts[1].position_ids + 1)
    assert shared_prefix([prompts[0], moved], features, spec) == 0
    assert shared_prefix([prompts[0], prompts[0]], features, spec) == len(prompts[0].input_ids) - 1
    assert (
        shared_prefix([make_prompt(checkpoint, 1, 8), make_prompt(checkpoint, 2, 8)], [None, None], spec) == 0
    )
