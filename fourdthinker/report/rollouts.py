"""Rollouts that a trainer logged, read back in groups and written as HTML."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from fourdthinker.errors import FourdError, VideoError
from fourdthinker.report.media import Picture, clip_pictures, spread
from fourdthinker.transcript import text_html

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
    bad = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                name = entry["id"] if entry.get("id") is not None else entry["prompt"]
                key = (int(entry["step"]), str(name))
                row = _row(entry)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                bad += 1
                continue
            if key not in groups:
                groups[key] = _group(key, entry)
            groups[key].rows.append(row)
    if bad:
        log.warning("%s: %d lines are no rollouts and are left out", path, bad)
    return list(groups.values())


def choose(groups: Sequence[Group], most: int) -> list[Group]:
    """A third from the first logged step, the others from the last one; groups with differing rewards
    first.
    """
    if not groups:
        return []
    first, last = min(g.step for g in groups), max(g.step for g in groups)
    late = sorted((g for g in groups if g.step == last), key=lambda g: not g.mixed)
    if first == last:
        return late[:most]
    early = sorted((g for g in groups if g.step == first), key=lambda g: not g.mixed)[: max(1, most // 3)]
    return early + late[: most - len(early)]


def group_html(group: Group, root: Path) -> str:
    """One group as a card: frames, question, options, and its completions side by side."""
    head = f"<h3>{escape(group.question)}</h3>"
    where = f'<p class="soft small">Step {group.step:,} · {escape(group.id)}</p>'
    items = "".join(
        f'<li class="right">✓ {escape(k)}. {escape(v)}<span hidden> (right answer)</span></li>'
        if k == group.answer
        else f"<li>{escape(k)}. {escape(v)}</li>"
        for k, v in group.options.items()
    )
    options = f'<ul class="options">{items}</ul>' if items else ""
    rows = [group.rows[i] for i in spread(len(group.rows), 12)]
    largest = max((abs(r.advantage) for r in rows if r.advantage is not None), default=0.0)
    cells = "".join(_row_html(row, largest) for row in rows)
    left_out = len(group.rows) - len(rows)
    more = f'<p class="soft small">{left_out} more completions are in the log.</p>' if left_out else ""
    body = f'{where}{head}{_strip(group, root)}{options}<div class="rows">{cells}</div>{more}'
    return f'<article class="card">{body}</article>'


def _strip(group: Group, root: Path) -> str:
    try:
        pictures = clip_pictures(
            video=group.video, frames=group.frames, start=group.start, end=group.end, root=root
        )
    except (FourdError, OSError) as error:
        kind = "cannot be read" if isinstance(error, VideoError) else "cannot be found"
        return f'<p class="soft small">The frames {kind}: {escape(str(error))}</p>'
    return (
        f'<div class="strip" tabindex="0">{"".join(_image(p, i) for i, p in enumerate(pictures))}</div>'
        if pictures
        else ""
    )


def _image(picture: Picture, index: int) -> str:
    at = f"frame at {picture.seconds:.2f} s" if picture.seconds is not None else f"frame {index + 1}"
    tiny = ' class="tiny"' if picture.height < 112 else ""
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img{tiny} src="{picture.url}" {size} alt="{at}" title="{at}">'


def _row_html(row: Row, largest: float) -> str:
    reward = "no reward" if row.reward is None else f"reward {row.reward:.3g}"
    kind, bar = "", ""
    if row.advantage is not None:
        kind = " gain" if row.advantage > 0 else " loss" if row.advantage < 0 else ""
        share = 50 * abs(row.advantage) / largest if largest else 0.0
        side = f"left:{50 if row.advantage > 0 else 50 - share:.1f}%;width:{share:.1f}%"
        sign = f"{row.advantage:+.2f}".replace("-", "−")
        fill = f'<i class="{kind.strip()}" style="{side}"></i>'
        bar = f'<span class="bar" aria-hidden="true">{fill}</span><span>A {sign}</span>'
    details = [f"{escape(name.removesuffix('_reward'))} {value:.3g}" for name, value in row.rewards.items()]
    details += [f"{row.length} tokens"] if row.length is not None else []
    if row.finish not in (None, "eos"):
        details.append("cut at the limit" if row.finish == "length" else escape(str(row.finish)))
    parts = f'<p class="parts">{" · ".join(details)}</p>' if details else ""
    return (
        f'<div class="row"><div class="score"><span class="chip{kind}">{reward}</span>{bar}</div>'
        f'<p class="text">{text_html(row.text)}</p>{parts}</div>'
    )


def _row(entry: Mapping[str, Any]) -> Row:
    rewards = entry.get("rewards") or {}
    return Row(
        text=str(entry["text"]),
        reward=_number(entry.get("reward")),
        advantage=_number(entry.get("advantage")),
        rewards={str(k): v for k, value in rewards.items() if (v := _number(value)) is not None},
        length=int(entry["length"]) if _number(entry.get("length")) is not None else None,
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
        start=_number(entry.get("start")),
        end=_number(entry.get("end")),
        rows=[],
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
