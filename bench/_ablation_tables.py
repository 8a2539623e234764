"""What the answers of the ablation say: accuracies, differences between variants, and the latent audit.

Questions of all seeds are pooled; those about one video of one seed are a cluster. These intervals are over
questions and hold for the trained models as they are; that over seeds, by Student's t, is over trainings too.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench._ablation_training import ANSWERS, MODES, VARIANTS
from fourdthinker.audit.latents import mode_numbers
from fourdthinker.evaluate import EvalResult, compare, load_result
from fourdthinker.evaluate.scoring import student_quantile
from fourdthinker.sampler import LATENT_MODES

Row = dict[str, Any]
STAGES = ("dift", "rl")
BASES = ("none", "latents")  # what every variant is compared with
MOST_SEEDS = 10


def result_path(out: Path, seed: int, variant: str, stage: str) -> Path:
    """The file that says that something is done."""
    return out / f"seed{seed}" / variant / f"{stage}.json"


def answers_folder(out: Path, seed: int, variant: str, stage: str) -> Path:
    """Where the answers after a stage are."""
    return out / f"seed{seed}" / variant / f"{stage}-answers"


def pooled(results: Mapping[int, EvalResult]) -> EvalResult:
    """The answers of several seeds as those of one model; a question of another seed is another one."""
    first = next(iter(results.values()))
    questions = tuple(
        replace(q, id=f"{seed}/{q.id}", cluster=f"{seed}/{q.cluster}")
        for seed, result in results.items()
        for q in result.questions
    )
    return EvalResult(first.name, questions, first.n, first.greedy)


def over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    """Mean of one value a seed with its 95 % interval by Student's t; no bounds with one seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = student_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def difference(variant: Mapping[int, EvalResult], base: Mapping[int, EvalResult]) -> Row | None:
    """A variant less another one, on the questions of the seeds that both have.

    Args:
        variant: seed -> its answers.
        base: likewise, of the one that is subtracted.

    Returns:
        greedy and sampled: mean, low, high; by_type: of the greedy ones; p: McNemar; greedy_seeds and
        sampled_seeds: `over_seeds`, with what each seed has. None: they share no seed.
    """
    seeds = [seed for seed in variant if seed in base]
    if not seeds:
        return None
    both = compare(pooled({s: base[s] for s in seeds}), pooled({s: variant[s] for s in seeds})).to_dict()
    row = {key: both[key] for key in ("greedy", "sampled", "by_type", "p", "changed")}
    for kind in ("greedy", "sampled"):
        each = [
            float(variant[s].scores(greedy=kind == "greedy").mean())
            - float(base[s].scores(greedy=kind == "greedy").mean())
            for s in seeds
        ]
        row[f"{kind}_seeds"] = over_seeds(each) | {"each": each}
    return row | {"seeds": seeds}


def accuracy_rows(out: Path, seeds: Sequence[int]) -> list[Row]:
    """A row for each variant and stage that at least one seed has finished.

    Args:
        out: folder of the ablation.
        seeds: that count.

    Returns:
        Accuracies pooled over seeds, by type of question too, and differences to BASES after the same stage.
    """
    rows = []
    for stage in STAGES:
        found: dict[str, dict[int, EvalResult]] = {}
        for variant in VARIANTS:
            if done := _done(out, seeds, variant, stage):
                found[variant] = {
                    seed: load_result(answers_folder(out, seed, variant, stage) / ANSWERS) for seed in done
                }
        for variant, results in found.items():
            numbers = pooled(results).summary()
            row: Row = {"variant": variant, "stage": stage, "seeds": list(results), "questions": numbers["n"]}
            for name in ("greedy", "greedy_low", "greedy_high", "parsed", "by_type"):
                row[name] = numbers[name]
            row |= {"sampled": numbers["accuracy"], "sampled_low": numbers["low"]}
            row["sampled_high"] = numbers["high"]
            for base in BASES:
                if base != variant and base in found:
                    row[f"less_{base}"] = difference(results, found[base])
            rows.append(row)
    return rows


def audit_rows(out: Path, seeds: Sequence[int]) -> list[Row]:
    """A row for each variant, stage and mode of the latents: `mode_numbers` over all seeds that have it.

    Args:
        out: folder of the ablation.
        seeds: that count.

    Returns:
        The rows.
    """
    rows = []
    for stage, variant in itertools.product(STAGES, VARIANTS):
        done = _done(out, seeds, variant, stage)
        folders = {seed: answers_folder(out, seed, variant, stage) / MODES for seed in done}
        own: dict[int, EvalResult] = {}
        for mode in LATENT_MODES:
            results = {
                seed: load_result(folder / mode)
                for seed, folder in folders.items()
                if (folder / mode / "answers.jsonl").exists()
            }
            if not results:
                continue
            own = results if mode == "own" else own
            base = pooled({seed: own[seed] for seed in results})
            numbers = mode_numbers(base, base if mode == "own" else pooled(results))
            rows.append({"variant": variant, "stage": stage, "mode": mode, "seeds": list(results)} | numbers)
    return rows


def block_rows(out: Path, seeds: Sequence[int]) -> list[Row]:
    """A row for each variant, stage and block: the means over seeds of what the audit says about it.

    Args:
        out: folder of the ablation.
        seeds: that count.

    Returns:
        The rows.
    """
    rows = []
    for stage, variant in itertools.product(STAGES, VARIANTS):
        done = _done(out, seeds, variant, stage)
        found = {seed: json.loads(result_path(out, seed, variant, stage).read_text()) for seed in done}
        for number in range(max((len(values.get("blocks", ())) for values in found.values()), default=0)):
            blocks = {s: v["blocks"][number] for s, v in found.items() if len(v["blocks"]) > number}
            row: Row = {"variant": variant, "stage": stage, "block": number + 1, "seeds": list(blocks)}
            for key in next(iter(blocks.values())):
                values = [block[key] for block in blocks.values() if block[key] is not None]
                if key != "block":
                    row[key] = statistics.fmean(values) if values else None
            rows.append(row)
    return rows


def _done(out: Path, seeds: Sequence[int], variant: str, stage: str) -> list[int]:
    """The seeds of which this training is finished."""
    return [seed for seed in seeds if result_path(out, seed, variant, stage).exists()]


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


def shown_accuracies(rows: Sequence[Row]) -> list[Row]:
    """Rows of `accuracy_rows` as a table: greedy accuracy, by type, and differences in points."""
    table = []
    for row in rows:
        line = {key: row[key] for key in ("variant", "stage")}
        line |= {"seeds": len(row["seeds"]), "greedy %": percent(row["greedy"])}
        line["sampled %"] = percent(row["sampled"])
        line |= {kind: percent(numbers["greedy"]) for kind, numbers in row["by_type"].items()}
        for base in BASES:
            found = row.get(f"less_{base}")
            line[f"less {base}"] = points(found and found["greedy"])
            line[f"less {base}, over seeds"] = points(found and found["greedy_seeds"])
        table.append(line)
    return table


def shown_audit(rows: Sequence[Row]) -> list[Row]:
    """Rows of `audit_rows` as a table: a column for each mode, own accuracy and the differences from it."""
    table: dict[tuple[str, str], Row] = {}
    for row in rows:
        line = table.setdefault(
            (row["variant"], row["stage"]), {key: row[key] for key in ("variant", "stage")}
        )
        own = row["mode"] == "own"
        line[row["mode"]] = percent(row["accuracy"]) if own else points(row["difference"])
    return list(table.values())
