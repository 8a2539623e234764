"""float32 master weights of a model that is trained in bfloat16.

A bfloat16 weight has 8 significant bits, so that an update below 1/512 of it is rounded away: at a learning
rate of 1e-6 nearly every one. The optimizer therefore updates float32 copies, and the model gets them rounded
after each step. Gradients of several passes add up in float32 too: in bfloat16 every addition rounds, and
what is below 1/512 of the sum is lost. DeepSpeed keeps such copies itself. Under FSDP the slices are float32,
and a checkpoint has them in the file that is written and read here.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fourdthinker.errors import CheckpointError, ConfigError

MASTERS = "masters.safetensors"  # in checkpoint-N


def check_float16(model: nn.Module, *, divided: bool, bf16: bool) -> None:
    """Refuse trained float16 weights, unless DeepSpeed or FSDP (`divided`) makes others of them under bf16.

    Raises:
        ConfigError: names the first such weight.
    """
    if divided and bf16:
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype == torch.float16:
            remedy = ", or bf16=true, with which the passes see bfloat16" if divided else ""
            raise ConfigError(
                f"dtype: the weights are float16 ({name}), in which small gradients become 0; set "
                f"dtype=bfloat16 or dtype=float32{remedy}"
            )


class MasterWeights:
    """float32 copies of the trained bfloat16 parameters of a model; there may be none.

    Args:
        model: on the device that it is trained on.
    """

    def __init__(self, model: nn.Module) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.half = {name: p for name, p in trained.items() if p.dtype == torch.bfloat16}
        self.wide = {name: nn.Parameter(p.detach().float()) for name, p in self.half.items()}
        self._sums = False  # whether gradients of a backward pass go to float32 sums
        for name, parameter in self.half.items():
            parameter.register_post_accumulate_grad_hook(functools.partial(self._add, self.wide[name]))

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let a new optimizer of the model's parameters update the copies instead."""
        if not self.half:
            return
        wide = {id(p): self.wide[name] for name, p in self.half.items()}
        for group in optimizer.param_groups:
            group["params"] = [wide.get(id(p), p) for p in group["params"]]
        for name, parameter in self.half.items():
            if parameter in optimizer.state:  # Adagrad has one before its first step
                state = optimizer.state.pop(parameter)
                optimizer.state[self.wide[name]] = {
                    key: value.float() if isinstance(value, Tensor) else value for key, value in state.items()
                }
        optimizer.register_step_pre_hook(lambda *_: self._take_gradients())
        optimizer.register_step_post_hook(lambda *_: self._give_weights())

    @contextlib.contextmanager
    def sums(self) -> Iterator[None]:
        """A block whose backward passes add to float32 sums, and leave the model without gradients.

        They are made before the last pass of an update; `round_sums` begins that one.
        """
        self._sums = True
        try:
            yield
        finally:
            self._sums = False

    def _add(self, wide: nn.Parameter, parameter: Tensor) -> None:
        if not self._sums or parameter.grad is None:
            return
        if wide.grad is None:
            wide.grad = parameter.grad.float()
        else:
            wide.grad += parameter.grad
        parameter.grad = None

    def round_sums(self) -> None:
        """Give the model the sums as its gradients, rounded once."""
        for name, parameter in self.half.items():
            wide = self.wide[name]
            if wide.grad is not None:
                parameter.grad, wide.grad = wide.grad.to(parameter.dtype), None

    def drop_sums(self) -> None:
        """Forget them, of an update that begins anew or is void."""
        for wide in self.wide.values():
            wide.grad = None

    def _take_gradients(self) -> None:
        for name, parameter in self.half.items():
            gradient = parameter.grad
            self.wide[name].grad = None if gradient is None else gradient.float()

    @torch.no_grad()
    def _give_weights(self) -> None:
        for name, parameter in self.half.items():
            parameter.copy_(self.wide[name])
            self.wide[name].grad = None

    def save(self, folder: Path) -> None:
        """Write the copies into a checkpoint folder; nothing when there are none."""
        if self.half:
            write_masters(folder, {name: p.detach() for name, p in self.wide.items()})

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take the copies of a checkpoint folder, and give the model its weights.

        Raises:
            CheckpointError: they are missing, unreadable or of another model.
        """
        if not self.half:
            return
        for name, tensor in read_masters(folder, self.wide):
            self.wide[name].copy_(tensor)
        self._give_weights()


def write_masters(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write trained weights as the optimizer has them into a checkpoint folder, each a tensor of its own."""
    save_file(dict(weights), folder / MASTERS)


def read_masters(folder: Path, trained: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights that `write_masters` wrote, one after the other.

    Args:
        folder: of a checkpoint.
        trained: what is trained now, by name.

    Yields:
        The name of a weight, and the weight on the CPU.

    Raises:
        CheckpointError: the file is missing, unreadable or of another model.
    """
    path = folder / MASTERS
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in list(file.keys())}
            if found != {name: list(weight.shape) for name, weight in trained.items()}:
                raise CheckpointError(
                    f"{path} holds the weights of other parameters than are trained now; go on with the "
                    "settings of that run"
                )
            for name in trained:
                yield name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: the float32 weights cannot be read ({error}); go on from another checkpoint of the run"
        ) from error
