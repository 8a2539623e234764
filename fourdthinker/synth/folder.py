"""The output folder of a run: whether it may be used, and what of it goes."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from pathlib import Path

from fourdthinker.errors import ConfigError
from fourdthinker.files import UNFINISHED, is_inside, parse_json, read_json_object
from fourdthinker.synth.journal import NAME
from fourdthinker.synth.settings import LIMITS, SynthSettings

log = logging.getLogger(__name__)

SETTINGS, MEDIA = "settings.json", "media"


def warn_of_others(folder: Path, names: set[str]) -> None:
    """Say how many records go, since they are of videos that are not among this run's inputs.

    Args:
        folder: of the run.
        names: of the sources of this run.
    """
    clip = re.compile(r"(.+)-\d{7,}-\d{7,}\.")
    gone: Counter[str] = Counter()
    for path in sorted(folder.glob("dift-*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            found = clip.match(_id(line))
            if found is not None and found[1] not in names:
                gone[found[1]] += 1
    if gone:
        log.warning(
            "%s: %d records of %d videos that are not among these inputs are left out from now on; a run "
            "writes the records of its own inputs. Give all of them at once: what is done is not done again",
            folder,
            gone.total(),
            len(gone),
        )


def _id(line: bytes) -> str:
    try:
        return str(parse_json(line)["id"])
    except (ValueError, KeyError, TypeError):  # nothing of a damaged line is kept anyway
        return ""


def check_folder(folder: Path, settings: SynthSettings, *, update: bool) -> None:
    """Refuse a folder that holds something else, or was made with other settings.

    Args:
        folder: of the run; it need not exist.
        settings: of the run.
        update: whether other settings are wanted.

    Raises:
        ConfigError: it cannot be used.
    """
    check_media(folder)
    path = folder / SETTINGS
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()) and not (folder / NAME).exists():
            raise ConfigError(f"{folder} is not empty, and no synthesis was made there; name a new folder")
        return
    before = read_json_object(path, "remove it, or name a new folder")
    now = json.loads(json.dumps(settings.plain()))
    changed = [name for name in now if before.get(name) != now[name] and name not in LIMITS]
    if changed and not update:
        listed = "; ".join(f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in changed)
        raise ConfigError(
            f"{folder} was made with other settings: {listed}. Name a new folder, or give --update: "
            "what does not depend on these settings is kept"
        )


def check_media(folder: Path) -> None:
    """Refuse a folder whose media lie elsewhere: no reader of records follows links that lead out.

    Args:
        folder: of a run; it may itself be a link.

    Raises:
        ConfigError: names the link and what to do.
    """
    media = folder / MEDIA
    if not is_inside(media, folder):
        raise ConfigError(
            f"{media} is a link to {os.path.realpath(media)}, and records must not lead out of their folder; "
            f"move the whole folder to that disk, and make {folder} the link"
        )


def clean(folder: Path) -> None:
    """Remove what a killed run left half written; nobody else writes here: the journal is locked."""
    for path in folder.rglob(".fourdthinker-*.part"):
        if UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)
