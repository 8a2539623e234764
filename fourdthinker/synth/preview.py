"""One HTML page about what a run has made: frames, imagery, question, options, reasoning, paths."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ValidationError

from fourdthinker.errors import ConfigError, FourdError
from fourdthinker.files import PathLike, is_inside, parse_json, read_json_object, write_text
from fourdthinker.frames import load_image, resize
from fourdthinker.latents import IMAGERY
from fourdthinker.synth.folder import check_media
from fourdthinker.synth.run import SUMMARY

PAGE = "preview.html"
_FRAME, _IMAGERY = 108, 168  # rows of pictures on the page
_FRAMES = 10
_REMEDY = "run the synthesis once more"


@dataclass(frozen=True)
class Shown:
    """A picture as the page shows it."""

    url: str
    width: int
    height: int
    label: str


@dataclass(frozen=True)
class Card:
    """One question."""

    id: str
    type: str
    split: str
    source: str
    question: str
    options: list[tuple[str, str, bool]]  # letter, text, whether it is right
    seconds: str
    frames: list[Shown]
    reasoning: list[str | Shown]  # text and the picture of each <output_image> in it
    path: dict[str, str] | None  # of camera and object, as SVG paths


def write_preview(out: PathLike, *, page: PathLike | None = None, most: int = 60) -> Path:
    """Write the page about a synthesis folder.

    Args:
        out: the folder.
        page: the file to write; None: preview.html in the folder.
        most: questions shown, evenly over types and videos.

    Returns:
        The path of the page.

    Raises:
        ConfigError: the folder holds no finished synthesis.
        OutputError: the page cannot be written.
    """
    folder = Path(out)
    check_media(folder)
    records = list(_records(folder))
    if not records and not (folder / SUMMARY).is_file():
        raise ConfigError(f"{folder}: neither records nor {SUMMARY}; give the folder of a finished run")
    summary = _read_summary(folder / SUMMARY)
    path = Path(page) if page is not None else folder / PAGE
    if path.is_file() and not path.read_bytes()[:15].lower().startswith(b"<!doctype html"):
        raise ConfigError(f"{path} is there and no page, so it is not replaced; name another file")
    cards = [_whole_card(split, record, folder) for split, record in _spread(records, most)]
    text = _render(
        name=os.path.basename(os.path.realpath(folder)),
        cards=cards,
        total=len(records),
        counts=sorted(Counter(str(record.get("type", "")) for _, record in records).items()),
        types=sorted({card.type for card in cards}),
        splits=sorted({card.split for card in cards}),
        sources=sorted({card.source for card in cards}),
        stages=_stages(summary),
        refused=summary.refused,
    )
    write_text(path, text)
    return path


def _render(**values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # names and texts come from files, manifests and models
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("preview.html").render(**values)


def _records(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(folder.glob("dift-*.jsonl")):
        split = path.name.split("-")[1]
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if line.strip():
                yield split, _record(line, f"{path}:{number}")


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = parse_json(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not a record ({error}); {_REMEDY}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: a {type(found).__name__}, not a record; {_REMEDY}")
    return found


class _Stage(BaseModel, strict=True):
    """Counts of one stage, by reason where items were lost."""

    done: int = 0
    rejected: dict[str, int] = {}
    failed: dict[str, int] = {}
    quarantined: dict[str, int] = {}


class _Refused(BaseModel, strict=True):
    input: str
    reason: str


class _Summary(BaseModel, strict=True):
    """What the page shows of a summary.json."""

    stages: dict[str, _Stage] = {}
    refused: list[_Refused] = []


def _read_summary(path: Path) -> _Summary:
    found = read_json_object(path, _REMEDY) if path.exists() else {}
    try:
        return _Summary.model_validate(found)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise ConfigError(
            f"{path}: {where} is {problem['input']!r:.60} ({problem['msg']}); {_REMEDY}"
        ) from error


def _spread(records: list[tuple[str, dict[str, Any]]], most: int) -> list[tuple[str, dict[str, Any]]]:
    """At most so many, of each type as many as of the others while it has them, evenly over the run."""
    by_type: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for split, record in records:
        by_type.setdefault(str(record.get("type", "")), []).append((split, record))
    turns = sorted((turn, kind) for kind, found in by_type.items() for turn in range(len(found)))
    counts = Counter(kind for _, kind in turns[:most])
    return [
        found[k * len(found) // counts[kind]] for kind, found in by_type.items() for k in range(counts[kind])
    ]


def _whole_card(split: str, record: dict[str, Any], folder: Path) -> Card:
    try:
        return _card(split, record, folder)
    except FourdError:
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{folder}: record {record.get('id')!r} is not as a synthesis writes it ({error}); run it anew"
        ) from error


def _card(split: str, record: dict[str, Any], folder: Path) -> Card:
    frames, seconds = record.get("image_input", []), record.get("seconds") or []
    step = max(1, -(-len(frames) // _FRAMES))
    shown = [
        _picture(_inside(folder, frames[k]), _FRAME, f"{seconds[k]:.1f} s" if k < len(seconds) else "")
        for k in range(0, len(frames), step)
    ]
    extra = record.get("extra", {})
    labels = extra.get("imagery", [])
    pictures = [
        _picture(_inside(folder, path), _IMAGERY, labels[k] if k < len(labels) else "")
        for k, path in enumerate(record.get("image_output", []))
    ]
    parts = str(record.get("text_output", "")).split(IMAGERY)
    reasoning: list[str | Shown] = []
    for number, part in enumerate(parts):
        reasoning.append(part)
        if number < len(pictures) and number < len(parts) - 1:
            reasoning.append(pictures[number])
    options = record.get("options", {})
    return Card(
        str(record.get("id")),
        str(record.get("type", "")),
        split,
        str(record.get("source", "")),
        str(record.get("text_input", "")).split("\n\nA. ")[0],
        [(letter, text, letter == record.get("answer")) for letter, text in options.items()],
        _interval(extra),
        shown,
        reasoning,
        _paths(extra.get("above")),
    )


def _interval(extra: dict[str, Any]) -> str:
    value = extra.get("interval")
    return f"{value[0]:.1f} to {value[1]:.1f} s" if isinstance(value, list) and len(value) == 2 else ""


def _inside(folder: Path, path: str) -> Path:
    """A path of a record; the page is passed on, so that nothing from elsewhere may get into it.

    The folder may itself be a link, or lie behind one.
    """
    if not is_inside(folder / path, folder):
        raise ConfigError(f"{folder}: a record names {path!r}, outside of the folder; {_REMEDY}")
    return folder / path


def _picture(path: Path, rows: int, label: str) -> Shown:
    pixels = load_image(path)
    height, width = pixels.shape[:2]
    scale = min(1.0, rows / height)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    image = Image.fromarray(resize(pixels[None], size).numpy()[0])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Shown(f"data:image/jpeg;base64,{data}", image.width, image.height, label)


def _paths(above: dict[str, Any] | None) -> dict[str, str] | None:
    """SVG paths in a box of 100, forward up."""
    if not above:
        return None
    arrays = {name: np.array(points, float) for name, points in above.items() if points}
    if "camera" not in arrays:
        raise ValueError("`above` has no path of the camera")
    every = np.concatenate(list(arrays.values()))
    low, high = every.min(0), every.max(0)
    scale = 84 / max(float((high - low).max()), 1e-6)
    out = {}
    for name, points in arrays.items():
        seen = (points - (low + high) / 2) * scale
        out[name] = "M" + " L".join(f"{50 + x:.1f} {50 - y:.1f}" for x, y in seen)
        x, y = seen[-1]
        out[f"{name}_x"], out[f"{name}_y"] = f"{50 + x:.1f}", f"{50 - y:.1f}"
    return out


def _stages(summary: _Summary) -> list[dict[str, Any]]:
    rows = []
    for stage, row in summary.stages.items():
        for state, lost in (
            ("rejected", row.rejected), ("failed", row.failed), ("quarantined", row.quarantined),
        ):  # fmt: skip
            for reason, count in sorted(lost.items(), key=lambda item: -item[1]):
                rows.append({"stage": stage, "state": state, "reason": reason, "count": count})
        rows.append({"stage": stage, "state": "done", "reason": "", "count": row.done})
    return rows
