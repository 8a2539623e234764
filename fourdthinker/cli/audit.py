"""`fourdthinker audit`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourdthinker.cli.shared import SEEDS, Commands, differ, not_read, output, real, whole

if TYPE_CHECKING:
    from rich.table import Table

    from fourdthinker.audit import Audit, QuestionFile

log = logging.getLogger(__name__)

_WIDTH = 72  # characters of a question in the list of the worst


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker audit`."""
    parser = commands.add_parser(
        "audit",
        help="what solvers that see no pixel reach on multiple-choice questions",
        description="Exit status 1 when a solver beats chance in any of the files.",
    )
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="JSONL, JSON or Parquet with questions; each is audited apart",
    )
    parser.add_argument(
        "--prune", type=output, metavar="OUT", help="write the file without the items that give most away"
    )
    parser.add_argument(
        "--keep",
        type=real(1e-6, 1.0),
        default=0.5,
        metavar="SHARE",
        help="share of the items that --prune must leave (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=output, metavar="JSON", help="write all figures, and the bias of each item"
    )
    parser.add_argument(
        "--worst",
        type=whole(0),
        default=5,
        metavar="N",
        help="items to show, worst first (default: %(default)s)",
    )
    parser.add_argument(
        "--folds", type=whole(2), default=10, metavar="N", help="of videos (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=whole(0, SEEDS), default=0, metavar="N", help="of the folds (default: %(default)s)"
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Audit each file and print its table.

    Returns:
        The exit status: 1 if a solver beats chance, in what is left after pruning if it is asked for; else 0.
    """
    from rich.console import Console

    from fourdthinker.audit import audit, prune, read_questions, write_without
    from fourdthinker.errors import ConfigError
    from fourdthinker.files import check_output, write_json

    if arguments.prune is not None and len(arguments.files) > 1:
        raise ConfigError(
            f"--prune writes one file and {len(arguments.files)} are given; prune one at a time"
        )
    differ(prune=arguments.prune, out=arguments.out)
    for path in (arguments.prune, arguments.out):
        if path is not None:
            check_output(path)  # before long work
            not_read(path, arguments.files)
    console, results, leaks = Console(), {}, False
    for path in arguments.files:
        file = read_questions(path)
        found = audit(file.items, folds=arguments.folds, seed=arguments.seed)
        _show(console, file, found, arguments.worst)
        results[str(path)] = found.summary()
        if arguments.prune is not None and found.leaks:
            found, dropped = prune(
                file.items, folds=arguments.folds, seed=arguments.seed, keep=arguments.keep
            )
            _show_table(console, f"{arguments.prune}: {len(dropped)} items taken out", found)
            results[str(arguments.prune)] = found.summary()
            write_without(file, (item.index for item in dropped), arguments.prune)
        elif arguments.prune is not None:
            write_without(file, (), arguments.prune)
        leaks = leaks or bool(found.leaks)
    if arguments.out is not None:
        sys.stdout.write(f"{write_json(arguments.out, results)}\n")
    return 1 if leaks else 0


def _show(console: Any, file: QuestionFile, found: Audit, worst: int) -> None:
    _show_table(console, str(file.path), found)
    if file.open_questions:
        log.warning("%s: %d questions have no options and are not audited", file.path, file.open_questions)
    if found.ambiguous:
        log.warning("%s: in %d questions two options have the text of the answer", file.path, found.ambiguous)
    for item, bias in found.worst(worst):
        text = " ".join(item.question.split())
        shown = text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
        options = " | ".join(item.options)
        console.print(f"{item.id}  +{bias:.2f}  {shown}  [{options}]", markup=False, highlight=False)


def _show_table(console: Any, title: str, found: Audit) -> None:
    console.print(_table(title, found))
    for doubt in found.doubts:
        console.print(doubt, markup=False, highlight=False)


def _table(title: str, found: Audit) -> Table:
    from rich.markup import escape
    from rich.table import Table

    name = escape(title)
    table = Table(title=f"{name}: {len(found.items)} questions, {found.groups} videos, {found.folds} folds")
    for column in ("questions", "solver", "accuracy", "95 %", "chance", ""):
        table.add_column(column, justify="left" if column in ("questions", "solver", "") else "right")
    for line in found.lines:
        if line.type is not None and not line.beats_chance:
            continue  # of types, only what leaks
        table.add_row(
            f"{escape(line.type or 'all')} ({line.questions})",
            line.solver,
            f"{line.accuracy:.1%}",
            f"{line.low:.1%} to {line.high:.1%}",
            f"{line.chance:.1%}",
            "beats chance" if line.beats_chance else "",
        )
    return table
