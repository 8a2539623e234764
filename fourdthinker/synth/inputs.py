"""What a run is given: files, folders, patterns, manifests, SpatialVID's layout, the project's own scenes."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourdthinker.errors import ConfigError
from fourdthinker.files import is_inside, parse_json, read_regular
from fourdthinker.synth.digests import file_digest
from fourdthinker.synth.geometry.calibration import FARTHEST
from fourdthinker.synth.journal import Journal

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "m2ts", "mts", "wmv", "flv", "ogv"),
        *("3gp", "gif", "h264", "hevc", "obu", "ivf"),
    )
)
MANIFEST_SUFFIXES = (".csv", ".jsonl", ".json")
_SCENES = re.compile(r"scenes:([1-9][0-9]{0,6})")
_GIVEN = ("poses", "poses_format", "poses_metric", "right", "focal", "baseline", "calibration")
_FILES = ("poses", "right", "calibration")
_KEYS = {"video", "id", "start", "end", "objects", "licence", *_GIVEN}
_STEREO = {"right", "focal", "baseline"}
_LENGTHS = {"focal": "pixels, a number above 0", "baseline": f"metres, above 0 and below {FARTHEST:g}"}


@dataclass(frozen=True)
class Source:
    """One video, and what is given with it.

    Attributes:
        name: of the source, of letters, digits, ".", "_" and "-", unique.
        path: of the file; "" for a scene, which is rendered.
        digest: of its content and of all that is given with it.
        group: digest of the file alone, or the least one of the views that film the same: what is of one
            group is never in two splits.
        shown: how it was named, for messages and the data card.
        start, end: part of the video, in seconds; None: from its start, to its end.
        scene: number of one of the project's own scenes, or None.
        objects: names of objects in it.
        given: poses (a file), poses_format and poses_metric ("true" or "false"); of stereo right (a file),
            focal and baseline, or calibration (a file); as far as they were given.
        licence: of the video, as given.
    """

    name: str
    path: str
    digest: str
    group: str
    shown: str
    start: float | None = None
    end: float | None = None
    scene: int | None = None
    objects: tuple[str, ...] = ()
    given: dict[str, str] = field(default_factory=dict)
    licence: str | None = None


@dataclass(frozen=True)
class Refused:
    """An input that is no video, and why."""

    name: str
    shown: str
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A path or scene that an input names, before it is opened.

    `root` confines links, if there is one, and `beside` the files that are read beside the video.
    """

    path: Path
    shown: str
    root: Path | None = None
    scene: int | None = None
    row: dict[str, Any] = field(default_factory=dict)
    beside: Path | None = None


def candidates(inputs: Sequence[str]) -> list[Candidate]:
    """All that the inputs name, in a fixed order, without reading any video.

    Args:
        inputs: files, folders, patterns (`*`, `?`, `[`), CSV or JSONL manifests, SpatialVID folders, or
            "scenes:N".

    Returns:
        One candidate a video; the same path is listed once.

    Raises:
        ConfigError: an input that names nothing, or a manifest that cannot be read.
    """
    found: list[Candidate] = []
    for text in inputs:
        if match := _SCENES.fullmatch(text):
            found += [Candidate(Path(), f"scene {k}", scene=k) for k in range(int(match[1]))]
            continue
        path = Path(text)
        if path.is_dir():
            found += _folder(path)
        elif path.suffix.lower() in MANIFEST_SUFFIXES and path.exists():
            found += _manifest(path)
        elif os.path.lexists(path):
            found.append(Candidate(path, text))
        elif any(sign in text for sign in "*?["):
            matches = sorted(glob.glob(text, recursive=True))
            found += [Candidate(Path(match), match, Path(match).parent) for match in matches]
            if not matches:
                raise ConfigError(f"{text}: no file matches this pattern; quote it, or name a folder")
        else:
            raise ConfigError(f"{text}: no such file or folder; give a video, folder, manifest or scenes:N")
    unique = {(str(c.path), c.scene, c.row.get("start"), c.row.get("end")): c for c in reversed(found)}
    if not unique:
        raise ConfigError(f"no file in {', '.join(inputs)}; give a folder with videos in it")
    return list(reversed(unique.values()))


def scene_groups(found: Sequence[Candidate], journal: Journal, timeout: float = math.inf) -> dict[str, str]:
    """What films the same, as pairs of left and right say, also through copies under other names.

    Args:
        found: of `candidates`.
        journal: remembers digests.
        timeout: seconds for hashing one file.

    Returns:
        Digest of a view -> the least digest of all views that pairs connect it with.
    """
    groups: dict[str, set[str]] = {}
    for candidate in found:
        if "right" in candidate.row and unfit(candidate) is None:
            try:
                views = candidate.path, Path(candidate.row["right"])
                pair = [file_digest(path, journal, timeout) for path in views]
            except OSError:
                continue  # said when it is opened
            together = set(pair).union(*(groups.get(digest, ()) for digest in pair))
            groups |= dict.fromkeys(together, together)
    return {digest: min(together) for digest, together in groups.items()}


def open_candidate(
    candidate: Candidate,
    journal: Journal,
    seed: int,
    groups: Mapping[str, str],
    timeout: float = math.inf,
) -> Source | Refused:
    """The source of a candidate: its content is hashed, unless the journal knows the file.

    Args:
        candidate: of `candidates`.
        journal: remembers digests.
        seed: of scenes.
        groups: of `scene_groups`.
        timeout: seconds for hashing one file.

    Returns:
        The source, or why there is none.
    """
    if candidate.scene is not None:
        digest = hashlib.blake2b(f"scene {seed} {candidate.scene}".encode(), digest_size=16).hexdigest()
        name = f"scene-{candidate.scene:06d}-{digest[:8]}"
        return Source(name, "", digest, digest, candidate.shown, scene=candidate.scene)
    stem, path = _safe(candidate.path.stem), candidate.path
    try:
        reason = unfit(candidate)
        if reason is None:
            own = file_digest(path, journal, timeout)
            extra = {file.name: file_digest(file, journal, timeout) for file in _files(candidate.row)}
            group = groups.get(own, own)
            if group != own:
                extra["group"] = group
            digest = _digest(own, extra, candidate.row)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    if reason is not None:
        mark = hashlib.blake2b(str(path).encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
        return Refused(f"{stem}-{mark}", candidate.shown.encode("utf-8", "backslashreplace").decode(), reason)
    row = candidate.row
    return Source(
        f"{_safe(str(row.get('id') or stem))}-{digest[:8]}",
        os.path.abspath(path),
        digest,
        group,
        candidate.shown,
        _seconds(row, "start"),
        _seconds(row, "end"),
        objects=_objects(row),
        given={
            key: os.path.abspath(str(row[key])) if key in _FILES else str(row[key])
            for key in _GIVEN
            if key in row
        },
        licence=row.get("licence") or None,
    )


def _folder(path: Path) -> Iterator[Candidate]:
    """Everything in a folder; of SpatialVID's layout the videos, with their annotations."""
    spatial = (path / "videos").is_dir() and (path / "annotations").is_dir()
    top = path / "videos" if spatial else path
    files = sorted(file for file in top.rglob("*") if not file.is_dir() or file.is_symlink())
    for file in files:
        if any(part.startswith(".") for part in file.relative_to(top).parts):
            continue
        row: dict[str, Any] = {}
        if spatial:
            notes = path / "annotations" / file.relative_to(top).with_suffix("")
            if (notes / "poses.npy").exists():
                row = {"poses": str(notes / "poses.npy"), "poses_format": "spatialvid"}
        yield Candidate(file, str(file), top, row=row, beside=path / "annotations")


def _manifest(path: Path) -> Iterator[Candidate]:
    """Rows of a CSV file with a header, a JSONL file, or a JSON list; `video` is relative to the file."""
    text = read_regular(path).decode("utf-8-sig", "replace")
    rows: list[Any]
    try:
        if path.suffix.lower() == ".csv":
            rows = list(csv.DictReader(io.StringIO(text)))
        elif path.suffix.lower() == ".json":
            rows = parse_json(text)
        else:
            rows = [parse_json(line) for line in text.split("\n") if line.strip()]
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: not a manifest ({error}); write one object a line, or CSV") from error
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{path}: holds no rows; write one video a line, under the key video")
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        if not isinstance(row, dict) or not isinstance(row.get("video"), str) or not row["video"]:
            raise ConfigError(f"{where}: no video; each row names a file under the key video")
        row = {key: value for key, value in row.items() if value not in (None, "")}
        if unknown := sorted(set(map(str, row)) - _KEYS):
            raise ConfigError(
                f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}"
            )
        for key in ("start", "end"):
            if key in row:
                row[key] = _number(row[key], f"{where}: {key}")
        if "poses_metric" in row:
            row["poses_metric"] = _truth(row["poses_metric"], f"{where}: poses_metric")
        _check_stereo(row, where)
        for key in ("focal", "baseline"):
            if key in row:
                row[key] = _number(row[key], f"{where}: {key}", _LENGTHS[key], above=True)
        if row.get("baseline", 0) >= FARTHEST:
            raise ConfigError(f"{where}: baseline is {row['baseline']:g}; give {_LENGTHS['baseline']}")
        for key in _FILES:
            if key in row:
                row[key] = str(path.parent / str(row[key]))
        yield Candidate(path.parent / row["video"], row["video"], path.parent, row=row, beside=path.parent)


def _check_stereo(row: dict[str, Any], where: str) -> None:
    """ConfigError where what is said of a right video is too little or too much."""
    wanted = {"right", "calibration"} if "calibration" in row else _STEREO
    found = (_STEREO | {"calibration"}) & row.keys()
    if found and found != wanted:
        wrong = [f"no {key}" for key in sorted(wanted - found)] + [
            f"also {key}" for key in sorted(found - wanted)
        ]
        raise ConfigError(
            f"{where}: {', '.join(wrong)}; stereo is right, focal and baseline together, or right "
            "and calibration"
        )


def _number(
    value: Any, where: str, wanted: str = "seconds of the video, 0 or more", *, above: bool = False
) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < 1e9 or (above and not number):
        raise ConfigError(f"{where} is {value!r}; give {wanted}")
    return number


def _truth(value: Any, where: str) -> str:
    """ "true" or "false" of a value in JSON or CSV."""
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise ConfigError(f"{where} is {value!r}; give true or false")
    return text


def _seconds(row: dict[str, Any], key: str) -> float | None:
    return float(row[key]) if key in row else None


def _objects(row: dict[str, Any]) -> tuple[str, ...]:
    value = row.get("objects") or ()
    names = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return tuple(name for name in (" ".join(str(n).split()) for n in names) if name)


def _files(row: dict[str, Any]) -> list[Path]:
    """The files that are read beside the video: of a stereo pair, and of its poses."""
    found = [Path(row[key]) for key in ("right", "calibration") if key in row]
    if "poses" not in row:
        return found
    poses = Path(row["poses"])
    found.append(poses)
    if row.get("poses_format") == "spatialvid":
        found += [poses.with_name("intrinsics.npy"), poses.with_name("indexes.txt")]
    return found


def unfit(candidate: Candidate) -> str | None:
    """Why a candidate is no video, or its row of no use, as far as can be told without opening any file.

    Args:
        candidate: of `candidates`.

    Returns:
        The reason, or None.
    """
    path, root = candidate.path, candidate.root
    if wrong := _unwritable(candidate):
        return wrong
    if root is not None and not is_inside(path, root):
        return "a link out of its folder"
    try:
        status = path.stat()
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else "no such file"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if root is not None and not candidate.row and path.suffix.lower() not in VIDEO_SUFFIXES:
        return "not a video, by its suffix"
    if not status.st_size:
        return "empty file"
    for file in _files(candidate.row):
        if candidate.beside is not None and not is_inside(file, candidate.beside):
            return f"{_role(candidate, file)}: {file} lies outside {candidate.beside}"
        if not file.exists():
            return f"{_role(candidate, file)}: no file {file.name}"
        if not file.is_file():  # a pipe would be waited for
            return f"{_role(candidate, file)}: {file.name} is not a regular file"
    return None


def _role(candidate: Candidate, file: Path) -> str:
    """What a file beside a video is for, as the manifest says it."""
    return next((key for key in _FILES if str(file) == candidate.row.get(key)), "poses")


def _unwritable(candidate: Candidate) -> str | None:
    """Why names or values of a candidate cannot stand in the journal or in records."""
    licence = candidate.row.get("licence")
    if licence is not None and not isinstance(licence, str):
        return f"licence is {licence!r}; give text"
    for name, value in {"its name": candidate.path, **candidate.row}.items():
        if not _is_utf8(json.dumps(value, ensure_ascii=False, default=str)):
            return f"{name} is not UTF-8"
    for file in (candidate.path, *_files(candidate.row)):
        if "\0" in str(file):
            return "a path with the character NUL"
        if not _is_utf8(os.path.realpath(file)):
            return "a path that is not UTF-8"
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _digest(video: str, files: dict[str, str], row: dict[str, Any]) -> str:
    if not row and not files:
        return video
    values = {key: value for key, value in row.items() if key not in (*_FILES, "video", "licence")}
    text = json.dumps([video, files, values], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _safe(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:40] or "video"


__all__ = ["Candidate", "Refused", "Source", "candidates", "open_candidate", "scene_groups", "unfit"]
