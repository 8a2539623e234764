"""`fourdthinker eval`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourdthinker.cli.questions import add_questions, questions, take_data
from fourdthinker.cli.shared import (
    SAMPLES,
    Commands,
    add_latents,
    add_model,
    add_sampling,
    answers_file,
    check_with_folder,
    model_name,
    not_read,
    output,
    rejected_beside,
    sampling,
    thinker,
    whole,
)

if TYPE_CHECKING:
    from fourdthinker.evaluate import BenchmarkData, EvalResult
    from fourdthinker.files import JsonLines
    from fourdthinker.records import Record
    from fourdthinker.sampler import SamplingConfig

log = logging.getLogger(__name__)

CONTROLS = ("none", "black", "other")  # what --frames shows instead of the clip, and --baselines beside it

ANSWERS, RESULTS, LMMS_EVAL = "answers.jsonl", "results.json", "lmms_eval"  # in the folder --out


def add(commands: Commands) -> argparse.ArgumentParser:
    """Declare `fourdthinker eval`."""
    parser = commands.add_parser("eval", help="accuracy on records or a benchmark, with intervals")
    add_model(parser)
    add_questions(parser)
    parser.add_argument(
        "--on-bad-record",
        choices=("raise", "skip"),
        default="raise",
        help="what a line that is wrong does (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=output, default=Path("runs/eval"), help="folder of the results (default: %(default)s)"
    )
    parser.add_argument(
        "--samples",
        type=whole(0, SAMPLES),
        help="samples of each question; 0: greedy alone (default: 4; of --protocol easi: 0)",
    )
    parser.add_argument(
        "--batch", type=whole(1), default=16, help="questions in one batch (default: %(default)s)"
    )
    parser.add_argument(
        "--frames",
        choices=CONTROLS,
        help="show none, black ones, or another clip's instead",
    )
    parser.add_argument(
        "--protocol",
        choices=("own", "easi"),
        default="own",
        help="easi: prompt and frames of VLMEvalKit's DSRBench_1fps (default: %(default)s)",
    )
    parser.add_argument(
        "--baselines",
        nargs="*",
        choices=CONTROLS,
        help="ask the same with these --frames too, and print the accuracies beside; without a name none "
        "(default: all that the data allow)",
    )
    add_latents(parser)
    add_sampling(parser, temperature=1.0)
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Evaluate a checkpoint: answers.jsonl and results.json in the folder `--out`, a table on stdout."""
    from fourdthinker.records import empty_rejected
    from fourdthinker.sampler import check_latent_mode

    take_data(arguments)
    if arguments.samples is None:
        arguments.samples = 4 if arguments.protocol == "own" else 0
    config = sampling(arguments)
    check_latent_mode(arguments.latents)
    answers, rejected = _outputs(arguments)
    with answers_file(answers) as journal:  # until the results are written, so that a second is refused now
        empty_rejected(rejected)
        _evaluate(arguments, config, journal, rejected)


def _evaluate(
    arguments: argparse.Namespace, config: SamplingConfig, journal: JsonLines, rejected: Path
) -> None:
    from fourdthinker.evaluate import baselines, evaluate, several_samples, twins_of
    from fourdthinker.evaluate.easi_protocol import EasiEncoder, check_easi
    from fourdthinker.files import write_json
    from fourdthinker.integrations.lmms_samples import write_lmms_samples

    records, left_out, bench = questions(arguments, rejected)
    controls = _wanted_controls(arguments, records)
    if arguments.protocol != "own":
        check_easi(records)
    model, name = thinker(arguments), model_name(arguments)
    encoder = model.encoder if arguments.protocol == "own" else EasiEncoder(model.encoder)
    ask = partial(
        evaluate, model.sampler, encoder, records, n=arguments.samples, config=config,
        batch_prompts=arguments.batch, latents=arguments.latents, name=name,
    )  # fmt: skip
    result = ask(frames_override=arguments.frames, journal=journal)
    skipped = rejected.read_bytes().count(b"\n") if rejected.exists() else 0
    summary = result.summary()
    results = {
        **baselines(records),
        **_priors(records),
        "model": summary,
        "answered": summary["answered"],
        **_controls(controls, arguments.out, ask, result),
        **result.easi(),
        **several_samples(result),
        "protocol": arguments.protocol,
        "checkpoint": name,
        "data": [str(path) for path in arguments.data],
        "records_rejected": skipped,
        "settings": result.settings,
    }
    if bench is not None:
        results["benchmark"] = _benchmark(arguments.bench, bench, result, summary)
    else:
        results["left_out"] = left_out
        twins = twins_of(records)
        results |= _grouped(result, {}, twins)
        results["answered"] |= _grouped(result.answered, {}, twins)
    path = write_json(arguments.out / RESULTS, results)
    write_lmms_samples(arguments.out / LMMS_EVAL, _task(arguments), result, records)
    _show(results)
    if skipped:
        log.warning("%d records were rejected and are not counted; see %s", skipped, rejected)
    sys.stdout.write(f"{path}\n")


def _show(results: dict[str, Any]) -> None:
    """Print the tables, and the lines of a benchmark or of twins."""
    from rich.console import Console

    from fourdthinker.evaluate import results_table, types_table

    console = Console()
    console.print(results_table(results, title=results["checkpoint"]))
    if len(results["model"]["by_type"]) > 1:
        console.print(types_table(results["model"]))
    for line in _lines(results):
        console.print(line, markup=False, highlight=False)


def _wanted_controls(arguments: argparse.Namespace, records: list[Record]) -> list[str]:
    """The baselines to ask; ConfigError for named ones that cannot be asked, before anything is."""
    from fourdthinker.errors import ConfigError
    from fourdthinker.evaluate.clips import donors, group_clips

    named = arguments.baselines
    control = arguments.frames is not None or arguments.latents != "own"  # the run is one itself
    if named and control:
        other = f"--frames {arguments.frames}" if arguments.frames else f"--latents {arguments.latents}"
        raise ConfigError(f"--baselines goes without {other}; leave out one of them")
    if named == [] or control:
        return []
    left_out: dict[str, str] = {}
    bare = [record for record in records if not record.media_paths]
    if bare:
        left_out |= dict.fromkeys(("black", "other"), f"{bare[0].where} has no pictures")
    if len(bare) == len(records):
        left_out["none"] = "no question has pictures"
    elif not any(donors(group_clips(records), "other", 0)):
        left_out.setdefault(
            "other",
            "it needs two videos or more that are there, with as many videos and images to a question",
        )
    for control in named or ():
        if control in left_out:
            raise ConfigError(f"--baselines {control}: {left_out[control]}; leave it out")
    wanted = dict.fromkeys(CONTROLS if named is None else named)
    for control, reason in left_out.items():
        log.info("baseline %s is left out: %s", control, reason)
    return [control for control in wanted if control not in left_out]


def _controls(
    controls: list[str], out: Path, ask: Callable[..., EvalResult], result: EvalResult
) -> dict[str, Any]:
    """The same questions without their pictures, and how much better the model is with them.

    A question that the model could not be asked (its video is missing) counts as wrong in a control too, and
    neither that nor one that the control leaves out (there is no other clip for it) is compared.
    """
    from fourdthinker.evaluate import paired_difference
    from fourdthinker.evaluate.scoring import finite

    found: dict[str, Any] = {}
    failed = {question.id: question.failed for question in result.questions}
    for control in controls:
        other = ask(frames_override=control, journal=_control_journal(out, control))
        other = replace(
            other, questions=tuple(replace(q, failed=failed[q.id] or q.failed) for q in other.questions)
        )
        found[f"shown_{control}"] = other.summary()
        asked = {question.id for question in other.questions if not question.failed}
        both = [
            replace(part, questions=tuple(q for q in part.questions if q.id in asked))
            for part in (result, other)
        ]
        if asked:
            found[f"model_minus_shown_{control}"] = finite(paired_difference(*both))
    return found


def _outputs(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The files of answers and of rejected records.

    FourdError: these or any other file that will be written cannot be, or would replace what is read.
    """
    from fourdthinker.errors import ConfigError
    from fourdthinker.files import make_folder
    from fourdthinker.integrations.lmms_samples import lmms_files

    folder = make_folder(arguments.out)
    answers, results = folder / ANSWERS, folder / RESULTS
    rejected = rejected_beside(answers)
    wanted = CONTROLS if arguments.baselines is None else arguments.baselines
    controls = [_control_journal(folder, control) for control in wanted]
    for path in (answers, rejected, results, *controls, *lmms_files(folder / LMMS_EVAL, _task(arguments))):
        check_with_folder(path)
        not_read(path, arguments.data)
    if results.exists() and not answers.exists():
        raise ConfigError(
            f"{results} is of something else, since no {answers.name} is beside it; "
            "name another folder (--out)"
        )
    return answers, rejected


def _control_journal(folder: Path, control: str) -> Path:
    return folder / "baselines" / control / ANSWERS


def _task(arguments: argparse.Namespace) -> str:
    """The name of the data, for lmms-eval."""
    return str(arguments.bench or arguments.data[0].stem)


def _priors(records: list[Record]) -> dict[str, Any]:
    """What the text of the options and the best of the audit's solvers reach; {} for too few questions."""
    from fourdthinker.audit import FEWEST, ChoiceQuestion, audit
    from fourdthinker.records import source_of

    choices = [r for r in records if r.options and r.answer]
    if len(choices) < FEWEST or len({source_of(r) for r in choices}) < 2:
        return {}
    items = [
        ChoiceQuestion(
            id=r.id, group=source_of(r), type=r.type or "", question=r.question,
            options=tuple(r.options.values()), answer=list(r.options).index(str(r.answer)), index=i,
        )
        for i, r in enumerate(choices)
    ]  # fmt: skip
    try:
        lines = [line for line in audit(items).lines if line.type is None]
    except ImportError as error:
        log.warning("no option-text prior beside the accuracy: %s", error)
        return {}
    best = max(lines, key=lambda line: line.accuracy)
    prior = next(line for line in lines if line.solver == "option text")
    return {
        key: {
            "accuracy": line.accuracy,
            "low": line.low,
            "high": line.high,
            "n": line.questions,
            "solver": line.solver,
        }
        for key, line in (("option_prior", prior), ("blind_solver", best))
    }


def _benchmark(name: str, data: BenchmarkData, result: EvalResult, summary: dict[str, Any]) -> dict[str, Any]:
    """What a results.json says about the benchmark; the types of `summary` are put into its order."""
    from fourdthinker.evaluate import BENCHMARKS

    benchmark = BENCHMARKS[name]
    found = summary["by_type"]
    order = [kind for kind in benchmark.types if kind in found]
    summary["by_type"] = {kind: found[kind] for kind in dict.fromkeys([*order, *found])}
    return {
        "name": name,
        "title": benchmark.title,
        "files": [str(path) for path in data.files],
        "left_out": data.left_out,
        "missing_media": data.missing,
        "notes": data.notes,
        **_grouped(result, benchmark.tasks, data.twins),
        "answered": _grouped(result.answered, benchmark.tasks, data.twins),
    }


def _grouped(result: EvalResult, tasks: Mapping[str, str], twins: Mapping[str, str]) -> dict[str, Any]:
    """The figures by task and by set of twins, where there are some."""
    return {
        **(result.by_task(tasks) if tasks else {}),
        **({"consistency": result.consistency(twins)} if twins else {}),
    }


def _lines(results: dict[str, Any]) -> list[str]:
    """The figures by task and by set of twins, in both denominators, and what was not asked; a line each."""
    bench = results.get("benchmark")
    grouped = results if bench is None else bench
    lines = _grouped_lines(grouped)
    if results["model"]["failed"]:
        lines += [f"answered only: {line}" for line in _grouped_lines(grouped["answered"])]
    if bench is not None:
        missing = len(bench["missing_media"])
        lines.append(f"{len(bench['left_out'])} questions left out, {missing} media missing")
    elif results["left_out"]:
        lines.append(f"{len(results['left_out'])} questions left out")
    return lines


def _grouped_lines(bench: Mapping[str, Any]) -> list[str]:
    from fourdthinker.evaluate.table import percent, span

    lines = [
        f"{task}: {percent(entry['accuracy'])} ({span(entry)}), "
        f"mean of its types {percent(entry['type_mean'])}"
        for task, entry in bench.get("tasks", {}).items()
    ]
    if "task_mean" in bench:
        lines.append(f"mean of the tasks: {percent(bench['task_mean'])}")
    if "consistency" in bench:
        entry = bench["consistency"]
        right = f"{percent(entry['accuracy'])} ({span(entry)})"
        lines.append(f"right on all twins of a question: {right}, {entry['n']} questions")
    return lines
