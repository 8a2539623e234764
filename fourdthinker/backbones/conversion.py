"""A checkpoint written in another form, and the check that it computes what it computed before."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

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
from fourdthinker.backbones.adapted import base_state
from fourdthinker.backbones.adapters import ADAPTER_FILES, merge_adapter
from fourdthinker.backbones.trial import belongings, trial_outputs, worst_difference
from fourdthinker.errors import CheckpointError
from fourdthinker.prompt_style import RELEASED

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
            over the largest one; 0: all are equal. What was written computes exactly what the source does
            whose weights are rounded to its dtype.
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
    steps.append("loads what was written, and compares it with the source: outputs, tokenizer, settings")
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
            the conversion can explain, or tokenizer, chat template, generation config, latent keys, frame
            policy or prompt style are not the source's; `out` stays to be looked at.
        OutputError: `out` cannot be written.
    """
    plan_conversion(conversion)
    added = conversion.latent_size is not None
    source = load_checkpoint(conversion.source, conversion.subfolder, dtype=torch.float32, plain=added)
    old, kept = trial_outputs(source), belongings(source, added)
    expected = _expected(source, conversion, old)
    del source
    gc.collect()  # one model at a time
    checkpoint, lost = _converted(conversion)
    known = min(checkpoint.backbone.latents.ids) if added else None
    save_checkpoint(out, checkpoint)
    if conversion.form == "released":
        (out / POLICY_FILE).unlink()
    del checkpoint
    gc.collect()
    written = load_checkpoint(out, dtype=torch.float32)
    _check_belongings(belongings(written, added), kept, conversion, out)
    new = trial_outputs(written, known)
    old, expected = (
        {name: part[:, : new[name].shape[1]] for name, part in p.items()} for p in (old, expected)
    )
    _check_outputs(new, expected, 0.0, conversion, out)
    return Converted(lost, worst_difference(new, old)[1])


def _converted(conversion: Conversion) -> tuple[Checkpoint, float | None]:
    """The checkpoint that is written, and what rounding takes from a merged adapter."""
    name, subfolder, dtype = conversion.source, conversion.subfolder, conversion.dtype
    if conversion.latent_size is not None:
        checkpoint = init_checkpoint(name, subfolder, dtype=dtype, latent_size=conversion.latent_size)
    else:
        checkpoint = load_checkpoint(name, subfolder, dtype=None if conversion.merge else dtype)
    if not conversion.merge:
        return checkpoint, None
    backbone, lost = merge_adapter(checkpoint.backbone, conversion.written_dtype or torch.float32)
    return Checkpoint(backbone, checkpoint.tokenizer, checkpoint.policy, checkpoint.style), lost


@torch.no_grad()
def _expected(source: Checkpoint, conversion: Conversion, old: dict[str, Tensor]) -> dict[str, Tensor]:
    """What must be computed, in float32, by the weights that are written; `source` is used up."""
    if conversion.merge:
        source.backbone, _ = merge_adapter(source.backbone, torch.float32)
        _check_outputs(trial_outputs(source), old, _MERGED, conversion, "the model with its adapter merged")
    if (dtype := conversion.written_dtype) is not None:
        model = source.backbone.hf
        for weight in (base_state(model) or model.state_dict()).values():  # of an adapter nothing is rounded
            weight.copy_(weight.to(dtype))
    return trial_outputs(source)


def _check_outputs(
    new: dict[str, Tensor], old: dict[str, Tensor], limit: float, conversion: Conversion, what: object
) -> None:
    """CheckpointError where outputs of `what` differ by more than `limit` of the largest."""
    name, difference = worst_difference(new, old)
    if not difference <= limit or not all(part.isfinite().all() for part in new.values()):
        rounded = "" if conversion.written_dtype is None else f" in {str(conversion.written_dtype)[6:]}"
        raise CheckpointError(
            f"{what}: its {name} differ from those of {conversion.source}{rounded} by {difference:.2g} of "
            f"the largest, where {limit:.2g} is explained; do not use it, and report this"
        )


def _check_belongings(new: dict[str, Any], old: dict[str, Any], conversion: Conversion, out: Path) -> None:
    """CheckpointError for the first thing beside the weights that was not kept."""
    for name, value in old.items():
        if new[name] != value:
            raise CheckpointError(
                f"{out}: its {name} is not that of {conversion.source}; do not use it, and report this"
            )
