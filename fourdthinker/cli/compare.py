"""`fourdthinker compare`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fourdthinker.cli.shared import Commands, check_with_folder, not_read, output, whole

if TYPE_CHECKING:
    from rich.table import Table

    from fourdthinker.evaluate import Comparison

log = logging.getLogger(__name__)


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker compare`."""
    parser = commands.add_parser("compare", help="how much more accurate a run is than another")
    parser.add_argument("a", type=Path, metavar="A", help="folder of an evaluation: the base")
    parser.add_argument("b", type=Path, metavar="B", help="folder of an evaluation of the same questions")
    parser.add_argument("--out", type=output, metavar="JSON", help="write all figures and all flips")
    parser.add_argument(
        "--flips", type=whole(0), default=20, metavar="N", help="questions to list (default: %(default)s)"
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Print differences with intervals, the test of the flips, and the first flips."""
    from rich.console import Console

    from fourdthinker.evaluate import compare, load_result
    from fourdthinker.files import write_json

    answers = [run / "answers.jsonl" if run.is_dir() else run for run in (arguments.a, arguments.b)]
    if arguments.out is not None:
        check_with_folder(arguments.out)
    not_read(arguments.out, [*answers, *(path.with_name("results.json") for path in answers)])
    found = compare(load_result(arguments.a), load_result(arguments.b))
    console = Console()
    console.print(_table(found))
    if found.p is not None and found.changed is not None:
        gained = sum(flip.gained for flip in found.flips)
        console.print(
            f"at temperature 0: {gained} became right, {len(found.flips) - gained} wrong "
            f"(McNemar p = {found.p:.3g}); {found.changed:.1%} of the answers are others"
        )
    if found.failed[0] != found.failed[1]:
        log.warning(
            "%d questions of the first run and %d of the second could not be asked and count as wrong; a "
            "difference may be that of the videos which are there",
            *found.failed,
        )
    for flip in found.flips[: arguments.flips]:
        sign = "+" if flip.gained else "−"
        said = f"{flip.a or 'nothing'} -> {flip.b or 'nothing'}, right is {flip.right}"
        console.print(f"{sign} {flip.id}: {said}", markup=False, highlight=False)
    if arguments.out:
        sys.stdout.write(f"{write_json(arguments.out, found.to_dict())}\n")


def _table(found: Comparison) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from fourdthinker.evaluate.table import points, span

    table = Table(title=f"{escape(found.b)} less {escape(found.a)}, {found.questions} questions")
    table.add_column("")
    table.add_column("points", justify="right")
    table.add_column("95 % interval", justify="right")
    rows = {"temperature 0": found.greedy, "sampled": found.sampled, **found.by_type}
    for name, entry in rows.items():
        if entry is not None:
            table.add_row(escape(name or "(no type)"), points(entry["mean"]), span(entry, difference=True))
    return table
