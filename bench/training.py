"""Training steps: ``python -m bench training``.

- ``grpo``: our 4DRL step against ``trl.GRPOTrainer``'s, whole updates by ``train()`` of both. "as installed":
  TRL's defaults, but float32; on a CPU it scores every position, and it trains the tower. "fair": only rows
  with a loss go through the head and the tower is frozen, as in ours; with gradient checkpointing, TRL's
  default (less memory), and without (faster). Ours has it off, but computes norms and SwiGLU again. TRL reads
  no video: a clip becomes as many vision tokens of pictures. With ``--save`` a case is written when it is
  done, and is not run again at the same revision: the same command goes on where it was stopped.
- ``dift``: our DIFT loss and step against transformers' logits and loss of all positions.
- ``growth``: memory and time of our step at three sizes each of prompt, completion and group; the fastest of
  three steps a size, in turns.
- ``parts``: what our step holds at its worst moment.

Candidates take turns in one process; times and their ratios are medians. Peaks are bytes of tensors at the
worst moment of a step; those of grpo hold weights, gradients and AdamW's state.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import math
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import _measure as measure
from bench import _training_dift as dift
from bench import _training_trl as trl
from bench._sampler_cases import SHAPES, build
from bench._training_cases import GRIDS, Case, OurStep, Timed, make_task
from bench._training_parts import AtPeak, Kept
from fourdthinker.backbones.common import Backbone

Row = dict[str, Any]
logger = logging.getLogger(__name__)
ANSWER = 200  # tokens of a DIFT answer
GROWTH = ("prompt_tokens", "completions", "new_tokens")
GROWTH_STEPS = 3  # of each size; on a machine that is shared a single one tells little of its time
CANDIDATES = {  # as they are chosen, and as they are called in the results
    "ours": "ours", "fair": "TRL, fair", "fair-checkpointing": "TRL, fair, gradient checkpointing",
    "installed": "TRL, as installed",
}  # fmt: skip
RUNS = 3  # of which a median can be saved
SAME = ("candidate", "shape", "prompt_tokens", "completions", "new_tokens", "prompts")  # of a row of grpo


def make_backbone(options: argparse.Namespace) -> Backbone:
    backbone = build(options.shape, options.device, torch.float32)
    backbone.freeze_vision()
    return backbone


def grpo_steps(options: argparse.Namespace, case: Case, folder: Path) -> dict[str, Timed]:
    """The candidates, each with a model of its own."""
    steps: dict[str, Timed] = {}
    task = make_task(make_backbone(options), case)
    for who in options.candidates:
        if who == "ours":
            steps[CANDIDATES[who]] = OurStep(
                make_backbone(options), task, case, folder, checkpointing=options.checkpointing
            )
        else:
            steps[CANDIDATES[who]] = trl.TrlStep(
                make_backbone(options),
                task,
                case,
                folder,
                fair=who != "installed",
                checkpointing=who != "fair",
            )
    return steps


def measure_peaks(steps: dict[str, Timed]) -> tuple[dict[str, int], dict[str, str]]:
    """The peaks of those that there is memory for; the others, with why, are taken out of ``steps``."""
    peaks, absent = {}, {}
    for who in list(steps):
        try:
            peaks[who] = steps[who].peak_bytes()
        except (RuntimeError, MemoryError) as error:
            if who == "ours" or not ("memory" in str(error) or isinstance(error, MemoryError)):
                raise
            absent[who] = str(error).partition("\n")[0][:160] or "MemoryError"
            logger.warning("%s is left out of this case: %s", who, absent[who])
        if who in absent:  # behind the block, which holds what it raised from
            del steps[who]
            gc.collect()
    return peaks, absent


def race_grpo(options: argparse.Namespace, case: Case) -> list[Row]:
    """A row of each candidate. The first step, which is not timed, tells the peak."""
    with tempfile.TemporaryDirectory() as name:
        steps = grpo_steps(options, case, Path(name))
        peaks, absent = measure_peaks(steps)
        parts: dict[str, dict[str, list[float]]] = {who: defaultdict(list) for who in steps}

        def noting(who: str) -> Callable[[], None]:
            def call() -> None:
                steps[who]()
                for part, seconds in steps[who].seconds.items():
                    parts[who][part].append(seconds)

            return call

        taken = measure.interleaved(
            {who: noting(who) for who in steps}, repeats=options.repeats, warmup=0, device="cpu"
        )
    middle = {who: statistics.median(seconds) for who, seconds in taken.items()}
    given = {"shape": options.shape, **vars(case)}
    rows: list[Row] = [{"candidate": who, **given, "absent": why} for who, why in absent.items()]
    for who, step in steps.items():
        row: Row = {"candidate": who, **given, "recomputed": bool(step.trainer.args.gradient_checkpointing)}
        row |= {"peak_bytes": peaks[who], "kept_bytes": step.kept_bytes()}
        row |= {f"{part}_s": statistics.median(seconds) for part, seconds in parts[who].items()}
        row |= measure.summary(taken[who])
        if "ours" in steps and who != "ours":
            row["slower"] = round(middle[who] / middle["ours"], 2)
            row["ours_to_its_peak"] = round(peaks["ours"] / peaks[who], 3)
        rows.append(row)
    return rows


def race_dift(options: argparse.Namespace) -> list[Row]:
    """Loss part and step, ours and transformers'."""
    backbone, rows = make_backbone(options).train(), []
    for prompt_tokens in options.prompt_tokens[:2]:
        batch = dift.dift_batch(backbone, prompt_tokens, ANSWER, options.samples)
        objectives = {"ours": dift.our_objective(batch), "transformers": dift.plain_objective}
        for what, make in {"loss": dift.loss_part, "step": dift.whole_step}.items():
            calls = {who: make(backbone, batch, objective) for who, objective in objectives.items()}
            losses = {who: call() for who, call in calls.items()}
            if abs(losses["ours"] - losses["transformers"]) > 1e-4:
                raise RuntimeError(f"the losses differ, so they are not the same work: {losses}")
            peaks = {who: measure.peak_allocated(call, options.device) for who, call in calls.items()}
            taken = measure.interleaved(calls, repeats=options.repeats, warmup=0, device=options.device)
            middle = {who: statistics.median(seconds) for who, seconds in taken.items()}
            for who in calls:
                rows.append({
                    "candidate": who, "what": what, "prompt_tokens": prompt_tokens, "answer_tokens": ANSWER,
                    "samples": options.samples, "shape": options.shape, "peak_bytes": peaks[who],
                    "slower": round(middle[who] / middle["ours"], 2),
                    "ours_to_its_peak": round(peaks["ours"] / peaks[who], 3), **measure.summary(taken[who]),
                })  # fmt: skip
    return rows


def measure_growth(options: argparse.Namespace) -> list[Row]:
    """Our step at three sizes each of prompt, group and completion, the others as in the first case."""
    first, rows = options.cases[0], []
    sizes: dict[str, list[int]] = {
        "prompt_tokens": options.prompt_tokens,
        "completions": [first.completions * k for k in (1, 2, 4)],
        "new_tokens": [first.new_tokens * k for k in (1, 2, 4)],
    }
    for name in GROWTH:
        rows += measure_sizes(options, name, [Case(**(vars(first) | {name: size})) for size in sizes[name]])
    return rows


def measure_sizes(options: argparse.Namespace, name: str, cases: list[Case]) -> list[Row]:
    """A row of each case, which differ in ``name``: the fastest of `GROWTH_STEPS` steps, which take turns."""
    steps, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            backbone = make_backbone(options)
            step = OurStep(backbone, make_task(backbone, case), case, Path(folder) / str(number))
            with Kept(backbone) as kept:
                step()  # which warms up, and is slowed by the count
            kept_bytes = sum(kept.parts.values())
            steps.append(step)
            rows.append({
                "grows": name, **vars(case), "positions": case.positions, "shape": options.shape,
                "kept_bytes": kept_bytes, "kept_bytes_a_position": round(kept_bytes / case.positions),
            })  # fmt: skip
        for turn in range(GROWTH_STEPS):
            for step, row in list(zip(steps, rows, strict=True))[:: -1 if turn % 2 else 1]:
                step()
                row["loss_s"] = min(step.seconds["loss"], row.get("loss_s", math.inf))
                row["ms_a_position"] = 1e3 * row["loss_s"] / row["positions"]
    return rows


def list_parts(options: argparse.Namespace) -> list[Row]:
    """Of the first case: the bytes that the step holds at its worst moment, and what they are."""
    case, backbone = options.cases[0], make_backbone(options)
    with tempfile.TemporaryDirectory() as folder:
        step = OurStep(
            backbone, make_task(backbone, case), case, Path(folder), checkpointing=options.checkpointing
        )
        peak = step.peak_bytes()
        with Kept(backbone) as kept, AtPeak(backbone, kept) as live:
            step()
    weights = sum(p.nbytes for p in backbone.parameters())
    found = {"whole peak": peak, "weights": weights, "AdamW's state": step.kept_bytes() - weights}
    found |= dict(sorted(live.parts.items(), key=lambda part: -part[1]))
    found["within operators"] = peak - step.kept_bytes() - live.peak  # which storages do not show
    return [{"part": part, "MB": round(size / 1e6, 1), **vars(case)} for part, size in found.items()]


def done(options: argparse.Namespace, case: Case) -> list[Row]:
    """The saved rows of a case that need not be run again: of this revision, with all candidates."""
    if not options.save or measure.revision() == "unknown" or measure.revision().endswith("+"):
        return []
    wanted = [
        {"candidate": CANDIDATES[who], "shape": options.shape, **vars(case)} for who in options.candidates
    ]
    rows = [
        row
        for row in measure.saved("training grpo") or []
        if row.get("revision") == measure.revision() and row.get("runs", RUNS) >= options.repeats
    ]
    found = [row for row in rows if {key: row[key] for key in SAME} in wanted]
    return found if len(found) == len(wanted) else []


def race_all(options: argparse.Namespace) -> list[Row]:
    if options.candidates != ["ours"] and (reason := trl.absent()):
        logger.warning("TRL is left out: %s", reason)
        options.candidates = [who for who in options.candidates if who == "ours"]
    rows = []
    for case in options.cases:
        with measure.bounded_memory() if options.device == "cpu" else contextlib.nullcontext():
            rows += done(options, case) or race_grpo(options, case)
        measure.show(
            f"A 4DRL step, {options.shape} on {options.device}, so far", [short(row) for row in rows]
        )
        if options.save:
            measure.save("training grpo", rows, options.device, replacing=SAME)
    return rows


KINDS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "grpo": race_all, "dift": race_dift, "growth": measure_growth, "parts": list_parts,
}  # fmt: skip


def short(row: Row) -> dict[str, object]:
    """A row as it is shown: seconds and gigabytes of few digits."""
    return {
        key.removesuffix("_bytes") + (" GB" if key.endswith("_bytes") else ""): (
            round(value / 1e9, 2)
            if key.endswith("_bytes")
            else round(value, 3)
            if isinstance(value, float)
            else value
        )
        for key, value in row.items()
        if key not in ("lower_quartile", "upper_quartile", "runs", "shape")
    }


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer cases: ten minutes")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--candidates", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--shape", choices=list(SHAPES), help="default: 100m, with --quick tiny")
    parser.add_argument(
        "--prompt-tokens", nargs="+", type=int, choices=list(GRIDS), default=[250, 1000, 4000]
    )
    parser.add_argument("--completions", nargs="+", type=measure.positive, default=[4, 8, 16])
    parser.add_argument(
        "--new-tokens", nargs="+", type=measure.positive, help="of a completion; default: 64, with --quick 16"
    )
    parser.add_argument("--prompts", type=measure.positive, help="of a 4DRL step; default: 2, with --quick 1")
    parser.add_argument("--samples", type=measure.positive, default=1, help="of a DIFT step")
    parser.add_argument("--checkpointing", action="store_true", help="recompute layers in ours")
    parser.add_argument("--repeats", type=measure.positive, help="runs; default: 3, with --quick 1")
    measure.add_save(parser)
    options = parser.parse_args(argv)
    quick = options.quick
    options.repeats = options.repeats or (1 if quick else RUNS)
    if options.save and options.repeats < RUNS and {"grpo", "dift"} & {*options.only}:
        parser.error(
            f"--save writes medians of at least {RUNS} runs: leave out --quick, or add --repeats {RUNS}"
        )
    if options.only == ["grpo"] and "ours" not in options.candidates and (reason := trl.absent()):
        parser.error(reason)
    if 1 in options.completions:
        parser.error("--completions 1: the advantages of a group of one are 0; give 2 or more")
    options.shape = options.shape or ("tiny" if quick else "100m")
    lengths, prompts = options.new_tokens or [16 if quick else 64], options.prompts or (1 if quick else 2)
    options.cases = [
        Case(length, completions, new, prompts)
        for length in options.prompt_tokens
        for completions in options.completions
        for new in lengths
        # The rows of TRL grow as their product, which --quick has no time for.
        if not quick or length * completions <= 8_000
    ]
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def main(argv: list[str]) -> int:
    options = parse(argv)
    rows: dict[str, list[Row]] = {}
    for kind in options.only:
        rows[kind] = KINDS[kind](options)
        measure.show(f"{kind}, {options.shape} on {options.device}", [short(row) for row in rows[kind]])
        if options.save and kind != "grpo":  # which has been saved case by case
            measure.save(f"training {kind}", rows[kind], options.device)
    sys.stdout.write(json.dumps({"device": options.device, "rows": rows}) + "\n")
    return 0
