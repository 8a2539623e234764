"""Whole weights for rollouts and checkpoints, where training slices them (DeepSpeed ZeRO-3, FSDP2 of torch).

Both gather the weights of a module in hooks around its call and drop them after it: each call of a decode
step would be a collective, and ranks whose rollouts take different numbers of steps would wait for each other
forever.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
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
_TURN = "_gathered_in_turn"  # attribute of a layer whose weights are gathered for each of its calls


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Hold all weights of a model whole on every rank for the time of a block.

    Entering and leaving is collective, what happens inside is not: modules are called and saved without any
    hooks, so ranks may do so differently often. Where nothing is sliced this does nothing.

    Args:
        model: nothing of it may be trained or changed within the block.
    """
    if not is_sharded(model):
        yield
        return
    with _whole(model), _without_hooks(model):
        yield


@contextmanager
def gathered_in_turn(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[None]:
    """As `gathered`, but of `layers` each is whole for its own part of a pass alone.

    All passes within the block go through all layers in their order, at whose beginning the ranks tell each
    other that some have one to make. Each gathers with the others, also once its own passes are made, until
    all have made theirs. There may be no other collective within the block.

    Args:
        model: as for `gathered`, sliced over the ranks of the default group.
        layers: of the model, called by themselves or within `whole_layer`.
    """
    device = next(model.parameters()).device

    def turn(index: int) -> Any:
        @contextmanager
        def whole() -> Iterator[None]:
            if index == 0:
                _on_any_rank(True, device)
            with _whole(layers[index]):
                yield

        return whole

    with _whole(model, but=layers), _without_hooks(model):
        handles = []
        for index, layer in enumerate(layers):
            setattr(layer, _TURN, turn(index))
            handles += _call_within(layer)
        try:
            yield
        finally:
            for layer in layers:
                delattr(layer, _TURN)
            for handle in handles:
                handle.remove()
        # Not after an error, of which the others learn otherwise.
        while _on_any_rank(False, device):
            for layer in layers:
                with _whole(layer):
                    pass


def whole_layer(layer: nn.Module) -> AbstractContextManager[None]:
    """Within the block the weights of a layer are there, where `gathered_in_turn` has it gather them."""
    return getattr(layer, _TURN, nullcontext)()


def is_gathered_in_turn(model: nn.Module) -> bool:
    """Whether some layers of the model gather their weights for each pass, which is collective."""
    return any(hasattr(module, _TURN) for module in model.modules())


def _call_within(layer: nn.Module) -> list[Any]:
    """Hooks that hold the weights of a layer whole for its calls."""
    held = ExitStack()

    def enter(*_: Any) -> None:
        held.enter_context(whole_layer(layer))

    def leave(*_: Any) -> None:
        held.close()

    return [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]


def have_room(layers: Sequence[nn.Module], element_size: int) -> bool:
    """Whether on every rank `layers` would take at most half of the memory that is free now; collective.

    The other half is for keys, values and activations. On a CPU there is always room.

    Args:
        layers: sliced ones.
        element_size: bytes of a weight that passes see.
    """
    weights = [parameter for layer in layers for parameter in layer.parameters()]
    device = weights[0].device
    if device.type != "cuda":
        return True
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + cached
    needed = element_size * sum(math.prod(full_shape(weight)) for weight in weights)
    return not _on_any_rank(needed > free / 2, device)


def _on_any_rank(value: bool, device: torch.device) -> bool:
    told = torch.tensor(int(value), device=device)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bool(told.item())


@contextmanager
def _whole(model: nn.Module, but: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Gather what is sliced of a model, apart from some modules; collective."""
    left = {id(module) for part in but for module in part.modules()}
    left_weights = {id(parameter) for part in but for parameter in part.parameters()}
    sliced = [p for p in model.parameters() if hasattr(p, "ds_id") and id(p) not in left_weights]
    sharded = [m for m in model.modules() if isinstance(m, FSDPModule) and id(m) not in left]
    with ExitStack() as stack:
        if sliced:
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(sliced))
        for module in sharded:
            module.unshard()
            stack.callback(module.reshard)
        yield


@contextmanager
def exact_weights(model: nn.Module, dtypes: Mapping[str, torch.dtype], *, keep: bool) -> Iterator[None]:
    """Hold all weights of a model whole as the optimizer has them, to be saved.

    Slices are put together on the CPU, one weight after the other. (What `gathered` shows is what passes see,
    on the device: FSDP2 may round it to bfloat16, and memory may have no room for all of it.)

    Args:
        model: nothing of it may be called or changed within the block.
        dtypes: which type each weight gets, by name.
        keep: whether this rank saves; the others take part and hold what they hold.
    """
    if not is_sharded(model):
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
            tensor = full_weight(parameter)
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


def full_weight(parameter: Tensor) -> Tensor:
    """A weight of which FSDP2 or ZeRO-3 may have left a slice, put together; collective where they have."""
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
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
    later = {id(p) for module in model.modules() if hasattr(module, _TURN) for p in module.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in later:
            continue
        if isinstance(parameter, DTensor) or tuple(parameter.shape) != full_shape(parameter):
            raise ConfigError(
                f"{name} is sliced over ranks, of {full_shape(parameter)} values this one holds a part; "
                "sample within `with gathered(backbone):`, which every rank enters"
            )


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape of a weight, also where ZeRO-3 has left an empty tensor in its place."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
