"""DSI-Bench: every question four times, of the video as it is, mirrored, reversed, and both."""

from __future__ import annotations

import re
from pathlib import Path

from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.evaluate.benchmarks.benchmark import Benchmark, Collector, answer_of
from fourdthinker.evaluate.benchmarks.tables import TableRow, find_files, read_rows
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
    """Read the four files; rows of the same number are one question."""
    for variant in VARIANTS:
        files = find_files(path, (f"{variant}.csv",)) if path.is_dir() else []
        if not files:
            raise ConfigError(f"{path}: no file {variant}.csv in it; DSI-Bench needs {NEEDS}")
        into.data.files.append(files[0])
        for number, row in enumerate(read_rows(files[0]), 1):
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
