"""Curves of a run: what its phases logged while they trained."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from fourdthinker.evaluate.table import number
from fourdthinker.report.lines import read_lines
from fourdthinker.report.so_far import steps_so_far
from fourdthinker.report.svg import line_chart, short, smooth

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
# Shown at once, in this order, under these names. What else was logged is folded away under its own name.
KNOWN = {
    "loss": "Loss",
    "ce": "Cross-entropy",
    "cosine": "Latent loss (1 − cosine)",
    "reward": "Reward",
    "reward_accuracy_reward": "Accuracy reward",
    "reward_format_reward": "Format reward",
    "eval_loss": "Held-out loss",
    "eval_reward": "Held-out reward (greedy)",
    "kl": "KL to the reference",
    "sampler_gap": "Sampler–trainer log-prob difference (nats)",
    "entropy": "Entropy (nats a token)",
    "completion_length": "Completion length (tokens)",
}
PHASES = {
    "render": "Rendering",
    "base": "Base phase",
    "dift": "DIFT",
    "dift_control": "Control: more DIFT",
    "control": "Control: more DIFT",
    "rl": "4DRL",
    "grpo": "4DRL",
    "evaluate": "Evaluation",
}
_HIDDEN = {"step", "epoch", "bad_steps"}

Series = dict[str, list[tuple[float, float]]]


def phases(run: Path) -> list[tuple[str, Path]]:
    """(name, metrics file) of the run and of the folders in it; known phases in the order they are run."""
    found = [(path.parent.name, path) for path in run.glob(f"*/{METRICS}")]
    order = list(PHASES)
    found.sort(key=lambda item: (order.index(item[0]) if item[0] in PHASES else len(order), item[0]))
    own = run / METRICS
    return ([("", own)] if own.exists() else []) + found


def read_metrics(path: Path) -> Series:
    """Name -> [(step, value)] of every finite number.

    A line without a step counts by its position in the file. One that is no JSON object, or whose step is no
    number, is left out with a warning.
    """
    series: Series = {}
    entries, bad = read_lines(path)
    for index, entry in entries:
        step = number(entry.get("step", index))
        if step is None:
            bad += 1
            continue
        for name, given in entry.items():
            value = number(given)
            if value is not None:
                series.setdefault(name, []).append((step, value))
    if bad:
        log.warning("%s: %d lines are no metrics and are left out", path, bad)
    return series


@dataclass(frozen=True)
class Figure:
    """last: the running mean at the end. chart: SVG."""

    title: str
    last: str
    chart: str


@dataclass(frozen=True)
class Phase:
    """What a phase of a run logged. folded: figures that are shown on a click. so_far: see `steps_so_far`."""

    title: str
    shown: list[Figure]
    folded: list[Figure]
    so_far: str = ""


def make_phase(name: str, series: Series, so_far: str = "") -> Phase | None:
    """The curves of one phase; None when nothing was logged.

    A metric logged once, where others were logged more often, is a number, not a curve, and left out.
    """
    points = {k: sorted(v) for k, v in series.items() if k not in _HIDDEN}
    fewest = min(2, max(map(len, points.values()), default=0))  # of a run's first step each has one
    curves = {k: v for k, v in points.items() if len(v) >= fewest}
    if not curves:
        return None
    shown = [k for k in KNOWN if k in curves] or sorted(curves)
    rest = sorted(set(curves) - set(shown))
    return Phase(
        PHASES.get(name, name),
        [_figure(KNOWN.get(k, k), curves[k]) for k in shown],
        [_figure(k, curves[k]) for k in rest],
        so_far,
    )


def read_phases(run: Path) -> list[Phase]:
    """The curves of the run and of the folders in it, with how far those are that are not finished."""
    found = []
    for title, log_file in phases(run):
        series = read_metrics(log_file)
        steps = [step for values in series.values() for step, _ in values]
        found.append(make_phase(title, series, steps_so_far(log_file.parent, steps)))
    return [phase for phase in found if phase is not None]


def _figure(title: str, values: list[tuple[float, float]]) -> Figure:
    return Figure(title, short(smooth(values)[-1][1]), line_chart(values, title))
