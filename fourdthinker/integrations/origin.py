"""What a checkpoint was made from, as the runs say that led to it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourdthinker.errors import ConfigError
from fourdthinker.settings import read_yaml

CONFIG = "config.yaml"
_MODEL_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Origin:
    """Base and data of a checkpoint; of paths their last two parts alone.

    Attributes:
        base: the model that the first of the runs began from, a model id or a folder; "": not known.
        model_id: `base`, where it is an id of the hub; "" for a folder.
        through: the checkpoints of earlier runs between the base and this one, the first one first.
        data: of all runs, the first one's first.
    """

    base: str = ""
    model_id: str = ""
    through: tuple[str, ...] = ()
    data: tuple[str, ...] = ()


def is_model_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return _MODEL_ID.fullmatch(name) is not None


def public_name(name: str) -> str:
    """Of a path its last two parts, which say nothing of the machine."""
    return "/".join(Path(name).parts[-2:])


def named_base(name: str) -> Origin:
    """The origin that somebody names.

    Args:
        name: owner/name where there is no such folder is an id; all else is a path.

    Returns:
        It, without runs and data.
    """
    known = is_model_id(name) and not Path(name).exists()
    return Origin(public_name(name), name if known else "")


def trained_origin(checkpoint: Path) -> Origin:
    """Base and data of a checkpoint in the folder of the run that wrote it.

    A run whose `model` is a checkpoint of another run was trained on from it: its base is that run's. A name
    of the form owner/name is only taken for an id if hub files of that name are on this machine, since a
    folder that is gone looks the same.

    Args:
        checkpoint: such as RUN/final.

    Returns:
        From the config.yaml of the runs; an empty one where there is none.

    Raises:
        ConfigError: a config.yaml is none of a training run.
    """
    run = Path(os.path.realpath(checkpoint)).parent
    model, data = _config(run)
    names = [model] if model else []
    folder, seen = _folder(model, run), {run}
    while folder is not None and folder.parent not in seen and (folder.parent / CONFIG).is_file():
        run = folder.parent
        seen.add(run)
        model, earlier = _config(run)
        names, data = [model, *names], [*earlier, *data]
        folder = _folder(model, run)
    known = names[0] if names and folder is None and _was_fetched(names[0]) else ""
    shown = [public_name(name) for name in names]
    return Origin(
        known or "".join(shown[:1]), known, tuple(shown[1:]), tuple(dict.fromkeys(map(public_name, data)))
    )


def _config(run: Path) -> tuple[str, list[str]]:
    """Model and data of a run; "" and [] without a config."""
    path = run / CONFIG
    if not path.is_file():
        return "", []
    config: dict[str, Any] = read_yaml(path)
    model, data = config.get("model") or "", config.get("data") or []
    named = [data] if isinstance(data, str) else data
    if not (isinstance(model, str) and isinstance(named, list) and all(isinstance(x, str) for x in named)):
        raise ConfigError(
            f"{path}: model is {model!r:.60} and data {data!r:.60}, where a run has paths; mend it, "
            "or move it away"
        )
    return model, named


def _folder(model: str, run: Path) -> Path | None:
    """Where a checkpoint lies that a run names: relative to a folder above the run, or to this one."""
    if not model:
        return None
    paths = [above / model for above in (*run.parents, Path.cwd())]
    return next((Path(os.path.realpath(path)) for path in paths if path.is_dir()), None)


def _was_fetched(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return is_model_id(name) and isinstance(try_to_load_from_cache(name, "config.json"), str)
