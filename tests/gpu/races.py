"""Kernels whose threads talk through shared memory, launched once each, for compute-sanitizer's racecheck.

Small rows and few launches: a kernel that is watched takes a hundred times as long. Nothing is compared.
``python -m tests.gpu.races`` launches them; without a GPU the references run. With ``--watched`` it starts
itself under compute-sanitizer, and ends with 9 where that finds a race.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import torch

from fourdthinker.kernels import group_advantages, latent_feedback_step_, latent_state, sample_tokens

# Parts of the names of our kernels: torch's would be watched as well, which takes minutes.
WATCHED = ("sample_", "latent_", "group_")
FOUND = 9


def watching(usage: str) -> list[str]:
    """The command line of compute-sanitizer, whose ``--help`` is ``usage``: its filter has two names."""
    option = "--kernel-name" if "--kernel-name" in usage else "--kernel-regex"
    filters = [word for part in WATCHED for word in (option, f"kernel_substring={part}")]
    return ["compute-sanitizer", "--tool", "racecheck", "--error-exitcode", str(FOUND), *filters]


def watch() -> int:
    """The exit status of this module under compute-sanitizer."""
    if shutil.which("compute-sanitizer") is None:
        sys.stdout.write("compute-sanitizer is not installed; CUDA's toolkit brings it\n")
        return 2
    asked = subprocess.run(["compute-sanitizer", "--help"], capture_output=True, text=True, check=False)
    command = [*watching(asked.stdout + asked.stderr), sys.executable, "-m", "tests.gpu.races"]
    return subprocess.run(command, check=False).returncode


def launch(device: str, rows: int, vocabulary: int) -> None:
    """Sampling with and without truncation, two steps of the latent grammar, and advantages."""
    torch.manual_seed(0)
    logits = torch.randn(rows, vocabulary).to(device)
    names, ones = torch.arange(rows).to(device), torch.ones(rows).to(device)
    base = {"seeds": names, "steps": names, "temperature": ones}
    sample_tokens(logits, **base)
    sample_tokens(
        logits, **base, top_k=torch.full((rows,), 50, dtype=torch.int32).to(device),
        top_p=torch.full((rows,), 0.9).to(device), min_p=torch.full((rows,), 0.01).to(device),
    )  # fmt: skip
    width = 64
    hidden, table = torch.randn(rows, width).to(device), torch.randn(vocabulary, width).to(device)
    state = latent_state(rows, width, 2, dtype=hidden.dtype, device=torch.device(device))
    for _ in range(2):
        latent_feedback_step_(
            names, hidden, table, **state, eos_ids=names[:0], pad_id=vocabulary - 3, start_id=0,
            end_id=vocabulary - 2, fill_id=vocabulary - 1, latent_size=2,
        )  # fmt: skip
    group_advantages(torch.rand(8 * rows).to(device), 8)


if __name__ == "__main__":
    if sys.argv[1:] == ["--watched"]:
        sys.exit(watch())
    launch("cuda" if torch.cuda.is_available() else "cpu", 4, 20_000)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    sys.stdout.write("launched\n")
