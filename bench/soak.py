"""A long 4DRL run on two processes that is killed at random moments: ``python -m bench soak``.

Two runs of a tiny model: one that nothing interrupts, and one whose processes are killed again and again (all
of them, or one alone, whose torchrun then ends the other) and which goes on from its newest checkpoint. Steps
must be the same, none lost and none done twice, with equal losses; and the memory of a process must not grow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench import _measure as measure

log = logging.getLogger("bench.soak")

# How names of metrics begin that no two runs share.
_TIMES = ("time_", "sampling_", "tokens_per_", "rollouts_per_", "memory", "train_", "epoch")
_GROWTH = 1.1  # of the resident memory over the second half of the unbroken run, at most


def worker(arguments: list[str]) -> int:
    """What torchrun starts: a 4DRL run on prompts in memory, which writes down what memory it has."""
    from transformers import TrainerCallback

    from fourdthinker.trainers.driver import process_group, start_logging
    from fourdthinker.trainers.grpo import train_grpo
    from fourdthinker.trainers.settings import GrpoConfig
    from fourdthinker.trainers.settings_files import load_config
    from tests.e2e.training import prompts
    from tests.tiny import tiny_checkpoint

    start_logging()
    config = load_config(GrpoConfig, None, arguments)

    class Memory(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.process_index == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                with Path(config.output_dir, "memory.txt").open("a") as file:
                    file.write(f"{state.global_step} {pages * os.sysconf('SC_PAGE_SIZE')}\n")

    checkpoint = tiny_checkpoint(hidden=32, layers=1)
    with process_group():
        train_grpo(config, checkpoint=checkpoint, prompts=prompts(checkpoint, 16), callbacks=[Memory()])
    return 0


def start(folder: Path, steps: int) -> subprocess.Popen[bytes]:
    """A run on two processes that goes on from whatever is in its folder."""
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": steps, "use_cpu": True, "report_to": [],
        "rewards": ["tests.e2e.training:length_reward"], "reward_weights": [1.0], "num_generations": 2,
        "max_completion_length": 6, "num_iterations": 2, "loss": {"beta": 0.05}, "learning_rate": 1e-3,
        "save_steps": max(3, steps // 60 | 1), "log_rollouts": 0, "resume_from_checkpoint": "auto",
        "ddp_timeout": 120,
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    with Path(f"{folder}.log").open("ab") as output:
        return subprocess.Popen(
            [*command, "-m", "bench.soak", "--worker", *arguments],
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run's steps; the last line of a killed one may be cut off."""
    found = []
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if "learning_rate" in entry:
            found.append({key: value for key, value in entry.items() if not key.startswith(_TIMES)})
    return found


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a torchrun and its workers, which have groups of their own, as far as they still run."""
    if process.poll() is not None:
        return
    for pid in [*workers_of(process), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def running(folder: Path, steps: int) -> Iterator[subprocess.Popen[bytes]]:
    """A run as by `start`, of which nothing is left after the block."""
    process = start(folder, steps)
    try:
        yield process
    finally:
        end(process)


def whole_run(folder: Path, steps: int) -> None:
    """Run to the end."""
    with running(folder, steps) as process:
        if process.wait() != 0:
            said = Path(f"{folder}.log").read_text()[-2000:]
            raise RuntimeError(f"the run ended with {process.returncode}, {folder}.log: {said}")


def kill_targets(steps: int, kills: int, generator: random.Random) -> list[int]:
    """The steps after which a run of `steps` is killed: each in its own part of the first nine tenths."""
    last = steps * 9 // 10  # a run that is killed later could be finished before
    if last < kills:
        raise ValueError(f"{kills} kills within {steps} steps: give more steps or fewer kills")
    return [generator.randrange(1 + k * last // kills, 1 + (k + 1) * last // kills) for k in range(kills)]


def broken_run(folder: Path, steps: int, targets: list[int], generator: random.Random) -> list[str]:
    """Run to the end with a kill a random moment after each of `targets`; what was done when."""
    done = []
    for target in targets:
        with running(folder, steps) as process:
            while process.poll() is None and (not (seen := lines_of(folder)) or seen[-1]["step"] < target):
                time.sleep(0.05)
            time.sleep(generator.random() * 0.5)
            if process.poll() is not None:
                raise RuntimeError(f"the run ended with {process.returncode} before a kill: {folder}.log")
            how, victims = generator.choice(["all", "one", "term"]), workers_of(process)
            if how == "one" and victims:
                os.kill(generator.choice(victims), signal.SIGKILL)
                process.wait(timeout=300)
            elif how == "term":
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=300)
        done.append(f"{how} at {target}")
        log.info("killed: %s", done[-1])
    whole_run(folder, steps)
    return done


def growth(folder: Path) -> float:
    """The resident memory in the last tenth of a run, over that in the tenth after its first half."""
    sizes = [int(line.split()[1]) for line in (folder / "memory.txt").read_text().splitlines()]
    tenth = max(1, len(sizes) // 10)
    return statistics.median(sizes[-tenth:]) / statistics.median(sizes[len(sizes) // 2 :][:tenth])


def main(argv: list[str]) -> int:
    if argv[:1] == ["--worker"]:
        return worker(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m bench soak", description=__doc__)
    parser.add_argument("--steps", type=measure.positive, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", help="keep the runs here (default: a temporary folder)")
    measure.add_save(parser)
    options = parser.parse_args(argv)
    with TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        whole, broken = folder / "whole", folder / "broken"
        generator = random.Random(options.seed)
        targets = kill_targets(options.steps, options.kills, generator)
        whole_run(whole, options.steps)
        done = broken_run(broken, options.steps, targets, generator)
        expected, got = lines_of(whole), lines_of(broken)
        differing = [a["step"] for a, b in zip(expected, got, strict=False) if a != b]
        row = {
            "steps": options.steps, "kills": len(done), "lines": len(got),
            "steps_right": [line["step"] for line in got] == list(range(1, options.steps + 1)),
            "differing": len(differing), "memory_growth": round(growth(whole), 3),
        }  # fmt: skip
    measure.show("A 4DRL run on two processes, killed and resumed", [row])
    if options.save:
        measure.save("soak", [row], "cpu")
    sys.stdout.write(json.dumps({"row": row, "killed": done, "differing": differing[:10]}) + "\n")
    return int(not row["steps_right"] or bool(differing) or row["memory_growth"] > _GROWTH)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
