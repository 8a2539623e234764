"""`fourdthinker demo`: render, decode, write records, train in three phases, evaluate, report."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from fourdthinker.demo.data import Labelled, render_clips, write_all_records
from fourdthinker.demo.results import make_results
from fourdthinker.demo.settings import PHASES, DemoSettings, quick_settings
from fourdthinker.demo.twins import write_twins
from fourdthinker.demo.work import DONE, is_done, mark_done
from fourdthinker.errors import ConfigError
from fourdthinker.evaluate import results_table
from fourdthinker.files import (
    FOLDER_LOCK,
    UNFINISHED,
    check_folder,
    locked_folder,
    make_folder,
    parse_json,
    read_regular,
    write_json,
)
from fourdthinker.progress import progress_bar
from fourdthinker.records import read_records
from fourdthinker.report import write_report
from fourdthinker.report.verdict import verdict

logger = logging.getLogger(__name__)

PROCESSES = 2  # also on machines with more cores: the numbers shall not depend on the machine's size


def run_demo(out: str | os.PathLike[str] = "runs/demo", *, quick: bool = False, seed: int = 0) -> Path:
    """Run the demo; a phase that has been finished is not done again.

    A phase counts as finished when its outputs are in `out`, made from the same settings and seed: a demo
    that was killed goes on by the same command.

    Args:
        out: folder of the run.
        quick: every phase in seconds on a handful of clips; nothing is learned.
        seed: of scenes, weights and sampling.

    Returns:
        The path of results.json.

    Raises:
        ConfigError: the folder holds other things than a demo, whose files would be replaced.
        OutputError: it cannot be written, or another process runs in it.
        RuntimeError: a training process failed; its own error stands above on standard error.
    """
    started = time.perf_counter()
    run = Path(out)
    settings = quick_settings(seed) if quick else DemoSettings(seed=seed)
    check_is_demo(run)
    with locked_folder(make_folder(run)):
        return _run_demo(run, settings, started)


def _run_demo(run: Path, settings: DemoSettings, started: float) -> Path:
    write_json(run / "settings.json", settings.to_dict())
    kept = {name for name in PHASES if is_done(run, name, settings)}
    if "render" in kept:
        logger.info("render: done before, outputs kept")
    else:
        render_scenes(run, settings, PROCESSES)
    _train(run)
    seconds = {
        name: json.loads((run / name / DONE).read_text(encoding="utf-8"))["seconds"] for name in PHASES
    }
    # Phases done in an earlier, interrupted run count with what they took then.
    rest = time.perf_counter() - started - sum(seconds[name] for name in PHASES if name not in kept)
    seconds["total"] = round(sum(seconds[name] for name in PHASES) + rest, 1)
    records = read_records(run / "render" / "test.jsonl", kind="rl")
    results = make_results(run, settings, records, seconds)
    path = write_json(run / "results.json", results)
    page = write_report(run)
    _show(results, page)
    return path


def check_is_demo(run: Path) -> None:
    """Refuse a folder in which something else is: what the demo replaces must be its own.

    Raises:
        ConfigError: names the folder.
        OutputError: it cannot be made.
    """
    check_folder(run)
    names = [path.name for path in run.iterdir()] if run.is_dir() else []
    if all(name == FOLDER_LOCK or UNFINISHED.fullmatch(name) for name in names):
        return
    try:
        found = parse_json(read_regular(run / "settings.json"))
    except (ConfigError, ValueError):
        found = None
    if not isinstance(found, dict) or not {"seed", "render", "dift"} <= found.keys():
        raise ConfigError(f"{run} holds other things than a demo; name a new or empty folder (--out)")


def render_scenes(run: Path, settings: DemoSettings, processes: int) -> None:
    """The render phase: clips, overlays and records of all splits, anew.

    Args:
        run: folder of the demo; its folder `render` is replaced.
        settings: which scenes.
        processes: that share the work.
    """
    started = time.perf_counter()
    folder = run / "render"
    if folder.exists():
        shutil.rmtree(folder)  # of a killed run or of other settings; everything in it is ours
    folder.mkdir(parents=True)
    worlds: dict[str, list[Labelled]] = {"train": [], "rl": [], "test": []}
    bar = progress_bar()
    total = sum(getattr(settings.render, split) for split in worlds)
    with bar:
        task = bar.add_task("render, encode, decode clips", total=total)
        for job, made in render_clips(settings, folder, processes):
            worlds[job.split] += made
            bar.update(task, advance=len(made))
    counts = write_all_records(worlds, folder, settings.seed)
    counts["twins"] = write_twins(settings, folder)
    seconds = time.perf_counter() - started
    mark_done(run, "render", settings, seconds)
    logger.info("render: %d clips, records %s, in %.0f s", total, counts, seconds)


def _train(run: Path) -> None:
    """Run `fourdthinker.demo.work` on PROCESSES processes, one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    command += ["-m", "fourdthinker.demo.work", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    code = subprocess.run(command, env=environment).returncode
    if code:
        raise RuntimeError(
            f"{' '.join(command)} ended with status {code}; its messages stand above. "
            "Once the cause is gone, the same demo command goes on after the last finished phase"
        )


def _show(results: dict[str, Any], page: Path) -> None:
    console = Console()
    console.print(results_table(results, title="held-out scenes, sampled accuracy"))
    for sentence in verdict(results):
        console.print(sentence, markup=False)
    console.print(f"results: {page.with_name('results.json')}   page: {page}", markup=False)
