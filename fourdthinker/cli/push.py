"""`fourdthinker push`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from fourdthinker.cli.shared import Commands


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = commands.add_parser("push", help="write a checkpoint's model card, and upload it to the hub")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a checkpoint")
    parser.add_argument(
        "repository", nargs="?", metavar="OWNER/NAME", help="where to; without it the card alone is written"
    )
    parser.add_argument(
        "--results", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="evaluations and latent audits of this checkpoint, which the card shows with their baselines",
    )  # fmt: skip
    parser.add_argument(
        "--base", help="the model that it was trained from, owner/name on the hub (default: as its runs say)"
    )
    parser.add_argument(
        "--data", nargs="+", metavar="TEXT", help="what it was trained on (default: as its runs say)"
    )
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Write the card, upload, and print where."""
    from fourdthinker.integrations.hub import CardFacts, push
    from fourdthinker.integrations.origin import named_base, trained_origin

    origin = trained_origin(arguments.checkpoint)
    if arguments.base is not None:
        origin = replace(named_base(arguments.base), data=origin.data)
    if arguments.data is not None:
        origin = replace(origin, data=tuple(arguments.data))
    facts = CardFacts(origin, arguments.results)
    sys.stdout.write(
        f"{push(arguments.checkpoint, arguments.repository, facts, private=not arguments.public)}\n"
    )
