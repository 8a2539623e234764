"""What the processor files beside a checkpoint hold, the same in every family."""

from __future__ import annotations

from typing import Any

from fourdthinker.frames import FramePolicy
from fourdthinker.vision import VisionSpec


def processor_settings(spec: VisionSpec, policy: FramePolicy, processor: str) -> dict[str, Any]:
    """What the processor files of the families have in common.

    We write them ourselves because the processors of transformers need torchvision even to be constructed.
    """
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "merge_size": spec.merge_size,
        "patch_size": spec.patch_size,
        "processor_class": processor,
        "resample": {"lanczos": 1, "bicubic": 3}[policy.resample],  # PIL's numbers
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": policy.min_pixels, "longest_edge": policy.max_pixels},
        "temporal_patch_size": spec.temporal_patch_size,
    }
