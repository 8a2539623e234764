"""Qwen3-VL on unmodified transformers: DeepStack, interleaved M-RoPE, seconds written into the text.

Its tower gives, besides the merged features, features of some of its middle layers, which are added to the
hidden states after the first decoder layers (DeepStack). Positions hold no seconds: every temporal patch of a
clip is a picture of its own, and the text before it says when it is. The interleaving of the three axes of a
position is inside the language model; positions are [3, B, S] as for Qwen2.5-VL.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.inputs import DeepStack
from fourdthinker.backbones.processor_files import processor_settings
from fourdthinker.backbones.special_tokens import special_token_ids
from fourdthinker.backbones.tower import frame_arguments, interpolation_arguments
from fourdthinker.frames import FramePolicy
from fourdthinker.vision import VisionSpec


class Qwen3_VL(Backbone):
    """A Qwen3-VL (dense; Instruct or Thinking) with latent tokens."""

    family = "qwen3_vl"
    architecture = Qwen3VLForConditionalGeneration

    @classmethod
    def vision_spec(cls, model: Any) -> VisionSpec:
        """Sizes from the vision config; times are in the prompt's text, not in position ids."""
        vision = model.config.vision_config
        return VisionSpec(
            **special_token_ids(model),
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            tokens_per_second=None,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            family=cls.family,
        )

    @classmethod
    def default_policy(cls) -> FramePolicy:
        """As for Qwen2.5-VL, with as many merged tokens in a frame."""
        return FramePolicy(factor=32, max_pixels=256 * 32 * 32, min_pixels=32 * 32)

    def processor_files(self, policy: FramePolicy) -> dict[str, dict[str, Any]]:
        """The configs of transformers' processors; pixel bounds of videos are those of a clip."""
        common = processor_settings(self.vision, policy, "Qwen3VLProcessor")
        # The video processor of Qwen3-VL bounds the pixels of a whole clip, ours those of a frame.
        clip = {
            "size": {
                "shortest_edge": policy.min_pixels * self.vision.temporal_patch_size,
                "longest_edge": policy.max_pixels * policy.max_frames,
            },
            "fps": policy.fps,
            "min_frames": policy.min_frames,
            "max_frames": policy.max_frames,
        }
        return {
            "preprocessor_config.json": common | {"image_processor_type": "Qwen2VLImageProcessorFast"},
            "video_preprocessor_config.json": common
            | clip
            | {"video_processor_type": "Qwen3VLVideoProcessor"},
            "processor_config.json": {"processor_class": "Qwen3VLProcessor"},
        }

    @property
    def deepstack_levels(self) -> int:
        """How many layers of the tower give features of their own."""
        return len(self.config.vision_config.deepstack_visual_indexes)

    def _tower(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        arguments = frame_arguments(self.visual, grid_thw, patches.device)
        arguments |= interpolation_arguments(self.visual, grid_thw, patches.device)
        output = self.visual(patches, grid_thw=grid_thw, **arguments)
        return torch.cat([output.pooler_output, *output.deepstack_features], dim=1)

    def _deepstack_arguments(self, deepstack: DeepStack, shape: torch.Size) -> dict[str, Any]:
        # The language model takes the positions as a mask, and so the features in ascending order of them.
        mask = torch.zeros(shape[0] * shape[1], dtype=torch.bool, device=deepstack.index.device)
        mask[deepstack.index] = True
        return {
            "visual_pos_masks": mask.view(shape[0], shape[1]),
            "deepstack_visual_embeds": list(deepstack.features),
        }
