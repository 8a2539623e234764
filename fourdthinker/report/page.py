"""The page: results, curves, questions and rollouts of runs in one HTML file without any outside resource."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fourdthinker.audit.thoughts import THOUGHTS
from fourdthinker.errors import ConfigError
from fourdthinker.files import PathLike, read_regular, write_text
from fourdthinker.report.cards import Deck, Names
from fourdthinker.report.curves import Phase, read_phases
from fourdthinker.report.fitting import ROOM, fitting
from fourdthinker.report.latents import LATENTS, latent_tables, thought_deck
from fourdthinker.report.lines import parse
from fourdthinker.report.media import Album
from fourdthinker.report.questions import (
    ANSWERS,
    Answers,
    comparison_tables,
    confusion_tables,
    question_deck,
    read_answers,
)
from fourdthinker.report.results import Fact, Results, make_facts, make_results
from fourdthinker.report.rollouts import rollout_deck
from fourdthinker.report.so_far import audit_so_far
from fourdthinker.report.tables import Table

REPORT = "report.html"
RESULTS = "results.json"
ROLLOUTS = "rollouts.jsonl"
DOCTYPE = b"<!doctype html>"  # what the page begins with
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Run:
    """What the page shows of one folder.

    Attributes:
        name: of the folder.
        results: of its results.json.
        facts: of the same.
        phases: its curves.
        latents: the tables of its latents.json.
        confusions: of its answers.
        decks: its rollouts, and what its latents show.
    """

    name: str
    results: Results | None
    facts: list[Fact]
    phases: list[Phase]
    latents: list[Table]
    confusions: list[Table]
    decks: list[Deck]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.results or self.phases or self.latents or self.confusions or self.decks)


def write_report(run_dir: PathLike, *others: PathLike, out: PathLike | None = None, groups: int = 24) -> Path:
    """Write the page about a run, or about several.

    Args:
        run_dir: folder of the run. results.json (`evaluate.results_table` says of what form), answers.jsonl,
            latents.json and thoughts.jsonl are read from it, and metrics.jsonl and rollouts.jsonl, also from
            the folders directly in it; what is absent is left out.
        others: further runs. Their answers to the same questions stand beside each other, and those of each
            are compared with those of `run_dir`.
        out: the file to write; None: report.html in the last run.
        groups: rollout groups shown of each log.

    Returns:
        The path of the page.

    Raises:
        ConfigError: a run is no folder or holds none of these, a JSON file of it is not what it should be, or
            one is no regular file; `out` is a file that is no report.
        OutputError: `out` cannot be written.
    """
    folders = [Path(run_dir), *map(Path, others)]
    for run in folders:
        if not run.is_dir():
            what = " is a file, not a folder" if run.exists() else ": no such folder"
            raise ConfigError(f"{run}{what}; give the folder of a run")
    path = Path(out) if out is not None else folders[-1] / REPORT
    _check_replaced(path)
    named = list(zip(_names(folders), folders, strict=True))
    album, names = Album(folders[0]), Names()
    answers = read_answers(named)
    questions = question_deck(answers, album, names) if answers else None
    runs = [_run(name, folder, answers, album, names, groups, len(folders) > 1) for name, folder in named]
    room = ROOM // max(1, sum(len(run.decks) for run in runs) + (questions is not None))
    page = _render(
        name=" → ".join(run.name for run in runs),
        several=len(runs) > 1,
        runs=[replace(run, decks=[fitting(deck, room) for deck in run.decks]) for run in runs],
        unfinished=_unfinished(runs, answers),
        comparisons=comparison_tables(answers),
        questions=fitting(questions, room) if questions is not None else None,
        album=album,
    )
    write_text(path, page)
    return path


def _unfinished(runs: Sequence[Run], answers: Sequence[Answers]) -> list[str]:
    """What is not finished, and how far it is."""
    told = [f"{run.name}, {run.so_far} are answered" for run in answers if run.so_far]
    for run in runs:
        found = [(" ".join(filter(None, (run.name, phase.title))), phase.so_far) for phase in run.phases]
        told += [f"{name}, {so_far}" for name, so_far in found if so_far]
    return told


def _run(
    name: str,
    folder: Path,
    answers: Sequence[Answers],
    album: Album,
    names: Names,
    groups: int,
    several: bool,
) -> Run:
    """What is shown of one folder; ConfigError where that is nothing."""
    album = album.of(folder)
    results, audit = _object(folder / RESULTS, "evaluate again"), _object(folder / LATENTS, "audit again")
    logs = [log for log in (folder / ROLLOUTS, *sorted(folder.glob(f"*/{ROLLOUTS}"))) if log.exists()]
    decks = []
    for log in logs:
        inside = log.parent.name if log.parent != folder and len(logs) > 1 else ""
        decks.append(
            rollout_deck(log, " ".join(filter(None, (name * several, inside))), album, names, groups)
        )
    if (folder / THOUGHTS).exists():
        decks.append(thought_deck(folder / THOUGHTS, name * several, album, names))
    run = Run(
        name=name,
        results=make_results(results) if results else None,
        facts=make_facts(results),
        phases=read_phases(folder),
        latents=latent_tables(audit),
        confusions=[table for run in answers if run.name == name for table in confusion_tables(run)],
        decks=[deck for deck in decks if deck is not None],
    )
    if run.empty and not any(found.name == name for found in answers):
        raise ConfigError(f"{folder}: {_nothing(folder)}")
    return run


def _nothing(folder: Path) -> str:
    """Why nothing is shown of a folder."""
    modes = audit_so_far(folder)
    if modes:
        parts = " ".join(str(folder / mode) for mode in modes)
        told = ", ".join(f"{mode} {so_far}" for mode, so_far in modes.items())
        return (
            f"a latent audit that is not finished, with answers in these modes: {told}; run it again, which "
            f"goes on, or report what is there: {parts}"
        )
    return (
        f"no {RESULTS}, no {ANSWERS}, no {LATENTS}, no metrics.jsonl and no {ROLLOUTS} with anything in it; "
        "give the folder of a run that has begun to write"
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or where two are alike their paths below what they have in common."""
    paths = [Path(os.path.realpath(folder)) for folder in folders]
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath(paths)
    twice = {path for path in paths if paths.count(path) > 1}
    return [
        os.path.relpath(path, common) + (f" ({number})" if path in twice else "")
        for number, path in enumerate(paths, start=1)
    ]


def _check_replaced(path: Path) -> None:
    """ConfigError for a file that is no report; the file of a run or of records may be named by mistake."""
    if path.is_file() and (found := path.read_bytes()) and not found.startswith(DOCTYPE):
        raise ConfigError(f"{path} is there and no report, so it is not replaced; name another file")


def _render(**values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,  # whatever a model or a data file wrote is text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return environment.get_template("page.html").render(script=script, script_digest=digest, **values)


def _object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file."""
    if not path.exists():
        return {}
    try:
        found = parse(read_regular(path).decode("utf-8", "replace"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds a {type(found).__name__}, not an object; {remedy}")
    return found
