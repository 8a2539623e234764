"""`fourdthinker ...`: all commands but training.

Training is `torchrun -m fourdthinker.trainers.dift` and `.grpo`. One file a command. Results go to standard
output, progress and log lines to standard error. An error that the user can mend is one line and exit status
2; `-v` shows where it came from.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from fourdthinker import __version__
from fourdthinker.cli import (
    audit,
    compare,
    convert,
    demo,
    doctor,
    evaluate,
    generate,
    init,
    latents,
    preview,
    probe,
    push,
    report,
    synth,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit status: 0; 1 when `doctor` finds something missing, `probe` a fault, `audit` a leak,
        `generate` has failed questions or `synth` failed items; 2 for an error; 130 on Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    verbose = getattr(arguments, "verbose", False)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("fourdthinker").setLevel(logging.DEBUG if verbose else logging.INFO)
    from fourdthinker.errors import FourdError

    try:
        status = arguments.run(arguments)
    except (FourdError, OSError, ImportError) as error:
        if verbose:
            raise
        sys.stderr.write(f"fourdthinker {arguments.command}: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return int(status or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fourdthinker",
        description="Latent visual reasoning for video.",
        epilog="Training is apart: torchrun -m fourdthinker.trainers.dift --help (and .grpo).",
    )
    parser.add_argument("--version", action="version", version=f"fourdthinker {__version__}")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="more log lines, and tracebacks of errors"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (
        demo,
        synth,
        preview,
        generate,
        evaluate,
        compare,
        audit,
        latents,
        report,
        init,
        convert,
        push,
        probe,
        doctor,
    ):
        command = module.add(commands)
        command.add_argument(
            "-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    return parser
