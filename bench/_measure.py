"""What all benches share: interleaved timing, peak memory, versions, saved results, tables."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import functools
import gc
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch", "triton", "transformers", "trl", "verl", "liger-kernel", "av", "decord", "torchcodec",
    "opencv-python-headless", "pillow", "numpy",
)  # fmt: skip
MEASURED = ("bench", "csrc", "fourdthinker", "kernels", ":!bench/results")  # what a figure depends on
_FLUSH_BYTES = 512 << 20
WARM_SECONDS = 0.05  # until the clocks of a GPU are up


def interleaved(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1, device: str = "cpu",
    warm_seconds: float = WARM_SECONDS,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each call, ``repeats`` times round robin after ``warmup`` rounds.

    The round begins one candidate further each time, so that no one always follows the same neighbour. On
    CUDA more rounds for ``warm_seconds`` come before, for calls of microseconds; 0 where a call takes
    seconds. The seconds there are those between two events behind a queue of fills that also clears the L2
    cache, so that neither launches nor what the call before left in the cache are counted.
    """
    once = _cuda_seconds if device == "cuda" else _seconds
    order = list(candidates)
    for _ in range(warmup):
        for name in order:
            once(candidates[name])
    warm = time.perf_counter() + (warm_seconds if device == "cuda" else 0)
    while time.perf_counter() < warm:
        for name in order:
            once(candidates[name])
    taken: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(repeats):
        first = turn % len(order) if order else 0
        for name in order[first:] + order[:first]:
            taken[name].append(once(candidates[name]))
    return taken


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    kept = call()
    taken = time.perf_counter() - start
    del kept  # freeing a large result is not part of the call
    return taken


def _cuda_seconds(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush = torch.empty(_FLUSH_BYTES // 4, dtype=torch.float32, device="cuda")
    for _ in range(4):
        flush.zero_()
    flush.amax()  # or the call would pay for writing the last zeros back
    start.record()
    kept = call()
    end.record()
    end.synchronize()
    del kept
    return start.elapsed_time(end) / 1000


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median with its spread, in seconds: smallest, quartiles, largest, and how many runs there were."""
    ordered = sorted(seconds)
    quartiles = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    return {
        "median": statistics.median(ordered), "low": ordered[0], "lower_quartile": quartiles[0],
        "upper_quartile": quartiles[2], "high": ordered[-1], "runs": len(ordered),
    }  # fmt: skip


def peak_rss(call: Callable[[], object]) -> int:
    """Bytes of resident memory that ``call`` needs at its peak above what the process held before.

    Linux only: the kernel's high-water mark of this process is reset first. Raises ``OSError`` where that is
    not allowed.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or freed heap would be taken again without counting
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}; peak memory can be measured on Linux only")


@contextlib.contextmanager
def bounded_memory(share: float = 0.95) -> Iterator[None]:
    """Within the block, memory beyond this share of what is free is refused: an error in whoever asks for it,
    where the system would end a process of its own choice (Linux)."""
    free = int(re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[0]) * 1024
    former = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + int(share * free), former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, former)


def peak_allocated(call: Callable[[], object], device: str = "cpu") -> int:
    """Bytes of tensors that ``call`` holds at its peak above before, from torch's allocation events."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    gc.collect()  # what is dropped within the block was not made in it
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        kept = call()
    del kept
    if profile.profiler is None or profile.profiler.kineto_results is None:
        raise RuntimeError("torch.profiler recorded nothing; peak memory cannot be told")
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def device_name(device: str = "cpu") -> str:
    """A short name fit for a file: the GPU's, or the processor's with the number of usable cores."""
    if device == "cuda":
        return _slug(torch.cuda.get_device_name())
    cores = len(os.sched_getaffinity(0))
    return _slug(f"cpu {_processor()} {cores} cores")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def versions() -> dict[str, str]:
    """Python, the machine, and each package that may take part; ``absent`` where it is not installed."""
    found = {"python": platform.python_version(), "processor": _processor(), "system": platform.platform()}
    found["threads"] = str(torch.get_num_threads())
    if torch.cuda.is_available():
        found["gpu"], found["cuda"] = torch.cuda.get_device_name(), str(torch.version.cuda)
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    found["torch"] = torch.__version__  # with the build, which the package's metadata may leave out
    return found


@functools.cache
def revision() -> str:
    """The last commit that changed what is measured, with ``+`` where files differ from it.

    ``unknown`` where this is no checkout, or git does not read it.
    """
    git = ("git", "-C", str(Path(__file__).parents[1]))
    try:
        found = subprocess.run(
            [*git, "log", "-1", "--format=%h", "--abbrev=12", "--", *MEASURED],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *MEASURED], check=False).returncode
    return found + ("+" if changed else "") if found else "unknown"


def positive(text: str) -> int:
    """A whole number of 1 or more: the ``type`` of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def add_save(parser: argparse.ArgumentParser) -> None:
    """Declare ``--save``: without it, no bench writes results."""
    revision()  # before anything is measured: what is committed during a run was not loaded
    parser.add_argument("--save", action="store_true", help="write bench/results/<date>-<device>.json")


def save(
    name: str, rows: Sequence[Mapping[str, Any]], device: str = "cpu", replacing: Sequence[str] | None = None
) -> Path:
    """Write ``rows`` (JSON values) under ``name`` into ``bench/results/<date>-<device>.json``.

    ``device`` is ``cpu``, ``cuda`` or a name of one's own. Other benches of that day stay in the file; so do
    rows of this one, where ``replacing`` is given, that differ from all new ones in one of these keys. A row
    names its ``revision``.
    """
    label = device_name(device) if device in ("cpu", "cuda") else _slug(device)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.date.today().isoformat()}-{label}.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    kept: list[Mapping[str, Any]] = []
    if replacing is not None and name in held:
        new = {tuple(row[key] for key in replacing) for row in rows}
        kept = [row for row in held[name]["rows"] if tuple(row[key] for key in replacing) not in new]
    dated = [{"revision": revision(), **row} for row in rows]
    held[name] = {"versions": versions(), "rows": [*kept, *dated]}
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(held, indent=1) + "\n")
    part.replace(path)
    return path


def saved(name: str) -> list[dict[str, Any]] | None:
    """The rows that were saved under ``name`` last, or None."""
    for path in sorted(RESULTS.glob("*.json"), reverse=True):
        held = json.loads(path.read_text(encoding="utf-8"))
        if name in held:
            rows: list[dict[str, Any]] = held[name]["rows"]
            return rows
    return None


def show(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """A table of ``rows``; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    console = Console()
    # Into a file, a table keeps all its columns rather than the 80 characters of no terminal.
    (console if console.is_terminal else Console(width=160)).print(table)
