"""Build into .gpu/ what a GPU machine without network lacks: `make gpu-bundle`.

The package's own wheel, with CUDA and NVDEC, for the Python of that machine, and wheels of others. Such a
machine has torch, triton, transformers, accelerate, peft and pytest already.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

log = logging.getLogger("gpu_bundle")

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / ".gpu"
LIMIT = 60 << 20  # bytes, all wheels together
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
BROUGHT = ("av", "liger-kernel", "pydantic", "pydantic-core", "annotated-types", "typing-inspection")


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    if subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed; its message is above")


def version_of(python: str) -> str:
    """ "3.12" of an interpreter."""
    code = "import sys; print(f'{sys.version_info.major}.{sys.version_info.minor}')"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{python} does not run: {done.stderr.strip()}")
    return done.stdout.strip()


def build(python: str) -> None:
    """Our wheel, by an interpreter of the version of that machine."""
    constraints = str(ROOT / "requirements" / "constraints.txt")
    with tempfile.TemporaryDirectory() as folder:
        run([python, "-m", "venv", folder])
        inside = str(Path(folder, "bin", "python"))
        pip = [inside, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        run([*pip, "install", "-q", "-c", constraints, "scikit-build-core", "nanobind", "cmake", "ninja"])
        wanted = {"FOURDTHINKER_CUDA": "ON", "FOURDTHINKER_REQUIRE_EXT": "1"}
        wheel = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(BUNDLE), str(ROOT)]
        run(wheel, {**os.environ, **wanted, "PATH": f"{folder}/bin:{os.environ['PATH']}"})


def fetch(version: str) -> None:
    """The wheels of others, in the versions that the tests ran with."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    target = ["--python-version", version, "--implementation", "cp", *platforms]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *target]
    run([*pip, "-c", str(ROOT / "requirements" / "constraints.txt"), "-d", str(BUNDLE), *BROUGHT])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make gpu-bundle", description=__doc__)
    parser.add_argument("--python", default="python3.12", help="an interpreter of that machine's version")
    options = parser.parse_args(argv)
    version = version_of(options.python)
    shutil.rmtree(BUNDLE, ignore_errors=True)
    BUNDLE.mkdir()
    build(options.python)
    fetch(version)
    size = sum(path.stat().st_size for path in BUNDLE.glob("*.whl"))
    for path in sorted(BUNDLE.glob("*.whl")):
        log.info("%7.1f MiB  %s", path.stat().st_size / 2**20, path.name)
    log.info("%7.1f MiB in all", size / 2**20)
    if size > LIMIT:
        raise SystemExit(f"{BUNDLE} is larger than {LIMIT >> 20} MiB; leave a wheel out of BROUGHT")
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
