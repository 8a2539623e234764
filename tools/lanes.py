"""Run test lanes. A lane is a directory of tests that runs on one kind of hardware, or with other packages.

python tools/lanes.py                 all lanes but gpu, unit and interpreter with line coverage
python tools/lanes.py LANE [ARG ...]  one lane; arguments after it go to pytest, which then is one process
"""

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

log = logging.getLogger("lanes")

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
LANES = ("unit", "interpreter", "compile", "fuzz", "sanitize", "e2e")
ON_REQUEST = ("gpu", "others")
# No directory, but files of others, with the cases that these leave out elsewhere.
FILES = {
    "others": (
        "e2e/test_zero.py",
        "e2e/test_fsdp.py",
        "unit/backbones/test_released_format.py",
        "unit/integrations/test_lmms_eval.py",
    )
}
# What a lane has beside the environment: files of requirements/, each installed into a folder of its own.
BESIDE = {"others": ("deepspeed", "transformers4", "lmms_eval")}
FOLDERS = ROOT / "build" / "beside"
# Lanes whose tests a process for each core takes from one list, and how: e2e by files, because what a module
# makes once (a demo, a wheel) takes longer than its tests.
SHARED_OUT = {"unit": "worksteal", "interpreter": "worksteal", "compile": "worksteal", "e2e": "loadfile"}
COVERED = ("unit", "interpreter")  # tracing costs a third of the time of a lane
PROCESSES = ["--numprocesses=auto", "--maxprocesses=8"]
COVERAGE = ROOT / "build" / "coverage"
LEAST_COVERAGE = 90
NO_TESTS_COLLECTED = 5  # pytest's exit status


def environment(lane: str, coverage: bool) -> dict[str, str]:
    """What a lane's process sees: no network, and Triton's interpreter only in the lane of that name.

    The interpreter is chosen when a module with kernels is imported, and ahead-of-time compilation does not
    work under it, so the variable is never inherited.
    """
    values = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if lane == "interpreter":
        values["TRITON_INTERPRET"] = "1"
    values.setdefault("OMP_NUM_THREADS", "1")  # tensors are tiny, and every core has a process
    values.setdefault("TOKENIZERS_PARALLELISM", "false")
    values.update({"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})
    if lane == "others":
        beside = (str(FOLDERS / name) for name in ("deepspeed", "lmms_eval"))
        values |= {"PYTHONPATH": os.pathsep.join(beside), "FOURDTHINKER_FSDP": "1"}
        values["FOURDTHINKER_TRANSFORMERS_4"] = str(FOLDERS / "transformers4")
    if coverage:
        values["COVERAGE_FILE"] = str(COVERAGE / "data")
        if sys.version_info >= (3, 12):
            values.setdefault("COVERAGE_CORE", "sysmon")  # nothing but our own files costs time
    return values


def install_beside(lane: str) -> int:
    """Installs what a lane has beside the environment, unless it is there; pip's exit status."""
    for name in BESIDE.get(lane, ()):
        wanted, folder = ROOT / "requirements" / f"{name}.txt", FOLDERS / name
        done = folder / wanted.name
        if done.is_file() and done.read_bytes() == wanted.read_bytes():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--quiet"]
        command = [*pip, "--no-deps", "--target", str(folder), "--requirement", str(wanted)]
        values = os.environ | {"DS_BUILD_OPS": "0"}  # DeepSpeed would compile operators for GPUs
        if code := subprocess.run(command, cwd=ROOT, env=values, check=False).returncode:
            return code
        shutil.copy(wanted, done)
    return 0


def tests_of(lane: str) -> list[Path]:
    return [TESTS / name for name in FILES.get(lane, (lane,))]


def has_tests(lane: str) -> bool:
    return any(path.is_file() or any(path.rglob("test_*.py")) for path in tests_of(lane))


def run_lane(lane: str, arguments: list[str], coverage: bool) -> int:
    """Exit status of the lane; 0 when it has no tests, which is said."""
    if not has_tests(lane):
        log.warning("== %s: no tests in %s", lane, TESTS / lane)
        return 0
    log.info("== %s", lane)
    if code := install_beside(lane):
        return code
    runner = ["-m", "coverage", "run", "-m", "pytest"] if coverage else ["-m", "pytest"]
    shared = lane in SHARED_OUT and not arguments
    processes = [*PROCESSES, f"--dist={SHARED_OUT[lane]}"] if shared else []
    tests = map(str, tests_of(lane))
    command = [sys.executable, *runner, *tests, "-q", "--durations=5", *processes, *arguments]
    code = subprocess.run(
        command, cwd=ROOT, env=environment(lane, coverage), stdin=subprocess.DEVNULL, check=False
    ).returncode
    if code == NO_TESTS_COLLECTED and not arguments:
        log.warning("== %s: no tests were collected", lane)
        return 0
    return code


def report_coverage() -> int:
    """Joins what all processes of all lanes have covered; non-zero below LEAST_COVERAGE percent of lines."""
    values = environment("", coverage=True)
    join = [sys.executable, "-m", "coverage", "combine", "--quiet", str(COVERAGE)]
    code = subprocess.run(join, cwd=ROOT, env=values, check=False).returncode
    if code != 0:
        return code
    show = [sys.executable, "-m", "coverage", "report", f"--fail-under={LEAST_COVERAGE}"]
    return subprocess.run(show, cwd=ROOT, env=values, check=False).returncode


def main(argv: list[str]) -> int:
    if argv and argv[0] not in (*LANES, *ON_REQUEST):
        raise SystemExit(f"unknown lane {argv[0]!r}: choose one of {', '.join((*LANES, *ON_REQUEST))}")
    everything = not argv
    lanes, arguments = (LANES, []) if everything else ((argv[0],), argv[1:])
    if everything:
        shutil.rmtree(COVERAGE, ignore_errors=True)
        COVERAGE.mkdir(parents=True)
    results: list[tuple[str, int, float]] = []
    for lane in lanes:
        start = time.monotonic()
        code = run_lane(lane, arguments, coverage=everything and lane in COVERED)
        results.append((lane, code, time.monotonic() - start))
    if everything:
        start = time.monotonic()
        results.append(("coverage", report_coverage(), time.monotonic() - start))
    for name, code, seconds in results:
        log.info("%-12s %-8s %6.1f s", name, "ok" if code == 0 else f"FAILED {code}", seconds)
    return 0 if all(code == 0 for _, code, _ in results) else 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
