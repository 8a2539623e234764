"""The page: results, curves and rollouts of a run folder in one HTML file without any outside resource."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fourdthinker.errors import ConfigError
from fourdthinker.files import PathLike, read_regular, write_text
from fourdthinker.report.curves import make_phase, phases, read_metrics
from fourdthinker.report.lines import parse
from fourdthinker.report.results import make_facts, make_results
from fourdthinker.report.rollouts import choose, make_card, read_groups

REPORT = "report.html"
RESULTS = "results.json"
ROLLOUTS = "rollouts.jsonl"
DOCTYPE = b"<!doctype html>"  # what the page begins with


def write_report(run_dir: PathLike, *, out: PathLike | None = None, groups: int = 6) -> Path:
    """Write the page about a run.

    Args:
        run_dir: folder of the run. results.json (`evaluate.results_table` says of what form), metrics.jsonl
            and rollouts.jsonl are read from it and from the folders directly in it; what is absent is left
            out.
        out: the file to write; None: report.html in `run_dir`.
        groups: rollout groups shown of each log.

    Returns:
        The path of the page.

    Raises:
        ConfigError: `run_dir` is no folder or holds none of the three, results.json is no JSON object, or
            one is no regular file; `out` is a file that is no report.
        OutputError: `out` cannot be written.
    """
    run = Path(run_dir)
    if not run.is_dir():
        what = " is a file, not a folder" if run.exists() else ": no such folder"
        raise ConfigError(f"{run}{what}; give the folder of a run")
    path = Path(out) if out is not None else run / REPORT
    _check_replaced(path)
    results = _results(run / RESULTS)
    curves = [phase for name, path in phases(run) if (phase := make_phase(name, read_metrics(path)))]
    logs = [path for path in (run / ROLLOUTS, *sorted(run.glob(f"*/{ROLLOUTS}"))) if path.exists()]
    chosen = [group for path in logs for group in choose(read_groups(path), groups)]
    if not (results or curves or chosen):
        raise ConfigError(
            f"{run}: no {RESULTS}, no metrics.jsonl and no {ROLLOUTS} with anything in it; "
            "give the folder of a run"
        )
    page = _render(
        name=run.resolve().name,
        results=make_results(results) if results else None,
        phases=curves,
        cards=[make_card(group, run) for group in chosen],
        facts=make_facts(results),
    )
    write_text(path, page)
    return path


def _check_replaced(path: Path) -> None:
    """ConfigError for a file that is no report; the file of a run or of records may be named by mistake."""
    if path.is_file() and (found := path.read_bytes()) and not found.startswith(DOCTYPE):
        raise ConfigError(f"{path} is there and no report, so it is not replaced; name another file")


def _render(**values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # whatever a model or a data file wrote is text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(values)


def _results(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        results = parse(read_regular(path).decode("utf-8", "replace"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); evaluate again") from error
    if not isinstance(results, dict):
        raise ConfigError(f"{path}: holds a {type(results).__name__}, not an object; evaluate again")
    return results
