"""An evaluation as lmms-eval (0.7) logs its own, so that its web page shows it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourdthinker.evaluate import AnsweredQuestion, EvalResult
from fourdthinker.files import make_folder, write_json, write_text
from fourdthinker.records import Record


def lmms_files(folder: Path, task: str) -> tuple[Path, Path]:
    """The files of samples and of results that `write_lmms_samples` writes.

    Args:
        folder: where.
        task: name of the data; "/" and the like become "_".

    Returns:
        Their paths.
    """
    task = _task_name(task)
    return folder / f"eval_samples_{task}.jsonl", folder / "eval_results.json"


def write_lmms_samples(folder: Path, task: str, result: EvalResult, records: Sequence[Record]) -> Path:
    """Write `eval_results.json` and `eval_samples_<task>.jsonl`.

    Args:
        folder: where; it is made.
        task: as for `lmms_files`.
        result: of `evaluate`.
        records: what was asked, in the same order.

    Returns:
        The file of samples: a line for each question, with `doc`, `target`, `resps` (the texts of the n
        samples, then the one at temperature 0), `filtered_resps` (what was read from them) and `score`, the
        mean of the samples (at temperature 0 where there are none), so that the mean of all lines is the
        score in the results.
    """
    path, results = lmms_files(folder, task)
    task = _task_name(task)
    scores = result.scores().tolist()
    lines = [
        _line(number, *of_one)
        for number, of_one in enumerate(zip(result.questions, records, scores, strict=True))
    ]
    make_folder(folder)
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    number = len(result.questions)
    write_json(
        results,
        {
            "results": {task: {"alias": task, "score,none": float(result.scores().mean())}},
            "n-samples": {task: {"original": number, "effective": number}},
            "config": {"model": "fourdthinker", **result.settings},
            "model_name": result.name,
        },
    )
    return path


def _task_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def _line(number: int, question: AnsweredQuestion, record: Record, score: float) -> dict[str, Any]:
    doc = {
        "id": question.id,
        "type": question.type,
        "question": record.question,
        "options": question.options,
        "video": record.video,
        "frames": record.frames,
        "media": record.media_paths,
    }
    texts = [*question.texts, *([] if question.greedy_text is None else [question.greedy_text])]
    answers = [*question.answers, *([] if question.greedy_text is None else [question.greedy])]
    return {
        "doc_id": number,
        "doc": doc,
        "target": question.answer,
        "resps": [texts],
        "filtered_resps": [_text(answer) for answer in answers],
        "doc_hash": hashlib.sha256(json.dumps(doc, ensure_ascii=False, sort_keys=True).encode()).hexdigest(),
        "input": record.question,
        "score": score,
        **({"failed": question.failed} if question.failed else {}),
    }


def _text(answer: str | None) -> str:
    return "" if answer is None else answer
