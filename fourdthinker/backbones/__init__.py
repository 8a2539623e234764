"""Model families, and checkpoints that are complete: what they were trained on travels with the weights."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourdthinker.backbones.adapters import (
    ADAPTER,
    ADAPTER_FILES,
    MERGE_FIRST,
    load_adapter,
    save_adapter,
)
from fourdthinker.backbones.released_format import write_released_format
from fourdthinker.errors import CheckpointError, ConfigError, FourdError
from fourdthinker.files import PathLike, make_folder, read_json_object, sync_folder, sync_tree, writing
from fourdthinker.frames import FramePolicy
from fourdthinker.latents import LatentSpec, grow_vocabulary, token_ids
from fourdthinker.prompt_style import CHAT_TEMPLATE, RELEASED, PromptStyle
from fourdthinker.prompts import Encoder

if TYPE_CHECKING:
    import torch

    from fourdthinker.backbones.common import Backbone

log = logging.getLogger(__name__)

POLICY_FILE = "frame_policy.json"
_COMPARE = "Compare config.json and generation_config.json with those of the model it was made from"
_MOST_LAYERS = 1000
# model_type of config.json -> module and class; imported when a checkpoint of the family is loaded
FAMILIES = {
    "qwen2_5_vl": ("fourdthinker.backbones.qwen2_5_vl", "Qwen2_5_VL"),
    "qwen3_vl": ("fourdthinker.backbones.qwen3_vl", "Qwen3_VL"),
}


@dataclass
class Checkpoint:
    """A model and everything needed to use it as it was trained."""

    backbone: Backbone
    tokenizer: Any
    policy: FramePolicy
    style: PromptStyle

    def encoder(self) -> Encoder:
        """Makes prompts and training samples for this model."""
        backbone = self.backbone
        return Encoder(self.tokenizer, backbone.vision, backbone.latents, self.policy, self.style)


def load_checkpoint(
    path: PathLike,
    subfolder: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    policy: FramePolicy | None = None,
    override_policy: bool = False,
    plain: bool = False,
    adapter: bool = True,
) -> Checkpoint:
    """Load a checkpoint from a folder (or a model id of the Hugging Face hub).

    A checkpoint of this package brings its frame policy and prompt style in `frame_policy.json`. One without
    that file gets the family's default policy (1 frame a second) and, if it is a Qwen2.5-VL, as the released
    4DThinker checkpoints are, the style `RELEASED`. An adapter beside the weights (`adapter`) is put on them.

    A model without latent tokens is refused, unless it is one that was trained as such here (which
    `frame_policy.json` says) or `plain` asks for it; without that file it gets a style without instruction.

    Args:
        path: a folder, or a model id `owner/name`.
        subfolder: folder of the checkpoint within `path`.
        dtype: of the weights; None: the dtype that they were saved in.
        policy: the frame policy that the caller means to use; None: the checkpoint's.
        override_policy: use `policy` even where the checkpoint's is another one.
        plain: take a model without latent tokens as it is; with them, it is loaded as always.
        adapter: put the adapter beside the weights on them; False: the weights below it alone.

    Returns:
        Model, tokenizer, frame policy and prompt style; the model is on the CPU and in eval mode.

    Raises:
        CheckpointError: missing files or weights, no latent tokens, an unknown family, pickled weights, or a
            `policy` that differs from the checkpoint's; names the fields that differ.
    """
    path, where = _located(path, subfolder)
    absent = _without_latents(path, subfolder, where, plain=plain)
    backbone = load_backbone(path, subfolder, dtype=dtype, latents=absent, adapter=adapter)
    tokenizer = _load_tokenizer(path, where)
    ids = token_ids(tokenizer)
    if absent is None and ids != backbone.latents.ids:
        raise CheckpointError(
            f"{_name(path, subfolder)}: the latent ids (pad, start, end) are {backbone.latents.ids} in "
            f"config.json and {ids} in the tokenizer; config and tokenizer are of different checkpoints"
        )
    saved, style = _load_policy(path, where, type(backbone))
    if absent is not None and _find(path, POLICY_FILE, where) is None:
        saved, style = policy or saved, PromptStyle(instruction="")
    if policy is not None and policy != saved:
        if not override_policy:
            raise CheckpointError(_policy_difference(_name(path, subfolder), saved, policy))
        saved = policy
    return Checkpoint(backbone, tokenizer, saved, style)


def load_backbone(
    path: PathLike,
    subfolder: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    latents: LatentSpec | None = None,
    adapter: bool = True,
) -> Backbone:
    """The model of a checkpoint alone, without tokenizer and frame policy.

    Args:
        path: as for `load_checkpoint`.
        subfolder: as for `load_checkpoint`.
        dtype: as for `load_checkpoint`.
        latents: of a model whose config names no latent tokens; None: as the config says.
        adapter: as for `load_checkpoint`.

    Returns:
        The model, on the CPU and in eval mode.

    Raises:
        CheckpointError: as for `load_checkpoint`.
    """
    path, where = _located(path, subfolder)
    config, family = _family(path, subfolder, where)
    if latents is None:
        latents = LatentSpec.from_config(config, f"{_name(path, subfolder)}/config.json")

    def load(name: str, **options: Any) -> Backbone:
        return family(family.load_model(name, **options), latents)

    backbone: Backbone = _load_weights(load, path, where, dtype=dtype)
    if not adapter:
        return backbone
    config_file, weights = (_find(path, name, where) for name in ADAPTER_FILES)
    if config_file is not None:
        if weights is None:
            raise CheckpointError(
                f"{_name(path, subfolder)} has {ADAPTER_FILES[0]} and no {ADAPTER_FILES[1]}; copy it from "
                "the run that wrote it, or remove the folder to use the model without its adapter"
            )
        load_adapter(backbone, Path(config_file).parent)
    return backbone


def init_checkpoint(
    path: PathLike,
    subfolder: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    policy: FramePolicy | None = None,
    style: PromptStyle | None = None,
    latent_size: int | None = None,
    override_policy: bool = False,
) -> Checkpoint:
    """Make a checkpoint with latent tokens from a base model of a known family (as its makers publish it).

    The vocabulary grows by the latent tokens. Save the result with `save_checkpoint`.

    Args:
        path: as for `load_checkpoint`.
        subfolder: as for `load_checkpoint`.
        dtype: as for `load_checkpoint`.
        policy: the frame policy; None: that of a checkpoint of this package, with latent tokens or without,
            else the family's default.
        style: the prompt style; None: as `policy`, else ours.
        latent_size: K; None: 4, or that of a checkpoint that has latent tokens already.
        override_policy: as for `load_checkpoint`.

    Returns:
        The checkpoint, in memory.

    Raises:
        CheckpointError: as for `load_checkpoint`, but for the lack of latent tokens; or it has an adapter,
            which was trained without the new tokens.
    """
    path, where = _located(path, subfolder)
    if _find(path, ADAPTER_FILES[0], where) is not None:
        raise CheckpointError(f"{_name(path, subfolder)} has an adapter; {MERGE_FIRST}")
    config, family = _family(path, subfolder, where)
    own = (family.default_policy(), PromptStyle())
    latents = getattr(config, "latent_token_id", None) is not None
    if latents or _find(path, POLICY_FILE, where) is not None:
        own = _load_policy(path, where, family)
        if policy not in (None, own[0]) and not override_policy:
            raise CheckpointError(_policy_difference(_name(path, subfolder), own[0], policy))
    model = _load_weights(family.load_model, path, where, dtype=dtype)
    tokenizer = _load_tokenizer(path, where)
    grow_vocabulary(model, tokenizer, latent_size=latent_size)
    return Checkpoint(family(model), tokenizer, policy or own[0], style or own[1])


def save_checkpoint(path: PathLike, checkpoint: Checkpoint, *, sync: bool = True) -> None:
    """Write a complete checkpoint: weights, configs, tokenizer, chat template, frame policy and prompt style.

    The files are written beside the folder first and then moved in, config last, so that an
    interrupted save leaves no mixture that loads. Weights are safetensors. Of a model with a peft adapter
    they are those below it, and the adapter is kept in ``adapter`` in peft's own format; nothing is merged.

    Args:
        path: the folder, made where there is none. Other files in it are left alone.
        checkpoint: what to write.
        sync: whether all is on the disk at the end. False where the caller sees to it.

    Raises:
        OutputError: there is no such folder and none can be made, or the disk is full.
    """
    target = Path(os.path.realpath(make_folder(path)))  # a link may lead to another disk
    backbone, policy = checkpoint.backbone, checkpoint.policy
    with (
        writing(target),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary,
    ):
        backbone.latents.write_to(backbone.config)
        backbone.save(temporary)
        save_adapter(backbone, Path(temporary))
        checkpoint.tokenizer.save_pretrained(temporary)
        write_released_format(Path(temporary))
        contents = backbone.processor_files(policy)
        contents[POLICY_FILE] = {"policy": policy.to_dict(), "style": asdict(checkpoint.style)}
        if backbone.latents.absent:
            contents[POLICY_FILE]["latents"] = False
        for name, content in contents.items():
            text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            Path(temporary, name).write_text(text, encoding="utf-8")
        if checkpoint.tokenizer.chat_template is None:  # prompts were made with ours
            Path(temporary, "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
        if sync:
            sync_tree(Path(temporary))
        _move_into(Path(temporary), target)
        if sync:
            sync_folder(target)


def _move_into(source: Path, target: Path) -> None:
    """Move files of ``source`` into ``target``, config.json last, and drop weights of an earlier save."""
    if ADAPTER not in os.listdir(source):
        shutil.rmtree(target / ADAPTER, ignore_errors=True)
    names = sorted(os.listdir(source), key=lambda name: (name == "config.json", name))
    (target / "config.json").unlink(missing_ok=True)
    for old in target.glob("model*.safetensors*"):
        if old.name not in names:
            old.unlink()
    for name in names:
        if (target / name).is_dir():
            shutil.rmtree(target / name)
        os.replace(source / name, target / name)


def _located(path: PathLike, subfolder: str | None) -> tuple[str, dict[str, str]]:
    text = os.fspath(path)
    if not text:
        raise CheckpointError("the checkpoint is ''; name a folder, or a model id of the form owner/name")
    where = {"subfolder": subfolder} if subfolder else {}
    if os.path.isdir(text):
        if subfolder and not os.path.isdir(os.path.join(text, subfolder)):
            raise CheckpointError(f"{text} has no folder {subfolder}")
    elif os.path.isabs(text) or text.startswith(".") or text.count("/") != 1:
        raise CheckpointError(f"{text}: no such folder, and not a model id of the form owner/name either")
    return text, where


def _name(path: str, subfolder: str | None) -> str:
    return os.path.join(path, subfolder) if subfolder else path


def _family(path: str, subfolder: str | None, where: dict[str, str]) -> tuple[Any, type[Backbone]]:
    from transformers import AutoConfig

    name = _name(path, subfolder)
    with _refused(f"{name}: config.json cannot be read as a model's config", _COMPARE):
        config = AutoConfig.from_pretrained(path, **where)
    if config.model_type not in FAMILIES:
        raise CheckpointError(f"{name} is a {config.model_type}; supported are {', '.join(sorted(FAMILIES))}")
    depths = {
        "text_config.num_hidden_layers": config.text_config.num_hidden_layers,
        "vision_config.depth": config.vision_config.depth,
    }
    for key, value in depths.items():
        if not 1 <= value <= _MOST_LAYERS:  # the layers are made before the weights are read
            raise CheckpointError(f"{name}: {key} in config.json is {value}; 1 to {_MOST_LAYERS} make sense")
    module, cls = FAMILIES[config.model_type]
    return config, getattr(importlib.import_module(module), cls)


@contextmanager
def _refused(what: str, remedy: str) -> Iterator[None]:
    """Whatever transformers' readers raise for a file that they do not understand, as a CheckpointError."""
    try:
        yield
    except FourdError:
        raise
    except Exception as error:  # plain Exception is what the tokenizers library raises
        said = textwrap.shorten(str(error), 600, placeholder=" ...")
        raise CheckpointError(f"{what}: {type(error).__name__}: {said.rstrip('.')}. {remedy}") from error


def _load_weights(load: Any, path: str, where: dict[str, str], **options: Any) -> Any:
    name = _name(path, where.get("subfolder"))
    remedy = f"Only safetensors are read (convert pickled weights with a tool you trust). {_COMPARE}"
    with _refused(f"{name}: the weights cannot be loaded by its config.json", remedy):
        try:
            return load(path, **options, **where)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from error


def _load_tokenizer(path: str, where: dict[str, str]) -> Any:
    from transformers import AutoTokenizer

    name = _name(path, where.get("subfolder"))
    remedy = "Copy the tokenizer files of the model it was trained from into it"
    # Asked first because transformers makes an empty tokenizer when there are no files at all.
    if _find(path, "tokenizer.json", where) is None and _find(path, "vocab.json", where) is None:
        raise CheckpointError(f"{name} has no tokenizer (tokenizer.json or vocab.json). {remedy}")
    with _refused(f"{name}: the tokenizer cannot be loaded (tokenizer.json, tokenizer_config.json)", remedy):
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
    if tokenizer.chat_template is None:  # where older processors keep it
        legacy = _find(path, "chat_template.json", where)
        if legacy is not None:
            tokenizer.chat_template = _read_json(legacy).get("chat_template")
    own_template = tokenizer.chat_template is not None
    own_config = _find(path, "tokenizer_config.json", where) is not None
    for there, lack, instead in (
        (own_config, "tokenizer_config.json", "special tokens are those of tokenizer.json alone"),
        (own_template, "chat template (chat_template.jinja)", "prompts are written in plain ChatML"),
    ):
        if not there:
            log.warning("%s has no %s: %s, and answers may differ for it. %s", name, lack, instead, remedy)
    return tokenizer


def _load_policy(path: str, where: dict[str, str], family: type[Backbone]) -> tuple[FramePolicy, PromptStyle]:
    file = _find(path, POLICY_FILE, where)
    if file is None:  # as the released checkpoints, which are all of one family
        return family.default_policy(), RELEASED if family.family == "qwen2_5_vl" else PromptStyle()
    content = _read_json(file)
    try:
        policy, style = content["policy"], content["style"]
        known = {field.name for field in fields(PromptStyle)}
        if unknown := sorted(set(style) - known):
            raise ConfigError(f"unknown prompt style {', '.join(unknown)}")
        return FramePolicy.from_dict(policy), PromptStyle(**style)
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"{file}: {error!r}. It must hold objects `policy` and `style`, as save_checkpoint writes them"
        ) from error


def _without_latents(
    path: str, subfolder: str | None, where: dict[str, str], *, plain: bool
) -> LatentSpec | None:
    """The spec of a model without latent tokens that may be loaded as such; None for all others."""
    file = _find(path, POLICY_FILE, where)
    if not plain and (file is None or _read_json(file).get("latents") is not False):
        return None
    config, _ = _family(path, subfolder, where)
    if getattr(config, "latent_token_id", None) is not None:
        return None
    tokens = 1 + max(_load_tokenizer(path, where).get_vocab().values())
    return LatentSpec.none(config.text_config.vocab_size, tokens)


def _policy_difference(name: str, saved: FramePolicy, given: FramePolicy) -> str:
    old, new = saved.to_dict(), given.to_dict()
    differing = [f"{key} (checkpoint {old[key]}, given {new[key]})" for key in old if old[key] != new[key]]
    return (
        f"{name} was trained with another frame policy: {', '.join(differing)}. Use the checkpoint's policy, "
        "or pass override_policy=True to change it knowingly"
    )


def _find(path: str, name: str, where: dict[str, str]) -> str | None:
    """Local path of a file of the checkpoint, or None when it has none of that name."""
    from transformers.utils import cached_file

    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **where)


def _read_json(file: str) -> dict[str, Any]:
    return read_json_object(file, "fetch the checkpoint once more", error=CheckpointError, finite=False)
