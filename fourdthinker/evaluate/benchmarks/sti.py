"""STI-Bench: five options, about a stretch of a video that the question names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fourdthinker.errors import RecordError
from fourdthinker.evaluate.benchmarks.benchmark import Benchmark, Collector, answer_of
from fourdthinker.evaluate.benchmarks.tables import TableRow
from fourdthinker.records import options_of

NEEDS = "qa.parquet, and the videos under the names of its column Video (in it or in video/)"


def read(into: Collector, path: Path) -> None:
    """Read qa.parquet. As the authors do, the whole video is shown and the prompt names the stretch."""
    rows = into.rows(path, "qa.parquet", "qa-*.parquet", "*.parquet")
    for number, row in enumerate(rows, 1):
        options = options_of(row.where, row["Candidates"])
        video = row.text("Video")
        start, end = (_seconds(row, key) for key in ("time_start", "time_end"))
        into.choice(
            row,
            str(row.values.get("ID", number)),
            f"From {start} seconds to {end} seconds. {row.text('Question')}",
            options,
            answer_of(row, row["Answer"], options),
            video=into.video(row, video, f"video/{video}", f"videos/{video}"),
            type=row.text("Task"),
        )


def _seconds(row: TableRow, key: str) -> Any:
    value = row[key]
    try:
        float(value)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{row.where}: {key} is {value!r:.60}; it must be a number of seconds") from error
    return value


BENCHMARK = Benchmark(
    name="sti",
    title="STI-Bench",
    source="MINT-SJTU/STI-Bench",
    needs=NEEDS,
    read=read,
    types=(
        "Dimensional Measurement", "Spatial Relation", "3D Video Grounding", "Displacement & Path Length",
        "Speed & Acceleration", "Ego-Centric Orientation", "Trajectory Description", "Pose Estimation",
    ),
)  # fmt: skip
