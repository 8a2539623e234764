"""Rollouts that a trainer logged, read back in groups, and as the page shows them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourdthinker.answers import parse_answer
from fourdthinker.evaluate.table import number
from fourdthinker.report.cards import Card, Deck, Names, ShownRow, shown_options
from fourdthinker.report.completions import Row, read_row, shaded_parts, shown_blocks
from fourdthinker.report.lines import read_lines
from fourdthinker.report.media import Album, Clip, clip_of, pictures_or_trouble, spread

log = logging.getLogger(__name__)

_ROWS = 12  # completions of a group that are shown


@dataclass(frozen=True)
class Rollout:
    """One completion: total reward, advantage, and the rewards it is made of."""

    row: Row
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
    type: str
    options: dict[str, str]
    answer: str | None
    clip: Clip
    rows: list[Rollout]

    @property
    def mixed(self) -> bool:
        """Whether the rewards differ, so that the group taught something."""
        return len({row.reward for row in self.rows}) > 1

    @property
    def right(self) -> float | None:
        """Share of the completions with the right letter; None where there are no options."""
        if not self.options or self.answer is None:
            return None
        return sum(parse_answer(r.row.text, self.options) == self.answer for r in self.rows) / len(self.rows)


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
        groups[key].rows.append(_rollout(entry))
    if bad:
        log.warning("%s: %d lines are no rollouts and are left out", path, bad)
    return list(groups.values())


def choose(groups: Sequence[Group], most: int) -> list[Group]:
    """A third from the first logged step, the rest from the last one; groups with differing rewards first.

    Where these are fewer, others follow: first those of questions that are shown already, then the latest.
    """
    if not groups:
        return []
    first, last = min(g.step for g in groups), max(g.step for g in groups)
    late = sorted((g for g in groups if g.step == last), key=lambda g: not g.mixed)
    if first == last:
        return late[:most]
    early = sorted((g for g in groups if g.step == first), key=lambda g: not g.mixed)[: max(1, most // 3)]
    chosen = early + late[: most - len(early)]
    known = {group.id for group in chosen}
    rest = [g for g in groups if not any(g is other for other in chosen)]
    rest.sort(key=lambda g: (g.id not in known, -g.step, not g.mixed))
    return chosen + rest[: max(0, most - len(chosen))]


def rollout_deck(path: Path, name: str, album: Album, names: Names, most: int) -> Deck | None:
    """The section on a log of rollouts; None where there are none.

    Args:
        path: of the log.
        name: of the run, "" where the page is about one.
        album: gets the pictures.
        names: of the page.
        most: groups shown.
    """
    groups = read_groups(path)
    chosen = sorted(choose(groups, most), key=lambda group: group.step)
    if not chosen:
        return None
    anchors = [names.of(f"{name} step {group.step} {group.id}") for group in chosen]
    cards = [
        _card(group, anchor, album, _same(index, chosen, anchors))
        for index, (group, anchor) in enumerate(zip(chosen, anchors, strict=True))
    ]
    said = (
        "All completions of a group answer the same question. The advantage A says how much better than its "
        "group a completion was."
    )
    left_out = len(groups) - len(chosen)
    return Deck(f"Rollouts {name}".strip(), names.of(f"rollouts {name}"), said, cards, left_out, path.name)


def _same(index: int, groups: Sequence[Group], anchors: Sequence[str]) -> list[tuple[int, str, Group]]:
    """The other groups about the same question: step, anchor and group."""
    return [
        (group.step, anchor, group)
        for other, (group, anchor) in enumerate(zip(groups, anchors, strict=True))
        if other != index and group.id == groups[index].id
    ]


def _card(group: Group, anchor: str, album: Album, same: Sequence[tuple[int, str, Group]]) -> Card:
    rows = [group.rows[i] for i in spread(len(group.rows), _ROWS)]
    largest = max((abs(r.advantage) for r in rows if r.advantage is not None), default=0.0)
    pictures, trouble = pictures_or_trouble(album, group.clip, 8)
    return Card(
        anchor=anchor,
        head=f"Step {group.step:,} · {group.id}",
        type=group.type,
        flags=_flags(group, [other for _, _, other in same]),
        question=group.question,
        options=shown_options(group.options, group.answer),
        answer="" if group.options else group.answer or "",
        pictures=pictures,
        trouble=trouble,
        rows=[_completion(row, largest, group.clip, album) for row in rows],
        left_out=len(group.rows) - len(rows),
        related=[(other, f"the same question at step {step:,}") for step, other, _ in same],
    )


def _flags(group: Group, others: Sequence[Group]) -> list[str]:
    """wrong: at most half of the answers are right. flipped: that is otherwise at another step."""
    flags = [] if group.mixed else ["equal"]
    mine = group.right
    if mine is not None:
        flags += ["wrong"] if mine <= 0.5 else []
        shares = [other.right for other in others]
        flags += ["flipped"] if any(s is not None and (s <= 0.5) != (mine <= 0.5) for s in shares) else []
    return flags


def _completion(rollout: Rollout, largest: float, clip: Clip, album: Album) -> ShownRow:
    advantage = rollout.advantage or 0.0
    share = 50 * abs(advantage) / largest if largest else 0.0
    details = [f"{name.removesuffix('_reward')} {value:.3g}" for name, value in rollout.rewards.items()]
    details += [f"{rollout.length} tokens"] if rollout.length is not None else []
    if rollout.finish not in (None, "eos"):
        details.append("cut at the limit" if rollout.finish == "length" else str(rollout.finish))
    return ShownRow(
        chip="no reward" if rollout.reward is None else f"reward {rollout.reward:.3g}",
        kind="gain" if advantage > 0 else "loss" if advantage < 0 else "",
        parts=shaded_parts(rollout.row),
        details=details,
        blocks=shown_blocks(rollout.row, clip, album),
        advantage="" if rollout.advantage is None else f"{rollout.advantage:+.2f}".replace("-", "−"),
        left=f"{50 if advantage > 0 else 50 - share:.1f}",
        width=f"{share:.1f}",
    )


def _rollout(entry: Mapping[str, Any]) -> Rollout:
    rewards = entry.get("rewards")
    length = number(entry.get("length"))
    return Rollout(
        row=read_row(entry),
        reward=number(entry.get("reward")),
        advantage=number(entry.get("advantage")),
        rewards={k: v for k, value in rewards.items() if (v := number(value)) is not None}
        if isinstance(rewards, dict)
        else {},
        length=None if length is None else int(length),
        finish=str(entry["finish_reason"]) if entry.get("finish_reason") else None,
    )


def _group(key: tuple[int, str], entry: Mapping[str, Any]) -> Group:
    options = entry.get("options")
    return Group(
        step=key[0],
        id=key[1],
        question=str(entry.get("question") or ""),
        type=str(entry.get("type") or ""),
        options={str(k): str(v) for k, v in options.items()} if isinstance(options, dict) else {},
        answer=str(entry["answer"]) if entry.get("answer") is not None else None,
        clip=clip_of(entry.get("media"), number(entry.get("start")), number(entry.get("end"))),
        rows=[],
    )
