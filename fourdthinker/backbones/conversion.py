"""A checkpoint written in another form, and the check that it computes what it computed before."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from fourdthinker.backbones import (
    POLICY_FILE,
    Checkpoint,
    _family,
    _find,
    _load_policy,
    _located,
    _name,
    _refused,
    _without_latents,
    init_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from fourdthinker.backbones.adapted import base_state
from fourdthinker.backbones.adapters import ADAPTER_FILES, MERGE_FIRST, merge_adapter
from fourdthinker.backbones.trial import belongings, trial_outputs, worst_difference
from fourdthinker.errors import CheckpointError
from fourdthinker.prompt_style import RELEASED

_FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # in safetensors
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
        dtype: of the weights; None: what config.json says, and float32 where an adapter is merged.
    """

    source: str
    subfolder: str | None = None
    form: Literal["ours", "released"] = "ours"
    merge: bool = False
    latent_size: int | None = None
    dtype: torch.dtype | None = None

    @property
    def written_dtype(self) -> torch.dtype | None:
        """Of the weights that are written; None: as transformers loads them, by config.json."""
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
    """What a conversion does, from the configs and, of a folder, the headers of the weights.

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
    if conversion.latent_size is not None and adapter:
        raise CheckpointError(f"{name} has an adapter; before latent tokens are added, {MERGE_FIRST}")
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
    steps.append(_dtype_step(conversion, name, config))
    steps.append("loads what was written, and compares it with the source: outputs, tokenizer, settings")
    return steps


def _dtype_step(conversion: Conversion, name: str, config: Any) -> str:
    """What becomes of the dtype of the weights. Of a model of the hub the files are not known yet."""
    found = _saved_dtypes(name)
    named = getattr(config, "dtype", None)
    chosen = conversion.written_dtype or named
    written = next(iter(found), None) if chosen is None else str(chosen).removeprefix("torch.")
    if written is None or found == [written]:
        return "keeps the dtype of the weights"
    said = ", as config.json says" if conversion.written_dtype is None and named else ""
    before = f", from {' and '.join(found)}" if found else ""
    return f"writes {written} weights{before}{said}"


def _saved_dtypes(folder: str) -> list[str]:
    """The floating dtypes of the weights in a folder, that of the first one first."""
    found: dict[str, None] = {}
    for file in sorted(Path(folder).glob("model*.safetensors")):
        remedy = "fetch the checkpoint once more"
        with _refused(f"{file} cannot be read", remedy), safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118
                if name := _FLOATING.get(weights.get_slice(key).get_dtype()):
                    found[name] = None
    return list(found)


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
    checkpoint, lost = _converted(conversion)
    known = min(checkpoint.backbone.latents.ids) if added else None
    dtypes = {name: weight.dtype for name, weight in _below(checkpoint).items()}
    save_checkpoint(out, checkpoint)
    if conversion.form == "released":
        (out / POLICY_FILE).unlink()
    del checkpoint
    gc.collect()  # one model at a time
    source = load_checkpoint(conversion.source, conversion.subfolder, dtype=torch.float32, plain=added)
    old, kept = trial_outputs(source), belongings(source, added)
    expected = _expected(source, conversion, old, dtypes)
    del source
    gc.collect()
    written = load_checkpoint(out, dtype=torch.float32)
    _check_belongings(belongings(written, added), kept, conversion, out)
    new = trial_outputs(written, known)
    old, expected = (
        {name: part[:, : new[name].shape[1]] for name, part in p.items()} for p in (old, expected)
    )
    rounded = " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes.values()}))
    _check_outputs(new, expected, 0.0, f"{conversion.source} in {rounded}", out)
    return Converted(lost, worst_difference(new, old)[1])


def _converted(conversion: Conversion) -> tuple[Checkpoint, float | None]:
    """The checkpoint that is written, and what rounding takes from a merged adapter."""
    name, subfolder, dtype = conversion.source, conversion.subfolder, conversion.dtype
    if conversion.latent_size is not None:
        checkpoint = init_checkpoint(name, subfolder, dtype=dtype, latent_size=conversion.latent_size)
    else:
        # Whatever config.json says, nothing is rounded before the adapter is added.
        checkpoint = load_checkpoint(name, subfolder, dtype=torch.float32 if conversion.merge else dtype)
    if not conversion.merge:
        return checkpoint, None
    backbone, lost = merge_adapter(checkpoint.backbone, conversion.written_dtype or torch.float32)
    return Checkpoint(backbone, checkpoint.tokenizer, checkpoint.policy, checkpoint.style), lost


@torch.no_grad()
def _expected(
    source: Checkpoint, conversion: Conversion, old: dict[str, Tensor], dtypes: dict[str, torch.dtype]
) -> dict[str, Tensor]:
    """What must be computed, in float32, by the weights that are written; `source` is used up.

    Args:
        source: in float32.
        conversion: what is done with it.
        old: what it computes.
        dtypes: of the weights that are written, by name; of an adapter nothing is rounded.
    """
    if conversion.merge:
        source.backbone, _ = merge_adapter(source.backbone, torch.float32)
        merged = "the model with its adapter merged"
        _check_outputs(trial_outputs(source), old, _MERGED, conversion.source, merged)
    for name, weight in _below(source).items():
        weight.copy_(weight.to(dtypes[name]))
    return trial_outputs(source)


def _below(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of a checkpoint without those of its adapter, by name."""
    model = checkpoint.backbone.hf
    return base_state(model) or model.state_dict()


def _check_outputs(
    new: dict[str, Tensor], old: dict[str, Tensor], limit: float, source: str, what: object
) -> None:
    """CheckpointError where outputs of `what` differ from those of `source` by more than `limit`."""
    name, difference = worst_difference(new, old)
    if not difference <= limit or not all(part.isfinite().all() for part in new.values()):
        raise CheckpointError(
            f"{what}: its {name} differ from those of {source} by {difference:.2g} of the largest, where "
            f"{limit:.2g} is explained; do not use it, and report this"
        )


def _check_belongings(new: dict[str, Any], old: dict[str, Any], conversion: Conversion, out: Path) -> None:
    """CheckpointError for the first thing beside the weights that was not kept."""
    for name, value in old.items():
        if new[name] != value:
            raise CheckpointError(
                f"{out}: its {name} is not that of {conversion.source}; do not use it, and report this"
            )
