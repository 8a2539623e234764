"""FSDP2 of torch through accelerate: weights, gradients and optimizer state divided among the ranks.

Every decoder layer is a unit: its weights are gathered for its pass and dropped after it. All that is left
(embeddings, head, final norm, tower) is another, gathered for the whole forward: the fused losses read the
head's weight without calling it, and a rank whose batch has no pictures does not call the tower.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, load_fsdp_model
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainingArguments

from fourdthinker.errors import ConfigError

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone

ASKED = "ACCELERATE_USE_FSDP"  # variable by which accelerate is asked for it
STATE_FILES = ("pytorch_model_fsdp.bin", "optimizer.bin")  # of a checkpoint, as accelerate writes them


def check_types(backbone: Backbone, *, bf16: bool) -> None:
    """Refuse weights that the optimizer would update in less than float32.

    With bf16 accelerate makes float32 of the weights that are trained, and passes see bfloat16.

    Raises:
        ConfigError: names the first such weight.
    """
    if bf16:
        return
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ConfigError(
                f"fsdp: {name} is trained in {str(parameter.dtype).removeprefix('torch.')}, in which small "
                "updates are rounded away; set bf16=true (the optimizer then has float32), or dtype=float32"
            )


def set_up(accelerator: Accelerator, args: TrainingArguments, backbone: Backbone) -> None:
    """Say how accelerate is to divide a model once training begins.

    Args:
        accelerator: of the trainer.
        args: of the trainer, made with `fsdp`.
        backbone: not divided yet.
    """
    # What accelerate leaves there would divide the next model of this process too, whatever its settings.
    os.environ.pop(ASKED, None)
    state: Any = accelerator.state
    if getattr(state, "fsdp_plugin", None) is None:
        # On a CPU accelerate would leave the request aside without a word, and average whole gradients. What
        # it does on a GPU works there too.
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
        # Of both, or the next one that asks for the state would set it back.
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    layers: Any = backbone.hf.model.language_model.layers
    state.fsdp_plugin.transformer_cls_names_to_wrap = [type(layers[0]).__name__]
    policy = None
    if args.bf16:
        # accelerate's own would round what goes in (log-probs, advantages) and comes out (the loss) too.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    state.fsdp_plugin.mixed_precision_policy = policy


def load_weights(accelerator: Accelerator, model: Any, folder: Path) -> None:
    """Give a divided model the weights of a checkpoint, as the optimizer had them. Collective.

    Args:
        accelerator: that divided it.
        model: what it gave back.
        folder: of a checkpoint that was written under FSDP, by any number of processes.
    """
    load_fsdp_model(accelerator.state.fsdp_plugin, accelerator, model, str(folder))
