"""Packed batches against the sampler's own record and against one row at a time."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from fourdthinker.backbones import Checkpoint
from fourdthinker.errors import ConfigError
from fourdthinker.objectives import policy_logprobs
from fourdthinker.sampler import LatentSampler, Rollout, SamplingConfig, replay_batch, replay_logprobs
from fourdthinker.samples import Prompt, Vision
from fourdthinker.trainers.advantages import equal_groups
from fourdthinker.trainers.batches import ShardedBatches
from fourdthinker.trainers.budget import cut_into
from fourdthinker.trainers.experience import (
    Experience,
    _deviations,
    completions_of,
    rollout_metrics,
    rollout_seeds,
    update_slots,
)
from fourdthinker.trainers.packing import Chunk, cut_rows, halved, make_chunk
from tests.e2e.training import prompts as recorded_prompts
from tests.e2e.training import relative_difference
from tests.tiny import tiny_checkpoint

N = 3


@cache
def checkpoint() -> Checkpoint:
    return tiny_checkpoint(hidden=32, layers=2)


def prompts(*, patches: bool = False) -> list[Prompt]:
    """Clips of 1, 2 and 4 temporal patches, the third without."""
    backbone, generator = checkpoint().backbone, torch.Generator().manual_seed(3)
    result = []
    for i in range(4):
        ids = torch.randint(0, 300, (14 + 3 * i,), generator=generator)
        vision = None
        if frames := (1, 2, 0, 4)[i]:
            ids[2 : 2 + 4 * frames] = backbone.vision.video_token_id
            grid = torch.tensor([[frames, 4, 4]])
            picture = torch.randn(16 * frames, 1176, generator=generator)
            features = picture[: 4 * frames, :32].clone()
            vision = Vision(grid, picture if patches else None, None if patches else features)
        positions = torch.arange(len(ids)).expand(3, -1).clone()
        result.append(Prompt(ids, positions, len(ids) + 2 * i, vision))
    return result


class OftenStart:
    """Makes the untrained model open blocks."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, checkpoint().backbone.latents.start_id] += 14.0
        return scores


class OftenEnd(OftenStart):
    """And makes its completions end early, each at another token."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = super().__call__(ids, scores)
        scores[:, checkpoint().tokenizer.eos_token_id] += 13.0
        return scores


@cache
def rolled() -> Rollout:
    config = SamplingConfig(max_new_tokens=22, max_blocks=2, seed=1)
    return LatentSampler(checkpoint().backbone).sample(prompts(), N, config, logits_processor=[OftenStart()])


def forward(batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = checkpoint().backbone(batch, policy_logprobs)
    return out


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("rows", [list(range(4 * N)), [7], [11, 0, 4, 3, 1], [9, 10, 11]])
def test_replay_reproduces_the_sampler(rows: list[int], share: bool) -> None:
    rollout = rolled()
    chosen = torch.tensor(rows)
    batch = replay_batch(rollout, prompts(), chosen, 0, share=share)
    expected = rollout.logprobs[chosen][:, : batch["policy_mask"].shape[1]]
    torch.testing.assert_close(batch["rollout_logprobs"], expected)
    torch.testing.assert_close(forward(batch), expected, atol=1e-4, rtol=0)
    assert batch["policy_mask"].sum() == rollout.policy_mask[chosen].sum()
    assert rollout.latents.shape[0] > 20, "the rollouts must hold blocks for this test to mean anything"
    if share:
        assert batch["input_ids"].shape[0] == len(set(rollout.group[chosen].tolist()))


def test_replay_without_the_latents_is_seen() -> None:
    batch = replay_batch(rolled(), prompts(), torch.arange(4 * N), 0, share=True)
    embedding = checkpoint().backbone.embedding_weight[checkpoint().backbone.latents.pad_id]
    batch["latents"] = embedding.detach().expand_as(batch["latents"])
    assert (forward(batch) - batch["rollout_logprobs"]).abs().max() > 1e-2


@pytest.mark.parametrize("share", [True, False])
def test_equal_to_the_unpacked_replay_with_gradients(share: bool) -> None:
    backbone = checkpoint().backbone
    rows = torch.tensor([10, 2, 1, 0, 5])
    weights = torch.randn(5, rolled().tokens.shape[1], generator=torch.Generator().manual_seed(0))
    gradients = []
    for packed in (True, False):
        backbone.zero_grad()
        if packed:
            logprobs = backbone(replay_batch(rolled(), prompts(), rows, 0, share=share), policy_logprobs)
        else:
            logprobs = replay_logprobs(backbone, replay_batch(rolled(), prompts(), rows))
        (logprobs * weights[:, : logprobs.shape[1]]).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-3, atol=1e-4 * value.abs().max().item())


def test_groups_of_one_to_eight_behind_one_prompt() -> None:
    """Loss and every gradient: unequal completions with blocks, prompts of three clips, an image or text."""
    backbone, items = checkpoint().backbone, [*prompts(), prompts()[0]]
    items[4].input_ids[2:6] = backbone.vision.image_token_id
    features = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    items[4].vision = Vision(torch.tensor([[1, 4, 4]]), None, features, kind="image")
    config = SamplingConfig(max_new_tokens=22, max_blocks=2, seed=2)
    rollout = LatentSampler(backbone).sample(items, 8, config, logits_processor=[OftenEnd()])
    assert len(set(rollout.lengths.tolist())) > 2
    weights = torch.randn(32, rollout.tokens.shape[1], generator=torch.Generator().manual_seed(0))
    for size in range(1, 9):
        groups = (0, 1, 3, 2 + 2 * (size % 2))
        rows = torch.tensor([8 * group + row for group in groups for row in range(size)])
        found = []
        for share in (True, False):
            backbone.zero_grad()
            logprobs = backbone(replay_batch(rollout, items, rows, 0, share=share), policy_logprobs)
            loss = (logprobs * weights[: len(rows), : logprobs.shape[1]]).sum()
            loss.backward()
            found.append({n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None})
            found[-1]["loss"] = loss.detach()
        assert not any(found[0][name].any() for name in found[1] if not found[1][name].any())
        difference = relative_difference(found[0], found[1], [n for n in found[1] if found[1][n].any()])
        assert len(difference) > 10
        assert max(difference.values()) <= 1e-5, (size, difference)


@pytest.mark.parametrize("share", [True, False])
def test_patches_are_packed_when_there_are_no_features(share: bool) -> None:
    with_patches = prompts(patches=True)
    rollout = LatentSampler(checkpoint().backbone).sample(with_patches, 2, SamplingConfig(max_new_tokens=6))
    batch = replay_batch(rollout, with_patches, torch.tensor([6, 1, 0, 4]), 0, share=share)
    assert batch["grid_thw"].shape[0] == (2 if share else 3)
    torch.testing.assert_close(forward(batch), batch["rollout_logprobs"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("patches", [True, False])
def test_chunks_hold_no_copies_of_pictures(patches: bool) -> None:
    """All chunks of all updates on the same rollouts are there at once."""
    given = prompts(patches=patches)
    own = [(p.vision.patches if patches else p.vision.features) for p in given if p.vision is not None]
    features = None if patches else [None if p.vision is None else p.vision.features for p in given]
    whole = replace(experience([True] * 4 * N), prompts=given, features=features)
    for rows in ([0, 1], [2, 5, 9], list(range(4 * N))):
        batch = make_chunk(whole, rows, 0, share=True).batch
        there = batch["patches" if patches else "vision_features"]
        assert {part.data_ptr() for part in there} <= {part.data_ptr() for part in own if part is not None}


def test_pictures_of_two_kinds_or_none_are_refused() -> None:
    mixed = prompts()
    mixed[1] = replace(mixed[1], vision=prompts(patches=True)[1].vision)
    with pytest.raises(ValueError, match="one kind"):
        replay_batch(rolled(), mixed, torch.arange(6), 0, share=True)
    mixed[1] = replace(mixed[1], vision=Vision(torch.tensor([[2, 4, 4]])))
    with pytest.raises(ValueError, match="neither"):
        replay_batch(rolled(), mixed, torch.arange(6), 0, share=True)


def experience(kept: list[bool]) -> Experience:
    rollout = rolled()
    advantages = torch.arange(4.0 * N)
    return Experience(
        [40, 41, 42, 43],
        prompts(),
        rollout,
        None,
        [""] * 4 * N,
        advantages,
        {},
        torch.zeros(4 * N, dtype=torch.bool),
        "",
        False,
        torch.zeros(4 * N, dtype=torch.bool),
        advantages,
        torch.tensor(kept),
        torch.tensor(kept),
    )


def positions(chunk: Chunk) -> int:
    return chunk.batch["input_ids"].numel()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("budget", [None, 150, 70, 1])
def test_chunks_hold_every_kept_row_once(budget: int | None, share: bool) -> None:
    kept = [i % 4 != 1 for i in range(4 * N)]
    whole = experience(kept)
    parts = cut_rows(whole, whole.rows, budget, share=share)
    assert (len(parts) == 1) == (budget is None)
    chunks = [make_chunk(whole, rows, 0, share=share) for rows in parts]
    seen = sorted(int(a) for chunk in chunks for a in chunk.batch["advantages"])
    assert seen == [i for i, keep in enumerate(kept) if keep]
    tokens = sum(chunk.batch["chosen_ids"].numel() for chunk in chunks)
    assert tokens == rolled().policy_mask[torch.tensor(kept)].sum()
    for chunk in chunks:
        prompt_of = [40 + int(a) // N for a in chunk.batch["advantages"]]
        assert chunk.items.tolist() == prompt_of
        assert budget is None or positions(chunk) <= budget or len(chunk.rows) == 1
        torch.testing.assert_close(forward(chunk.batch), chunk.batch["rollout_logprobs"], atol=1e-4, rtol=0)
    for one, two in itertools.pairwise(parts):
        assert positions(make_chunk(whole, one + two[:1], 0, share=share)) > (budget or 0)


def test_chunks_without_rows_count_nothing() -> None:
    whole = experience([True] + [False] * (4 * N - 1))
    parts = cut_into(cut_rows(whole, whole.rows, 50, share=True), 3)
    chunks = [make_chunk(whole, rows, 0, share=True) for rows in parts]
    assert [chunk.batch["chosen_ids"].numel() > 0 for chunk in chunks] == [True, False, False]
    for chunk in chunks[1:]:
        assert not chunk.batch["policy_mask"].any()
        assert (forward(chunk.batch) == 0).all()


def test_a_halved_chunk_keeps_what_is_known_of_each_row() -> None:
    row_numbers = torch.arange(4.0 * N)[:, None].expand_as(rolled().logprobs)
    anchors = torch.arange(float(rolled().latents.shape[0]))[:, None]
    whole = replace(experience([True] * 4 * N), ref_logprobs=row_numbers, anchors=anchors)
    chunk = make_chunk(whole, [3, 9, 0, 4, 8], 0, share=True)
    known = torch.arange(5.0)[:, None].expand_as(chunk.batch["rollout_logprobs"])
    chunk = replace(chunk, batch=chunk.batch | {"old_logprobs": -known})
    one, two = halved(chunk, 0, share=True)
    assert (one.rows, two.rows) == ([3, 9], [0, 4, 8])
    assert two.batch["advantages"].tolist() == [0, 4, 8]
    assert two.batch["ref_logprobs"][:, 0].tolist() == [0, 4, 8]
    assert anchors.numel() > 10
    for half in (one, two):  # the anchors of a chunk are those of its own latents
        own = rolled().latent_rows[half.batch["anchors"][:, 0].long()]
        assert own.tolist() == [half.rows[row] for row in half.batch["latent_rows"].tolist()]
        assert torch.equal(half.batch["latents"], rolled().latents[half.batch["anchors"][:, 0].long()])
    assert one.batch["old_logprobs"][:, 0].tolist() == [0, -1]
    assert halved(make_chunk(whole, [3], 0, share=True), 0, share=True)[0].rows == [3]


def test_equal_groups_are_found_by_equality() -> None:
    rewards = torch.tensor([0.1, 0.1, 0.1, 1.2, 1.2, 1.2000002])
    assert equal_groups(rewards, 3).tolist() == [True] * 3 + [False] * 3


def test_seeds_differ_in_every_part() -> None:
    everything = rollout_seeds(0, 1, [0, 1], 4) + rollout_seeds(1, 1, [0, 1], 4) + rollout_seeds(0, 2, [0], 4)
    assert len(everything) == len(set(everything)) == 20
    assert rollout_seeds(0, 1, [0, 1], 4) == everything[:8]


@pytest.mark.parametrize(("ranks", "batch", "accumulation"), [(1, 4, 3), (2, 2, 3), (4, 1, 3), (2, 1, 6)])
def test_a_slot_is_the_position_in_the_whole_update(ranks: int, batch: int, accumulation: int) -> None:
    """However the update is divided, the prompt in a slot is the same, and so are its seeds."""
    order = [i for part in ShardedBatches(24, 24, seed=3, whole_updates=True) for i in part]
    for rank in range(ranks):
        batches = ShardedBatches(
            24, batch, rank=rank, world_size=ranks, seed=3, accumulation=accumulation, whole_updates=True
        )
        mine = [i for part in list(batches)[:accumulation] for i in part]
        assert mine == [order[slot] for slot in update_slots(accumulation, batch, rank, ranks)]


def test_the_spread_of_large_rewards_is_finite() -> None:
    rewards = torch.tensor([1e18, -1e18]).repeat(256)
    assert _deviations(rewards, 512).tolist() == pytest.approx([1e18 * (512 / 511) ** 0.5])


@pytest.mark.parametrize("absent", [False, True])
def test_a_model_without_latents_is_allowed_no_block(absent: bool) -> None:
    spec = replace(checkpoint().backbone.latents, absent=absent)
    total, weight = rollout_metrics(experience([True] * 4 * N), N, spec, 8)["blocks_allowed"]
    assert (float(total), float(weight)) == (0.0 if absent else 8.0, 1.0)


def test_rewards_are_told_of_their_own_row() -> None:
    talker = tiny_checkpoint(layers=1)
    items = recorded_prompts(talker, 2)
    config = SamplingConfig(max_new_tokens=16, max_blocks=2, temperature=1.0)
    rollout = LatentSampler(talker.backbone).sample(items, 2, config, seeds=[1, 2, 3, 4])
    found = completions_of(rollout, items, rollout.texts(talker.tokenizer), 16)
    assert [c.record.id for c in found] == ["p0", "p0", "p1", "p1"]
    assert [c.finish_reason for c in found] == rollout.finish_reason
    pad = talker.backbone.latents.pad_id
    assert sum(c.latents.shape[0] for c in found) == rollout.latents.shape[0]
    for row, c in enumerate(found):
        assert c.length == len(c.tokens) == int(rollout.lengths[row])
        assert int((c.tokens == pad).sum()) == c.latents.shape[0]
    items[0].record = None
    with pytest.raises(ConfigError, match="no record"):
        completions_of(rollout, items, [""] * 4, 16)
