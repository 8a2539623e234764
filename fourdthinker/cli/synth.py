"""`fourdthinker synth`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fourdthinker.cli.shared import Commands, output, real, whole

# Options that give a setting, and its key; their help is the setting's own explanation.
_SETTINGS = {
    "seed": "seed",
    "fps": "frames.fps",
    "objects": "names",
    "namer": "namer_model",
    "geometry": "geometry",
    "imagery": "imagery",
    "narrator": "narrator_model",
}
_OF_SETTING = "the explanation of a setting"


class _Help(argparse.HelpFormatter):
    """Reads the explanations of settings when the help is shown: making the parser imports nothing heavy."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help != _OF_SETTING:
            return action.help
        from fourdthinker.settings import settings_of
        from fourdthinker.synth.settings import SynthSettings

        every = {setting.key: setting for _, group in settings_of(SynthSettings) for setting in group}
        setting = every[_SETTINGS[action.dest]]
        return f"{setting.text} ({setting.kind}; default: {setting.default})".replace("%", "%%")


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker synth`."""
    parser = commands.add_parser("synth", help="reasoning data from videos", formatter_class=_Help)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="VIDEOS",
        help="files, folders, 'patterns', CSV or JSONL manifests, SpatialVID folders, or scenes:N",
    )
    parser.add_argument(
        "-o", "--out", type=output, required=True, help="folder of the data; resumed if there"
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="settings; docs/settings.md lists them")
    parser.add_argument("--stages", metavar="A,B", help="only these (default: all)")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="the first N videos")
    parser.add_argument("--seed", type=whole(0), metavar="N", help=_OF_SETTING)
    parser.add_argument("--fps", type=real(0.001, 1e6), metavar="X", help=_OF_SETTING)
    parser.add_argument("--objects", metavar="A,B", help=_OF_SETTING)
    parser.add_argument("--namer", metavar="MODEL", help=_OF_SETTING)
    parser.add_argument("--geometry", choices=("opencv", "colmap"), help=_OF_SETTING)
    parser.add_argument("--imagery", metavar="A,B", help=_OF_SETTING)
    parser.add_argument("--narrator", metavar="MODEL", help=_OF_SETTING)
    parser.add_argument("--workers", type=whole(1, 4096), metavar="N", help="processes (default: one a core)")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="processes here, or actors of the Ray cluster of RAY_ADDRESS (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout",
        type=real(0.001, 1e6),
        default=600.0,
        metavar="S",
        help="for one item (default: %(default)g)",
    )
    parser.add_argument(
        "--attempts", type=whole(1), default=3, metavar="N", help="then an item is left alone (default: 3)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what there is to read, and write nothing")
    parser.add_argument(
        "--audit", action="store_true", help="say in the data card what is answered without eyes"
    )
    parser.add_argument("--update", action="store_true", help="go on in a folder of other settings")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """0; 1 when items failed that the same command would try once more."""
    from fourdthinker.synth.plan import plan
    from fourdthinker.synth.run import SUMMARY, Options, synthesise
    from fourdthinker.synth.settings import STAGES, read_settings

    given: dict[str, Any] = {"seed": arguments.seed, "narrator_model": arguments.narrator}
    given |= {"namer_model": arguments.namer, "geometry": arguments.geometry}
    given["imagery"] = _listed(arguments.imagery)
    given["names"] = _listed(arguments.objects)
    settings = read_settings(arguments.config, fps=arguments.fps, **given)
    options = Options(
        stages=STAGES if arguments.stages is None else _listed(arguments.stages) or (),
        limit=arguments.limit,
        engine=arguments.engine,
        workers=arguments.workers,
        timeout=arguments.timeout,
        attempts=arguments.attempts,
        update=arguments.update,
        audit=arguments.audit,
    )
    if arguments.dry_run:
        for name, value in plan(arguments.inputs, settings, options).items():
            sys.stdout.write(f"{name:<22} {value}\n")
        return 0
    summary = synthesise(arguments.inputs, arguments.out, settings, options)
    _show(summary)
    sys.stdout.write(f"{arguments.out / SUMMARY}\n")
    return 1 if summary["failed"] else 0


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _show(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{summary['videos']['given']} videos, {summary['seconds']:.0f} s")
    for column in ("stage", "done", "items/min", "rejected", "failed", "quarantined"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, row in summary["stages"].items():
        rate = f"{row['per_minute']:.1f}" if row["per_minute"] else ""
        others = [str(sum(row[state].values()) or "") for state in ("rejected", "failed", "quarantined")]
        table.add_row(stage, str(row["done"]), rate, *others)
    console = Console(stderr=True)
    console.print(table)
    for stage, row in summary["stages"].items():
        for state in ("rejected", "failed", "quarantined"):
            for reason, count in sorted(row[state].items(), key=lambda item: (-item[1], item[0])):
                console.print(f"{count} {state} in {stage}: {reason}", markup=False, highlight=False)
