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

from fourdthinker.errors import CheckpointError
from fourdthinker.files import parse_json
from fourdthinker.sampler import Rollout
from fourdthinker.samples import Prompt
from fourdthinker.trainers.experience import Experience
from fourdthinker.trainers.packing import Chunk, make_chunk

_KNOWN = ("ref_logprobs", "old_logprobs")  # of a chunk, beside what its rows tell


@dataclass(frozen=True)
class Replay:
    """What a batch of rollouts trains, for one update or for several.

    Attributes:
        micro_batches: the chunks of each.
        num_items: of each what its loss is divided by: the rollouts, or the tokens that the policy chose, of
            the whole update; in bnpo the tokens of the micro-batch, times the number of micro-batches.
        num_tokens: the tokens that the policy chose, of the whole update.
    """

    micro_batches: list[list[Chunk]]
    num_items: list[Tensor]
    num_tokens: Tensor


def save_replay(path: Path, replay: Replay) -> None:
    """Write a replay, without the pixels, texts and features of its prompts.

    Args:
        path: a safetensors file.
        replay: with the log-probs of the policy before its first update in every chunk.
    """
    tensors = {"num_tokens": replay.num_tokens}
    told: list[dict[str, Any]] = []
    for number, (chunks, items) in enumerate(zip(replay.micro_batches, replay.num_items, strict=True)):
        experience = chunks[0].experience
        rollout = vars(experience.rollout)
        own = {"advantages": experience.advantages, "kept": experience.kept, "rewards": experience.rewards}
        own |= {name: value for name, value in rollout.items() if isinstance(value, Tensor)}
        own |= {"num_items": items}
        for index, chunk in enumerate(chunks):
            own |= {f"{index}.{name}": chunk.batch[name] for name in _KNOWN if name in chunk.batch}
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
    save_file(whole, path, metadata={"micro_batches": json.dumps(told)})


def load_replay(
    path: Path,
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
        prompts_of: gives the prompts of indices in the data set.
        features_of: gives the features of prompts, None for those of a tower that is trained.
        pad_id: fills up sequences.
        share: whether the completions of a prompt stand behind one copy of it.
        device: of the model.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stored = list(file.keys())
            tensors = {name: file.get_tensor(name).to(device) for name in stored}
            told = parse_json(file.metadata()["micro_batches"], finite=False)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: the rollouts cannot be read ({error}); resume from an earlier checkpoint"
        ) from error
    micro_batches = []
    for number, entry in enumerate(told):
        own = {
            name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{number}.")
        }
        prompts = prompts_of(entry["indices"])
        names = {field.name for field in fields(Rollout)}
        rollout = Rollout(
            **{name: value for name, value in own.items() if name in names},
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
            advantages=own["advantages"].cpu(),
            kept=own["kept"].cpu(),
        )
        chunks = []
        for index, rows in enumerate(entry["rows"]):
            chunk = make_chunk(experience, rows, pad_id, share=share)
            known = {name: own[f"{index}.{name}"] for name in _KNOWN if f"{index}.{name}" in own}
            chunks.append(replace(chunk, batch=chunk.batch | known))
        micro_batches.append(chunks)
    num_items = [tensors[f"{number}.num_items"] for number in range(len(told))]
    return Replay(micro_batches, num_items, tensors["num_tokens"])
