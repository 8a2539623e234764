"""The results of a run as what the page shows: what they say, the intervals, the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fourdthinker.evaluate.table import LABELS, comparisons, models, number, percent, points, span
from fourdthinker.report.curves import PHASES
from fourdthinker.report.svg import Bar, interval_chart
from fourdthinker.report.tables import Cell, Table, TableRow
from fourdthinker.report.verdict import verdict

_BASELINES = ("chance", "majority")

Entries = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Results:
    """said: sentences. chart: SVG, or "" without a model."""

    said: list[str]
    chart: str
    tables: list[Table]


@dataclass(frozen=True)
class Fact:
    """folded: whether the text is JSON of many lines, shown on a click."""

    name: str
    text: str
    folded: bool = False


def make_results(results: Mapping[str, Any]) -> Results:
    """The section on a results.json."""
    entries = models(results)
    tables = [_accuracies(entries), _differences(results), _by_type(entries)]
    return Results(verdict(results), _chart(entries), [table for table in tables if table.rows])


def make_facts(results: Mapping[str, Any]) -> list[Fact]:
    """Everything else in a results.json, seeds and seconds among it."""
    known = {*models(results), *comparisons(results)}
    return [
        _fact(key.replace("_", " "), value)
        for key, value in results.items()
        if key not in known and value is not None
    ]


def _chart(entries: Entries) -> str:
    bars = [
        Bar(_label(key), entry["accuracy"], *(number(entry.get(name)) for name in ("low", "high", "greedy")))
        for key, entry in entries.items()
        if key not in _BASELINES
    ]
    lines = [(_label(key).lower(), entries[key]["accuracy"]) for key in _BASELINES if key in entries]
    return interval_chart(bars, "Accuracy in percent with 95 % intervals", lines=lines) if bars else ""


def _accuracies(entries: Entries) -> Table:
    rows = []
    for key, entry in entries.items():
        entropy = number(entry.get("entropy"))
        cells = [
            Cell(percent(entry["accuracy"]), "strong"),
            Cell(span(entry)),
            Cell(percent(entry.get("adjusted"))),
            Cell(percent(entry.get("greedy"))),
            Cell("–" if entropy is None else f"{entropy:.3f}"),
            Cell(_count(entry.get("n"))),
            Cell(_count(entry.get("failed"))),
        ]
        rows.append(_row(key, cells))
    names = ("Accuracy", "95 % interval", "Adjusted", "Greedy", "Answer entropy", "Questions", "Failed")
    caption = (
        "Failed questions count as wrong. Adjusted: what a guess leaves to be had is 100 %. Entropy in nats, "
        "over the parsed answers to a question."
    )
    return Table("accuracy", caption, names, rows)


def _differences(results: Mapping[str, Any]) -> Table:
    rows = []
    for key, entry in comparisons(results).items():
        rows.append(_row(key, difference_cells(entry)))
    caption = "In percentage points, paired over the same questions."
    return Table("differences", caption, ("Difference", "95 % interval", ""), rows)


def difference_cells(entry: Mapping[str, Any]) -> list[Cell]:
    """Mean, interval and verdict of a paired difference.

    Args:
        entry: mean, low and high; a bound that is None is not known.

    Returns:
        Three cells.
    """
    low, high = number(entry.get("low")), number(entry.get("high"))
    kind, said = "strong", "no difference shown"
    if low is not None and low > 0:
        kind, said = "strong gain", "higher"
    elif high is not None and high < 0:
        kind, said = "strong loss", "lower"
    return [Cell(points(entry.get("mean")), kind), Cell(span(entry, difference=True)), Cell(said)]


def _by_type(entries: Entries) -> Table:
    split = {k: e["by_type"] for k, e in entries.items() if isinstance(e.get("by_type"), dict)}
    if not entries.get("model", {}).get("failed"):
        split.pop("answered", None)  # the same questions once more
    kinds = sorted({kind for parts in split.values() for kind in parts})
    rows = []
    for key, parts in split.items() if len(kinds) > 1 else ():
        found = [part if isinstance(part := parts.get(kind), dict) else {} for kind in kinds]
        rows.append(_row(key, [Cell(percent(p.get("accuracy")), title=span(p)) for p in found]))
    return Table("types", "Accuracy by type of question.", kinds, rows)


def _row(key: str, cells: list[Cell]) -> TableRow:
    return TableRow(_label(key), cells, key in _BASELINES)


def _label(key: str) -> str:
    return LABELS.get(key, key)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


def _fact(name: str, value: Any) -> Fact:
    if not isinstance(value, dict):
        return Fact(name, _plain(value))
    if any(isinstance(v, dict | list) for v in value.values()):
        return Fact(name, json.dumps(value, indent=2, ensure_ascii=False), folded=True)
    return Fact(name, ", ".join(f"{PHASES.get(str(k), str(k))} {_plain(v)}" for k, v in value.items()))


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) if isinstance(value, str | int) else json.dumps(value, ensure_ascii=False)
