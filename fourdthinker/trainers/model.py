"""The model of a run: the checkpoint that is trained, its adapter, and the reference model."""

from __future__ import annotations

import copy
import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from fourdthinker.backbones import Checkpoint, init_checkpoint, load_checkpoint
from fourdthinker.backbones.adapters import MERGE_FIRST, add_lora
from fourdthinker.backbones.gathering import gathered
from fourdthinker.errors import ConfigError
from fourdthinker.evaluate.weights import weights_digest
from fourdthinker.trainers.run_state import RunState
from fourdthinker.trainers.settings import DiftConfig, TrainConfig

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone

logger = logging.getLogger(__name__)


def load_model(
    config: TrainConfig, args: TrainingArguments, resume: str | None, checkpoint: Checkpoint | None
) -> Checkpoint:
    """The checkpoint to train, on the device of this rank.

    A given one is used as it is; otherwise that of `config.model`, or when resuming the one that training
    stopped at, without its adapter, which is loaded later. With DIFT's `latent_size` a base model without
    latent tokens gets them; its `latent_pooling` replaces the checkpoint's.

    Args:
        config: the settings.
        args: of Trainer, for the device.
        resume: the checkpoint folder that a run goes on from, or None.
        checkpoint: a loaded one, or None.

    Raises:
        CheckpointError: as `load_checkpoint`.
        ConfigError: no model is named, or the given one has another frame policy than `config.frames`, or
            another K than `config.latent_size`.
    """
    if checkpoint is None:
        checkpoint = _load(config, resume)
    elif config.frames is not None and config.frames != checkpoint.policy:
        raise ConfigError("frames differs from the policy of the checkpoint that was passed; change it there")
    if isinstance(config, DiftConfig):
        _set_targets(config, checkpoint.backbone)
    if config.instruction is not None:
        checkpoint.style = replace(checkpoint.style, instruction=config.instruction)
    checkpoint.backbone.to(args.device)
    return checkpoint


def _set_targets(config: DiftConfig, backbone: Backbone) -> None:
    """Of a model that was loaded by its name K is as the settings say; another one is not changed by them."""
    latents = backbone.latents
    if config.latent_size not in (None, latents.latent_size):
        raise ConfigError(
            f"latent_size is {config.latent_size}, and the checkpoint that was passed or is gone on from has "
            f"{latents.latent_size}; leave it out, or change it there with "
            "fourdthinker.latents.grow_vocabulary"
        )
    if config.latent_pooling is not None:
        backbone.latents = replace(latents, compress_strategy=config.latent_pooling)


def _load(config: TrainConfig, resume: str | None) -> Checkpoint:
    source = resume or config.model
    if not source:
        raise ConfigError("model is empty; give the folder of a checkpoint, or pass a loaded one")
    where: dict[str, Any] = {
        "subfolder": None if resume else config.subfolder,
        "dtype": None if config.dtype == "auto" else getattr(torch, config.dtype),
        "policy": config.frames,
        "override_policy": config.override_policy,
    }
    grown = config.latent_size if isinstance(config, DiftConfig) else None
    if grown is not None and not resume:
        return init_checkpoint(source, latent_size=grown, **where)
    checkpoint = load_checkpoint(source, plain=not config.latents, adapter=not resume, **where)
    if checkpoint.backbone.model is not checkpoint.backbone.hf:
        raise ConfigError(f"model {source} has an adapter; {MERGE_FIRST}")
    return checkpoint


def add_adapter(config: TrainConfig, backbone: Backbone) -> None:
    """Put the adapter of `config.lora` on the model, if the settings ask for one.

    Raises:
        ConfigError: latent tokens that were never trained and would not be now. All three rows of the output
            matrix are the mean of the others then, so that START can never be the likeliest token.
    """
    settings = config.lora
    if settings is None:
        return
    latents = backbone.latents
    with gathered(backbone.hf.get_output_embeddings()):
        start, end = (backbone.head_weight[i] for i in (latents.start_id, latents.end_id))
        untrained = torch.equal(start, end) and not latents.absent
    if not settings.train_embeddings and untrained:
        raise ConfigError(
            "the latent tokens of this model are new (all have the same weights), and an adapter leaves them "
            "as they are, so that no block would ever begin; set lora.train_embeddings=true"
        )
    torch.manual_seed(config.seed)  # Trainer does so later, and the adapter begins at random
    add_lora(backbone, **settings.model_dump(exclude={"train_embeddings"}))
    if settings.train_embeddings:
        backbone.embedding_weight.requires_grad_(True)
        backbone.head_weight.requires_grad_(True)


def copies_reference(config: TrainConfig) -> bool:
    """Whether a reference model is a copy: not where the model without its adapter is what it began as."""
    lora = config.lora
    return lora is None or lora.train_embeddings or not config.freeze_vision


def reference_model(
    config: TrainConfig,
    args: TrainingArguments,
    resume: str | None,
    given: Checkpoint | None,
    loaded: Checkpoint,
) -> Backbone:
    """The model that the run started from, frozen; to be made before the adapter is added.

    A resumed run has trained weights in `loaded`, so that the first ones are loaded again. Otherwise it is a
    copy. A frozen tower is there once in memory, with both models.

    Args:
        config: the settings.
        args: of Trainer, for the device.
        resume: the checkpoint folder that a run goes on from, or None.
        given: the checkpoint that the caller passed, or None.
        loaded: the checkpoint that is trained.

    Returns:
        A backbone in eval mode, without gradients.
    """
    if given is None and resume is not None:
        backbone = _load(config, None).backbone
        if config.freeze_vision:
            _share_tower(backbone, loaded.backbone)
        backbone.to(args.device)
    else:
        tower = loaded.backbone.visual
        memo: dict[int, Any] = {id(tower): tower} if config.freeze_vision else {}
        with gathered(loaded.backbone):  # what ZeRO-3 has sliced would be copied without its values
            backbone = copy.deepcopy(loaded.backbone, memo)
    return backbone.eval().requires_grad_(False)


def _share_tower(backbone: Backbone, other: Backbone) -> None:
    """Give a model the tower of another one instead of its own, where their weights are equal. Collective."""
    mine, theirs = backbone.visual, other.visual
    with gathered(mine), gathered(theirs):
        own, others = mine.state_dict(), theirs.state_dict()
        same = own.keys() == others.keys() and all(map(_same, own.values(), others.values()))
    if same:
        backbone.hf.model.visual = theirs


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors, on any devices, have the same type and values."""
    return one.dtype == other.dtype and torch.equal(one.to(other.device), other)


def start_of_run(
    config: TrainConfig, resume: Path | None, loaded: Backbone, reference: Backbone | None
) -> str | None:
    """A digest of the weights that a run began from; a reference with other ones is refused. Collective.

    Args:
        config: the settings.
        resume: the checkpoint folder that a run goes on from, or None.
        loaded: the model that is trained, before its adapter is added.
        reference: the model that the run began from; None: none is needed, or it is `loaded` without adapter.

    Returns:
        The digest; None where a checkpoint of an older version does not say.

    Raises:
        ConfigError: the weights in `config.model`, or those that were passed, are not those of then.
    """
    if resume is None:
        return _digest(loaded)
    start = RunState.read(resume).start
    if reference is None:
        return start
    if start is None:
        logger.warning("%s does not say which weights its run began from: model is taken for them", resume)
    elif start != _digest(reference):
        raise ConfigError(
            f"model {config.model or 'that was passed'} does not hold the weights that the run of {resume} "
            "began from, and its reference is made of those; put them back, or begin a run of its own with "
            f"model={resume}"
        )
    return start


def _digest(backbone: Backbone) -> str:
    """`weights_digest`, module by module: what ZeRO-3 has sliced need not be whole at once."""
    digest = hashlib.blake2b(digest_size=8)
    for name, module in backbone.hf.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            with gathered(module):
                digest.update(f"{name} {weights_digest(module)};".encode())
    return digest.hexdigest()
