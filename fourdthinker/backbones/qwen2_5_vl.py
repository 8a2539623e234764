"""Qwen2.5-VL on unmodified transformers: windows in the tower, seconds in the positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.processor_files import processor_settings
from fourdthinker.backbones.special_tokens import special_token_ids
from fourdthinker.backbones.tower import frame_arguments, window_arguments
from fourdthinker.frames import FramePolicy
from fourdthinker.vision import VisionSpec


class Qwen2_5_VL(Backbone):
    """A Qwen2.5-VL with latent tokens."""

    family = "qwen2_5_vl"
    architecture = Qwen2_5_VLForConditionalGeneration

    @classmethod
    def vision_spec(cls, model: Any) -> VisionSpec:
        """Sizes from the vision config; position ids depend on the seconds between frames."""
        vision = model.config.vision_config
        return VisionSpec(
            **special_token_ids(model),
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            tokens_per_second=float(vision.tokens_per_second),
            family=cls.family,
        )

    @classmethod
    def default_policy(cls) -> FramePolicy:
        """The defaults of `FramePolicy`, which are this family's."""
        return FramePolicy()

    def processor_files(self, policy: FramePolicy) -> dict[str, dict[str, Any]]:
        """The configs of transformers' processors; the pixel bounds are those of a frame."""
        common = processor_settings(self.vision, policy, "Qwen2_5_VLProcessor")
        common |= {"max_pixels": policy.max_pixels, "min_pixels": policy.min_pixels}
        return {
            "preprocessor_config.json": common | {"image_processor_type": "Qwen2VLImageProcessor"},
            "video_preprocessor_config.json": common | {"video_processor_type": "Qwen2VLVideoProcessor"},
            "processor_config.json": {"processor_class": "Qwen2_5_VLProcessor"},
        }

    def _tower(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        arguments = frame_arguments(self.visual, grid_thw, patches.device)
        arguments |= window_arguments(self.visual, grid_thw, patches.device)
        return self.visual(patches, grid_thw=grid_thw, **arguments).pooler_output
