"""The page: results, curves and rollouts of a run folder in one HTML file without any outside resource."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from fourdthinker.errors import ConfigError
from fourdthinker.files import write_text
from fourdthinker.report.curves import phase_html, phases, read_metrics
from fourdthinker.report.results import facts_html, results_html
from fourdthinker.report.rollouts import choose, group_html, read_groups
from fourdthinker.report.style import CSS

REPORT = "report.html"
RESULTS = "results.json"
ROLLOUTS = "rollouts.jsonl"
# Nothing is fetched and nothing runs, whatever a model or a data file wrote.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_NOTE = (
    '<p class="soft">All completions of a group answer the same question. The advantage A says how much '
    'better than its group a completion was; <span class="imagery">◆ imagery × K</span> stands for K '
    "latents, thought in the model's hidden space and not in words.</p>"
)


def write_report(run_dir: str | Path, *, out: str | Path | None = None, groups: int = 6) -> Path:
    """Write `run_dir`/report.html (or `out`) and return its path.

    Reads results.json (`evaluate.results_table` says of what form), metrics.jsonl and rollouts.jsonl of the
    run folder and of the folders directly in it; whatever is absent is left out. `groups`: rollout groups
    shown.

    Raises:
        ConfigError: the folder holds none of the three, or results.json is no JSON object.
    """
    run = Path(run_dir)
    results = _results(run / RESULTS)
    curves = [html for name, path in phases(run) if (html := phase_html(name, read_metrics(path)))]
    logs = [path for path in (run / ROLLOUTS, *sorted(run.glob(f"*/{ROLLOUTS}"))) if path.exists()]
    rollouts = [group for path in logs for group in choose(read_groups(path), groups)]
    if not (results or curves or rollouts):
        raise ConfigError(
            f"{run}: no {RESULTS}, no metrics.jsonl and no {ROLLOUTS} with anything in it; "
            "give the folder of a run"
        )
    sections = [results_html(results)] if results else []
    if curves:
        sections.append("<section><h2>Training</h2>" + "".join(curves) + "</section>")
    if rollouts:
        cards = "".join(group_html(group, run) for group in rollouts)
        sections.append(f"<section><h2>Rollouts</h2>{_NOTE}{cards}</section>")
    if results:
        sections.append(facts_html(results))
    name = escape(run.resolve().name)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} · fourdthinker</title><style>{CSS}</style></head><body><main>"
        f'<header><h1>{name}</h1><p class="soft">Latent visual reasoning for video · run report</p></header>'
        f"{''.join(sections)}<footer>Made by <code>fourdthinker report</code>. One file; nothing is "
        "loaded from elsewhere.</footer></main></body></html>\n"
    )
    path = Path(out) if out is not None else run / REPORT
    write_text(path, page)
    return path


def _results(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); evaluate again") from error
    if not isinstance(results, dict):
        raise ConfigError(f"{path}: holds a {type(results).__name__}, not an object; evaluate again")
    return results
