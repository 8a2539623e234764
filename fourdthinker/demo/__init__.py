"""The demo: the whole loop on rendered worlds, small enough for two CPU cores (`fourdthinker demo`)."""

from __future__ import annotations

import os
from pathlib import Path


def run_demo(out: str | os.PathLike[str] = "runs/demo", *, quick: bool = False, seed: int = 0) -> Path:
    """See `fourdthinker.demo.pipeline.run_demo`, imported when it is called: torch is slow to import."""
    from fourdthinker.demo.pipeline import run_demo as run

    return run(out, quick=quick, seed=seed)


__all__ = ["run_demo"]
