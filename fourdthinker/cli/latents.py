"""`fourdthinker latents`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourdthinker.cli.questions import add_questions, questions, take_data
from fourdthinker.cli.shared import (
    SAMPLES,
    Commands,
    add_model,
    add_sampling,
    check_with_folder,
    model_name,
    output,
    sampling,
    thinker,
    whole,
)

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker latents`."""
    parser = commands.add_parser("latents", help="what a model's latents do: other vectors in their place")
    add_model(parser, positional=True)
    add_questions(parser)
    parser.add_argument(
        "--modes",
        nargs="+",
        metavar="MODE",
        help="what is fed instead: oracle, zero, pad, noise, other-clip, first-repeat, shuffle, none "
        "(default: all that the data allow)",
    )
    parser.add_argument(
        "--samples",
        type=whole(0, SAMPLES),
        default=0,
        help="samples of each question beside the greedy answer (default: 0)",
    )
    parser.add_argument(
        "--batch", type=whole(1), default=16, help="questions in one batch (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=output,
        default=Path("runs/latents"),
        help="folder of the results (default: %(default)s)",
    )
    add_sampling(parser, temperature=1.0)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Answer the questions in every mode: answers.jsonl of each, latents.json, and tables on stdout."""
    from rich.console import Console

    from fourdthinker.audit.latents import LatentAudit
    from fourdthinker.files import make_folder, write_json
    from fourdthinker.sampler import check_latent_mode

    take_data(arguments)
    for mode in arguments.modes or ():
        check_latent_mode(mode)
    check_with_folder(make_folder(arguments.out) / "latents.json")
    records, _, _ = questions(arguments)
    model, name = thinker(arguments), model_name(arguments)
    audit = LatentAudit(
        model.sampler, model.encoder, records, arguments.samples, sampling(arguments), arguments.batch,
        arguments.out, name,
    )  # fmt: skip
    found = audit.run(arguments.modes)
    path = write_json(arguments.out / "latents.json", found)
    console = Console()
    console.print(_modes_table(name, found))
    if found["blocks"]:
        console.print(_blocks_table(found["blocks"]))
    if found["without_blocks"]:
        log.warning("%.0f %% of the answers have no imagery block", 100 * found["without_blocks"])
    shuffled = found["shuffled"]
    if "shuffle" in found["modes"] and shuffled < found["asked"]:
        log.warning("shuffle: %d of %d answers have two latents or more", shuffled, found["asked"])
    for id, reason in found["failed"].items():
        log.warning("not asked, and wrong in `accuracy`: %s: %s", id, reason)
    sys.stdout.write(f"{path}\n")


def _modes_table(name: str, found: Mapping[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from fourdthinker.evaluate.table import percent, points, span

    table = Table(title=f"{escape(name)}: {found['questions']} questions, {found['videos']} videos")
    table.add_column("latents", no_wrap=True)
    some = ("answered only",) if found["failed"] else ()
    for column in ("accuracy", *some, "less own", "95 % interval", "flips", "KL"):
        table.add_column(column, justify="right")
    for mode, row in found["modes"].items():
        difference = row.get("difference")
        other: Sequence[str] = ("–", "–", "–", "–")
        if difference is not None:
            kl = row["kl"]["mean"]
            other = (
                points(difference["mean"]), span(difference, difference=True), percent(row["flips"]),
                "–" if kl is None else f"{kl:.3f}",
            )  # fmt: skip
        accuracies = [row, *([row["answered"] or {}] if some else [])]
        table.add_row(mode, *(percent(part.get("accuracy")) for part in accuracies), *other)
    return table


def _blocks_table(blocks: Sequence[Mapping[str, Any]]) -> Table:
    from rich.table import Table

    keys = {
        "block": "block", "rows": "rows", "oracle_cosine": "cosine to target",
        "mean_target_cosine": "of the mean target",
        "between_clip_cosine": "between clips", "norm_ratio": "norm / embedding",
        "effective_rank": "effective rank", "latents_to_frames": "latents to frames",
        "answer_to_latents": "answer to latents",
    }  # fmt: skip
    table = Table()
    for title in keys.values():
        table.add_column(title, justify="right")
    for block in blocks:
        values = (block[key] for key in keys)
        table.add_row(*("–" if v is None else str(v) if isinstance(v, int) else f"{v:.3f}" for v in values))
    return table
