"""What prompts, positions and processor files must know of a checkpoint's vision side, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fourdthinker.errors import CheckpointError
from fourdthinker.frames import FramePolicy
from fourdthinker.frames.convert import CLIP_MEAN, CLIP_STD


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


def token_spec(model: Any) -> dict[str, Any]:
    """The token ids of a :class:`VisionSpec`, from the configs of a transformers model of any family."""
    config, text, generation = model.config, model.config.get_text_config(), model.generation_config
    eos = generation.eos_token_id if generation.eos_token_id is not None else _token(text, "eos")
    eos_ids = tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
    if not eos_ids or None in eos_ids:
        raise CheckpointError("neither generation_config.json nor config.json has an eos_token_id; add it")
    pads = (generation.pad_token_id, _token(text, "pad"), _token(text, "bos"), eos_ids[0])
    spec = {
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_id": config.vision_start_token_id,
        "vision_end_id": config.vision_end_token_id,
        "eos_ids": eos_ids,
        "pad_id": next(i for i in pads if i is not None),
    }
    rows = model.get_input_embeddings().weight.shape[0]
    for name, value in spec.items():
        for token in value if isinstance(value, tuple) else (value,):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < rows:
                raise CheckpointError(
                    f"{name.removesuffix('s')} is {token!r} in config.json or generation_config.json, and "
                    f"the embedding matrix has rows 0 to {rows - 1}; take the value from the model that this "
                    "one was made from"
                )
    return spec


def _token(config: Any, name: str) -> Any:
    return getattr(config, f"{name}_token_id", None)  # Qwen3-VL's text config has no eos of its own


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
