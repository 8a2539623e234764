"""`fourdthinker init`."""

from __future__ import annotations

import argparse
import sys

from fourdthinker.cli.shared import Commands, output, whole


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker init`."""
    parser = commands.add_parser("init", help="give a Qwen2.5-VL or Qwen3-VL checkpoint its latent tokens")
    parser.add_argument("base", metavar="BASE", help="folder or hub id of the base model")
    parser.add_argument("out", type=output, metavar="OUT", help="folder to write; must be new or empty")
    parser.add_argument(
        "--latent-size", type=whole(1, 4096), default=4, help="latents in a block (default: %(default)s)"
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Give a base model its latent tokens and write it as a checkpoint into a new folder."""
    from fourdthinker.backbones import init_checkpoint, save_checkpoint
    from fourdthinker.files import new_folder

    with new_folder(arguments.out) as out:
        checkpoint = init_checkpoint(arguments.base, latent_size=arguments.latent_size)
        save_checkpoint(out, checkpoint)
    sys.stdout.write(f"{out}\n")
