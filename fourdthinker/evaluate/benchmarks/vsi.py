"""VSI-Bench: multiple choice, and numbers scored by mean relative accuracy."""

from __future__ import annotations

from pathlib import Path

from fourdthinker.evaluate.benchmarks.benchmark import Benchmark, Collector, answer_of
from fourdthinker.records import options_of

NEEDS = "test*.parquet or test.jsonl, and the videos as <dataset>/<scene_name>.mp4"
NUMERIC = ("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation")
CHOICE = (
    "object_rel_distance",
    "object_rel_direction_easy",
    "object_rel_direction_medium",
    "object_rel_direction_hard",
    "route_planning",
    "obj_appearance_order",
)


def read(into: Collector, path: Path) -> None:
    """Read one split: the full one before the debiased one, unless a file is named."""
    rows = into.rows(path, "test-*.parquet", "test.jsonl", "test*.parquet", "test*.jsonl")
    for number, row in enumerate(rows, 1):
        name = f"{row.text('dataset')}/{row.text('scene_name')}"
        media = {
            "video": into.video(row, f"{name}.mp4", f"videos/{name}.mp4"),
            "type": row.text("question_type"),
        }
        key = str(row.values.get("id", number))
        question = row.text("question")
        if row.values.get("options"):
            options = options_of(row.where, row["options"])
            into.choice(row, key, question, options, answer_of(row, row["ground_truth"], options), **media)
        else:
            into.number(row, key, question, row["ground_truth"], **media)


_TURNS = {f"object_rel_direction_{level}": "object_rel_direction" for level in ("easy", "medium", "hard")}
BENCHMARK = Benchmark(
    name="vsi",
    title="VSI-Bench",
    source="nyu-visionx/VSI-Bench",
    needs=NEEDS,
    read=read,
    types=NUMERIC + CHOICE,
    tasks={kind: _TURNS.get(kind, kind) for kind in NUMERIC + CHOICE},
    counts=(5130, 2363),
)
