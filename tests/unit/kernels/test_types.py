"""What a type checker says to callers of the ops: real signatures, no Any."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
CALLS = """
import torch
from fourdthinker.kernels import GrpoOptions, linear_grpo_loss, linear_logprobs, logprobs

x = torch.zeros(2, 3, 4)
reveal_type(linear_grpo_loss)
loss, current, metrics = linear_grpo_loss(
    x, x[0], x[0].long(), GrpoOptions(loss_type="dapo"), advantages=x[0, 0], mask=x[0] > 0
)
reveal_type(metrics)
linear_grpo_loss(x, x[0], x[0].long(), advantages=x[0, 0], mask=x[0] > 0, nonsense=4)
GrpoOptions(epsilom=0.2)
linear_logprobs(x, x[0], x[0].long()).mean()
logprobs(x, x[0].long()).mean()
values, entropies = linear_logprobs(x, x[0], x[0].long(), return_entropy=True)
values, entropies = logprobs(x, x[0].long(), return_entropy=True)
reveal_type(entropies)
logprobs(x, x[0].long(), return_entropy=True).mean()
chosen = bool(values.numel())
reveal_type(linear_logprobs(x, x[0], x[0].long(), return_entropy=chosen, return_statistics=chosen))
reveal_type(logprobs(x, x[0].long(), return_entropy=chosen, return_statistics=chosen))
"""


def said_of(folder: Path, path: Path) -> str:
    """What mypy says of the calls when the package lies in ``path``, with the project's settings.

    They are those of `make lint`, whose cache knows torch; a copy of it is used, which is not written back.
    """
    file, cache, lint = folder / "calls.py", folder / "mypy", ROOT / "build" / "mypy"
    file.write_text(CALLS)
    if lint.is_dir():
        shutil.copytree(lint, cache)
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache)]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, str(file)], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "MYPYPATH": str(path)}, timeout=500, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_callers_see_real_signatures(tmp_path):
    said = said_of(tmp_path, ROOT)
    assert 'Revealed type is "def (input: torch._tensor.Tensor, weight: torch._tensor.Tensor' in said, said
    assert 'Revealed type is "dict[str, torch._tensor.Tensor]"' in said or "builtins.dict" in said, said
    assert 'Unexpected keyword argument "nonsense" for "linear_grpo_loss"' in said, said
    assert 'Unexpected keyword argument "epsilom" for "GrpoOptions"' in said, said
    assert 'Revealed type is "torch._tensor.Tensor"' in said, said
    assert '"tuple[Tensor, Tensor]" has no attribute "mean"' in said, said
    assert said.count("Tensor] | tuple[torch._tensor.Tensor, tuple[") == 2, said  # flags of no known value
    assert "Found 3 errors" in said, said
