"""Equality with what the published code computes: see tests/data/golden/README.md.

``FOURDTHINKER_GOLDEN`` points these tests at another directory of the same form; every length, id, count and
schedule comes from its files.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LogitsProcessorList

from fourdthinker.backbones import load_backbone
from fourdthinker.backbones.qwen2_5_vl import Qwen2_5_VL
from fourdthinker.kernels import cosine_latent_loss, linear_cross_entropy, linear_logprobs
from fourdthinker.objectives import dift_objective
from fourdthinker.positions import mrope_positions
from fourdthinker.sampler import LatentSampler, SamplingConfig
from fourdthinker.samples import Prompt, Vision

DEFAULT = Path(__file__).parents[2] / "data" / "golden"
RELATIVE = 1e-4


@dataclass
class Golden:
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    backbone: Qwen2_5_VL

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def samples(self) -> int:
        return self["input_ids"].shape[0]

    def clips(self, ids: Tensor, first: int) -> int:
        """How many clips, from number ``first`` on, the video pads of a sequence take."""
        merge = self.backbone.vision.merge_size
        sizes = (self["video_grid_thw"].prod(-1) // merge**2)[first:].cumsum(0)
        pads = int((ids == self.backbone.vision.video_token_id).sum())
        return int((sizes <= pads).sum()) if pads else 0

    def positions(self, ids: Tensor, clips: slice) -> tuple[Tensor, int]:
        spec = self.backbone.vision
        return mrope_positions(
            ids,
            grid_thw=self["video_grid_thw"][clips],
            seconds_per_grid=self["second_per_grid_ts"][clips].tolist(),
            image_token_id=spec.image_token_id,
            video_token_id=spec.video_token_id,
            merge_size=spec.merge_size,
            tokens_per_second=spec.tokens_per_second,
        )

    def clip_ranges(self) -> list[slice]:
        """Which clips belong to each sample."""
        ranges, first = [], 0
        for ids in self["input_ids"]:
            count = self.clips(ids, first)
            ranges.append(slice(first, first + count))
            first += count
        return ranges

    def patches(self, clips: slice) -> Tensor:
        sizes = self["video_grid_thw"].prod(-1).tolist()
        return torch.cat(self["pixel_values_videos"].split(sizes)[clips])


@pytest.fixture(scope="module")
def golden() -> Golden:
    folder = Path(os.environ.get("FOURDTHINKER_GOLDEN", DEFAULT))
    backbone = load_backbone(folder / "checkpoint", dtype=torch.float32)
    backbone.freeze_vision()
    facts = json.loads((folder / "golden.json").read_text())
    return Golden(load_file(folder / "golden.safetensors"), facts, backbone)


@pytest.fixture
def batch(golden: Golden) -> dict[str, Any]:
    ids, mask, labels = golden["input_ids"], golden["attention_mask"], golden["labels"]
    positions = torch.zeros(3, *ids.shape, dtype=torch.long)
    for row, clips in enumerate(golden.clip_ranges()):
        length = int(mask[row].sum())
        positions[:, row, :length] = golden.positions(ids[row, :length], clips)[0]
    target = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    vision = (ids == golden.backbone.vision.video_token_id) | (ids == golden.backbone.vision.image_token_id)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions,
        "labels": labels,
        "target": target,
        "rows": (target.flatten() != -100).nonzero()[:, 0],
        "vision_index": vision.flatten().nonzero()[:, 0],
        "patches": golden["pixel_values_videos"],
        "grid_thw": golden["video_grid_thw"],
        "latent_index": (ids == golden.backbone.latents.pad_id).flatten().nonzero()[:, 0],
        "imagery_patches": golden["pixel_values_latent"],
        "imagery_grid_thw": golden["image_grid_thw_latent"],
    }


def keep(backbone: Qwen2_5_VL, hidden: Tensor, batch: dict[str, Any]) -> Tensor:
    return hidden


def assert_close(got: Tensor, expected: Tensor) -> None:
    """max|difference| <= 1e-4 * max|expected|"""
    assert got.shape == expected.shape
    if not expected.numel():
        return
    assert (got - expected).abs().max() <= RELATIVE * expected.abs().max()


def test_positions(golden: Golden, batch: dict[str, Any]) -> None:
    for row in range(golden.samples):
        length = int(golden["attention_mask"][row].sum())
        got = batch["position_ids"][:, row, :length]
        assert torch.equal(got, golden["position_ids"][:, row, :length])
        # rope_deltas count from the padded length
        delta = int(got.max()) + 1 - golden["input_ids"].shape[1]
        assert delta == int(golden["rope_deltas"][row])


def test_latent_targets(golden: Golden) -> None:
    got = golden.backbone.imagery_targets(golden["pixel_values_latent"], golden["image_grid_thw_latent"])
    assert not got.requires_grad
    assert_close(got, golden["latent_target"])


def with_latents(_: Any, hidden: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What the objective of a training step sees: hidden states, and the latents computed for the batch."""
    return hidden, batch["latents"]


def test_hidden_states(golden: Golden, batch: dict[str, Any]) -> None:
    with torch.no_grad():
        hidden, latents = golden.backbone(batch, with_latents)
    seen = golden["attention_mask"].bool()
    assert_close(hidden[seen], golden["hidden_states"][seen])
    assert_close(hidden.flatten(0, 1)[batch["latent_index"] - 1], golden["latent_pred"])
    assert_close(latents, golden["latent_target"])


def test_losses(golden: Golden, batch: dict[str, Any]) -> None:
    backbone, facts = golden.backbone, golden.facts
    with torch.no_grad():
        hidden, latents = backbone(batch, with_latents)
        ce = linear_cross_entropy(
            hidden.flatten(0, 1), backbone.head_weight, batch["target"].flatten(), rows=batch["rows"]
        )
        similarity, cos = cosine_latent_loss(hidden, latents, batch["latent_index"])
    assert ce.item() == pytest.approx(facts["ce_loss"], rel=RELATIVE)
    assert similarity.item() == pytest.approx(facts["sim_loss"], rel=RELATIVE)
    total = backbone.latents.ce_loss_weight * ce + backbone.latents.sim_loss_weight * similarity
    assert total.item() == pytest.approx(facts["loss"], rel=RELATIVE)
    assert_close(cos.view_as(golden["latent_cos"]), golden["latent_cos"])


def test_gradients(golden: Golden, batch: dict[str, Any]) -> None:
    backbone, facts = golden.backbone, golden.facts
    backbone.zero_grad()
    objective = partial(dift_objective, num_tokens=len(batch["rows"]), num_latents=len(batch["latent_index"]))
    loss, _ = backbone(batch, objective)
    loss.backward()
    assert loss.item() == pytest.approx(facts["loss"], rel=RELATIVE)
    assert all(p.grad is None for p in backbone.visual.parameters())

    for name, norm in facts["grad_norms"].items():
        assert gradient(backbone, name).norm().item() == pytest.approx(norm, rel=RELATIVE), name
    embedding = backbone.embedding_weight.grad
    assert embedding is not None
    assert embedding.norm().item() == pytest.approx(facts["embed_grad_norm"], rel=RELATIVE)
    whole = [name for name in golden.tensors if name.startswith("grad.")]
    assert whole
    for name in whole:
        assert_close(gradient(backbone, name.removeprefix("grad.")), golden[name])
    backbone.zero_grad()


def gradient(backbone: Qwen2_5_VL, name: str) -> Tensor:
    """Gradient by the parameter's name in the released format."""
    if name.startswith("model."):
        parameter = backbone.hf.model.language_model.get_parameter(name.removeprefix("model."))
    else:
        parameter = backbone.hf.get_parameter(name)
    assert parameter.grad is not None, name
    return parameter.grad


def test_teacher_forced_generation(golden: Golden) -> None:
    """Every hidden state and log-prob of the generations in one forward, with the latents put back."""
    backbone = golden.backbone
    for sample, clips in enumerate(golden.clip_ranges()):
        prompt, new = golden[f"gen.{sample}.prompt_ids"][0], golden[f"gen.{sample}.new_ids"]
        expected = golden[f"gen.{sample}.hidden"]
        ids = torch.cat([prompt, new])
        latent = (ids == backbone.latents.pad_id).nonzero()[:, 0]
        one = {
            "input_ids": ids[None],
            "position_ids": golden.positions(ids, clips)[0][:, None],
            "vision_index": (ids == backbone.vision.video_token_id).nonzero()[:, 0],
            "patches": golden.patches(clips),
            "grid_thw": golden["video_grid_thw"][clips],
            "latent_index": latent,
            "latents": expected[latent - len(prompt)],  # a pad's input is the state of the step that chose it
        }
        with torch.no_grad():
            hidden = backbone(one, keep)[0, len(prompt) - 1 : -1]
            logprobs = linear_logprobs(hidden, backbone.head_weight, new)
        assert_close(hidden, expected)
        torch.testing.assert_close(logprobs, golden[f"gen.{sample}.logprobs"], atol=1e-4, rtol=0)


class Schedule:
    """A logits processor: scheduled ids whatever the logits, and some ids at no other step."""

    def __init__(self, prompts: list[Tensor], forced: dict[int, int], never: list[int]) -> None:
        self.prompts, self.forced, self.never = prompts, forced, never

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = next(
            input_ids.shape[1] - len(p) for p in self.prompts if torch.equal(input_ids[0, : len(p)], p)
        )
        scores = scores.clone()
        if step in self.forced:
            scores[:] = -torch.inf
            scores[:, self.forced[step]] = 0.0
        else:
            scores[:, self.never] = -torch.inf
        return scores


@pytest.mark.parametrize("together", [False, True], ids=["alone", "in one batch"])
def test_generation(golden: Golden, together: bool) -> None:
    facts, backbone = golden.facts, golden.backbone
    prompts = []
    for sample, clips in enumerate(golden.clip_ranges()):
        ids = golden[f"gen.{sample}.prompt_ids"][0]
        vision = Vision(golden["video_grid_thw"][clips], golden.patches(clips))
        prompts.append(Prompt(ids, *golden.positions(ids, clips), vision))
    forced = {int(step): token for step, token in facts["forced_tokens"].items()}
    schedule = Schedule([prompt.input_ids for prompt in prompts], forced, facts["never_sampled"])
    sampler = LatentSampler(backbone)

    whole = list(range(len(prompts)))
    for rows in [whole] if together else [[sample] for sample in whole]:
        expected = [golden[f"gen.{sample}.new_ids"] for sample in rows]
        longest = max(map(len, expected))
        config = SamplingConfig(
            max_new_tokens=longest, max_blocks=longest, temperature=0.0, mode="reference", train_start=True
        )
        rollout = sampler.sample(
            [prompts[sample] for sample in rows],
            config=config,
            logits_processor=LogitsProcessorList([schedule]),
        )
        for row, sample in enumerate(rows):
            new, length = expected[row], int(rollout.lengths[row])
            assert rollout.tokens[row, :length].tolist() == new.tolist() == facts["greedy"][f"sample{sample}"]
            chosen = rollout.policy_mask[row, :length]
            assert chosen.any()
            torch.testing.assert_close(
                rollout.logprobs[row, :length][chosen],
                golden[f"gen.{sample}.logprobs"][chosen],
                atol=1e-4,
                rtol=0,
            )
            mine = rollout.latent_rows == row
            assert torch.equal(rollout.latent_steps[mine], (new == backbone.latents.pad_id).nonzero()[:, 0])
            fed_back = golden[f"gen.{sample}.hidden"][rollout.latent_steps[mine]]
            assert_close(rollout.latents[mine], fed_back)
