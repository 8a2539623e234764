"""Other vectors in the place of latents: every mode against a plain loop over one row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fourdthinker.backbones import Checkpoint
from fourdthinker.errors import ConfigError
from fourdthinker.sampler import (
    LATENT_MODES,
    Feed,
    LatentSampler,
    Rollout,
    SamplingConfig,
    make_feed,
    most_latents,
    replay_batch,
    replay_logprobs,
)
from fourdthinker.sampler.feed import NONE, OWN
from fourdthinker.samples import Prompt, Sample, collate
from tests.unit.sampler.cases import compare, make_prompt, talkative
from tests.unit.sampler.reference import ROUNDING, one_row

CONFIG = SamplingConfig(max_new_tokens=15, max_blocks=2, temperature=0.8, top_p=0.95)
N = 1


@pytest.fixture(scope="module")
def talker() -> Checkpoint:
    return talkative(start=5.0, eos=0.0, layers=1)


@pytest.fixture(scope="module")
def prompts(talker: Checkpoint) -> list[Prompt]:
    return [make_prompt(talker, 0, 7), make_prompt(talker, 1, 12, clip=0), make_prompt(talker, 2, 5)]


def sample(checkpoint: Checkpoint, prompts: list[Prompt], feed: Feed | None, **options: Any) -> Rollout:
    sampler = LatentSampler(checkpoint.backbone, max_rows=options.pop("max_rows", 256))
    return sampler.sample(
        prompts, N, replace(CONFIG, **options), seeds=list(range(len(prompts) * N)), feed=feed
    )


def vectors_for(mode: str, rows: int, width: int) -> list[torch.Tensor] | None:
    """Of each row some vectors; not as many as a row can have, and for one row none."""
    if mode not in ("oracle", "noise", "other-clip", "shuffle"):
        return None
    generator = torch.Generator().manual_seed(LATENT_MODES.index(mode))
    return [torch.randn((5 * row) % 9, width, generator=generator) for row in range(rows)]


@pytest.mark.parametrize("mode", LATENT_MODES)
def test_every_mode_equals_a_plain_loop(talker: Checkpoint, prompts: list[Prompt], mode: str) -> None:
    rows = len(prompts) * N
    vectors = vectors_for(mode, rows, talker.backbone.hidden_size)
    rollout = sample(talker, prompts, make_feed(mode, talker.backbone, rows, vectors), max_rows=2)
    blocks = 0
    for row in range(rows):
        given = None if vectors is None else vectors[row]
        alone = one_row(talker, prompts[row // N], CONFIG, row, mode, given)
        if alone.close < ROUNDING:
            continue
        length = int(rollout.lengths[row])
        assert rollout.tokens[row, :length].tolist() == alone.ids
        mine = rollout.latents[rollout.latent_rows == row]
        assert len(mine) == len(alone.latents)
        for found, expected in zip(mine, alone.latents, strict=True):
            assert (found - expected).abs().max() <= 1e-4
        assert (rollout.logprobs[row, :length] - torch.tensor(alone.logprobs)).abs().max() <= 1e-4
        blocks += alone.ids.count(talker.backbone.latents.start_id)
    assert blocks >= 3
    # What was fed is recorded, so that the training forward still reproduces the log-probabilities.
    with torch.no_grad():
        replayed = replay_logprobs(talker.backbone, replay_batch(rollout, prompts), CONFIG.temperature)
    assert (replayed - rollout.logprobs).abs().max() <= 1e-4


def test_rows_of_several_modes_in_one_call(talker: Checkpoint, prompts: list[Prompt]) -> None:
    """The mode is data of a row: each row is what it is in a call of its mode alone."""
    none = torch.zeros(3, dtype=torch.long)
    mixed = Feed(torch.tensor([OWN, NONE, OWN]), torch.zeros(3, 1, talker.backbone.hidden_size), none)
    rollout = sample(talker, prompts, mixed)
    compare(sample(talker, prompts, None), rollout, [0, 2], [0, 2])  # token for token as without a feed
    compare(sample(talker, prompts, make_feed("none", talker.backbone, 3)), rollout, [1], [1])
    assert set(rollout.latent_rows.tolist()) == {0, 2}


def test_the_oracle_is_teacher_forcing(talker: Checkpoint, prompts: list[Prompt]) -> None:
    """A training forward over the same text, targets in its blocks, gives the same log-probabilities."""
    backbone, rows = talker.backbone, len(prompts) * N
    count = most_latents(backbone, CONFIG)
    targets = [
        torch.randn(count, backbone.hidden_size, generator=torch.Generator().manual_seed(r))
        for r in range(rows)
    ]
    rollout = sample(talker, prompts, make_feed("oracle", backbone, rows, targets))
    compared = 0
    for row in range(rows):
        prompt, length = prompts[row // N], int(rollout.lengths[row])
        ids = torch.cat([prompt.input_ids, rollout.tokens[row, :length]])
        pads = (ids == backbone.latents.pad_id).nonzero()[:, 0]
        after = prompt.next_position + torch.arange(length).expand(3, -1)
        vision = torch.isin(ids, torch.tensor([backbone.vision.video_token_id])).nonzero()[:, 0]
        taught = Sample(
            ids, torch.cat([prompt.position_ids, after], 1), ids.clone(), prompt.vision,
            latents=targets[row][: len(pads)], latent_index=pads, vision_index=vision,
        )  # fmt: skip
        with torch.no_grad():
            hidden = backbone(collate([taught], 0), lambda model, hidden, batch: hidden)[0]
        logits = hidden[len(prompt.input_ids) - 1 : -1] @ backbone.head_weight.T / CONFIG.temperature
        chosen = logits.log_softmax(-1).gather(1, rollout.tokens[row, :length, None])[:, 0]
        mask = rollout.policy_mask[row, :length]
        assert (chosen - rollout.logprobs[row, :length])[mask].abs().max() <= 1e-4
        compared += len(pads)
    assert compared >= 6


def test_a_feed_that_does_not_fit_is_refused(talker: Checkpoint, prompts: list[Prompt]) -> None:
    backbone = talker.backbone
    with pytest.raises(ConfigError, match=r"latents is 'nothing'; choose one of own, oracle"):
        make_feed("nothing", backbone, 2)
    with pytest.raises(ConfigError, match="latents noise need the vectors of each of 3 rows, and none are"):
        make_feed("noise", backbone, 3)
    with pytest.raises(ConfigError, match=r"table is .5, 1, 32.; for 3 rows"):
        sample(talker, prompts, make_feed("zero", backbone, 5))
    good = make_feed("none", backbone, 3)
    assert good is not None
    with pytest.raises(ConfigError, match="source has values outside 0 to 3"):
        sample(talker, prompts, replace(good, source=good.source + 1))
    with pytest.raises(ConfigError, match=r"counts is .3,. torch.int32"):
        sample(talker, prompts, replace(good, counts=good.counts.int()))
