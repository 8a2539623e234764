"""Launch settings from measurements: ``python -m bench kernels --tune`` writes kernels/tuned.json.

Each kernel is timed as part of the bench's own cases with the settings next to its present ones, all in turn
in one process. Another row must save ``GAIN`` of the time of the cases that the kernel takes part in.
"""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from triton.errors import TritonError

from bench._kernel_data import Call, Case
from fourdthinker.kernels import launch_settings

GAIN = 0.03
MISMATCH = 1e-3  # a loss that another row changes by more is wrong
# Sums go by these blocks, so that another block samples another id where a rounding error decides.
SAME_BLOCK = ("sample_scan",)
Launch = launch_settings.Launch
Timer = Callable[[Mapping[str, Call]], Mapping[str, list[float]]]


def neighbours(op: str, launch: Launch) -> list[Launch]:
    """``launch`` and what half and twice its warps and block and one stage less and more come to."""
    warps = [n for n in (launch.num_warps // 2, launch.num_warps, launch.num_warps * 2) if 1 <= n <= 16]
    blocks = [launch.block]
    if launch.block and op not in SAME_BLOCK:
        blocks = [
            n
            for n in (launch.block // 2, launch.block, launch.block * 2)
            if 16 <= n <= launch_settings.WIDEST
        ]
    stages = [launch.num_stages]
    if op.startswith("prefix_decode"):  # no other kernel has a loop that Triton pipelines
        stages = [n for n in (launch.num_stages - 1, launch.num_stages, launch.num_stages + 1) if n > 1]
    return [
        replace(launch, num_warps=w, block=b, num_stages=s) for w in warps for b in blocks for s in stages
    ]


class _Asked(dict[str, Launch]):
    """Measured rows that note which ones are asked for."""

    def __init__(self, rows: Mapping[str, Launch]) -> None:
        super().__init__(rows)
        self.ops: list[str] = []

    def get(self, op: str, usual: Any = None) -> Any:
        if op not in self.ops:
            self.ops.append(op)
        return super().get(op, usual)


@contextmanager
def _launched_with(arch: int, rows: dict[str, Launch]) -> Iterator[None]:
    before = launch_settings.TUNED.get(arch, {})
    launch_settings.TUNED[arch] = rows
    try:
        yield
    finally:
        launch_settings.TUNED[arch] = before


def _called(call: Call, arch: int, rows: dict[str, Launch]) -> object:
    with _launched_with(arch, rows):
        return call()


def _trial(case: Case, arch: int, rows: dict[str, Launch], wanted: object) -> Call | None:
    """The case's call with ``rows``; None, with a line in the log, where it fails or gives something else."""
    try:
        value = _called(case.calls["ours"], arch, rows)
    except (TritonError, RuntimeError) as error:
        logging.info("left out, %s: %s", type(error).__name__, str(error).partition("\n")[0][:100])
        return None
    comparable = case.alike and isinstance(value, Tensor) and isinstance(wanted, Tensor)
    if comparable and abs(float(value) - float(wanted)) > MISMATCH * max(abs(float(wanted)), 1e-3):
        logging.info("left out, it gives %s instead of %s", float(value), float(wanted))
        return None
    return lambda: _called(case.calls["ours"], arch, rows)


def _best(op: str, cases: list[Case], arch: int, rows: dict[str, Launch], timed: Timer) -> Launch | None:
    """The row of ``op`` that saves most over the cases, if it saves ``GAIN`` of their time."""
    present = rows.get(op) or launch_settings.row(op, arch)
    gains: dict[Launch, list[float]] = {}
    for case in cases:
        wanted = _called(case.calls["ours"], arch, rows)
        trials = {
            launch: _trial(case, arch, {**rows, op: launch}, wanted) for launch in neighbours(op, present)
        }
        calls = {str(launch): call for launch, call in trials.items() if call is not None}
        seconds = {name: statistics.median(taken) for name, taken in timed(calls).items()}
        for launch in trials:
            if str(launch) in seconds:
                ratio = seconds[str(launch)] / seconds[str(present)]
                gains.setdefault(launch, []).append(math.log(ratio))
    means = {launch: statistics.fmean(logs) for launch, logs in gains.items() if len(logs) == len(cases)}
    best = min(means, key=lambda launch: means[launch])
    logging.info("%s: %s, %.3f of the time of %s", op, best, math.exp(means[best]), present)
    return best if means[best] < math.log(1 - GAIN) else None


def tune(
    cases: Iterable[Case], arch: int, timed: Timer, keep: Callable[[dict[str, Launch]], None]
) -> dict[str, Launch]:
    """Rows that are faster than those in use, for the kernels that the cases launch.

    Args:
        cases: what is timed; only ``calls["ours"]`` is called.
        arch: compute capability of the GPU, 90 for sm_90.
        timed: gives the seconds of each of some calls, taken in turn.
        keep: is given the rows that there are after each kernel.

    Returns:
        The measured rows of this GPU, those that were measured before included.
    """
    rows = dict(launch_settings.TUNED.get(arch, {}))
    taking: dict[str, list[Case]] = {}
    for case in cases:
        asked = _Asked(rows)
        _called(case.calls["ours"], arch, asked)
        for op in asked.ops:
            taking.setdefault(op, []).append(case)
    for op, those in taking.items():
        found = _best(op, those, arch, rows, timed)
        if found is not None:
            rows[op] = found
        keep(rows)
    return rows


def write(path: Path, arch: int, rows: Mapping[str, Launch]) -> None:
    """Put the rows of one GPU into a file of all; a new file begins as the one that the package reads."""
    before = path if path.exists() else launch_settings.TUNED_FILE
    held = json.loads(before.read_text(encoding="utf-8"))
    held[str(arch)] = {op: asdict(rows[op]) for op in sorted(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
