"""What a training step keeps for its backward pass, by kind of module, and what it holds at worst."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.recompute import Made, Used
from fourdthinker.trainers.live_bytes import LiveBytes


class Kept:
    """Counts the bytes of storages kept for the backward pass within the block, weights not among them.

    Attributes:
        parts: bytes by kind of module; a storage counts where it is kept first.
        kinds: the kind of module by the ``_cdata`` of each storage.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.parts: Counter[str] = Counter()
        self.kinds: dict[int, str] = {}
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

    def _counted(self, pack: Callable[[Made, Tensor], Used | torch.Size]) -> Any:
        def counted(made: Made, tensor: Tensor) -> Used | torch.Size:
            kept = pack(made, tensor)
            if not isinstance(kept, torch.Size):
                self._pack(tensor)
            return kept

        return counted

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:  # what is kept lives to the end of the block
            self._seen.add(storage.data_ptr())
            self.parts[self._stack[-1]] += storage.nbytes()
            self.kinds[storage._cdata] = self._stack[-1]
        return tensor


class AtPeak(LiveBytes):
    """Says what the storages made within the block, and alive when they are the most bytes, are.

    Autograd sums two gradients of one tensor in place, but not while it is watched; that moment is passed
    over.

    Args:
        backbone: whose step runs in the block.
        kept: counts in the same block.

    Attributes:
        parts: bytes by what they are: kept for the backward pass, gradients, logits, the optimizer's, rest.
    """

    def __init__(self, backbone: Backbone, kept: Kept) -> None:
        super().__init__()
        self.parts: Counter[str] = Counter()
        self._kept, self._parameters = kept, list(backbone.parameters())
        self._head = tuple(backbone.hf.get_output_embeddings().weight.shape)
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._optimizing = self._summing = False
        self._made_by_optimizer: set[int] = set()

    def __enter__(self) -> AtPeak:
        self._hooks = ExitStack()
        for register, inside in (
            (register_optimizer_step_pre_hook, True),
            (register_optimizer_step_post_hook, False),
        ):
            self._hooks.callback(register(functools.partial(self._turn, inside)).remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        super().__exit__(*error)

    def _turn(self, inside: bool, *_: Any) -> None:
        self._optimizing = inside

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._summing = func is torch.ops.aten.add.Tensor and torch._C._current_graph_task_id() != -1
        ours = OPDEFS.get(func._schema.name)
        return super().__torch_dispatch__(
            functools.partial(self._inside, ours) if ours else func, types, args, kwargs
        )

    def _inside(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """An operator written in Python, with the operators that it is made of in sight."""
        super().__enter__()
        try:
            return op._init_fn(*args, **kwargs)
        finally:
            super().__exit__(None, None, None)

    def _add(self, tensor: Tensor, known: set[int]) -> None:
        before = self.peak
        super()._add(tensor, known)
        self.peak = before if self._summing else self.peak
        key = tensor.untyped_storage()._cdata
        if key in self._known and key not in self._shapes:
            self._shapes[key] = tuple(tensor.shape)
            if self._optimizing:
                self._made_by_optimizer.add(key)
        if self.peak > before:
            self.parts = self._sorted()

    def _drop(self, key: int) -> None:
        super()._drop(key)
        for told in (self._shapes, self._kept.kinds):  # the number goes to another storage
            told.pop(key, None)
        self._made_by_optimizer.discard(key)

    def _sorted(self) -> Counter[str]:
        written = {p.grad.untyped_storage()._cdata for p in self._parameters if p.grad is not None}
        found: Counter[str] = Counter()
        for key, size in self._known.items():
            found["gradients that are there" if key in written else self._part(key)] += size
        return found

    def _part(self, key: int) -> str:
        shape = self._shapes[key]
        if key in self._kept.kinds:
            return f"kept by {self._kept.kinds[key]}"
        if key in self._made_by_optimizer:
            return "temporaries of AdamW"
        if shape == self._head:
            return "gradients of head and embedding"
        return "logits of a chunk" if shape and shape[-1] >= self._head[0] else "rest"


def _kind(name: str) -> str | None:
    """Of a module by its name; None for what stands within another kind, or around them."""
    last = name.rpartition(".")[2]
    return "norms" if last.endswith("norm") else {"mlp": "MLPs", "self_attn": "attention"}.get(last)
