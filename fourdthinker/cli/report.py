"""`fourdthinker report`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fourdthinker.cli.shared import Commands, output, whole


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker report`."""
    parser = commands.add_parser("report", help="one HTML page about a run, or about several side by side")
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN",
        help="folder of a demo, a training run, an evaluation or a latent audit; further evaluations are "
        "compared with the first",
    )  # fmt: skip
    parser.add_argument("--out", type=output, help="file to write (default: report.html in the last RUN)")
    parser.add_argument(
        "--groups",
        type=whole(1),
        default=24,
        help="groups of rollouts shown of each log (default: %(default)s)",
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Write the page about the runs, and its path to standard output."""
    from fourdthinker.files import check_output
    from fourdthinker.report import write_report

    if arguments.out is not None:
        check_output(arguments.out)
    path = write_report(*arguments.runs, out=arguments.out, groups=arguments.groups)
    sys.stdout.write(f"{path}\n")
