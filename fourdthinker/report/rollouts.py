"""Rollouts that a trainer logged, read back in groups, and as the page shows them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourdthinker.errors import FourdError, VideoError
from fourdthinker.evaluate.table import number
from fourdthinker.report.lines import read_lines
from fourdthinker.report.media import Picture, clip_pictures, spread
from fourdthinker.transcript import text_parts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One completion: its text, total reward, advantage, and the rewards it is made of."""

    text: str
    reward: float | None
    advantage: float | None
    rewards: dict[str, float] = field(default_factory=dict)
    length: int | None = None
    finish: str | None = None


@dataclass
class Group:
    """The completions of one prompt at one step."""

    step: int
    id: str
    question: str
    options: dict[str, str]
    answer: str | None
    video: str | None
    frames: list[str]
    start: float | None
    end: float | None
    rows: list[Row]

    @property
    def mixed(self) -> bool:
        """Whether the rewards differ, so that the group taught something."""
        return len({row.reward for row in self.rows}) > 1


def read_groups(path: Path) -> list[Group]:
    """Groups in the order of the file. Lines that are no rollout are counted and left out with a warning."""
    groups: dict[tuple[int, str], Group] = {}
    entries, bad = read_lines(path)
    for _, entry in entries:
        step, text = number(entry.get("step")), entry.get("text")
        name = entry.get("prompt") if entry.get("id") is None else entry["id"]
        if step is None or name is None or text is None:
            bad += 1
            continue
        key = (int(step), str(name))
        if key not in groups:
            groups[key] = _group(key, entry)
        groups[key].rows.append(_row(entry))
    if bad:
        log.warning("%s: %d lines are no rollouts and are left out", path, bad)
    return list(groups.values())


def choose(groups: Sequence[Group], most: int) -> list[Group]:
    """A third from the first logged step, the rest from the last one; groups with differing rewards first."""
    if not groups:
        return []
    first, last = min(g.step for g in groups), max(g.step for g in groups)
    late = sorted((g for g in groups if g.step == last), key=lambda g: not g.mixed)
    if first == last:
        return late[:most]
    early = sorted((g for g in groups if g.step == first), key=lambda g: not g.mixed)[: max(1, most // 3)]
    return early + late[: most - len(early)]


@dataclass(frozen=True)
class ShownRow:
    """A row as it is shown.

    kind: "gain", "loss" or "". left, width: of the advantage's bar, in percent. parts: see `text_parts`.
    """

    reward: str
    kind: str
    advantage: str
    left: str
    width: str
    parts: list[tuple[str, str]]
    details: list[str]


@dataclass(frozen=True)
class Card:
    """One group as it is shown. trouble: why there are no pictures of a clip that has some."""

    group: Group
    pictures: list[Picture]
    trouble: str
    rows: list[ShownRow]
    left_out: int


def make_card(group: Group, root: Path) -> Card:
    """A group with the frames of its clip; relative paths are looked for in `root`."""
    pictures: list[Picture] = []
    trouble = ""
    try:
        pictures = clip_pictures(
            video=group.video, frames=group.frames, start=group.start, end=group.end, root=root
        )
    except (FourdError, OSError) as error:
        kind = "cannot be read" if isinstance(error, VideoError) else "cannot be found"
        trouble = f"The frames {kind}: {error}"
    rows = [group.rows[i] for i in spread(len(group.rows), 12)]
    largest = max((abs(r.advantage) for r in rows if r.advantage is not None), default=0.0)
    shown = [_completion(row, largest) for row in rows]
    return Card(group, pictures, trouble, shown, len(group.rows) - len(rows))


def _completion(row: Row, largest: float) -> ShownRow:
    advantage = row.advantage or 0.0
    share = 50 * abs(advantage) / largest if largest else 0.0
    details = [f"{name.removesuffix('_reward')} {value:.3g}" for name, value in row.rewards.items()]
    details += [f"{row.length} tokens"] if row.length is not None else []
    if row.finish not in (None, "eos"):
        details.append("cut at the limit" if row.finish == "length" else str(row.finish))
    return ShownRow(
        reward="no reward" if row.reward is None else f"reward {row.reward:.3g}",
        kind="gain" if advantage > 0 else "loss" if advantage < 0 else "",
        advantage="" if row.advantage is None else f"{row.advantage:+.2f}".replace("-", "−"),
        left=f"{50 if advantage > 0 else 50 - share:.1f}",
        width=f"{share:.1f}",
        parts=text_parts(row.text),
        details=details,
    )


def _row(entry: Mapping[str, Any]) -> Row:
    rewards = entry.get("rewards")
    length = number(entry.get("length"))
    return Row(
        text=str(entry["text"]),
        reward=number(entry.get("reward")),
        advantage=number(entry.get("advantage")),
        rewards={k: v for k, value in rewards.items() if (v := number(value)) is not None}
        if isinstance(rewards, dict)
        else {},
        length=None if length is None else int(length),
        finish=str(entry["finish_reason"]) if entry.get("finish_reason") else None,
    )


def _group(key: tuple[int, str], entry: Mapping[str, Any]) -> Group:
    options, frames = entry.get("options"), entry.get("frames")
    return Group(
        step=key[0],
        id=key[1],
        question=str(entry.get("question") or ""),
        options={str(k): str(v) for k, v in options.items()} if isinstance(options, dict) else {},
        answer=str(entry["answer"]) if entry.get("answer") is not None else None,
        video=str(entry["video"]) if entry.get("video") else None,
        frames=[str(f) for f in frames] if isinstance(frames, list) else [],
        start=number(entry.get("start")),
        end=number(entry.get("end")),
        rows=[],
    )
