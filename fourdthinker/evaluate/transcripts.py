"""A sampled row as JSON: what was asked, every token with its log-prob, and what its latents are near to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.records import Record
    from fourdthinker.sampler import Rollout
    from fourdthinker.samples import Vision

_ASKED = ("id", "question", "type", "options", "answer", "start", "end")


def asked_fields(record: Record | None) -> dict[str, Any]:
    """What a row answers.

    Args:
        record: the question; None: not known.

    Returns:
        id, question, type, options, answer, start and end of the record, and media, [kind, path] of each file
        that is shown.
    """
    if record is None:
        return dict.fromkeys((*_ASKED, "media"))
    values = {name: getattr(record, name) for name in _ASKED}
    return values | {"media": [list(pair) for pair in record.shown]}


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each id.

    Args:
        tokenizer: of the model.
        ids: of a completion.

    Returns:
        As many texts, which joined are that of all ids. Where several ids make one character, the last one
        has it and the others have "".
    """

    def decode(some: list[int]) -> str:
        return tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    texts: list[str] = []
    held: list[int] = []
    for token in ids:
        held.append(token)
        text = decode(held)
        whole = not text.endswith("\ufffd")
        texts.append(text if whole else "")
        held = [] if whole else held
    if held:
        texts[-1] = decode(held)
    return texts


def transcript(tokenizer: Any, rollout: Rollout, row: int) -> dict[str, Any]:
    """The tokens of a row without its EOS.

    Args:
        tokenizer: of the model.
        rollout: as sampled.
        row: of it.

    Returns:
        tokens: `token_texts`. logprobs: of each its log-prob by the model, None where the id was forced.
    """
    end = int(rollout.lengths[row]) - (rollout.finish_reason[row] == "eos")
    chosen = rollout.policy_mask[row, :end].tolist()
    logprobs = rollout.logprobs[row, :end].tolist()
    return {
        "tokens": token_texts(tokenizer, rollout.tokens[row, :end].tolist()),
        "logprobs": [round(value, 4) if mine else None for value, mine in zip(logprobs, chosen, strict=True)],
    }


def row_blocks(
    backbone: Backbone,
    rollout: Rollout,
    row: int,
    vision: Vision | None,
    features: Tensor | None,
    targets: Tensor | None = None,
) -> list[dict[str, Any]]:
    """What the latents of each block of a row are like.

    Args:
        backbone: the model.
        rollout: as sampled.
        row: of it.
        vision: the pictures of its prompt.
        features: of these, [M, (1 + D) * H]; None: not known.
        targets: [N, H], what the overlays of the record are thought as; None: it has none.

    Returns:
        Of each block: norms, one for each latent; nearest, `nearest_regions` of them; cosines, to the
        targets. The last two are left out where they are not known.
    """
    mine = rollout.latent_rows == row
    vectors, steps = rollout.latents[mine].float(), rollout.latent_steps[mine]
    numbers = ((rollout.tokens[row] == backbone.latents.start_id).cumsum(0)[steps] - 1).tolist()
    regions = None
    if vision is not None and features is not None and len(vectors):
        regions = nearest_regions(vectors, vision, features, backbone.vision.merge_size)
    out: list[dict[str, Any]] = []
    for number in sorted(set(numbers)):
        members = [i for i, other in enumerate(numbers) if other == number]
        block: dict[str, Any] = {"norms": _rounded(vectors[members].norm(dim=-1))}
        if regions is not None:
            block["nearest"] = [regions[i] for i in members]
        first = number * backbone.latents.latent_size
        wanted = None if targets is None else targets[first : first + len(members)].to(vectors)
        if wanted is not None and len(wanted) == len(members):
            block["cosines"] = _rounded(F.cosine_similarity(vectors[members], wanted, dim=-1))
        out.append(block)
    return out


@torch.no_grad()
def nearest_regions(latents: Tensor, vision: Vision, features: Tensor, merge: int) -> list[dict[str, Any]]:
    """The part of a picture whose feature has the largest cosine with each latent.

    Args:
        latents: [N, H].
        vision: the pictures.
        features: of these, [M, (1 + D) * H]; the DeepStack levels are not compared.
        merge: side, in patches, of what is merged into one feature.

    Returns:
        Of each latent: medium, the number of the clip or picture; share, how far into the clip the middle of
        its temporal patch is, 0 to 1; seconds, the same from the first frame on, None for pictures; box,
        left, top, right and bottom in shares of the picture; cosine.
    """
    near = F.normalize(features[:, : latents.shape[1]].to(latents.device).float(), dim=-1)
    best, index = (F.normalize(latents.float(), dim=-1) @ near.T).max(-1)
    return [
        _region(vision, i, merge) | {"cosine": round(cosine, 4)}
        for i, cosine in zip(index.tolist(), best.tolist(), strict=True)
    ]


def _region(vision: Vision, index: int, merge: int) -> dict[str, Any]:
    """Where the feature of this index comes from."""
    left, clips = index, 0
    kinds = vision.kind_of_each
    for medium, (frames, high, wide) in enumerate(vision.grid_thw.tolist()):
        rows, columns = high // merge, wide // merge
        if left >= frames * rows * columns:
            left -= frames * rows * columns
            clips += kinds[medium] == "video"
            continue
        frame, cell = divmod(left, rows * columns)
        row, column = divmod(cell, columns)
        timed = kinds[medium] == "video" and vision.times is not None
        corners = column / columns, row / rows, (column + 1) / columns, (row + 1) / rows
        return {
            "medium": medium,
            "share": round((frame + 0.5) / frames, 4),
            "seconds": round(vision.times[clips][frame], 3) if timed and vision.times else None,
            "box": [round(value, 4) for value in corners],
        }
    raise ValueError(f"feature {index} is beyond the grids {vision.grid_thw.tolist()}")


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
