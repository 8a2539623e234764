"""VSTI-Bench: questions about the camera's and objects' moves between frames of indoor scans."""

from __future__ import annotations

import os
from pathlib import Path

from fourdthinker.evaluate.benchmarks.benchmark import Benchmark, Collector, answer_of
from fourdthinker.records import options_of

NEEDS = "test*.parquet, or the same as JSON, and the videos under video_path or as <dataset>/<scene_name>.mp4"
NUMERIC = ("camera_obj_abs_dist", "camera_displacement", "camera_obj_dist_change")
_TASKS = {
    "camera_movement_direction": "camera_movement_direction",
    **{f"camera_obj_rel_dist_v{n}": "camera_obj_rel_dist" for n in (1, 2, 3)},
    **{f"obj_obj_relative_pos_{axis}": "obj_obj_relative_pos" for axis in ("nf", "ud", "lr")},
    **{kind: kind for kind in NUMERIC},
}


def read(into: Collector, path: Path) -> None:
    """Read the test split; mc_answer is the letter, ground_truth the text or the number."""
    rows = into.rows(path, "test*.parquet", "*.parquet", "*.jsonl", "*.json")
    for number, row in enumerate(rows, 1):
        name = f"{row.text('dataset')}/{row.text('scene_name')}.mp4"
        given = str(row.values.get("video_path") or name)
        if os.path.isabs(given) and not Path(given).is_relative_to(into.media):  # of the authors' machine
            given = name
        media = {
            "video": into.video(row, given, name, f"videos/{name}"),
            "type": row.text("question_type"),
        }
        key = str(row.values.get("id", number))
        question = row.text("question")
        if row.values.get("options"):
            options = options_of(row.where, row["options"])
            answer = answer_of(row, row["mc_answer"], options)
            into.choice(row, key, question, options, answer, **media)
        else:
            into.number(row, key, question, row["ground_truth"], **media)
    into.data.notes.append(
        "questions name frames by number among the sampled ones; the answer is about the authors' sampling"
    )


BENCHMARK = Benchmark(
    name="vsti",
    title="VSTI-Bench",
    source="Journey9ni/vstibench",
    needs=NEEDS,
    read=read,
    types=tuple(_TASKS),
    tasks=_TASKS,
)
