"""`fourdthinker preview`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fourdthinker.cli.shared import Commands, output, whole


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker preview`."""
    parser = commands.add_parser("preview", help="one HTML page about synthesised data")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder that `fourdthinker synth` has written"
    )
    parser.add_argument(
        "--out", type=output, metavar="PAGE", help="the page (default: preview.html in the folder)"
    )
    parser.add_argument(
        "--most", type=whole(1), default=60, metavar="N", help="questions shown (default: %(default)s)"
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Write the page, and say where."""
    from fourdthinker.files import check_output
    from fourdthinker.synth.preview import write_preview

    if arguments.out is not None:
        check_output(arguments.out)  # before clips are decoded

    sys.stdout.write(f"{write_preview(arguments.folder, page=arguments.out, most=arguments.most)}\n")
