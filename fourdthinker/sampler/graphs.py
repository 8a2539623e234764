"""The decode step as a CUDA graph: captured once for a shape of the batch, replayed for every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

import torch

WORTH = 8  # steps still to come for which capturing pays


class Graphs:
    """Runs a step eagerly the first time a shape of the batch is seen, which also compiles its kernels, and
    from a graph afterwards. One graph is kept: a batch that has changed does not come back."""

    def __init__(self) -> None:
        self.captured, self.seconds = 0, 0.0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._key: Hashable = None
        self._memory = torch.cuda.graph_pool_handle()

    def run(self, key: Hashable, step: Callable[[], None], remaining: int) -> None:
        """One step; `key` changes whenever a tensor that `step` uses has moved."""
        if key != self._key:
            if self._graph is not None:
                torch.cuda.current_stream().synchronize()  # it may still be running
            self._key, self._graph = key, None
            step()
            return
        if self._graph is None:
            if remaining < WORTH:
                step()
                return
            begin = time.perf_counter()
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the GPU; what this one does in the step is captured.
            with torch.cuda.graph(self._graph, pool=self._memory, capture_error_mode="thread_local"):
                step()
            self.captured += 1
            self.seconds += time.perf_counter() - begin
        self._graph.replay()
