"""The one table of an evaluation, from the contents of a results.json."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

# What the keys of a results.json are called where people read them; any other key is shown as it is.
LABELS = {
    "chance": "Chance",
    "majority": "Majority class",
    "option_prior": "Option-text prior",
    "blind_solver": "Blind solver",
    "model": "Model",
    "answered": "Answered only",
    "easi": "EASI's reading",
    "vote": "Majority vote",
    "format_share": "EASI's − ours",
    "shown_none": "No frames",
    "shown_black": "Black frames",
    "shown_other": "Another clip's",
    "model_minus_shown_none": "Model − no frames",
    "model_minus_shown_black": "Model − black",
    "model_minus_shown_other": "Model − other's",
    "base": "Base model",
    "dift": "After DIFT",
    "dift_control": "Control: more DIFT",
    "rl": "After 4DRL",
    "black_frames": "4DRL, black frames",
    "other_frames": "4DRL, another clip's frames",
    "black_frames_control": "Control, black frames",
    "other_frames_control": "Control, another clip's frames",
    "rl_minus_dift": "4DRL − DIFT",
    "rl_minus_control": "4DRL − control",
    "greedy_rl_minus_dift": "4DRL − DIFT, greedy",
    "greedy_rl_minus_control": "4DRL − control, greedy",
}


def models(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The entries with an accuracy, in the order of the file."""
    return {
        k: v for k, v in results.items() if isinstance(v, Mapping) and number(v.get("accuracy")) is not None
    }


def comparisons(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The entries that are differences; of one video the bounds of their interval are None."""
    return {
        k: v
        for k, v in results.items()
        if isinstance(v, Mapping)
        and number(v.get("mean")) is not None
        and all(x in v and (v[x] is None or number(v[x]) is not None) for x in ("low", "high"))
    }


def percent(value: Any) -> str:
    """0.7346 -> "73.5 %"; "–" for what is no finite number. The space does not break."""
    share = number(value)
    return "–" if share is None else f"{100 * share:.1f}\u00a0%"


def points(value: Any) -> str:
    """A difference, in percentage points: 0.0346 -> "+3.5"; "–" for what is no finite number."""
    share = number(value)
    return "–" if share is None else f"{100 * share + 0.0:+.1f}".replace("-", "−")


def span(entry: Mapping[str, Any], *, difference: bool = False) -> str:
    """The interval of an entry, "71.0 – 75.9 %"; "–" when it has none or no width (chance is exact)."""
    low, high = number(entry.get("low")), number(entry.get("high"))
    if low is None or high is None or (low == high and not difference):
        return "–"
    if difference:
        return f"{points(low)} … {points(high)}"
    return f"{100 * low:.1f} – {percent(high)}"


def results_table(results: Mapping[str, Any], title: str = "") -> Table:
    """The table of an evaluation, for `rich.console.Console.print`.

    Args:
        results: the contents of a results.json.
        title: stands above the table.

    Returns:
        A row for every model or baseline, then one for every comparison.
    """
    table = Table(title=escape(title) or None)
    table.add_column("", no_wrap=True)
    for column in ("accuracy", "95 % interval", "adjusted", "greedy", "entropy", "questions"):
        table.add_column(column, justify="right")
    for key, entry in models(results).items():
        entropy = number(entry.get("entropy"))
        table.add_row(
            _label(key), percent(entry["accuracy"]), span(entry), percent(entry.get("adjusted")),
            percent(entry.get("greedy")), "–" if entropy is None else f"{entropy:.3f}",
            str(entry.get("n", "–")),
        )  # fmt: skip
    table.add_section()
    for key, entry in comparisons(results).items():
        table.add_row(_label(key), f"{points(entry['mean'])} points", span(entry, difference=True))
    failed = {_label(k): e["failed"] for k, e in models(results).items() if e.get("failed")}
    if failed:
        table.caption = "failed, counted as wrong: " + ", ".join(f"{k} {v}" for k, v in failed.items())
    return table


def types_table(entry: Mapping[str, Any]) -> Table:
    """One model's accuracy by type of question, and their mean.

    Args:
        entry: a model of a results.json.

    Returns:
        A table for `rich.console.Console.print`; where questions failed also the accuracy over the others.
    """
    answered = entry.get("answered") if entry.get("failed") else None
    table = Table()
    table.add_column("type")
    columns = ["accuracy", "95 % interval", "adjusted", "greedy", "questions"]
    for column in (*columns, *(("answered only", "of") if answered else ())):
        table.add_column(column, justify="right")
    for kind, part in entry["by_type"].items():
        cells = [percent(part["accuracy"]), span(part), percent(part.get("adjusted"))]
        cells += [percent(part.get("greedy")), str(part["n"])]
        if answered:
            some = answered["by_type"].get(kind, {})
            cells += [percent(some.get("accuracy")), str(some.get("n", 0))]
        table.add_row(escape(kind) or "(none)", *cells)
    table.add_section()
    empty = [""] * (len(columns) - 1)
    mean = [percent(entry["macro"]), *(([*empty, percent(answered["macro"])]) if answered else ())]
    table.add_row("mean over types", *mean)
    return table


def _label(key: str) -> str:
    return escape(LABELS.get(key, key))


def number(value: Any) -> float | None:
    """A JSON value as a float; None for what is no finite number, true and false among it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None  # NaN is not
