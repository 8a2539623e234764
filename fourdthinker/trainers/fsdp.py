"""FSDP2 of torch through accelerate: weights, gradients and optimizer state divided among the ranks.

Every decoder layer is a unit: its weights are gathered for its pass and dropped after it. All that is left
(embeddings, head, final norm, tower) is another, gathered for the whole forward: the fused losses read the
head's weight without calling it, and a rank whose batch has no pictures does not call the tower.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, save_fsdp_optimizer
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments

from fourdthinker.backbones.gathering import full_weight, reshard
from fourdthinker.errors import ConfigError
from fourdthinker.trainers.master_weights import MASTERS, read_masters, write_masters

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone

ASKED = "ACCELERATE_USE_FSDP"  # variable by which accelerate is asked for it
STATE_FILES = (MASTERS, "optimizer.bin")  # of a checkpoint; the second as accelerate names it


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


@torch.no_grad()
def save_state(
    accelerator: Accelerator, backbone: Backbone, optimizer: torch.optim.Optimizer, folder: Path
) -> None:
    """Write what is trained of a divided model as the optimizer has it, and the optimizer's state.

    Both are whole; the first process puts weight after weight together on its host. accelerate would write
    what is not trained as well, which beside an adapter is nearly everything. Collective.

    Args:
        accelerator: that divided the model.
        backbone: the model.
        optimizer: of its slices.
        folder: of a checkpoint.
    """
    reshard(backbone)
    whole = {}
    for name, parameter in _trained(backbone).items():
        tensor = full_weight(parameter)
        if accelerator.is_main_process:
            whole[name] = tensor.cpu()
    if accelerator.is_main_process:
        write_masters(folder, whole)
    save_fsdp_optimizer(accelerator.state.fsdp_plugin, accelerator, optimizer, backbone, str(folder))


@torch.no_grad()
def load_weights(backbone: Backbone, folder: Path) -> None:
    """Give a divided model what was trained of it.

    Args:
        backbone: the model; what is not trained of it is there already.
        folder: of a checkpoint that was written under FSDP, by any number of processes.

    Raises:
        CheckpointError: the weights are missing, unreadable or of another model.
    """
    trained = _trained(backbone)
    for name, tensor in read_masters(folder, trained):
        parameter = trained[name]
        assert isinstance(parameter, DTensor)
        # Every process reads the file itself: nothing is sent.
        own = distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.copy_(own)


def _trained(backbone: Backbone) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}
