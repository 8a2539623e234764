"""The kernels of another revision beside those of the checkout, in one process."""

from __future__ import annotations

import importlib
import importlib.util
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import fourdthinker.kernels as ours
from bench import _kernel_cases
from bench._kernel_data import Case, Sizes

ROOT = Path(__file__).parents[1]
PACKAGE = "base_kernels"


def load(revision: str, folder: Path) -> None:
    """Import the folder ``kernels`` of ``revision`` as a package that lies in ``folder``.

    Raises:
        ValueError: git knows no such revision, or it has no such folder.
    """
    command = ["git", "archive", revision, "kernels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"--base {revision}: {done.stderr.decode().strip()}; name a revision with kernels/")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    (folder / "kernels").rename(folder / PACKAGE)
    sys.path.insert(0, str(folder))
    try:
        importlib.import_module(PACKAGE)
    finally:
        sys.path.remove(str(folder))


def cases_of_base() -> ModuleType:
    """The bench's cases once more, made of the ops of the base; an op whose file it lacks stays ours."""
    path = _kernel_cases.__file__
    spec = importlib.util.spec_from_file_location("bench._kernel_cases_of_base", path)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = copy  # where dataclasses look their module up
    spec.loader.exec_module(copy)
    for name in ours.__all__:
        file = getattr(getattr(ours, name), "__module__", "").rpartition(".")[2]
        if hasattr(copy, name) and importlib.util.find_spec(f"{PACKAGE}.{file}") is not None:
            setattr(copy, name, getattr(importlib.import_module(f"{PACKAGE}.{file}"), name))
    return copy


def compared(family: str, sizes: Sizes, device: str) -> Iterator[Case]:
    """Each case with two candidates, ours and base, on the same data and without peers."""
    pairs = zip(
        _kernel_cases.FAMILIES[family](sizes, device, False),
        cases_of_base().FAMILIES[family](sizes, device, False),
        strict=True,
    )
    for case, other in pairs:
        calls = {"ours": case.calls["ours"], "base": other.calls["ours"]}
        yield Case(
            case.op, case.size, case.mode, calls, flops=case.flops, moved=case.moved, dw=case.dw,
            alike=case.alike,
        )  # fmt: skip
