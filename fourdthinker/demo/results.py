"""From the answers of all models to results.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fourdthinker.demo.settings import PHASES, DemoSettings
from fourdthinker.evaluate import AnsweredQuestion, EvalResult, baselines, paired_difference
from fourdthinker.records import Record

MODELS = ("base", "dift", "dift_control", "rl")
CHECKS = ("black_frames", "other_frames", "black_frames_control", "other_frames_control")


def load_result(path: Path) -> EvalResult:
    """What `work` wrote for one model."""
    values = json.loads(path.read_text(encoding="utf-8"))
    questions = tuple(AnsweredQuestion.from_dict(q) for q in values["questions"])
    return EvalResult(
        values["name"], questions, values["n"], values["greedy"], values["settings"], values["seconds"]
    )


def make_results(
    run: Path, settings: DemoSettings, records: list[Record], seconds: dict[str, float]
) -> dict[str, Any]:
    """The contents of results.json. The metric declared beforehand is sampled accuracy at temperature 1.

    chance, majority (the best constant answer of each family), and the models: accuracy with its 95 %
    interval over questions (clips as clusters), greedy accuracy, mean answer entropy, ...; differences from
    paired questions; black_frames and other_frames: the final model shown nothing, and shown another clip
    (…_control: the control).
    """
    found = {name: load_result(run / "evaluate" / f"{name}.json") for name in (*MODELS, *CHECKS)}
    results: dict[str, Any] = dict(baselines(records))
    results |= {name: found[name].summary() for name in (*MODELS, *CHECKS)}
    results["rl_minus_dift"] = paired_difference(found["rl"], found["dift"])
    results["rl_minus_control"] = paired_difference(found["rl"], found["dift_control"])
    results["greedy_rl_minus_dift"] = paired_difference(found["rl"], found["dift"], greedy=True)
    results["greedy_rl_minus_control"] = paired_difference(found["rl"], found["dift_control"], greedy=True)
    results["metric"] = f"sampled accuracy: temperature 1, {settings.evaluate.samples} samples a question"
    results["seeds"] = {"demo": settings.seed}
    results["seconds"] = {name: seconds[name] for name in (*PHASES, "total") if name in seconds}
    results["settings"] = settings.to_dict()
    return results
