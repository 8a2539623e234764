"""`fourdthinker probe`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from fourdthinker.cli.shared import Commands

if TYPE_CHECKING:
    from fourdthinker.frames import Probe

TIMES = {
    "container": "from the container",
    "sorted": "the container's, sorted: they do not follow the order in which pictures are shown",
    "rate": "counted from the rate: the container lacks some or all",
}


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker probe`."""
    parser = commands.add_parser("probe", help="what video files hold, and how their times are learnt")
    parser.add_argument("files", nargs="+", metavar="FILE", help="video files")
    parser.add_argument("--fps", type=float, metavar="X", help="pictures a second, whatever times a file has")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """0, or 1 when a file cannot be read or has a fault."""
    from fourdthinker.errors import VideoError
    from fourdthinker.frames import FrameSource, probe

    status = 0
    for file in arguments.files:
        try:
            found = probe(FrameSource(file, fps=arguments.fps))
        except VideoError as error:
            sys.stdout.write(f"{file}\n  error        {error}\n")
            status = 1
            continue
        sys.stdout.write(f"{file}\n" + "".join(f"  {key:<12} {text}\n" for key, text in lines(found)))
        status = status or (1 if found.fault else 0)
    return status


def lines(found: Probe) -> list[tuple[str, str]]:
    """What is printed of a file: (what it is, its value)."""
    turned = found.orientation
    upright = f"turned by {90 * turned.quarter_turns} degrees" if turned.quarter_turns else "upright"
    streams = ", ".join(
        f"{index} {kind}{f' {codec}' if codec else ''}{' (read)' if index == found.stream else ''}"
        for index, kind, codec in found.streams
    )
    return [
        ("container", found.container),
        ("streams", streams),
        ("codec", found.codec),
        ("size", f"{found.size[1]}x{found.size[0]}, {upright}{', mirrored' if turned.mirrored else ''}"),
        ("frames", str(found.frames)),
        ("shown", f"from {found.begin:.3f} to {found.end:.3f} s"),
        ("rate", f"{found.rate:.6g} a second"),
        ("times", TIMES[found.times_from]),
        ("fault", found.fault or "none"),
    ]
