"""The GPU day rehearsed without a GPU: every stage starts, ends well and leaves what it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tools import gpu_check

STAGES = [gpu_check.STAGES[number - 1] for number in gpu_check.chosen_stages(None)]
ROOT = Path(__file__).resolve().parents[2]


def test_the_rehearsal_ends_well(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHON": sys.executable, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "tools/gpu_check.sh", "--rehearse"], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(result["stage"], result["state"]) for result in results] == [(s.name, "ok") for s in STAGES]
    # Benches print what they found as JSON; everything that was measured is in the results.
    found = {result["stage"]: result["found"] for result in results}
    for name in (
        "machine",
        "bench sampler, 3B",
        "bench ops of a decode step",
        "bench tower",
        "bench step, 3B",
    ):
        assert found[name][0] is not None, name
    (step,) = found["bench step, 3B"][0]["rows"]
    assert step["peak_with_weights_bytes"] > step["peak_bytes"] > 0
    assert (tmp_path / "logs.tar.gz").stat().st_size > 0
    table = (done.stdout + done.stderr).strip().splitlines()[-len(STAGES) :]
    assert all(" ok " in line for line in table)
