"""Install the pinned torch: a CUDA build where there is an NVIDIA GPU, else never a CUDA package.

Standard library only: it runs before anything is installed. Without a GPU, pip is asked what it would
install; if that is not a CPU build, the index in the environment variable TORCH_CPU_INDEX is used instead
(the Makefile sets it). Dependencies of torch come later with the package, from the usual source.
"""

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

log = logging.getLogger("install_torch")

# A distribution that a CUDA build of torch requires: nvidia-cublas, cuda-toolkit, ...
CUDA_PACKAGE = re.compile(r"^(nvidia|cuda)\b", re.IGNORECASE)


def has_nvidia_gpu() -> bool:
    """True when nvidia-smi lists at least one GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def is_cpu_build(metadata: dict[str, Any]) -> bool:
    """Whether a torch distribution is a CPU build, by its version and its requirements.

    `metadata` is the core metadata of a pip installation report: keys `version`, `requires_dist`.
    """
    _, _, local = str(metadata["version"]).partition("+")
    if local:
        return local.startswith("cpu")
    required = [line for line in metadata.get("requires_dist", []) if not re.search(r"\bextra\s*==", line)]
    return not any(CUDA_PACKAGE.match(line) for line in required)


def pip_command(python: str) -> list[str]:
    return [python, "-m", "pip", "--no-input", "--disable-pip-version-check"]


def candidate(python: str, requirement: list[str]) -> dict[str, Any] | None:
    """Core metadata of the torch that pip would install; None when the installed one satisfies the pin.

    --no-deps: pip would otherwise fetch every CUDA package to learn its dependencies.
    """
    command = [*pip_command(python), "install", "--dry-run", "--quiet", "--no-deps", "--report", "-"]
    answer = subprocess.run(
        [*command, *requirement], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
    )
    if answer.returncode != 0:
        raise SystemExit(
            f"pip finds no {' '.join(requirement)} (its message is above): check the network and pip's "
            "index settings, or point TORCH_CPU_INDEX at an index that has this version"
        )
    installs = json.loads(answer.stdout)["install"]
    return installs[0]["metadata"] if installs else None


def choose(python: str, requirement: list[str]) -> list[str] | None:
    """pip arguments that install the right build; None when it is already there."""
    found = candidate(python, requirement)
    if found is None:
        return None
    if has_nvidia_gpu():
        log.info("NVIDIA GPU found: torch %s from the usual source", found["version"])
        return requirement
    if is_cpu_build(found):
        log.info("no NVIDIA GPU: torch %s is a CPU build", found["version"])
        return requirement
    index = os.environ.get("TORCH_CPU_INDEX", "")
    if not index:
        raise SystemExit(
            f"torch {found['version']} would bring CUDA packages and there is no NVIDIA GPU here: set "
            "TORCH_CPU_INDEX to an index of CPU builds (the Makefile does)"
        )
    log.info("no NVIDIA GPU, and torch %s would bring CUDA packages: using %s", found["version"], index)
    from_index = [*requirement, "--index-url", index]
    found = candidate(python, from_index)
    if found is not None and not is_cpu_build(found):
        raise SystemExit(
            f"{index} offers torch {found['version']}, which is no CPU build either: set TORCH_CPU_INDEX to "
            "an index of CPU builds, and remove other sources from pip's configuration"
        )
    return from_index


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Install the pinned torch; no CUDA without a GPU.")
    parser.add_argument("--python", default=sys.executable, help="interpreter to install for")
    parser.add_argument("--constraints", type=Path, required=True, help="file that pins torch")
    options = parser.parse_args(argv)
    arguments = choose(options.python, ["torch", "-c", str(options.constraints)])
    if arguments is None:
        log.info("torch is already installed at the pinned version")
        return 0
    command = [*pip_command(options.python), "install", "--quiet", "--no-deps", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
