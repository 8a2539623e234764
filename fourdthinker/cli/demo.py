"""`fourdthinker demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fourdthinker.cli.shared import SEEDS, Commands, output, whole


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker demo`."""
    parser = commands.add_parser("demo", help="the whole loop on rendered scenes, on a CPU in minutes")
    parser.add_argument(
        "--quick", action="store_true", help="at most 2 minutes; shows that it runs, not that it learns"
    )
    parser.add_argument(
        "--out", type=output, default=Path("runs/demo"), help="folder of the run (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=whole(0, SEEDS),
        default=0,
        help="of scenes, weights and sampling (default: %(default)s)",
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Run the demo, or go on with one that was interrupted, and write its report."""
    from fourdthinker.demo import run_demo
    from fourdthinker.errors import FourdError

    try:
        run_demo(arguments.out, quick=arguments.quick, seed=arguments.seed)
    except RuntimeError as error:  # a training process failed; its own message stands above
        raise FourdError(str(error)) from error
