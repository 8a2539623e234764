"""Rollouts where weights are sliced over two ranks: gathered once, no collective inside, hooks back after."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fourdthinker.backbones import FAMILIES
from fourdthinker.backbones.gathering import gathered, gathered_in_turn, require_whole
from fourdthinker.errors import ConfigError
from fourdthinker.sampler import LatentSampler, Rollout, SamplingConfig
from tests.processes import run_ranks
from tests.tiny import tiny_checkpoint
from tests.unit.sampler.cases import make_prompt, talkative


def sample(checkpoint: object, rank: int) -> Rollout:
    """Ranks sample different numbers of steps, from different prompts."""
    prompts = [make_prompt(checkpoint, rank, 6 + rank, clip=rank)]  # type: ignore[arg-type]
    config = SamplingConfig(max_new_tokens=(4, 19)[rank], seed=rank)
    return LatentSampler(checkpoint.backbone).sample(prompts, 2, config)  # type: ignore[attr-defined]


def rollouts_of_two_ranks(rank: int, folder: Path) -> None:
    """In each of two processes."""
    for family in sorted(FAMILIES):
        rollouts_of(family, rank)


def rollouts_of(family: str, rank: int) -> None:
    expected = sample(talkative(family=family), rank)
    checkpoint = talkative(family=family)
    backbone = checkpoint.backbone
    for layer in backbone.hf.model.language_model.layers:
        fully_shard(layer)
    fully_shard(backbone)
    hooks = [len(module._forward_pre_hooks) for module in backbone.modules()]
    with pytest.raises(ConfigError, match="is sliced over ranks"):
        sample(checkpoint, rank)
    in_turns, layers = [], list(backbone.hf.model.language_model.layers)
    for block in (lambda: gathered(backbone), lambda: gathered_in_turn(backbone, layers)):
        with block():
            require_whole(backbone)
            got = sample(checkpoint, rank)
            sliced = [isinstance(layer.mlp.up_proj.weight, DTensor) for layer in layers]
        in_turns.append(sliced[0])
        assert len(set(sliced)) == 1
        assert torch.equal(got.tokens, expected.tokens)
        torch.testing.assert_close(got.logprobs, expected.logprobs)
        assert [len(module._forward_pre_hooks) for module in backbone.modules()] == hooks
        assert all(isinstance(parameter, DTensor) for parameter in backbone.parameters())
        # And training goes on, with as many collectives on both ranks.
        ids = torch.arange(4)[None]
        loss = backbone({"input_ids": ids, "position_ids": ids.expand(3, 1, -1)}, lambda _, h, b: h.sum())
        loss.backward()
        assert backbone.hf.model.language_model.layers[0].mlp.up_proj.weight.grad is not None
    assert in_turns == [False, True]


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over the loopback interface")
def test_fsdp2(tmp_path: Path) -> None:
    assert run_ranks(rollouts_of_two_ranks, tmp_path) == [0, 0]


def test_nothing_happens_where_nothing_is_sliced() -> None:
    backbone = tiny_checkpoint().backbone
    calls = []
    backbone.hf.lm_head.register_forward_hook(lambda *_: calls.append(1))
    with gathered(backbone):
        backbone.hf.lm_head(torch.zeros(1, backbone.hidden_size))
    assert calls == [1]


def test_an_empty_weight_of_zero_is_refused_by_name() -> None:
    backbone = tiny_checkpoint().backbone
    weight: Any = backbone.head_weight
    weight.ds_shape, weight.data = weight.shape, torch.empty(0)
    with pytest.raises(ConfigError, match=r"embed_tokens.weight is sliced over ranks, of \(\d+, 32\) values"):
        require_whole(backbone)
    type(backbone)(backbone.model, backbone.latents)  # and a backbone may be made of such weights
