"""Whole weights for rollouts and checkpoints, where training slices them (DeepSpeed ZeRO-3, FSDP2 of torch).

Both gather the weights of a module in hooks around its call and drop them after it: each call of a decode
step would be a collective, and ranks whose rollouts take different numbers of steps would wait for each other
forever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from fourdthinker.errors import ConfigError

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_pre_hooks",  # those of FSDP2 slice the weights before they are saved
)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Hold all weights of a model whole on every rank for the time of a block.

    Entering and leaving is collective, what happens inside is not: modules are called and saved without any
    hooks, so ranks may do so differently often. Where nothing is sliced this does nothing.

    Args:
        model: nothing of it may be trained or changed within the block.
    """
    sliced = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    with ExitStack() as stack:
        if sliced:
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(sliced))
        for module in sharded:
            module.unshard()
            stack.callback(module.reshard)
        if sliced or sharded:
            stack.enter_context(_without_hooks(model))
        yield


@contextmanager
def exact_weights(model: nn.Module, dtypes: Mapping[str, torch.dtype], *, keep: bool) -> Iterator[None]:
    """Hold all weights of a model whole as the optimizer has them, to be saved.

    What `gathered` shows is what passes see: FSDP2 may round it to bfloat16. Here FSDP2's slices themselves
    are put together, on the CPU, one after the other. Otherwise this is `gathered`.

    Args:
        model: nothing of it may be called or changed within the block.
        dtypes: which type each weight gets, by name.
        keep: whether this rank saves; the others take part and hold what they hold.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not sharded:
        with gathered(model):
            yield
        return
    reshard(model)
    owners = [
        (module, name, parameter, f"{prefix}.{name}".lstrip("."))
        for prefix, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    whole: dict[int, nn.Parameter] = {}  # a tied weight stays one
    for _, _, parameter, name in owners:
        if id(parameter) not in whole:
            tensor = _full(parameter)
            if keep:
                kept = tensor.to("cpu", dtypes[name])
                whole[id(parameter)] = nn.Parameter(kept, requires_grad=parameter.requires_grad)
            else:
                whole[id(parameter)] = parameter
    with _without_hooks(model):
        for module, name, parameter, _ in owners:
            module._parameters[name] = whole[id(parameter)]
        try:
            yield
        finally:
            for module, name, parameter, _ in owners:
                module._parameters[name] = parameter


def reshard(model: nn.Module) -> None:
    """Let FSDP2 drop the weights that a forward without a backward has left gathered.

    While they are, the parameters of the model are not those of its optimizer.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _full(parameter: Tensor) -> Tensor:
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    kept = [(module, name, getattr(module, name)) for module in model.modules() for name in _HOOKS]
    for module, name, _ in kept:
        setattr(module, name, OrderedDict())
    try:
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)


def is_sharded(model: nn.Module) -> bool:
    """Whether hooks of ZeRO-3 or FSDP2 own weights of the model, gathered at the moment or not."""
    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        hasattr(parameter, "ds_id") for parameter in model.parameters()
    )


def require_whole(model: nn.Module) -> None:
    """Refuse weights of which this rank holds a slice only.

    Args:
        model: what is about to be sampled from.

    Raises:
        ConfigError: names the first such weight.
    """
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor) or tuple(parameter.shape) != full_shape(parameter):
            raise ConfigError(
                f"{name} is sliced over ranks, of {full_shape(parameter)} values this one holds a part; "
                "sample within `with gathered(backbone):`, which every rank enters"
            )


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape of a weight, also where ZeRO-3 has left an empty tensor in its place."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
