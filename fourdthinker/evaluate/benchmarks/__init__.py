"""Benchmarks, read from files that the user has: one small reader a file. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from fourdthinker.errors import ConfigError
from fourdthinker.evaluate.benchmarks import dsi, dsr, dyn, mllm4d, sti, vlm4d, vsi, vsti
from fourdthinker.evaluate.benchmarks.benchmark import Benchmark, BenchmarkData, Collector
from fourdthinker.evaluate.duplicates import without_duplicates

BENCHMARKS = {
    module.BENCHMARK.name: module.BENCHMARK for module in (dsr, vlm4d, mllm4d, dyn, vsi, vsti, sti, dsi)
}

__all__ = ["BENCHMARKS", "Benchmark", "BenchmarkData", "list_benchmarks", "read_benchmark"]


def read_benchmark(name: str, path: Path, media_root: Path | None = None) -> BenchmarkData:
    """The questions of a benchmark, in the order of its files.

    Args:
        name: one of `BENCHMARKS`.
        path: folder that holds its files, or one file of it.
        media_root: folder that holds its videos; None: that folder, or that of the file.

    Returns:
        Its records, what is left out and why, and notes on what differs from the published benchmark.

    Raises:
        ConfigError: no such benchmark, or its files are not there.
        RecordError: names file, row and what is wrong.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    if not path.exists():
        raise ConfigError(f"{path} does not exist; name the folder that holds the files of {name}")
    benchmark = BENCHMARKS[name]
    into = Collector(benchmark, media_root or (path if path.is_dir() else path.parent))
    benchmark.read(into, path)
    data = into.data
    data.records, repeated = without_duplicates(data.records)
    data.left_out |= repeated
    number = len(data.records) + len(data.left_out)
    if benchmark.counts and number not in benchmark.counts:
        published = " or ".join(f"{count:,}" for count in benchmark.counts)
        data.notes.append(f"{number:,} questions, where {benchmark.title} has {published}")
    unknown = sorted({str(r.type) for r in data.records} - set(benchmark.types)) if benchmark.types else []
    if unknown:
        data.notes.append(f"types that {benchmark.title} does not name: {', '.join(unknown)}")
    return data


def list_benchmarks() -> str:
    """What is known and what each needs.

    Returns:
        A paragraph for each benchmark.
    """
    parts = []
    for benchmark in BENCHMARKS.values():
        counts = " or ".join(f"{count:,}" for count in benchmark.counts)
        lines = [
            f"{benchmark.name}: {benchmark.title} ({benchmark.source})",
            f"  needs: {benchmark.needs}",
            f"  questions: {counts or 'number not known'}",
        ]
        lines += [f"  left out: {name}: {why}" for name, why in benchmark.known_bad.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
