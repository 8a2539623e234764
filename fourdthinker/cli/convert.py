"""`fourdthinker convert`."""

from __future__ import annotations

import argparse
import sys

from fourdthinker.cli.shared import Commands, new_folder, output


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = commands.add_parser("convert", help="write a checkpoint in another form: its adapter merged")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or hub id of a checkpoint")
    parser.add_argument("out", type=output, metavar="OUT", help="folder to write; must be new or empty")
    parser.add_argument(
        "--merge", action="store_true", required=True, help="add the LoRA adapter to the weights"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights written; bfloat16 is half as large and rounds the adapter, by what is printed "
        "(default: %(default)s)",
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Merge, write, and print what was lost."""
    import torch

    from fourdthinker.backbones import Checkpoint, load_checkpoint, save_checkpoint
    from fourdthinker.backbones.adapters import merge_adapter

    out = new_folder(arguments.out)
    loaded = load_checkpoint(arguments.checkpoint)
    backbone, error = merge_adapter(loaded.backbone, getattr(torch, arguments.dtype))
    save_checkpoint(out, Checkpoint(backbone, loaded.tokenizer, loaded.policy, loaded.style))
    sys.stdout.write(f"{out}: {error:.2g} of the adapter was lost to rounding to {arguments.dtype}\n")
