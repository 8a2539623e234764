"""What a training forward keeps for its backward pass, by the kind of module that keeps it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.recompute import Made


class Kept:
    """Counts the bytes of storages kept for the backward pass within the block, weights not among them.

    Attributes:
        parts: bytes by kind of module; a storage counts where it is kept first.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.parts: Counter[str] = Counter()
        self._stack = ["rest"]
        self._seen = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
        self._backbone, self._handles = backbone, []

    def __enter__(self) -> Kept:
        language = self._backbone.hf.model.language_model
        for name, module in language.named_modules():
            if kind := _kind(name):
                self._handles.append(module.register_forward_pre_hook(self._begin(kind)))
                self._handles.append(module.register_forward_hook(self._end))
        self._hooks = ExitStack()
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept)
        self._hooks.enter_context(hooks)
        # Hooks within these are called instead of them.
        self._hooks.enter_context(mock.patch.object(Made, "pack", self._counted(Made.pack)))
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _begin(self, kind: str) -> Any:
        return lambda *_: self._stack.append(kind)

    def _end(self, *_: Any) -> None:
        self._stack.pop()

    def _counted(self, pack: Callable[[Made, Tensor], Tensor | torch.Size]) -> Any:
        def counted(made: Made, tensor: Tensor) -> Tensor | torch.Size:
            kept = pack(made, tensor)
            return self._pack(kept) if isinstance(kept, Tensor) else kept

        return counted

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:  # what is kept lives to the end of the block
            self._seen.add(storage.data_ptr())
            self.parts[self._stack[-1]] += storage.nbytes()
        return tensor


def _kind(name: str) -> str | None:
    """Of a module by its name; None for what stands within another kind, or around them."""
    last = name.rpartition(".")[2]
    return "norms" if last.endswith("norm") else {"mlp": "MLPs", "self_attn": "attention"}.get(last)
