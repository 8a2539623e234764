"""The results of a run as HTML: what they say, the intervals, the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fourdthinker.evaluate.table import LABELS, comparisons, models, percent, points, span
from fourdthinker.report.curves import PHASES
from fourdthinker.report.svg import Bar, interval_chart
from fourdthinker.report.verdict import verdict

_BASELINES = ("chance", "majority")
_KEY = (
    '<p class="soft small">Accuracy in percent. Filled: sampled accuracy with its 95 % interval over '
    "questions. Hollow: greedy.</p>"
)

Entries = Mapping[str, Mapping[str, Any]]


def results_html(results: Mapping[str, Any]) -> str:
    """The section on a results.json."""
    entries = models(results)
    said = "".join(f'<p class="lead">{escape(sentence)}</p>' for sentence in verdict(results))
    body = said + _plot(entries) + _table(entries) + _differences(results) + _by_type(entries)
    return f"<section><h2>Results</h2>{body}</section>"


def facts_html(results: Mapping[str, Any]) -> str:
    """Everything else in a results.json, seeds and seconds among it; "" when there is nothing else."""
    known = {*models(results), *comparisons(results)}
    items = []
    for key, value in results.items():
        if key in known or value is None:
            continue
        items.append(f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{_fact(value)}</dd>")
    if not items:
        return ""
    return f'<section><h2>How it was made</h2><div class="card"><dl>{"".join(items)}</dl></div></section>'


def _plot(entries: Entries) -> str:
    bars = [
        Bar(_label(k), e["accuracy"], e.get("low"), e.get("high"), e.get("greedy"))
        for k, e in entries.items()
        if k not in _BASELINES
    ]
    if not bars:
        return ""
    lines = [(_label(k).lower(), entries[k]["accuracy"]) for k in _BASELINES if k in entries]
    chart = interval_chart(bars, "Accuracy in percent with 95 % intervals", lines=lines)
    return f'<div class="card scroll" tabindex="0">{chart}{_KEY}</div>'


def _table(entries: Entries) -> str:
    rows = []
    for key, entry in entries.items():
        entropy = entry.get("entropy")
        cells = [
            f'<td class="strong">{percent(entry["accuracy"])}</td>',
            f"<td>{span(entry)}</td>",
            f"<td>{percent(entry.get('greedy'))}</td>",
            f"<td>{entropy:.3f}</td>" if isinstance(entropy, float) else "<td>–</td>",
            _count(entry.get("n")),
            _count(entry.get("failed")),
        ]
        rows.append(_row(key, cells))
    names = ("Accuracy", "95 % interval", "Greedy", "Answer entropy", "Questions", "Failed")
    caption = "Failed questions count as wrong. Entropy in nats, over the parsed answers to a question."
    return _grid(caption, names, rows)


def _differences(results: Mapping[str, Any]) -> str:
    rows = []
    for key, entry in comparisons(results).items():
        kind, said = "", "no difference shown"
        if entry["low"] > 0:
            kind, said = " gain", "higher"
        elif entry["high"] < 0:
            kind, said = " loss", "lower"
        cells = [
            f'<td class="strong{kind}">{points(entry["mean"])}</td>',
            f"<td>{span(entry, difference=True)}</td>",
            f"<td>{said}</td>",
        ]
        rows.append(_row(key, cells))
    return _grid(
        "In percentage points, paired over the same questions.", ("Difference", "95 % interval", ""), rows
    )


def _by_type(entries: Entries) -> str:
    split = {k: e["by_type"] for k, e in entries.items() if isinstance(e.get("by_type"), dict)}
    kinds = sorted({kind for parts in split.values() for kind in parts})
    if len(kinds) < 2:
        return ""
    rows = []
    for key, parts in split.items():
        found = [part if isinstance(part := parts.get(kind), dict) else {} for kind in kinds]
        cells = [f'<td title="{span(part)}">{percent(part.get("accuracy"))}</td>' for part in found]
        rows.append(_row(key, cells))
    return _grid("Accuracy by type of question.", kinds, rows)


def _grid(caption: str, names: Sequence[str], rows: Sequence[str]) -> str:
    """A table with `names` over all columns but the first; "" without rows."""
    if not rows:
        return ""
    head = "<td></td>" + "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    table = f"<caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="card scroll" tabindex="0"><table>{table}</table></div>'


def _row(key: str, cells: Sequence[str]) -> str:
    kind = ' class="baseline"' if key in _BASELINES else ""
    return f'<tr{kind}><th scope="row">{escape(_label(key))}</th>{"".join(cells)}</tr>'


def _label(key: str) -> str:
    return LABELS.get(key, key)


def _count(value: Any) -> str:
    return f"<td>{value:,}</td>" if isinstance(value, int) else "<td>–</td>"


def _fact(value: Any) -> str:
    if not isinstance(value, dict):
        return escape(_plain(value))
    if any(isinstance(v, dict | list) for v in value.values()):
        inner = escape(json.dumps(value, indent=2, ensure_ascii=False))
        return f"<details><summary>show</summary><pre>{inner}</pre></details>"
    return escape(", ".join(f"{PHASES.get(str(k), str(k))} {_plain(v)}" for k, v in value.items()))


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) if isinstance(value, str | int) else json.dumps(value, ensure_ascii=False)
