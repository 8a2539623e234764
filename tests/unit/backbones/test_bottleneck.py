"""Answers that see the frames through words and latents only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fourdthinker.backbones import FAMILIES, Checkpoint
from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.packed import NAME, block_mask, dense_mask
from fourdthinker.backbones.self_feed import with_own_latents
from fourdthinker.objectives import dift_objective
from fourdthinker.samples import Sample, Vision, collate
from tests.e2e.training import samples
from tests.tiny import tiny_checkpoint
from tests.unit.backbones.test_packed import listed_blocks

K = 4


def conversation(checkpoint: Checkpoint) -> Sample:
    """A clip, a question, an answer of two blocks; a picture, another question, an answer of one block."""
    backbone, latents = checkpoint.backbone, checkpoint.backbone.latents
    clip, picture = backbone.vision.video_token_id, backbone.vision.image_token_id
    block = [latents.start_id, *[latents.pad_id] * K, latents.end_id]
    asked = [1, 2, *[clip] * 6, 3, 4]
    answer = [20, 21, *block, *block, 22, 23, 24]
    again = [5, *[picture] * 4, 6, 7]
    last = [30, *block, 31, 32]
    ids = torch.tensor([*asked, *answer, *again, *last])
    learnt = [False] * len(asked) + [True] * len(answer) + [False] * len(again) + [True] * len(last)
    labels = ids.masked_fill(~torch.tensor(learnt) | (ids == latents.pad_id), -100)
    generator = torch.Generator().manual_seed(5)
    width = (1 + backbone.deepstack_levels) * backbone.hidden_size
    return Sample(
        ids,
        torch.arange(len(ids)).expand(3, -1),
        labels,
        Vision(torch.ones(2, 3, dtype=torch.long), features=torch.randn(10, width, generator=generator)),
        latents=torch.randn(3 * K, backbone.hidden_size, generator=generator),
        vision_index=((ids == clip) | (ids == picture)).nonzero()[:, 0],
        latent_index=(ids == latents.pad_id).nonzero()[:, 0],
    )


def by_hand(item: Sample, backbone: Backbone) -> list[int]:
    """1 for frames, 2 where they are not seen: one id after the other."""
    start, pad = backbone.latents.start_id, backbone.latents.pad_id
    kinds, opened = [], False
    for p, (token, label) in enumerate(zip(item.input_ids.tolist(), item.labels.tolist(), strict=True)):
        answer = label != -100 or token == pad
        opened = opened and answer
        kinds.append(1 if p in item.vision_index else 2 if opened and token not in (start, pad) else 0)
        opened = opened or (answer and token == start)
    return kinds


def items_of(checkpoint: Checkpoint) -> list[Sample]:
    return [*samples(checkpoint, 4), conversation(checkpoint)]


def test_words_behind_the_first_block_of_an_answer_do_not_see_frames() -> None:
    checkpoint = tiny_checkpoint(layers=1)
    items = items_of(checkpoint)
    expected = [by_hand(item, checkpoint.backbone) for item in items]
    assert "".join(map(str, expected[-1])) == "0011111100000000020000022220111100000000222"
    padded, packed = (collate(items, 0, packed=packed, bottleneck=True) for packed in (False, True))
    assert packed["bottleneck"][0].tolist() == [kind for row in expected for kind in row]
    width = padded["input_ids"].shape[1]
    assert padded["bottleneck"].tolist() == [row + [0] * (width - len(row)) for row in expected]
    assert torch.equal(padded["segments"] > 0, padded["attention_mask"] > 0)
    assert "bottleneck" not in collate(items, 0, packed=True)
    for batch in (padded, packed):
        mask = dense_mask(batch["segments"], batch["bottleneck"])[:, 0]
        seen = mask.tolist()
        for b, (parts, kinds) in enumerate(zip(batch["segments"].tolist(), batch["bottleneck"].tolist())):
            for q, k in ((q, k) for q in range(len(parts)) for k in range(len(parts))):
                frames = kinds[q] == 2 and kinds[k] == 1
                pair = k < q and parts[k] == parts[q] >= 0 and not frames
                assert seen[b][q][k] == (pair or q == k)
        assert torch.equal(dense_mask(batch["segments"], batch["bottleneck"], first=7)[:, 0], mask[:, 7:])


def test_blocks_are_the_same_mask() -> None:
    """Three rows: two samples and padding; whole blocks of frames that whole blocks do not see; padding."""
    segments = torch.tensor([[1] * 300 + [2] * 250 + [-1] * 90, [1] * 640, [1] * 400 + [-1] * 240])
    kinds = torch.tensor(
        [
            [0] * 10 + [1] * 200 + [0] * 20 + [2] * 70 + [0] * 5 + [1] * 150 + [2] * 95 + [0] * 90,
            [1] * 384 + [2] * 256,
            [1] * 256 + [0] * 20 + [2] * 124 + [0] * 240,
        ]
    )
    dense = dense_mask(segments, kinds)
    read = listed_blocks(block_mask(segments, kinds), dense).any(0)
    assert not read[1, 3:, :3].any(), "what is not seen is not read"
    assert read[2, 3, 0].item() is False


@torch.no_grad()
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_frames_do_not_reach_the_words(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one layer, where words do not carry them on; packed and padded, by a dense mask and by blocks."""
    checkpoint = tiny_checkpoint(family=family, layers=1)
    backbone, item = checkpoint.backbone, conversation(checkpoint)

    def hidden(batch: dict[str, Any]) -> Tensor:
        return backbone(batch, lambda _, hidden, __: hidden).flatten(0, 1)

    def moved(batch: dict[str, Any]) -> Tensor:
        other = batch | {"vision_features": batch["vision_features"].flip(1)}
        return (hidden(other) - hidden(batch)).abs().amax(1) > 1e-6

    for packed in (True, False):
        batch = collate([*samples(checkpoint, 2), item], 0, packed=packed, bottleneck=True)
        plain = {name: batch[name] for name in batch if name != "bottleneck"}
        outputs, reached = hidden(batch), moved(batch)
        own = batch["latent_index"][-3 * K :]
        barred = (batch["bottleneck"].flatten() == 2).nonzero()[:, 0]
        assert not reached[barred].any()
        assert moved(plain)[barred[barred > own[0]]].all()
        assert reached[own - 1].all(), "START and the latents see them"
        monkeypatch.setattr(
            "fourdthinker.backbones.common.packed_mask",
            lambda segments, _, bottleneck: block_mask(segments, bottleneck),
        )
        kept = batch["segments"].flatten() >= 0
        torch.testing.assert_close(hidden(batch)[kept], outputs[kept], atol=2e-5, rtol=1e-5)
        monkeypatch.undo()


def test_packed_equals_padded_and_eager_attention_takes_the_mask() -> None:
    checkpoint = tiny_checkpoint(tied=False)
    backbone, items = checkpoint.backbone, items_of(checkpoint)
    backbone.freeze_vision()
    results = []
    for packed, attention in ((False, NAME), (True, NAME), (False, "eager")):
        backbone.zero_grad()
        batch = collate(items, 0, packed=packed, bottleneck=True)
        with backbone.set_attention(attention):
            loss, _ = backbone(batch, lambda *a: dift_objective(*a, num_tokens=100, num_latents=40))
        loss.backward()
        grads = [p.grad.flatten() for p in backbone.parameters() if p.grad is not None]
        results.append((loss.detach(), torch.cat(grads)))
    (expected, other), *others = results
    for loss, gradient in others:
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        assert (gradient - other).abs().max() <= 1e-5 * other.abs().max()
    open_, _ = backbone(collate(items, 0), lambda *a: dift_objective(*a, num_tokens=100, num_latents=40))
    assert abs(open_.item() - expected.item()) > 1e-4


@torch.no_grad()
def test_own_latents_are_made_behind_the_same_mask() -> None:
    """In the first pass, in which all latents are still the targets, of every block."""
    checkpoint = tiny_checkpoint()
    backbone = checkpoint.backbone
    batch = collate(items_of(checkpoint), 0, bottleneck=True)
    hidden = backbone(batch, lambda _, hidden, __: hidden).flatten(0, 1)
    first = batch["latent_index"][::K]
    own = with_own_latents(backbone, batch)["fed_latents"][::K]
    torch.testing.assert_close(own, hidden[first - 1], rtol=1e-3, atol=1e-4)
    plain = {name: batch[name] for name in batch if name not in ("bottleneck", "segments")}
    assert (with_own_latents(backbone, plain)["fed_latents"][::K] - own).abs().max() > 1e-2
