"""Curves of a run: what its phases logged while they trained."""

from __future__ import annotations

import json
import logging
import math
from html import escape
from pathlib import Path

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
    "kl": "KL to the reference",
    "sampler_gap": "Sampler–trainer gap (nats)",
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
    """(name, metrics file) of the run itself and of the folders in it; known phases in the order they are
    run.
    """
    found = [(path.parent.name, path) for path in run.glob(f"*/{METRICS}")]
    order = list(PHASES)
    found.sort(key=lambda item: (order.index(item[0]) if item[0] in PHASES else len(order), item[0]))
    own = run / METRICS
    return ([("", own)] if own.exists() else []) + found


def read_metrics(path: Path) -> Series:
    """name -> [(step, value)] of every finite number; a line that is no JSON object is left out with a
    warning.
    """
    series: Series = {}
    bad = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                step = float(entry.get("step", number))
            except (ValueError, TypeError, AttributeError, RecursionError):
                bad += 1
                continue
            for name, value in entry.items():
                if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                    series.setdefault(str(name), []).append((step, float(value)))
    if bad:
        log.warning("%s: %d lines are no metrics and are left out", path, bad)
    return series


def phase_html(name: str, series: Series) -> str:
    """The curves of one phase; "" when nothing was logged. A metric logged once is a number, not a curve,
    and left out.
    """
    curves = {k: sorted(v) for k, v in series.items() if k not in _HIDDEN and len(v) > 1}
    if not curves:
        return ""
    shown = [k for k in KNOWN if k in curves] or sorted(curves)
    rest = sorted(set(curves) - set(shown))
    title = PHASES.get(name, name)
    head = f"<h3>{escape(title)}</h3>" if title else ""
    body = "".join(_figure(KNOWN.get(k, k), curves[k]) for k in shown)
    more = ""
    if rest:
        inner = "".join(_figure(k, curves[k]) for k in rest)
        more = f'<details><summary>{len(rest)} more</summary><div class="curves">{inner}</div></details>'
    return f'{head}<div class="curves">{body}</div>{more}'


def _figure(title: str, values: list[tuple[float, float]]) -> str:
    last = short(smooth(values)[-1][1])
    caption = f"<figcaption><b>{escape(title)}</b><span>{last}</span></figcaption>"
    return f"<figure>{caption}{line_chart(values, title)}</figure>"
