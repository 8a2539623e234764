"""What a decode step launches on a GPU, counted on CUDA tensors that do not exist."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from fourdthinker.backbones import FAMILIES, fused
from fourdthinker.backbones.common import Backbone
from fourdthinker.backbones.decoding import Decoder
from fourdthinker.backbones.fused import fused_projections
from fourdthinker.kernels import _gpu_architectures as gpus
from fourdthinker.sampler import SamplingConfig
from fourdthinker.sampler.step import Slots, Stepper
from fourdthinker.sampler.store import KVStore, Layout
from tests.unit.sampler.cases import make_prompt, talkative

ROWS, SPECIAL = 8, ("lift_fresh", "detach", "empty", "set_", "device")


class Launches(TorchDispatchMode):
    """Names of kernels and of torch's operations on CUDA, views and bare memory left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.endswith("_kernels"):  # the launches inside our own ops, not the op
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        made = out if isinstance(out, (tuple, list)) else [out]
        on_gpu = any(isinstance(x, torch.Tensor) and x.device.type == "cuda" for x in made)
        if on_gpu and not func.is_view and not any(name.startswith(word) for word in SPECIAL):
            self.names.append(name)
        return out


class Indexing(TorchFunctionMode):
    """Basic indexing by operations: that of Python asks for a real device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        out, index = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
        axis = 0
        for item in index:
            if isinstance(item, int):
                out = out.select(axis, item)
                continue
            if item is None:
                out = out.unsqueeze(axis)
            elif isinstance(item, slice):
                out = torch.ops.aten.slice.Tensor(out, axis, item.start, item.stop, item.step or 1)
            else:
                assert item is Ellipsis
                axis = out.dim() - 1 - (len(index) - 1 - index.index(Ellipsis))
            axis += 1
        return out


class Angles(nn.Module):
    """In place of a rotary embedding, which is asked once a call."""

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos = torch.empty(1, positions.shape[-1], 16, dtype=x.dtype, device=x.device)
        return cos, cos


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Kernels are named instead of compiled; the GPU is an H200."""
    launches = Launches()

    def run(kernel: Any, *args: Any, **kwargs: Any) -> None:
        launches.names.append(kernel.fn.__name__)

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(fused, "_is_plain", lambda parameter: True)  # fake tensors are a subclass
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    h200 = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: h200)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    cached = (gpus._capability, gpus._multiprocessors)
    for function in cached:
        function.cache_clear()
    yield launches
    for function in cached:
        function.cache_clear()


@contextmanager
def on_a_gpu(backbone: Backbone) -> Iterator[Backbone]:
    """A copy of the backbone in bf16 whose weights are CUDA tensors without memory."""
    with FakeTensorMode(allow_non_fake_inputs=True), Indexing():
        fake = copy.copy(backbone)
        fake.__dict__["_modules"] = {"model": _fake(backbone.model)}
        fake.hf.model.language_model.rotary_emb = Angles()
        yield fake


def _fake(module: nn.Module) -> nn.Module:
    twin = copy.copy(module)
    twin.__dict__ = dict(module.__dict__)
    twin._modules = {name: None if m is None else _fake(m) for name, m in module._modules.items()}
    twin._parameters = {
        name: None if p is None else nn.Parameter(torch.empty(p.shape, dtype=torch.bfloat16, device="cuda"))
        for name, p in module._parameters.items()
    }
    twin._buffers = {
        name: None if b is None else torch.empty(b.shape, dtype=b.dtype, device="cuda")
        for name, b in module._buffers.items()
    }
    return twin


def step_of(
    launched: Launches, family: str, layers: int, room: int, *, penalties: bool = False, **settings: Any
) -> list[str]:
    """What one step launches."""
    checkpoint = talkative(family=family, layers=layers)
    prompt = make_prompt(checkpoint, 0, 20)
    config = SamplingConfig(max_new_tokens=room, **settings)
    with on_a_gpu(checkpoint.backbone) as backbone, fused_projections(backbone) as joined:
        store = KVStore(backbone, ROWS, 64, room, 20, 1)
        sizes = (("order", ROWS), ("row_starts", 2), ("starts", 1), ("lengths", 1))
        layout = {name: torch.zeros(n, dtype=torch.int32, device="cuda") for name, n in sizes}
        store.layout = Layout(**layout)
        slots = Slots.fresh(backbone, config, [prompt] * ROWS, torch.arange(ROWS))
        if penalties:
            vocabulary = backbone.head_weight.shape[0]
            slots.drawing["repetition_penalty"] = torch.ones(ROWS, device="cuda")
            slots.drawing["seen"] = torch.zeros(ROWS, vocabulary, dtype=torch.uint8, device="cuda")
        decoder = Decoder(backbone, 64, joined)
        eos = torch.tensor([1], device="cuda")
        stepper = Stepper(backbone, decoder, config, eos)
        with launched, torch.no_grad():
            stepper.step(slots, store, room)
    names, launched.names = launched.names, []
    return names


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(("room", "most"), [(512, 10), (1024, 11)])
def test_launches_of_a_step(launched: Launches, family: str, room: int, most: int) -> None:
    two, four = (step_of(launched, family, layers, room) for layers in (2, 4))
    layer = (len(four) - len(two)) / 2
    assert layer <= most, four
    assert len(two) - 2 * layer <= 8, two
    assert two.count("mm") + two.count("addmm") + two.count("linear") == 2 * 4 + 1


def test_truncation_and_penalties_do_not_add_small_operations(launched: Launches) -> None:
    plain = step_of(launched, "qwen3_vl", 2, 512)
    more = step_of(launched, "qwen3_vl", 2, 512, penalties=True, top_p=0.9, top_k=20)
    assert [name for name in more if not name.endswith("_kernel")] == [
        name for name in plain if not name.endswith("_kernel")
    ]
