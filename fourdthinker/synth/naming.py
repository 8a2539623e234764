"""Names of the things in a clip, said by a model that sees some of its frames."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourdthinker.files import parse_json
from fourdthinker.frames import load_image
from fourdthinker.synth.clips import RejectError
from fourdthinker.synth.context import Context
from fourdthinker.synth.narrate import Endpoint, EndpointSettings, RefusedError, scaled

if TYPE_CHECKING:
    from fourdthinker.thinker import Thinker

CACHE = "names"  # replies of the endpoint, in the output folder
_FRAMES = 6
_DRAFTS = 3
_LONGEST = 200  # tokens of a reply
_TASK = (
    "These are frames of one video clip, in order. Name the one thing that moves by itself most clearly, and "
    "one thing that stands still and is seen in all of them, each by a short noun phrase that tells it from "
    'everything else in the picture. Answer with JSON alone: {"moving": "...", "still": "..."}; null where '
    "there is none."
)
_NAME = re.compile(r"[^\W_][\w' -]{0,39}")
_ARTICLE = re.compile(r"(?:the|an?)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Names:
    """What a model has seen; None: nothing of that kind."""

    moving: str | None
    still: str | None


def read_names(text: str) -> Names:
    """The names in a reply.

    Args:
        text: what a model wrote; a JSON object, whatever stands around it.

    Returns:
        The names, without articles.

    Raises:
        ValueError: no such object, or a name that is none; the message is for the model.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        value = parse_json(text[start : end + 1])
    except ValueError:
        value = None
    if not isinstance(value, dict) or not {"moving", "still"} <= value.keys():
        raise ValueError('it is not one JSON object with the keys "moving" and "still"')
    moving, still = (_name(value[key], key) for key in ("moving", "still"))
    if moving is not None and moving == still:
        raise ValueError("both names are the same; give two that tell the things apart, or null")
    return Names(moving, still)


def _name(value: Any, key: str) -> str | None:
    if value is None:
        return None
    text = _ARTICLE.sub("", " ".join(str(value).split()), count=1).lower()
    if not isinstance(value, str) or not _NAME.fullmatch(text):
        raise ValueError(f'"{key}" is no short noun phrase of letters, digits and spaces')
    return text


def name_things(context: Context) -> Names:
    """Ask the model of the settings what is in a clip.

    Args:
        context: of the clip, with its frames written; namer_model, or namer_weights, is set.

    Returns:
        The names.

    Raises:
        RejectError: the endpoint refuses the pictures, or none of three drafts is usable.
        FourdError: as of `Endpoint.complete`, or `init_checkpoint`.
    """
    frames = context.results["ingest"]["frames"]
    chosen = np.unique(np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int))
    paths = [context.out / frames[k] for k in chosen]
    settings = context.settings
    if settings.namer_model is not None:
        endpoint = namer(settings.namer_model, settings.namer_max_calls, context.out, context.share)
        return _drafts(lambda faults: _asked(paths, endpoint, faults))
    assert settings.namer_weights is not None
    thinker = _thinker(settings.namer_weights)
    return _drafts(lambda faults: _thought(paths, thinker, faults))


def _drafts(ask: Callable[[list[str]], str]) -> Names:
    faults: list[str] = []
    for _ in range(_DRAFTS):
        try:
            text = ask(faults)
        except RefusedError as error:
            raise RejectError("the model that names things refuses the pictures") from error
        try:
            return read_names(text)
        except ValueError as error:
            faults.append(str(error))
    raise RejectError(f"no names: the last of {_DRAFTS} replies: {faults[-1]}")


@cache
def namer(model: str, max_calls: int | None, out: Path, share: int = 1) -> Endpoint:
    """The endpoint that names things, one in each process; replies are kept in the output folder.

    Args:
        model: of the endpoint that OPENAI_BASE_URL names.
        max_calls: of the run.
        out: the output folder.
        share: processes that share max_calls and the requests a minute.

    Returns:
        The endpoint.

    Raises:
        ConfigError: no key in the environment.
    """
    usual = EndpointSettings.model_fields["per_minute"].default
    calls = None if max_calls is None else max_calls // share
    limits = EndpointSettings(model=model, max_tokens=_LONGEST, max_calls=calls, per_minute=usual / share)
    return Endpoint(limits, out / CACHE)


def _asked(paths: list[Path], endpoint: Endpoint, faults: list[str]) -> str:
    pictures = scaled([0.0] * len(paths), map(load_image, paths))
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": picture.url}} for picture in pictures
    ]
    content.append({"type": "text", "text": _task(faults)})
    return endpoint.complete([{"role": "user", "content": content}], seed=len(faults)).text


def _thought(paths: list[Path], thinker: Thinker, faults: list[str]) -> str:
    from fourdthinker.sampler import SamplingConfig

    config = SamplingConfig(temperature=0.0, max_new_tokens=_LONGEST)
    return thinker.generate(None, _task(faults), images=paths, config=config).text


def _task(faults: list[str]) -> str:
    return _TASK + "".join(f"\nAn earlier answer could not be used: {fault}." for fault in faults)


@cache
def _thinker(weights: Path) -> Thinker:
    """A checkpoint, loaded once in each process; one without latent tokens gets them, and never uses them."""
    import torch

    from fourdthinker.backbones import init_checkpoint
    from fourdthinker.prompt_style import PromptStyle
    from fourdthinker.thinker import Thinker

    checkpoint = init_checkpoint(weights, style=PromptStyle(instruction=""))
    checkpoint.backbone.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return Thinker(checkpoint)
