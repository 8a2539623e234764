"""Dyn-Bench: its questions, from JSON files of scenes or one parquet. Its mask tasks are not asked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fourdthinker.errors import RecordError
from fourdthinker.evaluate.benchmarks.benchmark import Benchmark, Collector, answer_of
from fourdthinker.evaluate.benchmarks.tables import TableRow, read_rows
from fourdthinker.files import PICTURE_SUFFIXES
from fourdthinker.records import options_of

NEEDS = (
    "multi_json/<dataset>/<scene>_{cameraqa,qa,sceneqa}.json or qa_tasks.parquet, and "
    "frames/<dataset>/<scene>/frame_*.jpg or videos/<dataset>/<scene>.mp4"
)
KINDS = {"cameraqa": "camera-object", "qa": "inter-object", "sceneqa": "object-scene"}
_NAME = re.compile(r"(.+)_(cameraqa|sceneqa|qa)")


def read(into: Collector, path: Path) -> None:
    """Read the three kinds of question of every scene; every frame is shown that the frame policy takes."""
    asked: Counter[str] = Counter()
    for row, dataset, scene, kind in _rows(into, path):
        options = options_of(row.where, row["options"])
        shown = Path(
            into.video(
                row, f"frames/{dataset}/{scene}", f"{dataset}/{scene}", f"videos/{dataset}/{scene}.mp4"
            )
        )
        frames = sorted(str(p) for p in shown.glob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
        name = f"{dataset}/{scene}/{kind}"
        asked[name] += 1
        into.choice(
            row,
            f"{name}/{asked[name]}",
            row.text("question"),
            options,
            answer_of(row, row["answer"], options),
            type=KINDS.get(kind, kind),
            # missing frames are named, and their questions count as wrong
            **({"frames": frames} if frames else {"video": str(shown)}),
        )


def _rows(into: Collector, path: Path) -> Iterator[tuple[TableRow, str, str, str]]:
    """Each row with its dataset, scene and kind."""
    root = path / "multi_json" if (path / "multi_json").is_dir() else path
    found = [(file, match) for file in sorted(root.glob("*/*.json")) if (match := _NAME.fullmatch(file.stem))]
    for file, match in found:
        into.data.files.append(file)
        for row in read_rows(file):
            yield row, file.parent.name, match[1], match[2]
    if found:
        return
    for row in into.rows(path, "qa_tasks*.parquet"):
        dataset = row.text("dataset")
        scene = row.text("video_name", "video").removeprefix(f"{dataset}/").removesuffix(".mp4")
        if "/" in scene:
            raise RecordError(f"{row.where}: the video is {scene!r}; it must be the name of one of {dataset}")
        yield row, dataset, scene, row.text("task", "type")


BENCHMARK = Benchmark(
    name="dyn",
    title="Dyn-Bench (questions)",
    source="yu2hi13/Dyn-Bench",
    needs=NEEDS,
    read=read,
    types=tuple(KINDS.values()),
)
