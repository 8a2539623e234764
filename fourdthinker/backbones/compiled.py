"""Decoder layers compiled by `torch.compile`, for training forwards alone.

Sampling has a decode step of its own, and other passes without gradient would each be compiled anew.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourdthinker.backbones.common import Backbone


def compile_layers(backbone: Backbone, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let the decoder layers run compiled in passes that a gradient is wanted of.

    One compilation serves all layers and all lengths. There is another one for each kind of mask (none,
    dense, of flex_attention), and for one row and several. Layers whose attention goes by segments, as packed
    sequences on a CPU, run plain: the pieces would be compiled anew for each layout.

    Args:
        backbone: changed in place.
        backend: of `torch.compile`.
    """
    layers: Any = backbone.hf.model.language_model.layers
    plain = type(layers[0]).forward
    compiled = torch.compile(plain, dynamic=True, backend=backend)

    def forward(layer: Any, *arguments: Any, **options: Any) -> Any:
        trains = layer.training and torch.is_grad_enabled()
        by_segments = getattr(options.get("attention_mask"), "dtype", None) == torch.int32
        return (compiled if trains and not by_segments else plain)(layer, *arguments, **options)

    for layer in layers:
        layer.forward = MethodType(forward, layer)
