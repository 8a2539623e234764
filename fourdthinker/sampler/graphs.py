"""The decode step as a CUDA graph: captured once for a shape of the batch, replayed for every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from functools import cache

import torch

MIN_REPLAYS = 8  # steps still to come for which capturing pays


class Graphs:
    """Runs a step eagerly the first time a shape of the batch is seen, and from a CUDA graph afterwards.

    The first time also compiles the kernels. One graph is kept: a batch that has changed does not come back.

    Args:
        device: the CUDA device that the step runs on.

    Attributes:
        captured: graphs captured so far.
        seconds: what capturing took.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.captured, self.seconds = 0, 0.0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._key: Hashable = None

    def run(self, key: Hashable, step: Callable[[], None], remaining: int) -> None:
        """One step.

        Args:
            key: changes whenever a tensor that `step` uses has moved.
            step: the step; in a graph it allocates nothing that outlives it.
            remaining: steps still to come, this one included.
        """
        if key != self._key:
            self._destroy()
            self._key = key
            step()
            return
        if self._graph is None:
            if remaining < MIN_REPLAYS:
                step()
                return
            self._graph = self._capture(step)
        self._graph.replay()

    def _destroy(self) -> None:
        if self._graph is None:
            return
        torch.cuda.current_stream(self.device).synchronize()  # it may still be running
        self._graph.reset()  # frees its memory now, not when the object is collected
        self._graph = None

    def _capture(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        begin = time.perf_counter()
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(self.device)
        # Each graph gets a memory pool of its own (no `pool=`). cuBLAS keeps a workspace for the capture
        # stream in the pool of the first capture; torch 2.11 asserts when the graph of that pool is gone and
        # another is captured into the pool.
        # Other threads may go on using the GPU: only what this thread does is captured.
        try:
            with torch.cuda.graph(
                graph, stream=_capture_stream(self.device), capture_error_mode="thread_local"
            ):
                step()
        finally:
            torch.cuda.set_stream(stream)  # torch leaves the capture stream current when a capture fails
        self.captured += 1
        self.seconds += time.perf_counter() - begin
        return graph


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream a device to capture on.

    torch's own is on the device of the first capture, and each stream costs a cuBLAS workspace.
    """
    return torch.cuda.Stream(device)
