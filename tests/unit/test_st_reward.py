"""The ST-reward against its formula, written down once more: numpy, float64, `literal_eval`."""

from __future__ import annotations

import ast
import re
from typing import Any

import numpy as np
import pytest

from fourdthinker.records import Record
from fourdthinker.rewards import st_reward


def reference(text: str, answer: str, camera: list[Any] | None, objects: list[Any] | None) -> float:
    """MLLM-4D: 0.2 format + 0.6 answer + 0.1 camera + 0.1 object."""
    thinking = re.search(r"<thinking>(.*?)</thinking>", text, re.DOTALL)
    said = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    form = 0.5 if thinking and said else 0.0
    form += 0.4 if "Object Center: [" in text and "Camera Center: [" in text else 0.0
    form += 0.1 if thinking and len(thinking[1].strip()) > 20 else 0.0
    right = 1.0 if said and said[1].strip() == answer else 0.0
    return (
        0.2 * form
        + 0.6 * right
        + 0.1 * centres(text, "Camera", camera)
        + 0.1 * centres(text, "Object", objects)
    )


def centres(text: str, kind: str, truth: list[Any] | None) -> float:
    lines = [
        line for line in text.splitlines() if line.startswith(f"{kind} Center: [") and "null" not in line
    ]
    points = [ast.literal_eval(line.partition(": ")[2]) for line in lines]
    wanted = [point for point in truth or [] if point is not None]
    if not wanted:
        return 0.0 if points else 1.0
    if [len(point) for point in points] != [len(point) for point in wanted]:
        return 0.0
    difference = np.array(points, np.float64) - np.array(wanted, np.float64)
    return float(np.exp(-np.linalg.norm(difference, axis=1).mean()))


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth: dict[str, list[Any] | None] = {}
    lines = []
    for kind in ("Camera", "Object"):
        points = [None if rng.random() < 0.2 else rng.normal(size=3).round(3).tolist() for _ in range(2)]
        truth[kind] = None if rng.random() < 0.15 else points
        for point in points[: None if rng.random() < 0.8 else 1]:
            near = (
                "[null, null, null]"
                if point is None
                else str((np.array(point) + rng.normal(0, 0.3, 3)).tolist())
            )
            lines.append(f"{kind} Center: {near}")
    thought = "\n".join(lines if rng.random() < 0.9 else ["so"])
    text = f"<thinking>\n{thought}\n</thinking>" if rng.random() < 0.8 else thought
    answer = "2.5 m"
    text += f"\n<answer>{answer if rng.random() < 0.7 else '3 m'}</answer>" if rng.random() < 0.9 else ""
    solution = {"answer": answer, "camera_center": truth["Camera"], "object_center": truth["Object"]}
    record = Record("rl", "r", "How far?", extra={"solution": [solution]})
    expected = reference(text, answer, truth["Camera"], truth["Object"])
    assert st_reward(text, record) == pytest.approx(expected, rel=1e-12, abs=1e-12)
