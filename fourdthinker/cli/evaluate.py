"""`fourdthinker eval`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from fourdthinker.cli.shared import Commands, add_model, add_sampling, model_name, output, sampling, thinker

log = logging.getLogger(__name__)


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker eval`."""
    parser = commands.add_parser("eval", help="accuracy on records, with intervals")
    add_model(parser)
    parser.add_argument("--data", type=Path, required=True, nargs="+", metavar="JSONL", help="record files")
    parser.add_argument(
        "--media-root", type=Path, help="paths in the records start here (default: folder of the file)"
    )
    parser.add_argument(
        "--on-bad-record",
        choices=("raise", "skip"),
        default="raise",
        help="what a line that is wrong does (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=output, default=Path("runs/eval"), help="folder of the results (default: %(default)s)"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=4,
        help="samples of each question; 0: greedy alone (default: %(default)s)",
    )
    parser.add_argument("--batch", type=int, default=16, help="questions in one batch (default: %(default)s)")
    parser.add_argument(
        "--frames", choices=("black", "other"), help="show black frames, or another clip's, instead"
    )
    add_sampling(parser, temperature=1.0)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Evaluate a checkpoint: answers.jsonl and results.json in the folder `--out`, a table on stdout."""
    from rich.console import Console

    from fourdthinker.evaluate import baselines, evaluate, results_table, types_table
    from fourdthinker.files import write_json
    from fourdthinker.records import read_records

    config = sampling(arguments)
    journal, rejected, results_file = _outputs(arguments.out)
    records = [
        record
        for path in arguments.data
        for record in read_records(
            path,
            media_root=arguments.media_root,
            kind="rl",
            on_bad_record=arguments.on_bad_record,
            rejected=rejected,
        )
    ]
    model, name = thinker(arguments), model_name(arguments)
    result = evaluate(
        model.sampler,
        model.encoder,
        records,
        n=arguments.samples,
        config=config,
        batch_prompts=arguments.batch,
        frames_override=arguments.frames,
        journal=journal,
        name=name,
    )
    skipped = len(rejected.read_text(encoding="utf-8").splitlines()) if rejected.exists() else 0
    summary = result.summary()
    results = {
        **baselines(records),
        "model": summary,
        "checkpoint": name,
        "data": [str(path) for path in arguments.data],
        "records_rejected": skipped,
        "settings": result.settings,
    }
    path = write_json(results_file, results)
    console = Console()
    console.print(results_table(results, title=name))
    if len(summary["by_type"]) > 1:
        console.print(types_table(summary))
    if skipped:
        log.warning("%d records were rejected and are not counted; see %s", skipped, rejected)
    sys.stdout.write(f"{path}\n")


def _outputs(folder: Path) -> tuple[Path, Path, Path]:
    """The files of answers, of rejected records and of results; FourdError where they cannot be written."""
    from fourdthinker.errors import ConfigError
    from fourdthinker.files import check_output, make_folder, output_path

    make_folder(folder)
    journal, rejected, results = (folder / n for n in ("answers.jsonl", "rejected.jsonl", "results.json"))
    check_output(journal)
    if results.exists() and not journal.exists():
        raise ConfigError(
            f"{results} is of something else, since no {journal.name} is beside it; "
            "name another folder (--out)"
        )
    output_path(rejected).unlink(missing_ok=True)
    return journal, rejected, results
