"""Build into .gpu/ what a GPU machine without network lacks: `make gpu-bundle`.

The package's own wheel, with CUDA and NVDEC, for the Python of that machine, and wheels of others. Such a
machine has torch, triton, transformers, accelerate, peft and pytest already.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

log = logging.getLogger("gpu_bundle")

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / ".gpu"
PEERS = BUNDLE / "peers"
TREE = BUNDLE / "tree"  # what the wheel was built of
CARRIED = 64 << 20  # bytes that such a machine is given, the tracked files of the checkout among them
RESERVE = 1 << 20
SOURCES = ("csrc", "fourdthinker", "kernels")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
BROUGHT = ("av", "liger-kernel", "pydantic", "pydantic-core", "annotated-types", "typing-inspection")
# What the kernels are compared with, and what the backward pass of TRL's fused head imports. Apart, since
# transformers imports datasets wherever it is installed.
COMPARED = ("trl", "datasets", "dill", "multiprocess")


# The extension alone: nothing that the package imports has to be there.
WHAT_IS_BUILT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_video", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
info = module.build_info()
sys.exit(", ".join(name for name in ("cuda", "nvdec_headers") if not info[name]) or None)
"""


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


def digest(root: Path) -> str:
    """Of all that the wheel is built of; what was compiled does not count."""
    total = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path.suffix not in (".so", ".pyc"):
                total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def require_fresh(root: Path) -> None:
    """Raises SystemExit when the wheel in .gpu/ was built of other sources than those beside it."""
    tree = root / TREE.relative_to(ROOT)
    if not tree.is_file() or tree.read_text().strip() != digest(root):
        raise SystemExit(
            f"the wheel in {tree.parent} was not built of this tree: run make gpu-bundle and carry .gpu/ anew"
        )


def require_nvdec(python: str, wheel: Path) -> None:
    """Raises SystemExit when the extension in a wheel has no CUDA or no NVDEC."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        names = [
            n for n in archive.namelist() if Path(n).stem.startswith("_video") and not n.endswith(".pyi")
        ]
        (name,) = names  # the stub of its types is in the wheel, too
        command = [python, "-c", WHAT_IS_BUILT, archive.extract(name, folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(
            f"{wheel.name} is built without {done.stderr.strip()}: CUDA's compiler and the headers of NVDEC "
            "have to be found here (docs/video.md)"
        )


def limit(root: Path) -> int:
    """Bytes that the wheels may have."""
    command = ["git", "ls-files", "-z"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    tracked = sum((root / name).lstat().st_size for name in names if name and (root / name).exists())
    return CARRIED - RESERVE - tracked


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
        (built,) = BUNDLE.glob("fourdthinker-*.whl")
        require_nvdec(inside, built)


def fetch(version: str) -> None:
    """The wheels of others, in the versions that the tests ran with."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    target = ["--python-version", version, "--implementation", "cp", *platforms]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *target]
    pip += ["-c", str(ROOT / "requirements" / "constraints.txt")]
    run([*pip, "-d", str(BUNDLE), *BROUGHT])
    run([*pip, "-d", str(PEERS), *COMPARED])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make gpu-bundle", description=__doc__)
    parser.add_argument("--python", default="python3.12", help="an interpreter of that machine's version")
    parser.add_argument("--check", action="store_true", help="only whether .gpu/ is of this tree")
    options = parser.parse_args(argv)
    if options.check:
        require_fresh(ROOT)
        return 0
    version = version_of(options.python)
    shutil.rmtree(BUNDLE, ignore_errors=True)
    BUNDLE.mkdir()
    TREE.write_text(digest(ROOT) + "\n")  # before the wheel: what changes during the build makes it stale
    build(options.python)
    fetch(version)
    wheels = sorted(BUNDLE.rglob("*.whl"))
    size = sum(path.stat().st_size for path in wheels)
    for path in wheels:
        log.info("%7.1f MiB  %s", path.stat().st_size / 2**20, path.relative_to(BUNDLE))
    log.info("%7.1f MiB in all", size / 2**20)
    if size > limit(ROOT):
        raise SystemExit(f"{BUNDLE} is larger than {limit(ROOT) >> 20} MiB; leave a wheel out of COMPARED")
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
