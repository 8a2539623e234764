"""How far bf16 log-probabilities of the head are from float64 on the same inputs, ours and of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import _kernel_peers as peers
from fourdthinker.kernels import linear_logprobs

# rows, width, vocabulary
ERROR_SIZES = {
    "tiny": (16, 32, 500), "quick": (64, 256, 8_192), "cpu": (64, 1_024, 151_668),
    "cuda": (4_096, 2_048, 151_936),
}  # fmt: skip
HELD = {1: 1e-5, 10: 1e-4}  # by ours, at hidden states as the matrix is made for, and ten times larger


def _exact(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities of the same bf16 numbers in float64, some ids at a time."""
    wide = x.double()
    parts = [wide @ part.double().T for part in weight.split(16_384)]
    total = torch.stack([part.logsumexp(dim=1) for part in parts]).logsumexp(dim=0)
    return (wide * weight[target].double()).sum(dim=1) - total


def _eager(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return peers.eager_logprobs((x @ weight.T).float(), target)


def logprob_errors(size: str, device: str) -> list[dict[str, Any]]:
    """The errors of all candidates, and those of the same logits ten times larger."""
    return [row for times in HELD for row in _errors(size, device, times)]


def _errors(size: str, device: str, times: int) -> list[dict[str, Any]]:
    """One row a candidate: the largest and the mean error of a log-probability; ``holds`` for ours."""
    rows, width, vocabulary = ERROR_SIZES[size]
    draws = torch.Generator(device).manual_seed(0)
    x = torch.randn(rows, width, generator=draws, device=device).mul_(times).bfloat16()
    weight = torch.randn(vocabulary, width, generator=draws, device=device).mul_(width**-0.5).bfloat16()
    target = torch.randint(vocabulary, (rows,), generator=draws, device=device)
    candidates: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor] | None] = {
        "ours": linear_logprobs, "eager (TRL), bf16 logits": _eager,
        "TRL fused head": peers.attempted(peers.trl_logprobs),
        "verl fused head": peers.attempted(peers.verl_logprobs),
    }  # fmt: skip
    found = []
    with torch.no_grad():
        exact = _exact(x, weight, target)
        for name, call in candidates.items():
            row: dict[str, Any] = {"candidate": name, "size": f"{rows} x {width} x {vocabulary} bfloat16"}
            if times > 1:
                row["logits"] = f"{times} times larger"
            if call is None:
                found.append(row | {"absent": "not installed, or needs a GPU"})
                continue
            # eager_logprobs takes one sequence of rows at a time
            shaped = (x[None], weight, target[None]) if call is _eager else (x, weight, target)
            try:
                found_by = call(*shaped)
            except Exception as error:  # of a peer; an error of ours ends the bench
                if name == "ours":
                    raise
                found.append(row | {"absent": f"{type(error).__name__}: {str(error)[:80]}"})
                continue
            error = (found_by.double().view(rows) - exact).abs()
            row |= {"largest": float(error.max()), "mean": float(error.mean())}
            found.append(row | ({"holds": row["largest"] <= HELD[times]} if name == "ours" else {}))
    return found


def errors_table(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows as text."""
    return [
        {
            "log-probabilities by": row["candidate"], "size": row["size"], "logits": row.get("logits", ""),
            "largest error": row.get("absent") or f"{row['largest']:.2g}",
            "mean": "" if "absent" in row else f"{row['mean']:.2g}",
            "within 1e-5, larger ones 1e-4": {None: "", True: "yes", False: "NO"}[row.get("holds")],
        }
        for row in rows
    ]  # fmt: skip
