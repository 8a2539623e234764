"""What the model families share: a transformers model with latent tokens, cut into steps.

The steps are those that training and sampling need. Everything that this package knows about the insides of
the transformers implementations is in this folder: ``model.model.visual``, ``model.model.language_model``,
``inputs_embeds``, DeepStack, explicit position ids and caches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache, DynamicCache

from fourdthinker.backbones.adapted import base_state
from fourdthinker.backbones.gathering import full_shape
from fourdthinker.backbones.inputs import DeepStack, Inputs
from fourdthinker.backbones.packed import NAME as PACKED
from fourdthinker.backbones.packed import additive_mask, packed_mask, use_packed_attention
from fourdthinker.backbones.pooling import imagery_latents
from fourdthinker.backbones.tower import use_packed_attention as use_packed_tower
from fourdthinker.errors import CheckpointError, ConfigError
from fourdthinker.frames import FramePolicy
from fourdthinker.latents import LatentSpec
from fourdthinker.samples import Batch, joined
from fourdthinker.vision import VisionSpec

Objective = Callable[["Backbone", Tensor, Batch], Any]
MASKED = ("sdpa", "eager")  # implementations of attention that take any mask; flash attention takes none


class Backbone(nn.Module, ABC):
    """A vision-language model with latent tokens. Subclasses say what is particular to a family.

    ``model`` may also be a peft model around the transformers model, as long as embedding and head are not
    adapted (the fused losses read their weights).
    """

    family: ClassVar[str]  # model_type of config.json
    architecture: ClassVar[Any]  # class of transformers

    def __init__(self, model: Any, latents: LatentSpec | None = None) -> None:
        super().__init__()
        self.model = model
        self.latents = latents if latents is not None else LatentSpec.from_config(self.hf.config)
        self.vision = self.vision_spec(self.hf)
        use_packed_tower(self.visual)
        use_packed_attention(self._text_config)
        self.train(self.model.training)
        rows = full_shape(self.embedding_weight)[0]
        if max(self.latents.ids) >= rows:
            raise CheckpointError(
                f"latent token ids {self.latents.ids} do not fit the embedding matrix of {rows} rows; "
                "grow it with fourdthinker.latents.grow_vocabulary"
            )

    # -- what a family defines
    @classmethod
    @abstractmethod
    def vision_spec(cls, model: Any) -> VisionSpec:
        """The spec of a transformers model of the family."""

    @classmethod
    @abstractmethod
    def default_policy(cls) -> FramePolicy:
        """The frame policy of a checkpoint that brings none."""

    @abstractmethod
    def processor_files(self, policy: FramePolicy) -> dict[str, dict[str, Any]]:
        """The processor files of the family, by file name."""

    @abstractmethod
    def _tower(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        """Features [N, (1 + D) * H] of the vision tower: merged features, then the DeepStack levels.

        ``grid_thw`` is on the host.
        """

    def _deepstack_arguments(self, deepstack: DeepStack, shape: torch.Size) -> dict[str, Any]:
        """``deepstack`` as arguments of the language model, for input embeddings [B, S, H]."""
        raise ValueError(f"a {self.family} has no DeepStack; these features are of another family")

    # -- parts
    @property
    def hf(self) -> Any:
        """The transformers model, without the peft wrapper if there is one."""
        get_base_model = getattr(self.model, "get_base_model", None)
        return get_base_model() if get_base_model is not None else self.model

    @property
    def visual(self) -> nn.Module:
        """The vision tower with its mergers."""
        return self.hf.model.visual

    @property
    def config(self) -> Any:
        """The transformers config."""
        return self.hf.config

    @property
    def _text_config(self) -> Any:
        return self.hf.model.language_model.config

    @property
    def hidden_size(self) -> int:
        """H, the width of the language model's hidden states."""
        return self._text_config.hidden_size

    @property
    def num_layers(self) -> int:
        """Decoder layers of the language model."""
        return self._text_config.num_hidden_layers

    @property
    def num_heads(self) -> int:
        """Query heads of the language model."""
        return self._text_config.num_attention_heads

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads of the language model."""
        return self._text_config.num_key_value_heads

    @property
    def head_dim(self) -> int:
        """Width of one head of the language model."""
        return getattr(self._text_config, "head_dim", None) or self.hidden_size // self.num_heads

    @property
    def max_positions(self) -> int:
        """The longest sequence that the language model was made for."""
        return self._text_config.max_position_embeddings

    @property
    def deepstack_levels(self) -> int:
        """D, the number of DeepStack levels that follow the merged features; 0 where there are none."""
        return 0

    @property
    def embedding_weight(self) -> Tensor:
        """The input embeddings, [V, H]."""
        return _plain_weight(self.hf.get_input_embeddings(), "token embedding")

    @property
    def head_weight(self) -> Tensor:
        """[V, H]; the same parameter as ``embedding_weight`` when the checkpoint ties them."""
        return _plain_weight(self.hf.get_output_embeddings(), "output head")

    @property
    def head_bias(self) -> None:
        """The output heads of the Qwen families have no bias."""
        return None

    @property
    def device(self) -> torch.device:
        """Of the weights: inputs must be on it."""
        return self.embedding_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of embeddings and hidden states."""
        return self.embedding_weight.dtype

    @property
    def attention(self) -> str:
        """Which of transformers' attention implementations the language model runs with."""
        name = self._text_config._attn_implementation
        return "sdpa" if name == PACKED else name  # which differ in masks alone

    @contextmanager
    def set_attention(self, name: str) -> Iterator[None]:
        """Use another attention implementation in the language model for the time of a block.

        The vision tower keeps its own.
        """
        config = self._text_config
        before = config._attn_implementation
        config._attn_implementation = name
        try:
            yield
        finally:
            config._attn_implementation = before

    def without_adapter(self) -> Any:
        """A context in which peft adapters, if there are any, are switched off."""
        disable = getattr(self.model, "disable_adapter", None)
        return disable() if disable is not None else nullcontext()

    def require_family(self, family: str | None, what: str) -> None:
        """ConfigError when ``what`` (named in the message) was made for another family than this one's."""
        if family not in (None, self.family):
            raise ConfigError(
                f"{what} was made for a {family}, and this model is a {self.family}; token ids, patches and "
                "positions differ between families, so encode it with an Encoder of this checkpoint"
            )

    # -- vision
    def freeze_vision(self, frozen: bool = True) -> None:
        """Let the vision tower (mergers included) take part in training or not."""
        self.visual.requires_grad_(not frozen)

    def encode_vision(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        """Features of clips or images.

        Args:
            patches: [sum t*h*w, patch_dim].
            grid_thw: int64 [n, 3], the grids in patches.

        Returns:
            [sum t*h*w / merge_size^2, (1 + D) * H] in raster order of the merged features, in the tower's
            dtype: the merged features in the first H columns, then D DeepStack levels of H columns each
            (D = 0 for Qwen2.5-VL). Without gradient exactly when the tower is frozen.

        Raises:
            ValueError: patches and grids do not fit.
            ConfigError: patches of another family.
        """
        visual = self.visual
        expected = int(grid_thw.prod(-1).sum())
        if patches.shape[0] != expected:
            raise ValueError(f"{patches.shape[0]} patches for grids {grid_thw.tolist()} of {expected}")
        if patches.shape[1] != self.vision.patch_dim:
            raise ConfigError(
                f"patches have {patches.shape[1]} values, and a {self.family} reads {self.vision.patch_dim}; "
                "they were cut for another family, so make them with an Encoder of this checkpoint"
            )
        parameters = list(visual.parameters())
        with torch.set_grad_enabled(self.tower_is_trained):
            patches = patches.to(parameters[0].device, parameters[0].dtype)
            return self._tower(patches, grid_thw.cpu())

    @property
    def tower_is_trained(self) -> bool:
        """Whether gradients are recorded now, and go through the vision tower."""
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.visual.parameters())

    def _blank_features(self) -> Tensor:
        """Features of the smallest blank picture: they touch every parameter of the tower."""
        merge = self.vision.merge_size
        # Not `self.device`: under ZeRO-3 a look at the embeddings gathers them, which other ranks do not.
        device = next(self.visual.parameters()).device
        patches = torch.zeros(merge * merge, self.vision.patch_dim, device=device)
        return self.encode_vision(patches, torch.tensor([[1, merge, merge]]))

    @torch.no_grad()
    def imagery_targets(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        """The K latents of every image, [n*K, H], detached: pooled merged features of the vision tower.

        A latent has no DeepStack levels: in generation the model feeds itself one hidden state, and nothing
        that could be added to later layers.
        """
        merged = self.encode_vision(patches, grid_thw)[:, : self.hidden_size]
        return imagery_latents(merged, grid_thw.cpu(), self.vision.merge_size, self.latents)

    # -- language
    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Ids [...] int64 to embeddings [..., H]."""
        return self.hf.get_input_embeddings()(ids)

    def embed_inputs(self, batch: Batch) -> Inputs:
        """Input embeddings [B, S, H] of a batch: tokens, vision features and latents, each at its position.

        Reads ``input_ids``; ``vision_index`` with ``vision_features`` or ``patches`` and ``grid_thw``;
        ``latent_index`` with ``latents`` or ``imagery_patches`` and ``imagery_grid_thw``, of which the
        latents are computed. ``fed_latents`` stand at the pads instead, where there are any.
        """
        embeds = self.embed_tokens(batch["input_ids"])
        flat = embeds.flatten(0, 1)
        deepstack = None
        index = batch.get("vision_index")
        if index is not None and index.numel():
            features = batch.get("vision_features")
            if features is None:
                features = self.encode_vision(joined(batch["patches"]), batch["grid_thw"])
            merged, deepstack = self._levels(index, joined(features))
            flat = _replace_rows(flat, index, merged, "vision features", "vision pads")
        index, latents = batch.get("latent_index"), batch.get("latents")
        if index is not None and index.numel():
            if latents is None:
                latents = self.imagery_targets(batch["imagery_patches"], batch["imagery_grid_thw"])
            fed = batch.get("fed_latents")
            flat = _replace_rows(flat, index, latents if fed is None else fed, "latents", "latent pads")
        return Inputs(flat.view_as(embeds), deepstack, latents)

    def _levels(self, index: Tensor, features: Tensor) -> tuple[Tensor, DeepStack | None]:
        """Merged features [M, H] and DeepStack levels of vision features [M, (1 + D) * H]."""
        levels, width = self.deepstack_levels, self.hidden_size
        if features.shape[1] != (1 + levels) * width:
            raise ConfigError(
                f"vision features have {features.shape[1]} columns, and this {self.family} reads "
                f"{(1 + levels) * width} ({1 + levels} of {width}); they are of another model, so encode "
                "the pictures with this one"
            )
        if not levels or features.shape[0] != index.numel():  # the latter is refused where they are placed
            return features[:, :width], None
        order = index.argsort()
        parts = features[order, width:].view(-1, levels, width).transpose(0, 1)
        return features[:, :width], DeepStack(index[order], parts)

    def new_cache(self) -> Cache:
        """An empty key-value cache for :meth:`decode`."""
        return DynamicCache(config=self._text_config)

    def decode(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | BlockMask | None = None,
        cache: Cache | None = None,
        *,
        deepstack: DeepStack | None = None,
    ) -> Tensor:
        """Run the decoder layers of the language model.

        Args:
            inputs_embeds: [B, S, H].
            position_ids: int64 [3, B, S].
            attention_mask: [B, S_total], 1 where a position of cache or input may be seen, or a mask of
                `packed_mask`; None: nothing is padded.
            cache: keys and values so far; extended in place.
            deepstack: the levels of the vision pads among these S positions.

        Returns:
            The hidden states after the final norm, [B, S, H].
        """
        refuse_cudnn_attention(inputs_embeds.device)
        extra = {} if deepstack is None else self._deepstack_arguments(deepstack, inputs_embeds.shape)
        return self.hf.model.language_model(
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **extra,
        ).last_hidden_state

    def forward(self, batch: Batch, objective: Objective) -> Any:
        """``objective(self, hidden [B, S, H], batch)`` of a whole batch.

        The batch gets its latents if they were computed here. The loss is computed here too, so that a
        DistributedDataParallel wrapper sees every parameter used. A tower that is trained runs in every
        batch: ranks exchange gradients of the same parts, whatever pictures they have.

        Sequences are padded on the right, where nothing that is causal looks: without `segments` no mask is
        made, and attention takes its fastest form. What stands at padded positions means nothing.
        """
        inputs, segments = self.embed_inputs(batch), batch.get("segments")
        embeds, mask = inputs.embeds, None
        if segments is not None:
            make = packed_mask if self._text_config._attn_implementation == PACKED else additive_mask
            mask = make(segments, self._attention_dtype(embeds), batch.get("bottleneck"))
        if self.tower_is_trained and (batch.get("patches") is None or not batch["vision_index"].numel()):
            embeds = embeds + 0.0 * self._blank_features().sum().to(embeds.dtype)
        hidden = self.decode(embeds, batch["position_ids"], mask, deepstack=inputs.deepstack)
        latents = {} if inputs.latents is None else {"latents": inputs.latents}
        return objective(self, hidden, batch | latents)

    def _attention_dtype(self, embeds: Tensor) -> torch.dtype:
        device = embeds.device.type
        cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        # Autocast leaves float64 as it is.
        return torch.get_autocast_dtype(device) if cast and embeds.dtype != torch.float64 else embeds.dtype

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute layers in the backward pass (non-reentrant unless told otherwise)."""
        kwargs = {"use_reentrant": False} | (gradient_checkpointing_kwargs or {})
        self.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Keep the activations of all layers for the backward pass."""
        self.hf.gradient_checkpointing_disable()

    # -- files
    @classmethod
    def load_model(cls, path: str, *, dtype: torch.dtype | None = None, **where: str) -> Any:
        """The transformers model at ``path``, in eval mode.

        ``dtype`` None keeps the checkpoint's. Only safetensors files are read. Raises
        :class:`CheckpointError` when weights are missing.
        """
        chosen = dtype if dtype is not None else "auto"
        model, info = cls.architecture.from_pretrained(
            path, dtype=chosen, use_safetensors=True, output_loading_info=True, **where
        )
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise CheckpointError(f"{len(missing)} weights are missing: {', '.join(missing[:3])} ...")
        return model

    @classmethod
    def load(cls, path: str, *, dtype: torch.dtype | None = None, **where: str) -> Self:
        """The backbone at ``path``, whose config knows its latent tokens; as :meth:`load_model`."""
        return cls(cls.load_model(path, dtype=dtype, **where))

    def save(self, folder: str) -> None:
        """Write weights (safetensors), config.json and generation_config.json into ``folder``.

        A LoRA adapter is left out: what is written are the weights below it.
        """
        self.hf.save_pretrained(folder, state_dict=base_state(self.hf))


def refuse_cudnn_attention(device: torch.device) -> None:
    """Let SDPA choose among its other backends, in the whole process.

    With a mask, S % 128 = 64 and a row whose log-sum-exp is below -88.7, the gradients of cuDNN's attention
    are NaN (pytorch issue 196678), and torch prefers it on Hopper. A context around the forward would not do:
    gradient checkpointing runs the layers again in the backward pass.
    """
    if device.type == "cuda" and torch.backends.cuda.cudnn_sdp_enabled():
        torch.backends.cuda.enable_cudnn_sdp(False)


def _replace_rows(flat: Tensor, index: Tensor, values: Tensor, what: str, where: str) -> Tensor:
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
