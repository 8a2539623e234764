"""DSI-Bench: every question four times, of the video as it is, mirrored, reversed, and both."""

from __future__ import annotations

import re
from pathlib import Path

from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.evaluate.benchmarks.benchmark import Benchmark, Collector, answer_of
from fourdthinker.evaluate.benchmarks.tables import TableRow
from fourdthinker.records import options_of

NEEDS = "metadatas/{std,hflip,reverse,reverse_hflip}.csv and videos/<variant>/<relative_path>"
VARIANTS = ("std", "hflip", "reverse", "reverse_hflip")
KINDS = (
    "object, static camera",
    "object, moving camera",
    "camera, static scene",
    "camera, dynamic scene",
    "object-camera distance",
    "object-camera orientation",
)
_NEXT = re.compile(r";\s*(?=[A-H]\s*:)")


def read(into: Collector, path: Path) -> None:
    """Read the four files; rows of the same number are one question, and must agree about video and kind."""
    if not path.is_dir():
        raise ConfigError(f"{path} is one file; DSI-Bench needs {NEEDS}")
    tables = {variant: list(into.rows(path, f"{variant}.csv")) for variant in VARIANTS}
    _check_twins(path, tables)
    for variant, rows in tables.items():
        for number, row in enumerate(rows, 1):
            name = f"{variant}/{number}"
            options = options_of(row.where, _NEXT.split(row.text("options").rstrip("; ")))
            video = row.text("relative_path")
            into.choice(
                row,
                name,
                row.text("question"),
                options,
                answer_of(row, row["GT"], options),
                video=into.video(row, f"videos/{variant}/{video}", f"{variant}/{video}"),
                type=_kind(row),
                extra={"source": video},  # the four variants are of one video
            )
            into.data.twins[name] = str(number)


def _check_twins(path: Path, tables: dict[str, list[TableRow]]) -> None:
    counts = {variant: len(rows) for variant, rows in tables.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{variant}.csv {count}" for variant, count in counts.items())
        raise RecordError(f"{path}: rows that are not four by four ({listed}); fetch the four files anew")
    for twins in zip(*tables.values(), strict=True):
        for key in ("relative_path", "cate"):
            first, *others = twins
            odd = next((row for row in others if row.text(key) != first.text(key)), None)
            if odd is not None:
                raise RecordError(
                    f"{odd.where}: {key} is {odd.text(key)!r}, and {first.text(key)!r} at {first.where}; "
                    "rows of the same number must be one question; fetch the four files anew"
                )


def _kind(row: TableRow) -> str:
    text = row.text("cate")
    if text not in map(str, range(len(KINDS))):
        raise RecordError(f"{row.where}: cate is {text!r}; it must be 0 to {len(KINDS) - 1}")
    return KINDS[int(text)]


BENCHMARK = Benchmark(
    name="dsi",
    title="DSI-Bench",
    source="Viglong/DSI-Bench",
    needs=NEEDS,
    read=read,
    types=KINDS,
    counts=(7076,),
)
