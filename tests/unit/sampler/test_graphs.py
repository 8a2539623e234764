"""Captured steps, against a stand-in for CUDA that asserts what torch 2.11 does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fourdthinker.sampler import graphs
from fourdthinker.sampler.graphs import MIN_REPLAYS, Graphs

DEVICE = torch.device("cuda", 1)


class FakeCuda:
    """Streams, pools and graphs. The first capture leaves a workspace in its pool, as cuBLAS does: the pool
    cannot be captured into once its graphs are gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current: Any = "main"
        self.streams: list[torch.device] = []
        self.pools: list[object] = []
        self.alive = 0
        self.log: list[str] = []
        cuda = self

        class Graph:
            def __init__(self) -> None:
                self.body: Callable[[], None] | None = None

            def replay(self) -> None:
                assert self.body is not None, "a graph that was reset, or never captured, was replayed"
                cuda.log.append("replay")

            def reset(self) -> None:
                assert cuda.log[-1] == "synchronize", "the graph may still be running"
                self.body = None
                cuda.alive -= 1

        @contextmanager
        def capture(graph: Graph, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
            assert cuda.alive == 0, "the memory of two graphs at once"
            pool = object() if pool is None else pool
            assert pool not in cuda.pools, "use_count > 0"
            cuda.pools.append(pool)
            cuda.current = stream
            yield
            cuda.current = "main"  # not when the capture fails, as in torch
            graph.body, cuda.alive = lambda: None, cuda.alive + 1
            cuda.log.append("capture")

        class Stream:
            def __init__(self, device: torch.device) -> None:
                cuda.streams.append(device)

            def synchronize(self) -> None:
                cuda.log.append("synchronize")

        class Current:
            synchronize = Stream.synchronize

        def current_stream(device: torch.device) -> Any:
            assert device == DEVICE
            return main

        def set_stream(stream: Any) -> None:
            cuda.current = "main" if stream is main else stream

        main = Current()
        for name, value in (("CUDAGraph", Graph), ("graph", capture), ("Stream", Stream),
                            ("current_stream", current_stream), ("set_stream", set_stream)):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        graphs._capture_stream.cache_clear()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    yield FakeCuda(monkeypatch)
    graphs._capture_stream.cache_clear()


def test_growth_and_compaction_capture_again(cuda: FakeCuda) -> None:
    """Three shapes of the batch: each runs eagerly once, is captured into memory of its own and replayed."""
    runner, steps = Graphs(DEVICE), 0

    def step() -> None:
        nonlocal steps
        steps += 1

    for key in range(3):
        for left in range(40, 30, -1):
            runner.run(key, step, left)
    assert runner.captured == 3
    assert steps == 6  # once eagerly and once captured for each shape
    assert cuda.log.count("replay") == 27
    assert len(cuda.pools) == 3
    assert cuda.streams == [DEVICE]  # one capture stream for all, on the device of the step


def test_few_steps_are_not_captured(cuda: FakeCuda) -> None:
    runner = Graphs(DEVICE)
    for left in range(MIN_REPLAYS, 0, -1):
        runner.run("key", lambda: None, left)
    assert runner.captured == 0
    assert not cuda.log


def test_a_capture_that_fails_leaves_the_stream_as_it_was(cuda: FakeCuda) -> None:
    runner = Graphs(DEVICE)

    def fail() -> None:
        raise RuntimeError("out of memory")

    runner.run("key", lambda: None, 40)
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.run("key", fail, 39)
    assert cuda.current == "main"
    runner.run("key", lambda: None, 38)  # and the next step may capture
    assert runner.captured == 1
