"""What prompts, positions and processor files must know of a checkpoint's vision side, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from fourdthinker.frames import CLIP_MEAN, CLIP_STD


@dataclass(frozen=True)
class VisionSpec:
    """What prompts and positions must know of the vision side of a checkpoint. Plain data, picklable.

    Attributes:
        image_token_id, video_token_id, vision_start_id, vision_end_id: special tokens of the vocabulary.
        eos_ids: ids that end a generation.
        pad_id: id that fills up sequences.
        patch_size: side of a patch in pixels.
        merge_size: side, in patches, of what is merged into one feature.
        temporal_patch_size: frames that a patch spans.
        tokens_per_second: position steps a second; None: the family's positions hold no seconds, which stand
            in the text before every temporal patch instead.
        mean, std: of each channel; pixels in [0, 1] are normalised with them.
        family: the model_type.
    """

    image_token_id: int
    video_token_id: int
    vision_start_id: int
    vision_end_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    tokens_per_second: float | None = 2.0
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    family: str = "qwen2_5_vl"

    @property
    def patch_dim(self) -> int:
        """Length of one flattened patch of three channels: 1176 for Qwen2.5-VL, 1536 for Qwen3-VL."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def factor(self) -> int:
        """Both sides of a resized frame are multiples of this many pixels."""
        return self.patch_size * self.merge_size
