"""Questions of generators whose leaks are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fourdthinker.audit import ChoiceQuestion

COMPONENTS = (("Left", "Right"), ("Above", "Below"), ("Front", "Behind"))


def direction_runs(steps: np.ndarray) -> list[str]:
    """Runs of equal direction as DSR writes them: a component counts above 0.3 of the unit vector."""
    runs: list[str] = []
    for step in steps:
        unit = step / max(1e-9, float(np.linalg.norm(step)))
        words = [pair[int(v > 0)] for pair, v in zip(COMPONENTS, unit, strict=True) if abs(v) > 0.3]
        text = "|".join(words)
        if not runs or runs[-1] != text:
            runs.append(text)
    return runs


def distance_runs(d: np.ndarray) -> list[str]:
    """Runs of growing, shrinking and nearly constant distance, a band of 20 % (DSR's grammar)."""
    runs: list[str] = []
    i = 0
    while i < len(d) - 1:
        j = i + 1
        if _near(d[i], d[j]):
            while j < len(d) and _near(d[i], d[j]):
                j += 1
            ends = "" if j == len(d) else " and then become " + ("smaller" if d[j] < d[i] else "larger")
            runs.append(f"keep nearly constant{ends}")
        else:
            larger = d[j] > d[i]
            while j < len(d) and (d[j] > 1.2 * d[j - 1] if larger else d[j] < 0.8 * d[j - 1]):
                j += 1
            runs.append("become larger" if larger else "become smaller")
            j -= j < len(d)
        i = max(j, i + 1)
    return runs


def _near(a: float, b: float) -> bool:
    return 0.8 <= b / a <= 1.2 or (a < 0.1 and b < 0.1)


def smooth(rng: np.random.Generator, steps: int, size: int, low: float, high: float) -> np.ndarray:
    """A path of nearly constant velocity."""
    point, velocity = rng.uniform(low, high, size), rng.normal(0, 0.25, size)
    path = []
    for _ in range(steps):
        path.append(point)
        velocity = velocity + rng.normal(0, 0.075, size)
        point = point + velocity
    return np.array(path)


def dsr_items(kind: str, number: int, seed: int = 0) -> list[ChoiceQuestion]:
    """Questions as DSR's generator is described: the wrong options describe noise, the right one a path."""
    rng = np.random.default_rng(seed)
    items: list[ChoiceQuestion] = []
    while len(items) < number:
        steps = int(rng.integers(4, 29))
        right, noise = _dsr(kind, rng, steps)
        wrong: list[list[str]] = []
        if not right or len(right) > 15:
            continue
        for _ in range(200):
            made = noise()
            low, high = max(1, len(right) - 3), min(len(right) + 3, len(made))
            made = made[: int(rng.integers(min(low, high), high + 1))]
            if made != right and made not in wrong:
                wrong.append(made)
            if len(wrong) == 3:
                items.append(item(len(items), kind, right, wrong, rng))
                break
    return items


def _dsr(kind: str, rng: np.random.Generator, steps: int) -> tuple[list[str], Callable[[], list[str]]]:
    if kind == "direction":
        return (
            direction_runs(smooth(rng, steps, 3, -3, 3)),
            lambda: direction_runs(rng.uniform(-1, 1, (steps, 3))),
        )
    path = np.maximum(0.02, np.abs(smooth(rng, steps, 1, 1, 6)[:, 0]))
    return distance_runs(path), lambda: distance_runs(np.maximum(1e-3, rng.uniform(0, 2, steps)))


def numbered(runs: Sequence[str]) -> str:
    return " ".join(f"({i + 1}) {run}" for i, run in enumerate(runs))


def item(
    index: int, kind: str, right: Sequence[str], wrong: Sequence[Sequence[str]], rng: np.random.Generator
) -> ChoiceQuestion:
    options = [numbered(right), *map(numbered, wrong)]
    order = rng.permutation(4)
    return ChoiceQuestion(
        id=f"{kind}-{index}",
        group=f"video {index // 2}",
        type=kind,
        question="How does the object move from 1.0 s to 9.0 s?",
        options=tuple(options[k] for k in order),
        answer=int(np.flatnonzero(order == 0)[0]),
        index=index,
    )


def fair_items(number: int, seed: int = 0, kinds: int = 1) -> list[ChoiceQuestion]:
    """Smooth paths only: each option is the true answer of some item, drawn without regard to which."""
    rng = np.random.default_rng(seed)
    made = [direction_runs(smooth(rng, int(rng.integers(4, 29)), 3, -3, 3)) for _ in range(number)]
    items = []
    for index, right in enumerate(made):
        kind = f"kind {index % kinds}"
        wrong: list[list[str]] = []
        while len(wrong) < 3:
            other = made[int(rng.integers(number))]
            if other != right and other not in wrong:
                wrong.append(other)
        items.append(item(index, kind, right, wrong, rng))
    return items


def flipped_items(number: int, seed: int = 0) -> list[ChoiceQuestion]:
    """The set of options gives the answer: its opposite in all words, and two with one word flipped."""
    rng = np.random.default_rng(seed)
    items = []
    for index in range(number):
        right = [pair[int(rng.integers(2))] for pair in COMPONENTS]
        flips = [[(w if k != n else _other(w)) for k, w in enumerate(right)] for n in range(2)]
        items.append(item(index, "camera", right, [[_other(w) for w in right], *flips], rng))
    return items


def boxed_items(number: int, seed: int = 0, *, first: bool = True) -> list[ChoiceQuestion]:
    """The box in the question tells the way: what goes left is first seen at the right, and so on.

    With `first=False` the box is that in the middle of the way, which tells nothing.
    """
    rng = np.random.default_rng(seed)
    ways = {"left": (-1, 0), "right": (1, 0), "toward the camera": (0, 1), "away from the camera": (0, -1)}
    items = []
    for index in range(number):
        right, *wrong = [str(way) for way in rng.permutation(list(ways))]
        x, side = rng.uniform(0.3, 0.7), rng.uniform(0.1, 0.2)
        if first:
            x, side = x - 0.15 * ways[right][0], side - 0.04 * ways[right][1]
        box = ", ".join(f"{v:.2f}" for v in (x - side / 2, 0.5, x + side / 2, 0.5 + side))
        made = item(index, "box", [right], [[way] for way in wrong], rng)
        items.append(replace(made, question=f"Which way does what is in the box [{box}] at 1.0 s move?"))
    return items


def _other(word: str) -> str:
    pair = next(pair for pair in COMPONENTS if word in pair)
    return pair[1 - pair.index(word)]


def interval(p: float, n: int) -> float:
    """Half of the 95 % interval of n guesses of probability p."""
    return 1.96 * math.sqrt(p * (1 - p) / n)
