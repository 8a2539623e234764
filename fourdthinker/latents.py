"""The three latent tokens, the config keys that describe them, and the growth of a vocabulary by them.

A *block* in the text is ``START, K x PAD, END``. At the K pad positions the model reads no embedding but a
*latent*: during training the pooled vision features of the imagery, in generation its own hidden state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fourdthinker.errors import CheckpointError

LATENT_PAD = "<|latent_pad|>"
LATENT_START = "<|latent_start|>"
LATENT_END = "<|latent_end|>"
# In the order they are added; after Qwen2.5-VL's own tokens they get the ids 151665, 151666 and 151667.
LATENT_TOKENS = (LATENT_PAD, LATENT_START, LATENT_END)
IMAGERY = "<output_image>"  # stands for one block in the text of a record

DEFAULT_LATENT_SIZE = 4
COMPRESS_STRATEGIES = ("average", "grid")
REMEDY = (
    "call fourdthinker.latents.grow_vocabulary(model, tokenizer) and save the checkpoint, "
    "or run `fourdthinker init SOURCE TARGET`"
)
_MEAN_CHUNK = 8192


@dataclass(frozen=True)
class LatentSpec:
    """What a checkpoint's config says about latents.

    Attributes:
        latent_size: K, the number of latents in a block.
        pad_id, start_id, end_id: the three tokens in the checkpoint's own tokenizer.
        compress_strategy: how the merged features of an image become K latents: "average", the means of K
            contiguous runs; "grid", those of the cells of `cell_grid`.
        ce_loss_weight, sim_loss_weight: weights of the DIFT objective.
        latent_norm: the norm that a hidden state is given before it is fed back; None: its own.
        absent: whether the model has no latent tokens: the ids are then those of rows that no token has, no
            block can be sampled, and nothing is written to a config.
    """

    latent_size: int
    pad_id: int
    start_id: int
    end_id: int
    compress_strategy: str = "average"
    ce_loss_weight: float = 0.1
    sim_loss_weight: float = 1.0
    latent_norm: float | None = None
    absent: bool = False

    def __post_init__(self) -> None:
        if self.latent_size < 1:
            raise CheckpointError(f"latent_size is {self.latent_size}, it must be at least 1")
        ids = (self.pad_id, self.start_id, self.end_id)
        if min(ids) < 0 or len(set(ids)) != 3:
            raise CheckpointError(
                f"latent token ids (pad, start, end) are {ids}; three different ids >= 0 are needed"
            )
        if self.compress_strategy not in COMPRESS_STRATEGIES:
            raise CheckpointError(
                f"compress_strategy is {self.compress_strategy!r}; known: {', '.join(COMPRESS_STRATEGIES)}"
            )
        if self.latent_norm is not None and not 0 < self.latent_norm < math.inf:
            raise CheckpointError(
                f"latent_norm is {self.latent_norm}; it must be a finite number above 0, or left out"
            )

    @classmethod
    def none(cls, rows: int, tokens: int) -> LatentSpec:
        """Of a model without latent tokens, whose loss is the cross-entropy alone.

        Args:
            rows: of its embedding matrix.
            tokens: ids of its tokenizer, from 0 on.

        Returns:
            A spec of the last three rows.

        Raises:
            CheckpointError: fewer than three rows are spare.
        """
        if rows < tokens + 3:
            raise CheckpointError(
                f"the embedding matrix has {rows} rows for {tokens} tokens; a model without latent tokens "
                f"needs three spare ones. Remedy: {REMEDY}"
            )
        return cls(1, rows - 3, rows - 2, rows - 1, ce_loss_weight=1.0, absent=True)

    @property
    def ids(self) -> tuple[int, int, int]:
        """Pad, start and end id."""
        return self.pad_id, self.start_id, self.end_id

    @classmethod
    def from_config(cls, config: Any, where: str = "the model's config") -> LatentSpec:
        """Read the spec from a model config (the keys of the released 4DThinker checkpoints).

        Args:
            config: of transformers.
            where: what messages call it.

        Returns:
            The spec; what the config may leave out has its default.

        Raises:
            CheckpointError: keys are missing, or hold values of the wrong kind.
        """
        names = {"latent_size": "latent_size", "latent_token_id": "pad_id"}
        names |= {"latent_start_id": "start_id", "latent_end_id": "end_id"}
        missing = [key for key in names if getattr(config, key, None) is None]
        if missing:
            raise CheckpointError(
                f"{where} has no {', '.join(missing)}: it knows no latent tokens. Remedy: {REMEDY}"
            )
        optional = {"compress_strategy": str, "ce_loss_weight": float, "sim_loss_weight": float}
        optional |= {"latent_norm": float}
        try:
            required = {field: int(getattr(config, key)) for key, field in names.items()}
            given = {
                k: kind(getattr(config, k))
                for k, kind in optional.items()
                if getattr(config, k, None) is not None
            }
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{where}: one of {', '.join([*names, *optional])} has a value of the wrong kind ({error})"
            ) from error
        return cls(**required, **given)  # type: ignore[arg-type]

    def write_to(self, config: Any) -> None:
        """Set the keys of the released checkpoints on a model config."""
        if self.absent:
            return
        config.latent_size = self.latent_size
        config.latent_token_id = self.pad_id
        config.latent_start_id = self.start_id
        config.latent_end_id = self.end_id
        config.compress_strategy = self.compress_strategy
        config.ce_loss_weight = self.ce_loss_weight
        config.sim_loss_weight = self.sim_loss_weight
        if self.latent_norm is not None:  # not in the released format
            config.latent_norm = self.latent_norm


def cell_grid(height: int, width: int, size: int) -> tuple[int, int] | None:
    """How a picture is cut into cells, as square as they can be.

    Args:
        height: rows of features.
        width: columns of features.
        size: K, the number of cells.

    Returns:
        Cells one above the other and cells side by side, whose product is K; None where no such grid has
        features in each of its cells.
    """
    ways = [(down, size // down) for down in range(1, min(size, height) + 1) if size % down == 0]
    ways = [(down, across) for down, across in ways if across <= width]

    def longer(way: tuple[int, int]) -> float:
        sides = height * way[1], width * way[0]  # of a cell, times K
        return max(sides) / min(sides)

    return min(ways, key=longer, default=None)


def rescaled(hidden: Tensor, norm: float | None) -> Tensor:
    """Hidden states as they are fed back.

    Args:
        hidden: [..., H].
        norm: of every row of the result; None: as they are.

    Returns:
        [..., H] in the dtype of `hidden`; a row of zeros stays one.
    """
    if norm is None:
        return hidden
    wide = hidden.float()
    tiny = torch.finfo(torch.float32).tiny
    return (wide * (norm / wide.norm(dim=-1, keepdim=True).clamp_min(tiny))).to(hidden.dtype)


def token_ids(tokenizer: Any) -> tuple[int, int, int] | None:
    """Find the latent tokens in a tokenizer.

    Args:
        tokenizer: of transformers.

    Returns:
        The ids of pad, START and END, or None unless it has all three.
    """
    vocabulary = tokenizer.get_vocab()
    ids = tuple(vocabulary.get(token) for token in LATENT_TOKENS)
    return None if None in ids else ids  # type: ignore[return-value]


def grow_vocabulary(model: Any, tokenizer: Any, *, latent_size: int | None = None) -> LatentSpec:
    """Give a model and its tokenizer the three latent tokens; both are changed in place.

    Matrices only ever grow: Qwen's have more rows than the tokenizer has ids, and those are used and kept.
    The three rows (input, and output when untied) become the mean of the rows that belonged to the tokenizer
    before, computed in float64. A second call changes nothing, except a `latent_size` that is given.

    Args:
        model: any transformers vision-language model with one text vocabulary (Qwen2.5-VL, Qwen3-VL), tied
            or untied.
        tokenizer: its tokenizer.
        latent_size: K; None: the config's, else 4.

    Returns:
        What the model's config now says about latents.

    Raises:
        CheckpointError: config and tokenizer disagree about the ids.
    """
    config = model.config
    known = sorted(i for token, i in tokenizer.get_vocab().items() if token not in LATENT_TOKENS)
    tokenizer.add_tokens(list(LATENT_TOKENS), special_tokens=True)  # those already there stay where they are
    ids = token_ids(tokenizer)
    if ids is None:
        raise CheckpointError(f"the tokenizer did not accept the tokens {', '.join(LATENT_TOKENS)}")
    before = LatentSpec.from_config(config) if getattr(config, "latent_token_id", None) is not None else None
    if before is not None and before.ids != ids:
        raise CheckpointError(
            f"the config's latent ids (pad, start, end) {before.ids} are not the tokenizer's {ids}: "
            "this tokenizer belongs to another checkpoint"
        )

    rows = model.get_input_embeddings().weight.shape[0]
    needed = max(max(ids), known[-1] if known else 0) + 1
    if needed > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
    if before is None:
        for module in _vocabulary_modules(model):
            fresh = sorted({*ids, *range(rows, needed)})
            _set_to_mean(cast(Tensor, module.weight), fresh, [i for i in known if i < rows])

    size = latent_size if latent_size is not None else (before.latent_size if before else DEFAULT_LATENT_SIZE)
    if before is not None:
        spec = replace(before, latent_size=size)
    else:
        spec = LatentSpec(size, *ids)
    spec.write_to(config)
    return spec


def _vocabulary_modules(model: Any) -> list[nn.Module]:
    """The input embedding and, when it has a matrix of its own, the output head."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is None or outputs.weight is inputs.weight:
        return [inputs]
    return [inputs, outputs]


@torch.no_grad()
def _set_to_mean(weight: Tensor, rows: list[int], known: list[int]) -> None:
    """Set ``rows`` of a matrix to the mean of its rows ``known``; in chunks, to bound the memory."""
    if not known:
        raise CheckpointError("the tokenizer has no tokens whose rows could be averaged: is it empty?")
    total = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    index = torch.tensor(known, device=weight.device)
    for chunk in index.split(_MEAN_CHUNK):
        total += weight[chunk].sum(0, dtype=torch.float64)
    weight[rows] = (total / len(known)).to(weight.dtype)
