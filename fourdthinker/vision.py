"""What prompts, positions and processor files must know of a checkpoint's vision side, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from fourdthinker.frames import CLIP_MEAN, CLIP_STD


@dataclass(frozen=True)
class VisionSpec:
    """What prompts and positions must know of the vision side of a checkpoint. Plain data, picklable.

    ``patch_size`` and ``merge_size`` are in pixels and patches a side, ``temporal_patch_size`` in frames,
    ``mean`` and ``std`` those that pixels in [0, 1] are normalised with. ``tokens_per_second`` is in position
    steps; None: the family has no clock in its positions, and the seconds stand in the text, before every
    temporal patch. ``eos_ids`` end a generation; ``pad_id`` fills up sequences. ``family`` is the model_type.
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
