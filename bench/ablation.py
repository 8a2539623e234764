"""What the latents do in the demo's model: ``python -m bench ablation``.

The demo's scenes and its model, trained in several ways from the same base model of a seed, and asked the
same held-out questions:

- ``none``: the same reasoning in words alone; ``latents``: as the demo trains; ``latent_norm`` and
  ``self_feed``: with this setting of DIFT; each of the four is trained by 4DRL too.
- ``silhouette``, ``depth``, ``trail``, ``map``, ``next``: blocks that stand for another picture than the
  overlay, as ``fourdthinker synth --imagery`` draws it.

Every model but ``none`` is asked once more with something else in the place of its latents (docs/latents.md).

It takes hours on two cores, in one process of one thread, seed after seed. It may be killed or paused at any
time: the same command goes on, training from its last checkpoint, questions from the last batch; if the code
is of another revision by then, it says so, and each row names the revisions that made it. After every
training that is finished the tables are shown, and saved.
``--report`` makes the tables of what is there. Figures are only saved with ``--save``, the rows of each seed
by themselves: seeds may be run on different days (``--seeds 1``), and the tables show those that were saved,
too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from bench import _ablation_data as data
from bench import _ablation_tables as tables
from bench import _ablation_training as training
from bench import _measure as measure
from fourdthinker.demo.settings import DemoSettings, quick_settings
from fourdthinker.demo.work import StoppedError, Work
from fourdthinker.errors import ConfigError, FourdError
from fourdthinker.files import close_locked, make_folder, open_locked, parse_json, write_json, write_text

log = logging.getLogger("bench.ablation")

SETTINGS = "ablation.json"  # in the folder: what the ablation depends on
Step = tuple[int, str, str]  # seed, variant, stage
# Seconds of a stage on a core of two, until one of this kind is done.
_USUAL = {"scenes": 600.0, "imagery": 400.0, "dift": 400.0, "rl": 600.0}


def demo_settings(seed: int, *, quick: bool) -> DemoSettings:
    """The demo's settings."""
    return quick_settings(seed) if quick else DemoSettings(seed=seed)


def check_folder(out: Path, *, quick: bool) -> None:
    """Note what the folder holds: seeds that are compared were made by the same demo.

    Raises:
        ConfigError: it holds an ablation of another demo.
    """
    settings = demo_settings(0, quick=quick)
    variants = {name: [v.imagery, dict(v.options), v.rl] for name, v in training.VARIANTS.items()}
    texts = data.sample_texts(settings)
    wanted = json.loads(json.dumps({"demo": settings.to_dict(), "variants": variants, "texts": texts}))
    path = out / SETTINGS
    if path.exists() and parse_json(path.read_bytes()) != wanted:
        raise ConfigError(
            f"{path}: an ablation with other settings or another demo; name another folder (--out), or go on "
            "with the revision that began it"
        )
    write_json(path, wanted)


def digest(settings: object) -> str:
    """A hash of what an ablation depends on."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def is_done(out: Path, step: Step, kinds: Sequence[str]) -> bool:
    """Whether a step has left its result; of imagery, whether all `kinds` are there."""
    path = tables.result_path(out, *step)
    if not path.exists():
        return False
    return step[2] != "imagery" or set(kinds) <= set(json.loads(path.read_text())["kinds"])


def seconds_left(out: Path, todo: Sequence[Step], every: Sequence[Step]) -> float:
    """How long the steps of `todo` take, from the median of those of the same stage that are done."""
    taken: dict[str, list[float]] = {}
    for step in every:
        path = tables.result_path(out, *step)
        if path.exists():
            taken.setdefault(step[2], []).append(json.loads(path.read_text())["seconds"])
    return sum(statistics.median(taken[stage]) if stage in taken else _USUAL[stage] for _, _, stage in todo)


def do(out: Path, step: Step, kinds: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Do a step, or go on with it.

    Args:
        out: folder of the ablation.
        step: what is done.
        kinds: of the synthesis' imagery, those that will be trained on.
        quick: whether nothing is learned.

    Returns:
        What its result file says, but for the seconds.
    """
    seed, name, stage = step
    folder, settings = out / f"seed{seed}", demo_settings(seed, quick=quick)
    if stage == "scenes":
        data.draw_held_out(data.prepare(folder, settings), [data.OVERLAY])
        return {}
    work = Work(folder, settings, rank=0, world=1)
    if stage == "imagery":
        data.draw_held_out(work, kinds)
        data.make_targets(work, kinds)
        return {"kinds": list(kinds)}
    variant = training.VARIANTS[name]
    final = training.train_variant(work, variant, stage, folder / name)
    answers = tables.answers_folder(out, seed, name, stage)
    return training.answer_questions(work, variant, final, answers, f"seed {seed}, {name}, {stage}")


def is_begun(out: Path, step: Step) -> bool:
    """Whether anything of a step is there."""
    path, folder = tables.result_path(out, *step), out / f"seed{step[0]}"
    if path.exists() or tables.revisions_path(out, *step).exists():
        return True
    if step[2] == "scenes":
        return (folder / "settings.json").exists()
    if step[2] == "imagery":
        return any(any((folder / "imagery").rglob(f"*{kind}*")) for kind in data.KINDS)
    return path.with_suffix("").exists()


def begin(out: Path, step: Step) -> None:
    """Note by which revision of the code a step is made, behind those that made what is there."""
    found = tables.revisions(out, *step) if is_begun(out, step) else []
    if measure.revision() not in found:
        path = tables.revisions_path(out, *step)
        make_folder(path.parent)
        write_text(path, " ".join([*found, measure.revision()]) + "\n")


def warn_of_revisions(out: Path, every: Sequence[Step]) -> None:
    """Say which steps, finished or begun, are of other revisions than this one."""
    others: dict[str, list[str]] = {}
    for step in every:
        made = tables.revisions(out, *step)
        if is_begun(out, step) and made != [measure.revision()]:
            others.setdefault(" ".join(made), []).append(" ".join(str(part) for part in step if part != ""))
    for names, steps in others.items():
        log.warning(
            "revision %s, not %s, made: %s; rows name their revisions; for one revision name another "
            "folder (--out)", names, measure.revision(), ", ".join(steps),
        )  # fmt: skip


def run(out: Path, only: Sequence[str], seeds: Sequence[int], *, quick: bool, save: bool) -> None:
    """Do everything that is not done yet, in order, with `report` after every training.

    Raises:
        FourdError: something else is in the folder, or a step failed.
        StoppedError: a signal ended a training.
    """
    check_folder(out, quick=quick)
    kinds = [kind for kind in data.KINDS if kind in only]
    every = training.order(only, seeds)
    todo = [step for step in every if not is_done(out, step, kinds)]
    warn_of_revisions(out, every)
    while todo:
        step = todo[0]
        left = seconds_left(out, todo, every) / 3600
        what = " ".join(str(part) for part in step[1:] if part)
        done = len(every) - len(todo)
        log.info("%d of %d done, about %.1f hours left; seed %d, %s", done, len(every), left, step[0], what)
        started = time.perf_counter()
        begin(out, step)
        found = do(out, step, kinds, quick=quick)
        seconds = round(time.perf_counter() - started, 1)
        write_json(tables.result_path(out, *step), {"seconds": seconds} | found)
        log.info("seed %d, %s: done in %.0f s", step[0], what, seconds)
        todo = todo[1:]
        if todo and step[1]:
            report(out, seeds, save=save)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep other processes from working in the folder.

    Raises:
        OutputError: one does already.
    """
    make_folder(out)
    handle = open_locked(out / "lock", str(out), "folder")
    try:
        yield
    finally:
        close_locked(handle)


def group(seed: int) -> str:
    """The name of a seed's rows among the saved results."""
    return f"ablation, seed {seed}"


def report(out: Path, seeds: Sequence[int], *, save: bool) -> None:
    """Tables of all that is finished in the folder, and of the saved rows of the other seeds.

    Saved rows of another demo are left out, with a warning.
    """
    made = digest(parse_json((out / SETTINGS).read_bytes()))
    rows: dict[int, list[dict[str, Any]]] = {}
    for seed in seeds:
        if found := tables.rows_of_seed(out, seed):
            rows[seed] = [{"part": "settings", "digest": made}, *found]
            if save:
                log.info("saved in %s", measure.save(group(seed), rows[seed]))
        elif held := measure.saved(group(seed)):
            if held[0]["digest"] != made:
                log.warning(
                    "%s in %s is of another demo than %s and left out; run that seed again",
                    group(seed), measure.RESULTS, out,
                )  # fmt: skip
                continue
            rows[seed] = held
    log.info("seeds: %s", ", ".join(map(str, rows)) or "none has finished anything")
    measure.show("Accuracy, and differences in points", tables.accuracy_table(rows))
    measure.show("Own accuracy, and what other latents change", tables.audit_table(rows))
    measure.show("Blocks", tables.block_table(rows))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench ablation", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=training.VARIANTS, default=list(training.VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--quick", action="store_true", help="every step in seconds; nothing is learned")
    parser.add_argument("--report", action="store_true", help="only the tables of what is there")
    measure.add_save(parser)
    options = parser.parse_args(argv)
    if options.quick and options.save:
        parser.error("--quick is too little for a figure: leave out --save, or --quick")
    seeds = sorted(set(options.seeds))
    if len(seeds) > tables.MOST_SEEDS or seeds[0] < 0:
        parser.error(f"--seeds: give up to {tables.MOST_SEEDS} numbers from 0")
    torch.set_num_threads(1)
    disable_progress_bar()
    try:
        with alone(options.out):
            if not options.report:
                run(options.out, options.only, seeds, quick=options.quick, save=options.save)
            report(options.out, seeds, save=options.save)
    except (FourdError, StoppedError) as error:
        log.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
