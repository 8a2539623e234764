"""The tables of docs/latents.md are made again from the saved rows of the ablation."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import _ablation_tables as tables
from fourdthinker.sampler import LATENT_MODES

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/latents.md").read_text(encoding="utf-8")
FOUND = PAGE.split("### What was found", 1)[1]
FILE = re.search(r"bench/results/\S+\.json", FOUND)[0]
SAVED = json.loads((ROOT / FILE).read_text(encoding="utf-8"))
SEEDS = {
    seed: SAVED[name]["rows"]
    for seed in range(tables.MOST_SEEDS)
    if (name := f"ablation, seed {seed}") in SAVED
}
STAGES = {"dift": "DIFT", "rl": "4DRL"}


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell or " " for cell in cells).replace("-", "−") + " |"


def accuracy_lines() -> list[str]:
    return [
        line(
            [
                f"`{row['variant']}`", STAGES[row["stage"]], str(row["seeds"]),
                row["greedy %"], row["sampled %"], row["camera"], row["direction"], row["distance"],
                row["less none"], row["less latents"] if row["variant"] != "none" else "",
            ]
        )
        for row in tables.accuracy_table(SEEDS)
    ]  # fmt: skip


def audit_rows() -> dict[tuple[str, str], dict[str, Any]]:
    """By variant and stage, then by mode: the own accuracy, or the difference over questions."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for (variant, stage, mode), rows in tables.joined(SEEDS, "audit", ("variant", "stage", "mode")).items():
        own = mode == "own"
        found.setdefault((variant, stage), {})[mode] = (
            tables.mean([row["accuracy"] for row in rows.values()])
            if own
            else tables.over_questions([row["difference"] for row in rows.values()])
        )
    return found


def audit_lines() -> list[str]:
    return [
        line(
            [f"`{variant}`", STAGES[stage], tables.percent(modes["own"])]
            + [f"{100 * modes[mode]['mean']:+.1f}" for mode in LATENT_MODES if mode != "own"]
        )
        for (variant, stage), modes in audit_rows().items()
    ]


def test_tables_are_those_of_the_saved_rows() -> None:
    for made in (accuracy_lines(), audit_lines()):
        assert made
        for row in made:
            assert row in FOUND, "\n".join(["", *made])


def test_no_row_of_the_tables_is_of_something_else() -> None:
    made = {*accuracy_lines(), *audit_lines()}
    written = re.findall(r"^\| `.*$", FOUND, flags=re.MULTILINE)
    assert set(written) == made


def test_the_intervals_of_the_audit_are_as_said() -> None:
    widest = max(
        (found["high"] - found["low"]) / 2
        for modes in audit_rows().values()
        for mode, found in modes.items()
        if mode != "own"
    )
    assert f"± {100 * widest:.1f} points at most" in FOUND, widest
