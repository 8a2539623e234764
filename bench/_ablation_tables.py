"""What the answers of the ablation say: accuracies, differences between variants, and the latent audit.

A seed's rows are made of its answers and may be saved by themselves, so that seeds can be run on different
days and machines. The tables are made of the rows of all seeds. Their first interval is over questions,
clustered by video, and holds for the trained models as they are; that over seeds, by Student's t, is over
trainings too.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench._ablation_data import KINDS
from bench._ablation_training import ANSWERS, MODES, VARIANTS
from fourdthinker.audit.latents import mode_numbers
from fourdthinker.evaluate import EvalResult, compare, load_result
from fourdthinker.evaluate.scoring import student_quantile
from fourdthinker.sampler import LATENT_MODES

Row = dict[str, Any]
Seeds = Mapping[int, Sequence[Row]]  # the rows of each seed
STAGES = ("dift", "rl")
BASES = ("none", "latents")  # what every variant is compared with
MOST_SEEDS = 10


def result_path(out: Path, seed: int, variant: str, stage: str) -> Path:
    """The file that says that something is done."""
    return out / f"seed{seed}" / variant / f"{stage}.json"


def answers_folder(out: Path, seed: int, variant: str, stage: str) -> Path:
    """Where the answers after a stage are."""
    return out / f"seed{seed}" / variant / f"{stage}-answers"


def revisions_path(out: Path, seed: int, variant: str, stage: str) -> Path:
    """The file that says which revisions of the code made something, from its beginning on."""
    return result_path(out, seed, variant, stage).with_suffix(".revisions")


def revisions(out: Path, seed: int, variant: str, stage: str) -> list[str]:
    """Those of that file; "unknown" where there is none."""
    path = revisions_path(out, seed, variant, stage)
    return path.read_text(encoding="utf-8").split() if path.exists() else ["unknown"]


def _all_revisions(out: Path, seed: int, variant: str, stage: str) -> str:
    """Those of a finished training and of all that it was made from, one after the other."""
    steps = [("", "scenes"), *([("", "imagery")] if variant in KINDS else [])]
    steps += [(variant, each) for each in STAGES[: STAGES.index(stage) + 1]]
    return " ".join(dict.fromkeys(name for step in steps for name in revisions(out, seed, *step)))


def rows_of_seed(out: Path, seed: int) -> list[Row]:
    """All that the finished trainings of a seed say.

    Args:
        out: folder of the ablation.
        seed: of the demo.

    Returns:
        Rows with a revision (all that made it, with the scenes, the base model, the pictures and the training
        before it), a variant, a stage and a part: "accuracy", of its own answers, with differences
        to BASES after the same stage; "audit", one a mode of the latents (`mode_numbers`); "blocks", one a
        block.
    """
    rows: list[Row] = []
    for stage in STAGES:
        done = [name for name in VARIANTS if result_path(out, seed, name, stage).exists()]
        folders = {name: answers_folder(out, seed, name, stage) for name in done}
        answers = {name: _answers(folder / ANSWERS) for name, folder in folders.items()}
        for name in done:
            result = json.loads(result_path(out, seed, name, stage).read_text())
            about = {
                "revision": _all_revisions(out, seed, name, stage),
                "variant": name,
                "stage": stage,
            }
            rows.append(about | {"part": "accuracy"} | _accuracy(name, answers))
            rows += [about | {"part": "audit"} | row for row in _audit(folders[name] / MODES)]
            rows += [about | {"part": "blocks"} | block for block in result.get("blocks", ())]
    return rows


def _answers(folder: Path) -> EvalResult:
    """Those of a folder, all read by the present reader: an older one may have read some."""
    found = load_result(folder)
    return replace(found, questions=tuple(question.read_anew() for question in found.questions))


def _accuracy(name: str, answers: Mapping[str, EvalResult]) -> Row:
    numbers = answers[name].summary()
    kept = ("n", "greedy", "greedy_low", "greedy_high", "accuracy", "low", "high", "parsed", "by_type")
    row: Row = {key: numbers[key] for key in kept}
    for base in BASES:
        if base != name and base in answers:
            found = compare(answers[base], answers[name]).to_dict()
            row[f"less_{base}"] = {
                key: found[key] for key in ("greedy", "sampled", "by_type", "p", "changed")
            }
    return row


def _audit(folder: Path) -> list[Row]:
    results = {mode: _answers(folder / mode) for mode in LATENT_MODES if (folder / mode).exists()}
    return [{"mode": mode} | mode_numbers(results["own"], result) for mode, result in results.items()]


def over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    """Mean of one value a seed with its 95 % interval by Student's t; no bounds with one seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = student_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def over_questions(found: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean of the means of independent seeds, with the interval that follows from theirs, if all have one."""
    mean = statistics.fmean(float(numbers["mean"] or 0.0) for numbers in found)
    halves = []
    for numbers in found:
        low, high = numbers["low"], numbers["high"]
        if low is None or high is None:
            return {"mean": mean, "low": None, "high": None}
        halves.append((high - low) / 2)
    half = math.hypot(*halves) / len(halves)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def joined(seeds: Seeds, part: str, keys: Sequence[str]) -> dict[tuple[Any, ...], dict[int, Row]]:
    """The rows of a part that are about the same, by what they are about and by seed.

    Args:
        seeds: of all seeds.
        part: "accuracy", "audit" or "blocks".
        keys: say what a row is about.
    """
    found: dict[tuple[Any, ...], dict[int, Row]] = {}
    for seed, rows in seeds.items():
        for row in rows:
            if row["part"] == part:
                found.setdefault(tuple(row[key] for key in keys), {})[seed] = row
    order = {name: index for index, name in enumerate((*STAGES, *VARIANTS))}
    return dict(
        sorted(found.items(), key=lambda item: [order.get(key, key) for key in reversed(item[0][:2])])
    )


def percent(value: float | None) -> str:
    """A share as it is shown."""
    return "" if value is None else f"{100 * value:.1f}"


def points(numbers: Mapping[str, float | None] | None) -> str:
    """A difference in percentage points with its interval."""
    if numbers is None or numbers["mean"] is None:
        return ""
    low, high = numbers["low"], numbers["high"]
    bounds = "" if low is None or high is None else f" ({100 * low:+.1f} … {100 * high:+.1f})"
    return f"{100 * numbers['mean']:+.1f}{bounds}"


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are numbers."""
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if numbers else None


def accuracy_table(seeds: Seeds) -> list[Row]:
    """A line for each variant and stage: accuracy at temperature 0, by type, and differences in points."""
    table = []
    for (variant, stage), rows in joined(seeds, "accuracy", ("variant", "stage")).items():
        line: Row = {"variant": variant, "stage": stage, "seeds": len(rows)}
        line["greedy %"] = percent(mean([row["greedy"] for row in rows.values()]))
        line["sampled %"] = percent(mean([row["accuracy"] for row in rows.values()]))
        for kind in next(iter(rows.values()))["by_type"]:
            line[kind] = percent(mean([row["by_type"][kind]["greedy"] for row in rows.values()]))
        for base in BASES:
            found = [row[f"less_{base}"]["greedy"] for row in rows.values() if f"less_{base}" in row]
            line[f"less {base}"] = points(over_questions(found) if found else None)
            line[f"less {base}, over seeds"] = points(
                over_seeds([f["mean"] for f in found]) if found else None
            )
        table.append(line)
    return table


def audit_table(seeds: Seeds) -> list[Row]:
    """A line for each variant and stage, a column for each mode: own accuracy, and differences from it."""
    table: dict[tuple[str, str], Row] = {}
    for (variant, stage, mode), rows in joined(seeds, "audit", ("variant", "stage", "mode")).items():
        line = table.setdefault((variant, stage), {"variant": variant, "stage": stage})
        if mode == "own":
            line[mode] = percent(mean([row["accuracy"] for row in rows.values()]))
        else:
            line[mode] = points(over_questions([row["difference"] for row in rows.values()]))
    return list(table.values())


def block_table(seeds: Seeds) -> list[Row]:
    """A line for each variant, stage and block: the means over seeds of what the audit says about it."""
    table = []
    for (variant, stage, block), rows in joined(seeds, "blocks", ("variant", "stage", "block")).items():
        line: Row = {"variant": variant, "stage": stage, "block": block}
        for key, value in next(iter(rows.values())).items():
            if key not in line and isinstance(value, int | float | None):
                found = mean([row.get(key) for row in rows.values()])
                line[key] = None if found is None else round(found, 3)
        table.append(line)
    return table
