"""NaN and infinity in weights, features and embedding rows: the question and the cause are named, and rows
beside it are as without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from fourdthinker.backbones import Checkpoint
from fourdthinker.errors import SamplingError
from fourdthinker.records import Record
from fourdthinker.sampler import LatentSampler, SamplingConfig, encode_prompts
from fourdthinker.samples import Prompt
from tests.unit.sampler.cases import make_prompt, talkative

CONFIG = SamplingConfig(max_new_tokens=24, seed=5)
BAD_ID = 250


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return talkative()


@pytest.fixture
def bad_row(checkpoint: Checkpoint) -> Iterator[None]:
    """The embedding row of one id is NaN."""
    row = checkpoint.backbone.embedding_weight.data[BAD_ID]
    before = row.clone()
    row.fill_(torch.nan)
    yield
    row.copy_(before)


def named(prompt: Prompt, id: str) -> Prompt:
    return replace(prompt, record=Record("ask", id, "?", where="data.jsonl:7"))


def with_bad_id(prompt: Prompt) -> Prompt:
    ids = prompt.input_ids.clone()
    ids[1] = BAD_ID
    return replace(prompt, input_ids=ids)


def without_bad_id(prompt: Prompt) -> Prompt:
    return replace(prompt, input_ids=prompt.input_ids.masked_fill(prompt.input_ids == BAD_ID, 7))


@pytest.mark.parametrize("options", [{}, {"max_rows": 1}, {"max_rows": 2}])
def test_an_embedding_row(checkpoint: Checkpoint, bad_row: None, options: dict[str, int]) -> None:
    """Also when the rows of other prompts take the place of the broken ones."""
    sampler = LatentSampler(checkpoint.backbone, **options)
    prompts = [without_bad_id(make_prompt(checkpoint, i, 9 - i)) for i in range(4)]
    spoilt = [prompts[0], named(with_bad_id(prompts[1]), "q7"), *prompts[2:]]
    with pytest.raises(SamplingError) as caught:
        sampler.sample(spoilt, 3, CONFIG)
    assert str(caught.value) == (
        "question 'q7' (data.jsonl:7): its logits leave nothing to sample from: the embedding row of token "
        f"{BAD_ID} is NaN or infinite; mend the checkpoint"
    )
    assert list(caught.value.prompts) == [1]


def test_rows_beside_a_broken_one_are_as_without_it(
    checkpoint: Checkpoint, bad_row: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [without_bad_id(make_prompt(checkpoint, i, 9)) for i in range(3)]
    seeds = list(range(6))
    whole = LatentSampler(checkpoint.backbone).sample(prompts, 2, CONFIG, seeds=seeds)
    seen = []
    monkeypatch.setattr(
        "fourdthinker.sampler.engine.refuse_broken", lambda rollout, *rest: seen.append(rollout)
    )
    spoilt = [prompts[0], with_bad_id(prompts[1]), prompts[2]]
    for rows in (1, 2, 256):
        LatentSampler(checkpoint.backbone, max_rows=rows).sample(spoilt, 2, CONFIG, seeds=seeds)
    for rollout in seen:
        assert rollout.lengths[2:4].tolist() == [1, 1]  # ends at once
        for row in (0, 1, 4, 5):
            length = int(whole.lengths[row])
            assert int(rollout.lengths[row]) == length
            assert torch.equal(rollout.tokens[row, :length], whole.tokens[row, :length])
            assert rollout.logprobs[row, :length].isfinite().all()


def test_a_row_that_takes_the_place_of_one_that_broke_later(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows break where they open a block, with NaN among their keys and values; others stand there next."""
    prompts, start = [make_prompt(checkpoint, i, 9) for i in range(4)], checkpoint.backbone.latents.start_id
    config = replace(CONFIG, max_new_tokens=6)
    whole = LatentSampler(checkpoint.backbone, max_rows=1).sample(prompts, 6, config)
    opened = (whole.tokens == start).any(1)
    assert 4 < int(opened.sum()) < 20
    seen = []
    monkeypatch.setattr("fourdthinker.sampler.engine.refuse_broken", lambda rollout, *_: seen.append(rollout))
    row = checkpoint.backbone.embedding_weight.data[start]
    before = row.clone()
    row.fill_(torch.nan)
    try:
        LatentSampler(checkpoint.backbone, max_rows=1).sample(prompts, 6, config)
    finally:
        row.copy_(before)
    kept = (~opened).nonzero()[:, 0]
    assert torch.equal(seen[0].tokens[kept], whole.tokens[kept])
    assert torch.equal(seen[0].logprobs[kept], whole.logprobs[kept])


def test_vision_features(checkpoint: Checkpoint) -> None:
    prompts = [make_prompt(checkpoint, i, 9, clip=i) for i in range(2)]
    features = encode_prompts(checkpoint.backbone, prompts)
    assert features[1] is not None
    features[1] = features[1].clone()
    features[1][3, 2] = torch.inf
    with pytest.raises(SamplingError, match=r"prompt 1: .*its vision features are NaN or infinite") as caught:
        LatentSampler(checkpoint.backbone).sample(prompts, 1, CONFIG, features=features)
    assert list(caught.value.prompts) == [1]


def test_broken_weights_fail_every_prompt_at_once() -> None:
    checkpoint = talkative()
    with torch.no_grad():
        [p for n, p in checkpoint.backbone.named_parameters() if "down_proj.weight" in n][-1][0, 0] = (
            torch.nan
        )
    prompts = [named(make_prompt(checkpoint, i, 9), f"q{i}") for i in range(3)]
    said = r"question 'q0' .*NaN or infinite weights.*\(and 2 more"
    with pytest.raises(SamplingError, match=said) as caught:
        LatentSampler(checkpoint.backbone).sample(prompts, 2, CONFIG)
    assert set(caught.value.prompts) == {0, 1, 2}


def test_a_row_of_the_head() -> None:
    checkpoint = talkative()
    with torch.no_grad():
        checkpoint.backbone.head_weight[17, 3] = torch.inf
    with pytest.raises(SamplingError, match=r"prompt 0: .*: row 17 of the output head is NaN or infinite"):
        LatentSampler(checkpoint.backbone).sample([make_prompt(checkpoint, 0, 9)], 1, CONFIG)


def test_a_block_that_breaks_before_the_row_ends(checkpoint: Checkpoint) -> None:
    """The last id of the row is a latent pad, whose log-probability nobody looks at."""
    latents = checkpoint.backbone.latents
    prompt = make_prompt(checkpoint, 0, 9)
    row = checkpoint.backbone.embedding_weight.data[latents.start_id]
    before = row.clone()
    row.fill_(torch.nan)

    def start(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([latents.start_id]), 0.0)

    try:
        with pytest.raises(SamplingError, match="prompt 0"):
            LatentSampler(checkpoint.backbone).sample(
                [prompt], 1, replace(CONFIG, max_new_tokens=2), logits_processor=[start]
            )
    finally:
        row.copy_(before)
