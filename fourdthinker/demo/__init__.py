"""The demo: the whole loop on rendered worlds, small enough for two CPU cores (`fourdthinker demo`)."""

from __future__ import annotations

import os
from pathlib import Path


def run_demo(out: str | os.PathLike[str] = "runs/demo", *, quick: bool = False, seed: int = 0) -> Path:
    """Render, train, evaluate and report on a small scale; see `fourdthinker.demo.pipeline.run_demo`.

    Args:
        out: folder of the run.
        quick: every phase in seconds, without learning anything.
        seed: of scenes, weights and sampling.

    Returns:
        The path of results.json.

    Raises:
        RuntimeError: a training process failed.
    """
    from fourdthinker.demo.pipeline import run_demo as run

    return run(out, quick=quick, seed=seed)


__all__ = ["run_demo"]
