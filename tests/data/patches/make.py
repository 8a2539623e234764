"""Writes patches.npz beside itself: small pictures, and what the HF image processor makes of them.

    python tests/data/patches/make.py

For Qwen2.5-VL and Qwen3-VL: `<family>.frames` uint8 [3, h, w, 3] and `<family>.images` float32, the result of
transformers' Qwen2VLImageProcessorPil (the one that needs no torchvision; Qwen3-VL uses the same class with
patches of 16 and mean and deviation 0.5) for each frame by itself, unresized. An image fills both frames of
its temporal group with the same picture; the tests put the halves of neighbouring frames together for clips,
which is what the video processors do. The stored file was made with transformers 5.17 and numpy 2.4.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def frames(height: int, width: int) -> np.ndarray:
    """A grating that moves, in every level and with a different slope in each channel."""
    t, y, x, c = np.ogrid[:3, :height, :width, :3]
    return ((x * (3 + c) + y * (5 - c) + 37 * t + (x * y) // 7) % 256).astype(np.uint8)


def main() -> None:
    stored: dict[str, np.ndarray] = {}
    for family, patch, options in [("qwen2_5_vl", 14, CLIP), ("qwen3_vl", 16, HALF)]:
        processor = Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, temporal_patch_size=2, **options)
        pictures = frames(4 * patch, 6 * patch)
        images = [Image.fromarray(picture) for picture in pictures]
        result = processor(images=images, do_resize=False, return_tensors="np")
        stored[f"{family}.frames"] = pictures
        stored[f"{family}.images"] = result["pixel_values"].astype(np.float32)
    np.savez_compressed(Path(__file__).with_name("patches.npz"), **stored)


if __name__ == "__main__":
    main()
