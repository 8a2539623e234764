"""``python -m bench <name> [arguments]`` calls ``main(arguments)`` of ``bench/<name>.py``."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path


def names() -> list[str]:
    """The benches there are: the modules of this folder that are neither private nor tests."""
    stems = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(stem for stem in stems if not stem.startswith(("_", "test_")))


def run(argv: list[str]) -> int:
    """Exit status of the bench that the first argument names; without one, list them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    known = names()
    if not argv or argv[0] in ("-h", "--help"):
        logging.info("python -m bench <name> [arguments]; benches: %s", ", ".join(known))
        return 0
    if argv[0] not in known:
        logging.error("no bench is called %r; there are: %s", argv[0], ", ".join(known))
        return 2
    return int(importlib.import_module(f"bench.{argv[0]}").main(argv[1:]))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
