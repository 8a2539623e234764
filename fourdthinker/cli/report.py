"""`fourdthinker report`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fourdthinker.cli.shared import Commands, output


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker report`."""
    parser = commands.add_parser("report", help="one HTML page about a run")
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN", help="folder of a demo, a training run or an evaluation"
    )
    parser.add_argument("--out", type=output, help="file to write (default: RUN/report.html)")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Write the page about a run, and its path to standard output."""
    from fourdthinker.files import check_output
    from fourdthinker.report import write_report

    if arguments.out is not None:
        check_output(arguments.out)
    sys.stdout.write(f"{write_report(arguments.run_dir, out=arguments.out)}\n")
