"""Run the stages of the GPU day, each under its own time limit; `bash tools/gpu_check.sh` calls this.

Nothing that fails stops the rest. In the folder of the results: results.json (of every stage its state, its
seconds and the last line of JSON that it printed), logs.tar.gz, and the benches' rows, each as soon as it is
measured. A table comes last.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("gpu_check")

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
# The machine's own pytest may be older than the one that pyproject.toml asks for.
TESTS = (PYTHON, "-m", "pytest", "-q", "--maxfail=25", "--tb=short", "--durations=10",
         "-o", "minversion=8", "-p", "no:cacheprovider")  # fmt: skip
BENCH = (PYTHON, "-m", "bench")
KERNELS = (*BENCH, "kernels")  # which sees the peers that gpu_check.sh has installed apart
RACES = (PYTHON, "-m", "tests.gpu.races")
# Seconds to the limit of a stage at which it is interrupted: pytest shows then what has failed so far.
GRACE = 5
# Seconds of the day, from the start of gpu_check.sh: a second run fits into a quarter of an hour beside it.
DAY = 480


@dataclass(frozen=True)
class Stage:
    """A step of the day.

    Attributes:
        name: in the table.
        seconds: its share of the day. What earlier stages have left of theirs it may use, too.
        commands: run at the same time. A command that measures time is the only one of its stage.
        rehearsal: what is run without a GPU, where it is not the same.
        on_request: run only where `--stage` names it.
    """

    name: str
    seconds: float
    commands: tuple[tuple[str, ...], ...]
    rehearsal: tuple[tuple[str, ...], ...] | None = None
    on_request: bool = False


# By value: what is late is cut at the end.
STAGES = (
    Stage("machine", 20, ((*BENCH, "machine"),)),
    Stage(
        "gpu lane", 80,
        (
            (*TESTS, "tests/gpu/test_kernels.py", "-n", "6"),
            (*TESTS, "tests/gpu/test_sampler.py"),
            (*TESTS, "tests/gpu/test_attention.py", "tests/gpu/test_thinker.py"),
            (*KERNELS, "--errors", "--save"),
            RACES,  # not watched, which compiles its kernels for the last stage
        ),
        ((*TESTS, "tests/gpu/test_kernels.py", "tests/gpu/test_sampler.py", "tests/gpu/test_attention.py",
          "tests/gpu/test_thinker.py", "-n", "1"),),
    ),
    Stage("bench kernels", 60, ((*KERNELS, "--no-compile", "--repeats", "7", "--save"),),
          ((*KERNELS, "--size", "tiny", "--only", "head", "entropy", "small", "liger", "--no-compile",
            "--repeats", "1"),)),
    Stage("bench kernels, wide", 50,
          ((*KERNELS, "--size", "wide", "--only", "head", "logprobs", "liger", "--no-compile",
            "--repeats", "5", "--save"),),
          ((*KERNELS, "--size", "tiny", "--errors"),)),
    Stage("bench sampler, 3B", 50,
          ((*BENCH, "sampler", "--shape", "3b", "--batch", "64", "--new-tokens", "512", "--only", "ours",
            "--repeats", "3", "--save", "--profile"),),
          ((*BENCH, "sampler", "--shape", "tiny", "--batch", "2", "--new-tokens", "4", "--only", "ours"),)),
    Stage("bench ops of a decode step", 20, ((*BENCH, "sampler_ops", "--save"),),
          ((*BENCH, "sampler_ops", "--repeats", "1"),)),
    Stage(
        "sampling, training, doctor", 50,
        (
            (*TESTS, "tests/gpu/test_long_sampling.py", "-n", "4"),  # a process for each test
            (*TESTS, "tests/gpu/test_training.py"),
            (PYTHON, "-m", "fourdthinker.cli", "doctor"),
        ),
        (
            (*TESTS, "tests/gpu/test_long_sampling.py", "tests/gpu/test_training.py"),
            (PYTHON, "-m", "fourdthinker.cli", "doctor"),
        ),
    ),
    Stage("bench step, 3B", 35, ((*BENCH, "step", "--save"),),
          ((*BENCH, "step", "--sizes", "8", "2", "4", "--repeats", "1"),)),
    Stage("bench tower", 20, ((*BENCH, "tower", "--save"),), ((*BENCH, "tower", "--repeats", "1"),)),
    # Alone: it looks at the free memory of the device.
    Stage("gpu lane, video", 20, ((*TESTS, "tests/gpu/test_video_cuda.py"),)),
    Stage("bench video", 20,
          ((*BENCH, "video", "--only", "h264 720p 20 s GOP 250", "--device", "cuda", "--save"),),
          ((*BENCH, "video", "--only", "h264 480p 6 s GOP 30", "--device", "cpu", "--quick"),)),
    Stage("races", 20, ((*RACES, "--watched"),), (RACES,)),
    Stage("tune", 200,
          ((*KERNELS, "--tune", "--repeats", "5", "--only", "decode", "small",
            "--out", "bench/results/tuned.json"),), on_request=True),
)  # fmt: skip
REHEARSAL_SECONDS = 300  # of each stage: machines without a GPU are slow, or busy


def workplace(out: Path) -> Path:
    """A copy of tests, benches and tools without the package, so that the one installed is imported: the
    folder fourdthinker/ of a checkout has no extension and no kernels. Benches write rows into ``out``."""
    folder = Path(tempfile.mkdtemp(prefix="gpu_check_"))
    for name in ("tests", "bench", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.rmtree(folder / "bench" / "results")
    (folder / "bench" / "results").symlink_to(out.resolve())
    (folder / "logs").mkdir()
    return folder


def environment(command: tuple[str, ...], rehearse: bool) -> dict[str, str]:
    """Of a command: nothing asks the network, no kernel is interpreted, and a log holds all that was said.

    In a rehearsal the GPU lane runs what a CPU can run of it.
    """
    values = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    peers = values.pop("GPU_CHECK_PEERS", None)
    if peers is not None and command[: len(KERNELS)] == KERNELS:  # last: they come without what they need
        values["PYTHONPATH"] = f"{values['PYTHONPATH']}{os.pathsep}{peers}"
    return values | {
        "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1", "FOURDTHINKER_GPU_LANE": "cpu" if rehearse else "cuda",
    }  # fmt: skip


def hear_interrupts() -> None:
    """What is started from now on can be interrupted, though this runs behind ``&``, which ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(processes: list[subprocess.Popen[bytes]]) -> None:
    """As Ctrl-C: pytest shows what has failed so far. All have ``GRACE`` seconds together."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        os.killpg(process.pid, signal.SIGINT)
    last = time.monotonic() + GRACE
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, last - time.monotonic()))


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True)
class Clock:
    """When a stage ends, in seconds of the monotonic clock.

    Attributes:
        shares: when the shares of all stages up to this one have passed, had they begun with the first.
        last: the end of the day, which no stage outlasts.
        rehearse: every stage has ``REHEARSAL_SECONDS``.
    """

    shares: float
    last: float
    rehearse: bool

    def seconds(self, stage: Stage, begin: float) -> float:
        """That a stage which begins now may take: its share even where earlier ones were late."""
        if self.rehearse:
            return REHEARSAL_SECONDS
        return min(max(begin + stage.seconds, self.shares), self.last) - begin


def run(stage: Stage, number: int, folder: Path, clock: Clock) -> dict[str, object]:
    """State, seconds and last JSON lines of a stage."""
    rehearse = clock.rehearse
    commands = stage.rehearsal if rehearse and stage.rehearsal is not None else stage.commands
    begin, logs = time.monotonic(), folder / "logs"
    limit = clock.seconds(stage, begin) - GRACE
    if limit <= 0:
        return {"stage": stage.name, "state": "no time was left", "seconds": 0.0, "said": [], "found": []}
    started: list[tuple[subprocess.Popen[bytes], Path]] = []
    problems: list[str] = []
    for part, command in enumerate(commands):
        path = logs / f"{number:02d}-{part}.log"
        if shutil.which(command[0]) is None:
            problems.append(f"{command[0]} is not installed")
            continue
        with open(path, "wb") as output:
            output.write((" ".join(command) + "\n").encode())
            output.flush()
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, env=environment(command, rehearse),
            )  # fmt: skip
        started.append((process, path))
    late = []
    for process, path in started:
        try:
            process.wait(max(0.1, limit - (time.monotonic() - begin)))
        except subprocess.TimeoutExpired:
            late.append(path)
    interrupt([process for process, _ in started])
    for process, path in started:
        end(process)
        if path in late:
            problems.append(f"{path.name}: no end after {limit:.0f} s")
        elif process.returncode != 0:
            problems.append(f"{path.name}: status {process.returncode}: {last_line(path)}")
    return {
        "stage": stage.name, "state": "; ".join(problems) or "ok",
        "seconds": round(time.monotonic() - begin, 1),
        "said": [last_line(path) for _, path in started], "found": [found(path) for _, path in started],
    }  # fmt: skip


def last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def found(path: Path) -> object:
    """The last line of JSON in a log, or None."""
    for line in reversed(path.read_text(errors="replace").splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def chosen_stages(text: str | None) -> list[int]:
    """Numbers from 1, of "2,6" or of all that are not on request."""
    if text is None:
        return [number for number, stage in enumerate(STAGES, 1) if not stage.on_request]
    numbers = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if not all(1 <= number <= len(STAGES) for number in numbers):
        known = "\n".join(f"{k:3d}  {stage.name}" for k, stage in enumerate(STAGES, 1))
        raise SystemExit(f"--stage {text}: give numbers of these stages, with commas between:\n{known}")
    return numbers


def keep(results: list[dict[str, object]], folder: Path, out: Path) -> None:
    """Write what is known of the stages so far into the folder of the results."""
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    with tarfile.open(out / "logs.tar.gz", "w:gz") as archive:
        archive.add(folder / "logs", "logs")


def main(argv: list[str]) -> int:
    """Exit status 1 when a stage did not end well."""
    parser = argparse.ArgumentParser(prog="bash tools/gpu_check.sh", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "runs" / "gpu"))
    parser.add_argument("--stage", help="numbers of stages, with commas between (default: all)")
    parser.add_argument("--rehearse", action="store_true", help="small sizes, without a GPU")
    parser.add_argument("--begin", type=float, default=time.time(), help=argparse.SUPPRESS)  # gpu_check.sh's
    options = parser.parse_args(argv)
    hear_interrupts()
    numbers = chosen_stages(options.stage)
    options.out.mkdir(parents=True, exist_ok=True)
    folder = workplace(options.out)
    results: list[dict[str, object]] = []
    stages = [STAGES[number - 1] for number in numbers]
    now = time.monotonic()
    last = now + DAY - (time.time() - options.begin)
    shares = itertools.accumulate((stage.seconds for stage in stages), initial=now)
    clocks = [Clock(share, last, options.rehearse) for share in itertools.islice(shares, 1, None)]
    # On a GPU a stage has the machine to itself.
    with ThreadPoolExecutor(2 if options.rehearse else 1) as pool:
        done = pool.map(run, stages, numbers, [folder] * len(stages), clocks)
        for number, result in zip(numbers, done, strict=True):
            results.append(result)
            log.info("%2d  %-30s %6.1f s  %s", number, *(result[k] for k in ("stage", "seconds", "state")))
            keep(results, folder, options.out)  # after each, so that nothing is lost when the machine goes
    shutil.rmtree(folder)
    log.info("\n%s: results.json, logs.tar.gz", options.out)
    for number, result in zip(numbers, results, strict=True):
        state = "ok" if result["state"] == "ok" else "FAILED"
        said = str(result["said"][-1] if result["said"] else result["state"])  # type: ignore[index]
        log.info("%2d  %-30s %-7s %6.1f s  %s", number, result["stage"], state, result["seconds"], said[:90])
    return 0 if all(result["state"] == "ok" for result in results) else 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
