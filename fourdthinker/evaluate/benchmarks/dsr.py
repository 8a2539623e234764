"""DSR-Bench: its parquet, or the TSV of EASI; one mp4 for each video."""

from __future__ import annotations

from pathlib import Path

from fourdthinker.evaluate.benchmarks.benchmark import Benchmark, Collector, answer_of
from fourdthinker.records import literal, options_of

NEEDS = "benchmark.parquet, or EASI's DSRBench.tsv, and the videos as <videoID>.mp4"


def read(into: Collector, path: Path) -> None:
    """Read all rows; parquet has videoID and type, the TSV index, video and task_type."""
    rows = into.rows(path, "DSRBench*.tsv", "benchmark*.parquet", "*.parquet")
    for number, row in enumerate(rows, 1):
        video = row.text("video", "videoID")
        listed = row.first("options", "candidates")
        listed = literal(row.where, listed) if isinstance(listed, str) else listed
        options = options_of(row.where, listed)
        as_listed = row["question"], [*map(str, listed)]
        name = str(row.values.get("index", number))
        stem = video if video.lower().endswith(".mp4") else f"{video}.mp4"
        into.choice(
            row,
            f"{video}/{name}",
            row.text("question"),
            options,
            answer_of(row, row["answer"], options),
            video=into.video(row, stem, f"videos/{stem}", f"dsr-bench/{stem}"),
            type=row.text("task_type", "type"),
            extra={"as_listed": as_listed} if isinstance(listed, list) else {},  # for `--protocol easi`
        )


BENCHMARK = Benchmark(
    name="dsr",
    title="DSR-Bench",
    source="TencentARC/DSR_Suite; the TSV: lmms-lab-si/EASI-Leaderboard-Data",
    needs=NEEDS,
    read=read,
    types=(
        "abs_dis", "abs_dir", "abs_ori", "abs_spd", "abs_spd_comp", "abs_dir_pred",
        "rel_dis", "rel_dir", "rel_ori", "rel_spd", "rel_spd_comp", "rel_dir_pred", "non_temp",
    ),
    counts=(1450, 1484),
)  # fmt: skip
