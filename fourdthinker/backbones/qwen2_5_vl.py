"""Qwen2.5-VL on unmodified transformers.

Everything that this package knows about the insides of the transformers implementation is in this file:
``model.model.visual``, ``model.model.language_model``, ``inputs_embeds``, explicit position ids and caches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, Qwen2_5_VLForConditionalGeneration

from fourdthinker.errors import CheckpointError
from fourdthinker.kernels.pool_latents import pool_latents
from fourdthinker.latents import LatentSpec

Batch = dict[str, Any]
Objective = Callable[["Qwen2_5_VL", Tensor, Batch], Any]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionSpec:
    """What prompts and positions must know of the vision side of a checkpoint. Plain data, picklable.

    ``patch_size`` and ``merge_size`` are in pixels and patches a side, ``temporal_patch_size`` in frames,
    ``tokens_per_second`` in position steps. ``eos_ids`` end a generation; ``pad_id`` fills up sequences.
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
    tokens_per_second: float = 2.0

    @property
    def patch_dim(self) -> int:
        """Length of one flattened patch of three channels: 1176 for Qwen2.5-VL."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def factor(self) -> int:
        """Both sides of a resized frame are multiples of this many pixels."""
        return self.patch_size * self.merge_size


class Qwen2_5_VL(nn.Module):
    """A Qwen2.5-VL with latent tokens, cut into the steps that training and sampling share.

    ``model`` may also be a peft model around a ``Qwen2_5_VLForConditionalGeneration``, as long as embedding
    and head are not adapted (the fused losses read their weights).
    """

    def __init__(self, model: Any, latents: LatentSpec | None = None) -> None:
        super().__init__()
        self.model = model
        self.latents = latents if latents is not None else LatentSpec.from_config(self.hf.config)
        self.vision = _vision_spec(self.hf)
        self.train(self.model.training)
        rows = self.embedding_weight.shape[0]
        if max(self.latents.ids) >= rows:
            raise CheckpointError(
                f"latent token ids {self.latents.ids} do not fit the embedding matrix of {rows} rows; "
                "grow it with fourdthinker.latents.grow_vocabulary"
            )

    # -- parts
    @property
    def hf(self) -> Qwen2_5_VLForConditionalGeneration:
        """The transformers model, without the peft wrapper if there is one."""
        get_base_model = getattr(self.model, "get_base_model", None)
        return get_base_model() if get_base_model is not None else self.model

    @property
    def visual(self) -> nn.Module:
        """The vision tower with its merger."""
        return self.hf.model.visual

    @property
    def config(self) -> Any:
        """The transformers config."""
        return self.hf.config

    @property
    def hidden_size(self) -> int:
        return self.hf.config.get_text_config().hidden_size

    @property
    def embedding_weight(self) -> Tensor:
        """[V, H]"""
        return _plain_weight(self.hf.get_input_embeddings(), "token embedding")

    @property
    def head_weight(self) -> Tensor:
        """[V, H]; the same parameter as ``embedding_weight`` when the checkpoint ties them."""
        return _plain_weight(self.hf.get_output_embeddings(), "output head")

    @property
    def head_bias(self) -> None:
        """Qwen's output head has no bias."""
        return None

    @property
    def device(self) -> torch.device:
        return self.embedding_weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding_weight.dtype

    # -- vision
    def freeze_vision(self, frozen: bool = True) -> None:
        """Let the vision tower (merger included) take part in training or not."""
        self.visual.requires_grad_(not frozen)

    def encode_vision(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        """Merged features of clips or images.

        ``patches`` [sum t*h*w, 1176], ``grid_thw`` [n, 3] long in patches. Returns [sum t*h*w/4, H] in raster
        order of the merged tokens, in the tower's dtype. Without gradient exactly when the tower is frozen.
        """
        visual = self.visual
        expected = int(grid_thw.prod(-1).sum())
        if patches.shape[0] != expected:
            raise ValueError(f"{patches.shape[0]} patches for grids {grid_thw.tolist()} of {expected}")
        parameters = list(visual.parameters())
        train = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        with torch.set_grad_enabled(train):
            patches = patches.to(parameters[0].device, parameters[0].dtype)
            return visual(patches, grid_thw=grid_thw.to(patches.device)).pooler_output

    @torch.no_grad()
    def imagery_targets(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        """The K latents of every image, [n*K, H], detached: pooled features of the vision tower."""
        counts = grid_thw.prod(-1).cpu() // self.vision.merge_size**2
        return pool_latents(self.encode_vision(patches, grid_thw), counts, self.latents.latent_size)

    # -- language
    def embed_tokens(self, ids: Tensor) -> Tensor:
        """[...] long -> [..., H]"""
        return self.hf.get_input_embeddings()(ids)

    def embed_inputs(self, batch: Batch) -> Tensor:
        """Input embeddings [B, S, H] of a batch: tokens, vision features and latents, each at its place.

        Reads ``input_ids``; ``vision_index`` with ``vision_features`` or ``patches`` and ``grid_thw``;
        ``latent_index`` with ``latents`` or ``imagery_patches`` and ``imagery_grid_thw``. Latents computed
        here are put into ``batch["latents"]`` for the objective.
        """
        embeds = self.embed_tokens(batch["input_ids"])
        flat = embeds.flatten(0, 1)
        index = batch.get("vision_index")
        if index is not None and index.numel():
            features = batch.get("vision_features")
            if features is None:
                features = self.encode_vision(batch["patches"], batch["grid_thw"])
            flat = _place(flat, index, features, "vision features", "vision pads")
        index = batch.get("latent_index")
        if index is not None and index.numel():
            if batch.get("latents") is None:
                batch["latents"] = self.imagery_targets(batch["imagery_patches"], batch["imagery_grid_thw"])
            flat = _place(flat, index, batch["latents"], "latents", "latent pads")
        return flat.view_as(embeds)

    def new_cache(self) -> Cache:
        """An empty key-value cache for :meth:`decode`."""
        return DynamicCache(config=self.hf.config.get_text_config())

    def decode(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Run the language model; returns the hidden states after the final norm, [B, S, H].

        ``inputs_embeds`` [B, S, H], ``position_ids`` [3, B, S] long, ``attention_mask`` [B, S_total] (1 where
        a position of cache or input may be seen) or None without padding. ``cache`` is extended in place.
        """
        return self.hf.model.language_model(
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def forward(self, batch: Batch, objective: Objective) -> Any:
        """``objective(self, hidden [B, S, H], batch)`` of a whole batch.

        The loss is computed in here so that a DistributedDataParallel wrapper sees every parameter used.
        """
        embeds = self.embed_inputs(batch)
        hidden = self.decode(embeds, batch["position_ids"], batch.get("attention_mask"))
        return objective(self, hidden, batch)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute layers in the backward pass (non-reentrant unless told otherwise)."""
        kwargs = {"use_reentrant": False} | (gradient_checkpointing_kwargs or {})
        self.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.hf.gradient_checkpointing_disable()


def _place(flat: Tensor, index: Tensor, values: Tensor, what: str, where: str) -> Tensor:
    """``flat`` [N, H] with rows ``index`` replaced; differentiable in both."""
    if values.shape[0] != index.numel():
        raise ValueError(
            f"{values.shape[0]} {what} for {index.numel()} {where}: text and pictures do not fit"
        )
    return flat.index_copy(0, index, values.to(flat.dtype))


def _plain_weight(module: nn.Module, name: str) -> Tensor:
    if hasattr(module, "base_layer") or hasattr(module, "modules_to_save"):
        raise CheckpointError(
            f"the {name} is adapted by peft, but losses and sampler read its weight directly; "
            "leave embed_tokens and lm_head out of target_modules and modules_to_save"
        )
    return module.weight  # type: ignore[return-value]


def _vision_spec(model: Any) -> VisionSpec:
    config, vision, text = model.config, model.config.vision_config, model.config.get_text_config()
    generation = model.generation_config
    eos = generation.eos_token_id if generation.eos_token_id is not None else text.eos_token_id
    if eos is None:
        raise CheckpointError("neither generation_config.json nor config.json has an eos_token_id; add it")
    eos_ids = tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
    pads = (generation.pad_token_id, text.pad_token_id, text.bos_token_id, eos_ids[0])
    return VisionSpec(
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        vision_start_id=config.vision_start_token_id,
        vision_end_id=config.vision_end_token_id,
        eos_ids=eos_ids,
        pad_id=next(i for i in pads if i is not None),
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        tokens_per_second=float(vision.tokens_per_second),
    )


def processor_files(
    spec: VisionSpec, min_pixels: int, max_pixels: int, resample: str
) -> dict[str, dict[str, Any]]:
    """The processor files of the family, by file name.

    We write them ourselves because the processors of transformers need torchvision even to be constructed.
    """
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    common: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "max_pixels": max_pixels,
        "merge_size": spec.merge_size,
        "min_pixels": min_pixels,
        "patch_size": spec.patch_size,
        "processor_class": "Qwen2_5_VLProcessor",
        "resample": {"lanczos": 1, "bicubic": 3}[resample],  # PIL's numbers
        "rescale_factor": 1 / 255,
        "size": size,
        "temporal_patch_size": spec.temporal_patch_size,
    }
    return {
        "preprocessor_config.json": common | {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": common | {"video_processor_type": "Qwen2VLVideoProcessor"},
        "processor_config.json": {"processor_class": "Qwen2_5_VLProcessor"},
    }


def load(path: str, *, dtype: torch.dtype | None = None, latents: bool = True, **where: str) -> Any:
    """Load the transformers model at ``path``: with ``latents`` as a :class:`Qwen2_5_VL`, else bare.

    ``dtype`` None keeps the checkpoint's. Only safetensors files are read. The model is in eval mode. Raises
    :class:`CheckpointError` when weights are missing.
    """
    chosen = dtype if dtype is not None else "auto"
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        path, dtype=chosen, use_safetensors=True, output_loading_info=True, **where
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(f"{path}: {len(missing)} weights are missing: {', '.join(missing[:3])} ...")
    return Qwen2_5_VL(model) if latents else model


def save(backbone: Qwen2_5_VL, folder: str) -> None:
    """Write weights (safetensors), config.json and generation_config.json into ``folder``.

    LoRA adapters are added to the weights that are written, not to those in memory.
    """
    model = backbone.hf
    adapted = any(hasattr(module, "base_layer") for module in model.modules())
    model.save_pretrained(folder, state_dict=_merged_state(model) if adapted else None)


@torch.no_grad()
def _merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict the model would have after merging its LoRA adapters."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    state: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        owner = next((name for name in layers if key.startswith(f"{name}.")), None)
        if owner is None:
            state[key] = tensor
        elif key.startswith(f"{owner}.base_layer."):
            state[f"{owner}.{key.removeprefix(f'{owner}.base_layer.')}"] = tensor
    for name, layer in layers.items():
        plain = hasattr(layer, "get_delta_weight") and not getattr(layer, "lora_variant", {})
        if not plain or any(getattr(layer, "lora_bias", {}).values()):
            raise CheckpointError(
                f"{name} has an adapter of type {type(layer).__name__} that is more than a sum of weights; "
                "merge it (model.merge_and_unload()) before saving"
            )
        if not layer.merged:
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A:
                    weight = state[f"{name}.weight"]
                    state[f"{name}.weight"] = weight + layer.get_delta_weight(adapter).to(weight.dtype)
    return state
