"""MLLM4D-Bench: its published archive has videos and no questions, so any file of its form is read.

The form is that of MLLM-4D's evaluation, which is VLM4D's.
"""

from __future__ import annotations

from pathlib import Path

from fourdthinker.evaluate.benchmarks.benchmark import Benchmark, Collector
from fourdthinker.evaluate.benchmarks.vlm4d import add

NEEDS = "a JSON list like VLM4D's (id, video, question, choices, answer), and the videos"


def read(into: Collector, path: Path) -> None:
    """Read one file of questions."""
    for row in into.rows(path, "*bench*.json", "*.json", "*.jsonl"):
        add(into, row, "")


BENCHMARK = Benchmark(
    name="mllm4d", title="MLLM4D-Bench", source="flow666/MLLM-4D-Datasets", needs=NEEDS, read=read
)
