"""How much memory tensors hold at the worst moment of a computation, whether it is real or only traced."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators make within the block, and drop again.

    What an operator allocates inside of itself and drops before it returns is not seen, nor are tensors that
    were there before.

    Attributes:
        held: bytes of storages made so far that still exist.
        peak: the largest value that `held` had.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor, known)
        return result

    def _add(self, tensor: Tensor, known: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if id(storage) in known or key in self._known:
            return
        self._known[key] = storage.nbytes()
        weakref.finalize(storage, self._drop, key)
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)

    def _drop(self, key: int) -> None:
        self.held -= self._known.pop(key, 0)
