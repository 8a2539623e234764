"""Dyn-Bench: the questions of multi_json/<dataset>/<scene>_<kind>.json. Its mask tasks are not asked."""

from __future__ import annotations

import re
from pathlib import Path

from fourdthinker.errors import ConfigError
from fourdthinker.evaluate.benchmarks.benchmark import Benchmark, Collector, answer_of
from fourdthinker.evaluate.benchmarks.tables import read_rows
from fourdthinker.files import PICTURE_SUFFIXES
from fourdthinker.records import options_of

NEEDS = "multi_json/<dataset>/<scene>_{cameraqa,qa,sceneqa}.json and frames/<dataset>/<scene>/frame_*.jpg"
KINDS = {"cameraqa": "camera-object", "qa": "inter-object", "sceneqa": "object-scene"}
_NAME = re.compile(r"(.+)_(cameraqa|sceneqa|qa)")


def read(into: Collector, path: Path) -> None:
    """Read the three kinds of question of every scene; every frame is shown that the frame policy takes."""
    root = path / "multi_json" if (path / "multi_json").is_dir() else path
    found = [(file, match) for file in sorted(root.glob("*/*.json")) if (match := _NAME.fullmatch(file.stem))]
    if not found:
        raise ConfigError(f"{path}: no file multi_json/*/*_qa.json in it; Dyn-Bench needs {NEEDS}")
    for file, match in found:
        dataset, scene, kind = file.parent.name, match[1], match[2]
        into.data.files.append(file)
        for number, row in enumerate(read_rows(file), 1):
            options = options_of(row.where, row["options"])
            folder = Path(into.video(row, f"frames/{dataset}/{scene}", f"{dataset}/{scene}"))
            frames = sorted(str(p) for p in folder.glob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
            # missing frames are named, and their questions count as wrong
            media = {"frames": frames} if frames else {"video": str(folder)}
            into.choice(
                row,
                f"{dataset}/{scene}/{kind}/{number}",
                row.text("question"),
                options,
                answer_of(row, row["answer"], options),
                type=KINDS[kind],
                **media,
            )


BENCHMARK = Benchmark(
    name="dyn",
    title="Dyn-Bench (questions)",
    source="yu2hi13/Dyn-Bench",
    needs=NEEDS,
    read=read,
    types=tuple(KINDS.values()),
)
