"""Which questions are asked: records, or a benchmark."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourdthinker.evaluate import BenchmarkData
    from fourdthinker.records import Record

log = logging.getLogger(__name__)


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Declare where the questions are."""
    parser.add_argument(
        "--bench",
        action=_Bench,
        metavar="NAME",
        help="the data are this benchmark's; `list` says what is known and what each needs; or a record "
        "file, as --data",
    )
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="record files (JSONL); with --bench the folder of its files, or one of them",
    )
    parser.add_argument(
        "--media-root", type=Path, help="paths in the data start here (default: the folder of the data)"
    )


class _Bench(argparse.Action):
    """Keeps the name of a benchmark or a file; `list` prints what is known and ends, as --help does."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        from fourdthinker.evaluate import BENCHMARKS, list_benchmarks

        if values == "list":
            sys.stdout.write(list_benchmarks())
            parser.exit()
        if values not in BENCHMARKS and not Path(values).exists():
            parser.error(
                f"argument --bench: no benchmark and no file {values!r}; there are list, "
                f"{', '.join(BENCHMARKS)}"
            )
        namespace.bench = values


def take_data(arguments: argparse.Namespace) -> None:
    """Put a record file that --bench names in the place of --data.

    Raises:
        ConfigError: no data are named, or twice.
    """
    from fourdthinker.errors import ConfigError
    from fourdthinker.evaluate import BENCHMARKS

    if arguments.bench is not None and arguments.bench not in BENCHMARKS:
        if arguments.data:
            raise ConfigError(f"--bench {arguments.bench} is the data already; leave out --data")
        arguments.bench, arguments.data = None, [Path(arguments.bench)]
    if not arguments.data:
        raise ConfigError("no --data; name record files, or the folder of the benchmark's files")


def questions(
    arguments: argparse.Namespace, rejected: Path | None = None
) -> tuple[list[Record], dict[str, str], BenchmarkData | None]:
    """The questions that the arguments name; what is left out, and what a benchmark lacks, is logged.

    Args:
        arguments: with those of `add_questions`, and perhaps `on_bad_record`.
        rejected: file for the lines of records that are left out.

    Returns:
        The questions to ask; id -> why, of those that are left out; and the benchmark that they are, or None.

    Raises:
        FourdError: they cannot be read.
    """
    from fourdthinker.errors import ConfigError
    from fourdthinker.evaluate import read_benchmark, without_duplicates
    from fourdthinker.records import read_records

    if arguments.bench is None:
        records = [
            record
            for path in arguments.data
            for record in read_records(
                path,
                media_root=arguments.media_root,
                kind="rl",
                on_bad_record=getattr(arguments, "on_bad_record", "raise"),
                rejected=rejected,
            )
        ]
        records, repeated = without_duplicates(records)
        for key, reason in repeated.items():
            log.warning("left out: %s: %s", key, reason)
        return records, repeated, None
    if len(arguments.data) != 1:
        raise ConfigError(f"--bench reads one folder or file, and --data names {len(arguments.data)}")
    data = read_benchmark(arguments.bench, arguments.data[0], arguments.media_root)
    for note in data.notes:
        log.warning("%s: %s", arguments.bench, note)
    for key, reason in data.left_out.items():
        log.warning("%s: left out: %s: %s", arguments.bench, key, reason)
    if data.missing:
        log.warning("%d media are missing, such as %s", len(data.missing), data.missing[0])
    return data.records, data.left_out, data
