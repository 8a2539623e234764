"""`fourdthinker convert`."""

from __future__ import annotations

import argparse
import sys

from fourdthinker.cli.shared import Commands, output, whole


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = commands.add_parser(
        "convert", help="write a checkpoint in another form, and check that it computes the same"
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or hub id of a checkpoint")
    parser.add_argument("out", type=output, metavar="OUT", help="folder to write; must be new or empty")
    parser.add_argument("--subfolder", help="folder within the checkpoint that holds the model")
    parser.add_argument(
        "--to",
        choices=("ours", "released"),
        default="ours",
        help="ours: with frame policy and prompt style; released: as the 4DThinker checkpoints, without "
        "(default: %(default)s)",
    )
    parser.add_argument("--merge", action="store_true", help="add the LoRA adapter to the weights")
    parser.add_argument(
        "--latent-size",
        type=whole(1, 4096),
        metavar="K",
        help="give a base model latent tokens, K in a block",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the weights written; bfloat16 rounds an adapter, by what is printed (default: that in "
        "config.json; with --merge float32)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Convert, compare with the source, and print what changed."""
    import torch

    from fourdthinker.backbones.conversion import Conversion, convert_checkpoint, plan_conversion
    from fourdthinker.files import check_new_folder, new_folder

    check_new_folder(arguments.out)
    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    conversion = Conversion(
        arguments.checkpoint, arguments.subfolder, arguments.to, arguments.merge, arguments.latent_size, dtype
    )
    if arguments.dry_run:
        sys.stdout.write("".join(f"{step}\n" for step in plan_conversion(conversion)))
        return
    with new_folder(arguments.out) as out:
        found = convert_checkpoint(conversion, out)
    if found.lost is not None:
        name = arguments.dtype or "float32"
        sys.stdout.write(f"{out}: {found.lost:.2g} of the adapter was lost to rounding to {name}\n")
    same = "equal" if found.difference == 0 else f"differ by {found.difference:.2g} of the largest"
    sys.stdout.write(f"{out}: logits and vision features of a trial input {same}\n")
