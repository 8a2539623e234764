"""Rollouts through the training forward give the same log-probabilities, thanks to the replayed latents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fourdthinker.backbones import Checkpoint
from fourdthinker.errors import ConfigError
from fourdthinker.sampler import (
    LatentSampler,
    Rollout,
    SamplingConfig,
    encode_prompts,
    replay_batch,
    replay_logprobs,
)
from fourdthinker.samples import Prompt
from tests.unit.sampler.cases import Script, make_prompt, mixed_prompts, talkative

TOLERANCE = 1e-4
N = 4


@pytest.fixture(scope="module")
def talker() -> Checkpoint:
    return talkative(start=4.0)


def roll_out(checkpoint: Checkpoint, prompts: list[Prompt], **options: Any) -> Rollout:
    processors = options.pop("logits_processor", None)
    config = SamplingConfig(**({"max_new_tokens": 48, "max_blocks": 4} | options))
    return LatentSampler(checkpoint.backbone).sample(prompts, N, config, logits_processor=processors)


def blocks_before(checkpoint: Checkpoint, rollout: Rollout) -> torch.Tensor:
    """[R, T]: blocks that have begun before each id."""
    return (rollout.tokens == checkpoint.backbone.latents.start_id).cumsum(1)


@torch.no_grad()
def gap(
    checkpoint: Checkpoint, rollout: Rollout, batch: dict[str, Any], temperature: float = 1.0
) -> torch.Tensor:
    return (replay_logprobs(checkpoint.backbone, batch, temperature) - rollout.logprobs).abs()


@pytest.mark.parametrize("mode", ["exact", "reference"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_replay_reproduces_the_logprobs(talker: Checkpoint, mode: str, temperature: float) -> None:
    prompts = mixed_prompts(talker)
    rollout = roll_out(talker, prompts, mode=mode, temperature=temperature, top_p=0.95, train_start=True)
    begun, chosen = blocks_before(talker, rollout), rollout.policy_mask
    for blocks in (0, 1, 2, 3):
        assert (chosen & (begun == blocks)).sum() > 20
    batch = replay_batch(rollout, prompts, None, talker.backbone.vision.pad_id)
    assert gap(talker, rollout, batch, temperature).max() <= TOLERANCE

    # Pads embedded as the tokens they are: text before the first block is as before, text after it is not.
    pads = talker.backbone.embed_tokens(torch.tensor([talker.backbone.latents.pad_id]))
    wrong = gap(talker, rollout, {**batch, "latents": pads.expand_as(batch["latents"])}, temperature)
    assert wrong[chosen & (begun == 0)].max() <= TOLERANCE
    for blocks in (1, 2):
        assert wrong[chosen & (begun == blocks)].max() > 100 * TOLERANCE
    # Right vectors in another order do not do either.
    rolled = {**batch, "latents": batch["latents"].roll(1, 0)}
    assert gap(talker, rollout, rolled, temperature).max() > 100 * TOLERANCE


def test_replay_of_scripted_blocks(talker: Checkpoint) -> None:
    """Logits processors decide what is said, and the log-probabilities stay those of the model."""
    start = talker.backbone.latents.start_id
    prompts = [
        make_prompt(talker, 0, 5, clip=0),
        make_prompt(talker, 1, 9),
        make_prompt(talker, 2, 5, clip=2),
    ]
    scripts = [
        [70, start, 0, 0, 0, 0, 0, 71, start, 0, 0, 0, 0, 0, 72],
        [70, 71, 72],
        [start, 0, 0, 0, 0, 0, start, 0, 0],
    ]
    script = Script(list(zip(prompts, scripts, strict=True)), other=73)
    for limit in (9, 11, 17):  # the first two cut within blocks
        rollout = roll_out(
            talker,
            prompts,
            max_new_tokens=limit,
            temperature=0.0,
            logits_processor=[script],
            train_start=True,
        )
        assert (blocks_before(talker, rollout)[0, -1], blocks_before(talker, rollout)[-1, -1]) == (2, 2)
        batch = replay_batch(rollout, prompts)
        assert gap(talker, rollout, batch).max() <= TOLERANCE


def test_some_rows(talker: Checkpoint) -> None:
    prompts = mixed_prompts(talker)
    rollout = roll_out(talker, prompts)
    rows = [30, 3, 4, 17]
    for chosen in (rows, torch.tensor(rows)):
        batch = replay_batch(rollout, prompts, chosen)
        with torch.no_grad():
            logprobs = replay_logprobs(talker.backbone, batch)
        assert logprobs.shape == (4, rollout.tokens.shape[1])
        assert (logprobs - rollout.logprobs[rows]).abs().max() <= TOLERANCE
        assert torch.equal(batch["policy_mask"], rollout.policy_mask[rows])


def test_what_a_batch_holds(talker: Checkpoint) -> None:
    prompts, spec = mixed_prompts(talker), talker.backbone.latents
    rollout = roll_out(talker, prompts)
    batch = replay_batch(rollout, prompts, None, 7)
    rows = len(rollout.tokens)
    width = batch["input_ids"].shape[1]
    longest = max(
        len(prompts[g].input_ids) + n for g, n in zip(rollout.group, rollout.lengths.tolist(), strict=True)
    )
    assert width == longest
    assert batch["position_ids"].shape == (3, rows, width)
    predicted = torch.full((rows, width), -100)
    predicted.view(-1)[batch["source_index"] + 1] = batch["chosen_ids"]
    for row in range(rows):
        prompt, count = prompts[rollout.group[row]], int(rollout.lengths[row])
        start = len(prompt.input_ids)
        said = slice(start, start + count)
        assert torch.equal(batch["input_ids"][row, :start], prompt.input_ids)
        assert torch.equal(batch["input_ids"][row, said], rollout.tokens[row, :count])
        assert (batch["input_ids"][row, start + count :] == 7).all()
        assert batch["attention_mask"][row].tolist() == [1] * (start + count) + [0] * (width - start - count)
        assert torch.equal(batch["position_ids"][:, row, :start], prompt.position_ids)
        expected = prompt.next_position + torch.arange(count)
        assert torch.equal(batch["position_ids"][:, row, said], expected.expand(3, -1))
        assert (predicted[row, :start] == -100).all()
        mask = rollout.policy_mask[row, :count]
        assert torch.equal(predicted[row, said][mask], rollout.tokens[row, :count][mask])
        assert (predicted[row, said][~mask] == -100).all()
    assert torch.equal(batch["policy_mask"], rollout.policy_mask)
    assert torch.equal(rollout.tokens.flatten()[batch["completion_index"]], batch["chosen_ids"])
    assert torch.equal(batch["completion_index"], rollout.policy_mask.flatten().nonzero()[:, 0])
    assert torch.equal(batch["rollout_logprobs"], rollout.logprobs)
    assert (batch["input_ids"].flatten()[batch["latent_index"]] == spec.pad_id).all()
    assert len(batch["latent_index"]) == (batch["input_ids"] == spec.pad_id).sum() == len(rollout.latents)
    assert torch.equal(batch["latents"], rollout.latents)


def test_features_are_shared_by_the_rows_of_a_prompt(
    talker: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = mixed_prompts(talker)
    rollout = roll_out(talker, prompts)
    features = encode_prompts(talker.backbone, prompts)
    monkeypatch.setattr(talker.backbone, "encode_vision", lambda *_: pytest.fail("clips were encoded again"))
    batch = replay_batch(rollout, prompts, features=features)
    assert "patches" not in batch
    assert gap(talker, rollout, batch).max() <= TOLERANCE
    for prompt, feature in zip(prompts, features, strict=True):
        if prompt.vision is not None:
            prompt.vision = replace(prompt.vision, features=feature, patches=None)
    assert gap(talker, rollout, replay_batch(rollout, prompts)).max() <= TOLERANCE


def test_a_prompt_may_emit_ids_of_vision_pads(talker: Checkpoint) -> None:
    """In the completion they are plain tokens and take no features."""
    prompt, spec = make_prompt(talker, 0, 5, clip=0), talker.backbone.vision
    script = Script([(prompt, [spec.video_token_id, 70, spec.image_token_id])], other=73)
    rollout = roll_out(talker, [prompt], max_new_tokens=6, temperature=0.0, logits_processor=[script])
    assert spec.video_token_id in rollout.tokens
    assert gap(talker, rollout, replay_batch(rollout, [prompt])).max() <= TOLERANCE


def test_rows_without_latents(talker: Checkpoint) -> None:
    prompts = [make_prompt(talker, 0, 5), make_prompt(talker, 1, 7)]
    rollout = roll_out(talker, prompts, max_blocks=0)
    batch = replay_batch(rollout, prompts)
    assert len(batch["latents"]) == len(batch["latent_index"]) == len(rollout.latents) == 0
    assert gap(talker, rollout, batch).max() <= TOLERANCE


def test_gradients_reach_the_model(talker: Checkpoint) -> None:
    prompts = mixed_prompts(talker)[:3]
    rollout = roll_out(talker, prompts)
    logprobs = replay_logprobs(talker.backbone, replay_batch(rollout, prompts))
    logprobs.sum().backward()
    for name in ("head_weight", "embedding_weight"):
        gradient = getattr(talker.backbone, name).grad
        assert gradient is not None
        assert gradient.abs().max() > 0
    talker.backbone.zero_grad()


def test_bf16_and_autocast() -> None:
    """In low precision the gap is small but not nothing; the sampler's head keeps float32 sums."""
    checkpoint = talkative(start=4.0)
    prompts = mixed_prompts(checkpoint)[:4]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rollout = roll_out(checkpoint, prompts)
        assert rollout.latents.dtype == torch.float32
        assert rollout.logprobs.dtype == torch.float32
        assert gap(checkpoint, rollout, replay_batch(rollout, prompts)).mean() < 0.02
    checkpoint.backbone.to(torch.bfloat16)
    rollout = roll_out(checkpoint, prompts)
    assert rollout.latents.shape[0] > 0
    assert gap(checkpoint, rollout, replay_batch(rollout, prompts)).mean() < 0.05


def test_what_is_refused(talker: Checkpoint) -> None:
    prompts = mixed_prompts(talker)
    rollout = roll_out(talker, prompts, max_new_tokens=4)
    for rows in ([0, 0], [32], [-1]):
        with pytest.raises(
            ConfigError, match=rf"rows \[{rows[0]}.*of a rollout of 32 rows; name each row at most once"
        ):
            replay_batch(rollout, prompts, rows)
    with pytest.raises(ConfigError, match="no rows"):
        replay_batch(rollout, prompts, [])
    with pytest.raises(ConfigError, match="rows of prompt 7, but 2 prompts were given"):
        replay_batch(rollout, prompts[:2])
    with pytest.raises(ConfigError, match=r"set rollout\.vision_ids"):
        replay_batch(replace(rollout, vision_ids=()), prompts)
    half = encode_prompts(talker.backbone, prompts)
    half[2] = None
    with pytest.raises(ConfigError, match="mixes cached vision features and patches"):
        replay_batch(rollout, prompts, features=half)
