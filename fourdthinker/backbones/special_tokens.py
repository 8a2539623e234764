"""The special token ids of a model, read from its configs and checked against its embedding matrix."""

from __future__ import annotations

from typing import Any

from fourdthinker.backbones.gathering import full_shape
from fourdthinker.errors import CheckpointError


def special_token_ids(model: Any) -> dict[str, Any]:
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
    rows = full_shape(model.get_input_embeddings().weight)[0]
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
