"""What a batch of rollouts trains, for one update or for several, and its form in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fourdthinker.errors import CheckpointError, ConfigError
from fourdthinker.files import parse_json
from fourdthinker.sampler import Rollout
from fourdthinker.samples import Prompt
from fourdthinker.trainers.experience import Experience
from fourdthinker.trainers.packing import Chunk, make_chunk

_KNOWN = "old_logprobs"  # of a chunk, beside what its rows tell
_OPTIONAL = ("ref_logprobs", "old_logprobs", "entropy_mask", "anchors")  # of the rollouts of a micro-batch
_NUMBERS = ("num_items", "num_tokens", "num_latents")  # of a micro-batch
_TOLD = ("indices", "rows", "finish_reason", "vision_ids")  # of a micro-batch, beside its tensors
_ROLLOUT = {field.name for field in fields(Rollout)}
_SCORED = ("advantages", "kept", "trained", "rewards", "failed", "equal")  # of its experience
_TENSORS = (_ROLLOUT - {"finish_reason", "vision_ids", "timing"}) | {*_SCORED, *_NUMBERS}


@dataclass(frozen=True)
class Replay:
    """What a batch of rollouts trains, for one update or for several.

    Attributes:
        micro_batches: the chunks of each; those of the first update, then those of the second, and so on.
        num_items: of each what its loss is divided by: the rollouts, or the tokens that the policy chose, of
            its whole update; in bnpo the tokens of the micro-batch, times the number of micro-batches.
        num_tokens: of each the tokens that the policy chose, of its whole update.
        num_latents: of each the latents of rollouts that are trained, likewise.
    """

    micro_batches: list[list[Chunk]]
    num_items: list[Tensor]
    num_tokens: list[Tensor]
    num_latents: list[Tensor]


def save_replay(path: Path, replay: Replay, settings: dict[str, Any]) -> None:
    """Write a replay, without the pixels, texts and features of its prompts.

    Args:
        path: a safetensors file.
        replay: with all that is known of the log-probs of the policy that sampled in its chunks.
        settings: those that it depends on, by name, as JSON can hold them.
    """
    tensors: dict[str, Tensor] = {}
    told: list[dict[str, Any]] = []
    for number, chunks in enumerate(replay.micro_batches):
        experience = chunks[0].experience
        rollout = vars(experience.rollout)
        own = {name: getattr(experience, name) for name in _SCORED}
        own |= {n: v for n in _OPTIONAL if (v := getattr(experience, n)) is not None}
        own |= {name: value for name, value in rollout.items() if isinstance(value, Tensor)}
        own |= {name: getattr(replay, name)[number] for name in _NUMBERS}
        for index, chunk in enumerate(chunks):
            if _KNOWN in chunk.batch and experience.old_logprobs is None:
                own[f"{index}.{_KNOWN}"] = chunk.batch[_KNOWN]
        tensors |= {f"{number}.{name}": value for name, value in own.items()}
        told.append(
            {
                "indices": experience.indices,
                "rows": [chunk.rows for chunk in chunks],
                "finish_reason": rollout["finish_reason"],
                "vision_ids": rollout["vision_ids"],
            }
        )
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"micro_batches": json.dumps(told), "settings": json.dumps(settings)}
    save_file(whole, path, metadata=metadata)


def load_replay(
    path: Path,
    settings: dict[str, Any],
    prompts_of: Callable[[list[int]], list[Prompt]],
    features_of: Callable[[list[Prompt]], Sequence[Tensor | None] | None],
    *,
    pad_id: int,
    share: bool,
    device: torch.device,
) -> Replay:
    """What `save_replay` wrote.

    Args:
        path: the file.
        settings: as in `save_replay`, of this run.
        prompts_of: gives the prompts of indices in the data set.
        features_of: gives the features of prompts, None for those of a tower that is trained.
        pad_id: fills up sequences.
        share: whether the completions of a prompt stand behind one copy of it.
        device: of the model.

    Returns:
        The replay, its tensors on `device`.

    Raises:
        CheckpointError: it cannot be read.
        ConfigError: a setting is not as it was.
    """
    tensors, told, then = _read(path, device)
    _check_settings(path, settings, then)
    micro_batches = []
    for number, entry in enumerate(told):
        own = {
            name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{number}.")
        }
        prompts = prompts_of(entry["indices"])
        rollout = Rollout(
            **{name: value for name, value in own.items() if name in _ROLLOUT},
            finish_reason=entry["finish_reason"],
            vision_ids=tuple(entry["vision_ids"]),
        )
        features = features_of(prompts)
        experience = Experience(
            indices=entry["indices"],
            prompts=prompts,
            rollout=rollout,
            features=None if features is None else list(features),
            texts=[],  # they are written down already
            rewards=own["rewards"].cpu(),
            parts={},
            failed=own["failed"].cpu(),
            failure="",  # this and `late` are of no use any more
            late=False,
            equal=own["equal"].cpu(),
            advantages=own["advantages"].cpu(),
            kept=own["kept"].cpu(),
            trained=own["trained"].cpu(),
            **{name: own.get(name) for name in _OPTIONAL},
        )
        chunks = []
        for index, rows in enumerate(entry["rows"]):
            chunk = make_chunk(experience, rows, pad_id, share=share)
            known = {_KNOWN: own[f"{index}.{_KNOWN}"]} if f"{index}.{_KNOWN}" in own else {}
            chunks.append(replace(chunk, batch=chunk.batch | known))
        micro_batches.append(chunks)
    numbers = {name: [tensors[f"{number}.{name}"] for number in range(len(told))] for name in _NUMBERS}
    return Replay(micro_batches, **numbers)


def _check_settings(path: Path, settings: dict[str, Any], then: dict[str, Any]) -> None:
    changed = [
        f"{name} is {value!r} and was {then.get(name)!r}"
        for name, value in settings.items()
        if then.get(name) != value
    ]
    if changed:
        raise ConfigError(
            f"{path} holds rollouts that are still to be trained on, and {'; '.join(changed)}; set them so, "
            "or name a checkpoint without such a file, after which rollouts are sampled"
        )


def _read(path: Path, device: torch.device) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Tensors, what is told of each micro-batch, and the settings; CheckpointError where any is missing."""
    try:
        with safe_open(path, framework="pt") as file:
            stored = list(file.keys())
            tensors = {name: file.get_tensor(name).to(device) for name in stored}
            metadata = file.metadata() or {}  # None where there is none
        told, settings = (parse_json(metadata[name], finite=False) for name in ("micro_batches", "settings"))
        needed = {f"{number}.{name}" for number in range(len(told)) for name in _TENSORS}
        missing = sorted(needed - tensors.keys())
        missing += [f"{name} of {number}" for number, e in enumerate(told) for name in _TOLD if name not in e]
        if missing:
            raise ValueError(f"no {', '.join(missing)}")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{path}: the rollouts cannot be read ({reason}); resume from an earlier checkpoint"
        ) from error
    return tensors, told, settings
