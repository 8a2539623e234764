"""A checkpoint written in another form, and the check that it computes what it computed before."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fourdthinker.backbones import (
    POLICY_FILE,
    Checkpoint,
    _family,
    _find,
    _load_policy,
    _located,
    _name,
    _without_latents,
    init_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from fourdthinker.backbones.adapters import ADAPTER_FILES, merge_adapter
from fourdthinker.errors import CheckpointError
from fourdthinker.prompt_style import RELEASED

_TEXT = "Which way does the camera move? A. left B. right"
_MERGED = 1e-3  # what the order of additions may change of a logit, relative to the largest


@dataclass(frozen=True)
class Conversion:
    """What is to be done with a checkpoint.

    Attributes:
        source: folder, or a model id of the hub.
        subfolder: folder within it.
        form: "ours" (frame policy and prompt style in a file) or "released" (as the 4DThinker checkpoints,
            which have no such file).
        merge: whether its adapter is added to the weights.
        latent_size: K of latent tokens that are added to a base model; None: none are added.
        dtype: of the weights; None: as they are, and float32 where an adapter is merged.
    """

    source: str
    subfolder: str | None = None
    form: Literal["ours", "released"] = "ours"
    merge: bool = False
    latent_size: int | None = None
    dtype: torch.dtype | None = None

    @property
    def written_dtype(self) -> torch.dtype | None:
        """Of the weights that are written; None: as they are."""
        return torch.float32 if self.merge and self.dtype is None else self.dtype


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        lost: the part of an adapter that rounding took away; None: none was merged.
        difference: the largest difference of a logit or vision feature to those of the source, in float32,
            over the largest one; 0: all are equal.
    """

    lost: float | None
    difference: float


def plan_conversion(conversion: Conversion) -> list[str]:
    """What a conversion does, from the configs alone.

    Args:
        conversion: what is wanted.

    Returns:
        A sentence for each thing that is done.

    Raises:
        CheckpointError: it cannot be done; says why.
    """
    path, where = _located(conversion.source, conversion.subfolder)
    name = _name(path, conversion.subfolder)
    config, family = _family(path, conversion.subfolder, where)
    latents = getattr(config, "latent_token_id", None) is not None
    adapter = _find(path, ADAPTER_FILES[0], where) is not None
    ours = _find(path, POLICY_FILE, where) is not None
    steps = [f"reads {name}, a {family.family} in {'our' if ours else 'the released or base'} form"]
    if conversion.latent_size is not None and not latents:
        steps.append(f"adds three latent tokens, K = {conversion.latent_size}")
    elif conversion.latent_size is not None:
        raise CheckpointError(f"{name} has latent tokens already; leave out --latent-size")
    elif not latents and _without_latents(path, conversion.subfolder, where, plain=False) is None:
        raise CheckpointError(f"{name} has no latent tokens; add them with --latent-size 4")
    if conversion.merge and not adapter:
        raise CheckpointError(f"{name} has no adapter; there is nothing to merge, so leave out --merge")
    if conversion.merge:
        steps.append("adds the adapter to the weights, in float32")
    elif adapter:
        steps.append("keeps the adapter beside the weights")
    if conversion.form == "released":
        _check_released(conversion, name, adapter, where, path)
        steps.append(f"leaves out {POLICY_FILE}")
    else:
        steps.append(f"writes {POLICY_FILE}")
    dtype = conversion.written_dtype
    steps.append("keeps the dtype of the weights" if dtype is None else f"writes {str(dtype)[6:]} weights")
    steps.append("loads what was written, and compares logits and vision features with those of the source")
    return steps


def _check_released(
    conversion: Conversion, name: str, adapter: bool, where: dict[str, str], path: str
) -> None:
    """CheckpointError for what the released form cannot say."""
    _, family = _family(path, conversion.subfolder, where)
    policy, style = _load_policy(path, where, family)
    if family.family != "qwen2_5_vl" or conversion.latent_size is not None:
        raise CheckpointError(
            f"{name}: the released form is that of Qwen2.5-VL checkpoints which were trained as the released "
            "ones; leave out --to released"
        )
    if adapter and not conversion.merge:
        raise CheckpointError(f"{name}: the released form has no adapter; add --merge")
    if (policy, style) != (family.default_policy(), RELEASED):
        raise CheckpointError(
            f"{name} was trained with another frame policy or prompt style than the released checkpoints, "
            "and their form does not say which; leave out --to released"
        )


def convert_checkpoint(conversion: Conversion, out: Path) -> Converted:
    """Write a checkpoint in another form, load it, and compare what it computes.

    Args:
        conversion: what is to be done.
        out: folder to write.

    Returns:
        What was lost, and how far the outputs differ.

    Raises:
        CheckpointError: as for `plan_conversion` and `load_checkpoint`, or the outputs differ by more than
            the conversion can explain; `out` stays to be looked at.
        OutputError: `out` cannot be written.
    """
    plan_conversion(conversion)
    added = conversion.latent_size is not None
    source = load_checkpoint(conversion.source, conversion.subfolder, dtype=torch.float32, plain=added)
    expected = _outputs(source)
    del source
    gc.collect()  # one model at a time
    lost = None
    if added:
        checkpoint = init_checkpoint(
            conversion.source,
            conversion.subfolder,
            dtype=conversion.dtype,
            latent_size=conversion.latent_size,
        )
    else:
        dtype = None if conversion.merge else conversion.dtype
        checkpoint = load_checkpoint(conversion.source, conversion.subfolder, dtype=dtype)
    if conversion.merge:
        wanted = conversion.written_dtype or torch.float32
        backbone, lost = merge_adapter(checkpoint.backbone, wanted)
        checkpoint = Checkpoint(backbone, checkpoint.tokenizer, checkpoint.policy, checkpoint.style)
    known = min(checkpoint.backbone.latents.ids) if added else None
    save_checkpoint(out, checkpoint)
    if conversion.form == "released":
        (out / POLICY_FILE).unlink()
    del checkpoint
    gc.collect()
    differences = [
        (new - old).abs().max() / old.abs().max()
        for new, old in zip(
            _outputs(load_checkpoint(out, dtype=torch.float32), known),
            (expected[0][:, :known], expected[1]),
            strict=True,
        )
    ]
    difference = float(torch.stack(differences).max())  # Python's max would lose a NaN
    limit = {None: 0.0, torch.float32: 0.0}.get(conversion.written_dtype, float("inf"))
    limit = max(limit, _MERGED) if conversion.merge else limit
    if not difference <= limit or not math.isfinite(difference):
        raise CheckpointError(
            f"{out}: its logits or vision features differ from those of {conversion.source} by "
            f"{difference:.2g} of the largest, where {limit:.2g} is explained; do not use it, and report this"
        )
    return Converted(lost, difference)


@torch.no_grad()
def _outputs(checkpoint: Checkpoint, columns: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits [T, columns] of a short text, and the features of a made-up picture."""
    backbone = checkpoint.backbone
    ids = torch.tensor(checkpoint.tokenizer(_TEXT, add_special_tokens=False)["input_ids"])
    positions = torch.arange(len(ids)).expand(3, 1, -1)
    hidden = backbone.decode(backbone.embed_tokens(ids)[None], positions)[0]
    logits = F.linear(hidden, backbone.head_weight)
    side, wide = 2 * backbone.vision.merge_size, backbone.vision.patch_dim
    patches = torch.sin(torch.arange(side * side * wide, dtype=torch.float32)).view(side * side, wide)
    features = backbone.encode_vision(patches, torch.tensor([[1, side, side]]))
    return logits[:, :columns], features
