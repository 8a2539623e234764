"""Make the virtual environment that `make demo` and `make test` run in. Standard library only.

Installs what is missing: system packages by apt when root (otherwise names them and stops), then the pinned
torch, the pinned dependencies, and the package itself with its native extension, editable.
"""

from __future__ import annotations  # so that an old Python reaches the check of its version

import argparse
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

log = logging.getLogger("prepare")

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
OLDEST = (3, 11)
NVDEC_HEADER = "ffnvcodec/dynlink_nvcuvid.h"
NVDEC_PACKAGE = "libffmpeg-nvenc-dev"  # Debian's and Ubuntu's name


def without_extension() -> bool:
    """FOURDTHINKER_NO_EXT=1: no compiler wanted, frames are resized by Pillow."""
    return os.environ.get("FOURDTHINKER_NO_EXT", "").lower() in {"1", "true", "yes", "on", "y", "t"}


def has_compiler() -> bool:
    named = os.environ.get("CXX", "").split()
    return any(shutil.which(name) for name in [*named[:1], "c++", "g++", "clang++"])


def missing_packages(extension: bool) -> list[str]:
    """Debian/Ubuntu packages that this interpreter lacks for a virtual environment and for building."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    missing = []
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        missing.append(f"{version}-venv")
    if extension:
        if not has_compiler():
            missing.append("g++")
        if not Path(sysconfig.get_path("include"), "Python.h").is_file():
            missing.append(f"{version}-dev")
    return missing


def wants_nvdec_headers() -> bool:
    """Whether a CUDA build is at hand that lacks only the headers of NVDEC."""
    if os.environ.get("FOURDTHINKER_CUDA", "").upper() in {"OFF", "0"}:
        return False
    compiler = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    folders = ("/usr/include", "/usr/local/include")
    return Path(compiler).is_file() and not any(Path(f, NVDEC_HEADER).is_file() for f in folders)


def offer_nvdec() -> None:
    """Installs the headers where that is possible. Without them videos are decoded on the host."""
    lacking = f"{NVDEC_PACKAGE} is not installed: the extension is built without GPU decoding"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        log.warning("%s (sudo apt-get install %s adds it)", lacking, NVDEC_PACKAGE)
        return
    try:
        install_packages([NVDEC_PACKAGE])
    except SystemExit as error:
        log.warning("%s (%s)", lacking, error)


def install_packages(packages: list[str]) -> None:
    """With apt, as root; otherwise stops with the command to run."""
    words = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise SystemExit(f"missing: {words} (Debian's names): install them with your package manager")
    if os.geteuid() != 0:
        raise SystemExit(f"missing system packages: {words}\nInstall them:  sudo apt-get install -y {words}")
    log.info("installing system packages: %s", words)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *packages]):
        apt = ["apt-get", *command]
        if subprocess.run(apt, env=environment, stdin=subprocess.DEVNULL, check=False).returncode != 0:
            raise SystemExit(f"apt-get {command[0]} failed (its message is above): install {words} by hand")
    importlib.invalidate_caches()


def run(step: str, command: list[str], environment: dict[str, str] | None = None) -> None:
    log.info("== %s", step)
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{step} failed with status {done.returncode}; the message is above")
    log.info("   %.0f s", time.monotonic() - start)


def prepare(venv: Path) -> None:
    extension = not without_extension()
    missing = missing_packages(extension)
    if missing:
        install_packages(missing)
        still = missing_packages(extension)
        if still:
            raise SystemExit(
                f"{sys.executable} still lacks {' '.join(still)}: this Python is not the system's; use "
                "another with `make PYTHON=/usr/bin/python3`, or complete this one"
            )
    if extension and wants_nvdec_headers():
        offer_nvdec()
    python = str(venv / "bin" / "python")
    if not Path(venv, "bin", "pip").exists():
        run(f"creating {venv}", [sys.executable, "-m", "venv", str(venv)])
    pip = [python, "-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--quiet"]
    pinned = ["-c", str(CONSTRAINTS)]
    # First of all a pip whose dry run reads metadata instead of downloading whole wheels.
    run("updating pip", [*pip, "--upgrade", "pip", *pinned])
    torch = [sys.executable, str(ROOT / "tools" / "install_torch.py"), "--python", python]
    run("installing torch", [*torch, "--constraints", str(CONSTRAINTS)])
    builders = ["scikit-build-core", "nanobind", "cmake", "ninja"]
    run("installing build tools", [*pip, *pinned, *builders])
    # Here a broken extension is an error; for a plain `pip install` it is a fallback to Pillow.
    environment = {**os.environ, "FOURDTHINKER_REQUIRE_EXT": "1" if extension else "0"}
    package = ["--no-build-isolation", "--editable", f"{ROOT}[train,synth,geometry,audit,eval,dev]"]
    run("installing fourdthinker and its dependencies", [*pip, *pinned, *package], environment)
    # Tests compare losses with functions taken from its source. With what it needs to be imported (datasets,
    # pandas), every process that imports transformers' Trainer would start 0.7 s later.
    run("installing the source of TRL", [*pip, *pinned, "--no-deps", "trl"])
    (venv / ".ready").touch()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Make the virtual environment.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    options = parser.parse_args(argv)
    if sys.version_info < OLDEST:
        found, needed = sys.version.split()[0], ".".join(map(str, OLDEST))
        raise SystemExit(
            f"{sys.executable} is Python {found}, {needed} or newer is needed: install one and name it, "
            f"`make PYTHON=python{needed} ...`"
        )
    prepare(options.venv.absolute())
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
