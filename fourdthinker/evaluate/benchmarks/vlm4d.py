"""VLM4D: real videos (exo- and egocentric) and synthetic ones; answers are texts or whole numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fourdthinker.errors import ConfigError, RecordError
from fourdthinker.evaluate.benchmarks.benchmark import Benchmark, Collector, answer_of
from fourdthinker.evaluate.benchmarks.tables import TableRow
from fourdthinker.records import options_of

NEEDS = "real_mc.json and synthetic_mc.json (or one), and the folders videos_real and videos_synthetic"
LAST_EXO = 922  # the authors' rule: real questions up to this number are exocentric
_URL = re.compile(r"https?://.*?/resolve/[^/]+/(.*)")


def read(into: Collector, path: Path) -> None:
    """Read the real and the synthetic file, whichever are there."""
    names = [path.name] if path.is_file() else [file.name for file in path.rglob("*.json")]
    kinds = [kind for kind in ("real", "synthetic") if any(kind in name for name in names)]
    if not kinds:
        raise ConfigError(f"{path}: no file real_mc.json or synthetic_mc.json in it; VLM4D needs {NEEDS}")
    for kind in kinds:
        for row in into.rows(path, f"{kind}_mc.json", f"*{kind}*.json"):
            add(into, row, kind)


def add(into: Collector, row: TableRow, kind: str) -> None:
    """Add one question; the form that MLLM-4D's evaluation reads is the same."""
    options = options_of(row.where, row.first("choices", "options"))
    answer = answer_of(row, row["answer"], options, text=True)
    name = row.text("id")
    address = row.text("video")
    match = _URL.fullmatch(address)
    video = into.video(row, match[1] if match else address)
    into.choice(
        row,
        f"{kind}/{name}" if kind else name,
        row.text("question"),
        options,
        answer,
        video=video,
        type=_type(row, kind, name, options[answer]),
    )


def _type(row: TableRow, kind: str, name: str, answer: str) -> Any:
    if not kind:
        return row.values.get("question_type")
    if kind == "synthetic":  # the authors' rule: the right answer denies what the question asks about
        denies = answer.lower() == "no" or answer.lower().startswith("no ")
        return "synthetic false positive" if denies else "synthetic directional"
    number = name.rpartition("_")[2]
    if not number.isdecimal():
        raise RecordError(f"{row.where}: id {name!r} does not end in a number; exo and ego go by it")
    return "real exo" if int(number) <= LAST_EXO else "real ego"


BENCHMARK = Benchmark(
    name="vlm4d",
    title="VLM4D",
    source="shijiezhou/VLM4D",
    needs=NEEDS,
    read=read,
    types=("real exo", "real ego", "synthetic directional", "synthetic false positive"),
    tasks={
        "real exo": "real",
        "real ego": "real",
        "synthetic directional": "synthetic",
        "synthetic false positive": "synthetic",
    },
    counts=(1371, 445, 1816),
    known_bad={"real/validation_633": "the right text, 'away from the camera', stands under two letters"},
)
