"""Wrong arguments of every op: an error that names the argument, never torch's own, never a result."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, randn

from fourdthinker import kernels
from fourdthinker.kernels import GrpoOptions, _common

IDS = torch.zeros(2, 3, dtype=torch.int64)
FULL = torch.ones(2, 3, dtype=torch.bool)
ROWS = torch.tensor([1, 2])
OPTIONS = GrpoOptions(beta=0.1, entropy_coef=0.1, sampler_cap=2.0)


def gains() -> dict[str, Any]:
    others = {f"{name}_logprobs": randn(2, 3) for name in ("old", "ref", "sampler")}
    return {
        "options": OPTIONS,
        "advantages": randn(2),
        "mask": FULL,
        "entropy_mask": FULL,
        "num_items": 2.0,
    } | others


def head() -> dict[str, Any]:
    numbers = {"temperature": 0.7, "softcap": 5.0, "chunk_rows": 2}
    return {"input": randn(2, 3, 5), "weight": randn(11, 5), "target": IDS, "bias": randn(11)} | numbers


def decode() -> dict[str, Any]:
    own = {"key": randn(2, 1, 2, 16), "value": randn(2, 1, 2, 16), "lengths": ROWS}
    prompt = {"prompt_key": randn(1, 1, 4, 16), "prompt_value": randn(1, 1, 4, 16)}
    return (
        {"query": randn(2, 2, 16), "prompt_lengths": torch.tensor([4]), "longest": 4, "scale": 0.2}
        | own
        | prompt
    )


def feedback() -> dict[str, Any]:
    state = kernels.latent_state(2, 5, 4, dtype=torch.float32, device="cpu")
    ids = {"eos_ids": torch.tensor([1]), "pad_id": 8, "start_id": 9, "end_id": 10, "fill_id": 1}
    out = {"emitted": ROWS.clone(), "is_policy": ROWS > 5, "next_embeds": randn(2, 5)}
    return state | ids | out | {
        "sampled": ROWS, "hidden": randn(2, 5), "embedding": randn(11, 5),
        "latent_size": 2, "train_start": False, "mode": "exact", "max_blocks": 2,
    }  # fmt: skip


CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "add_rms_norm": lambda: {"x": randn(3, 8), "residual": randn(3, 8), "weight": randn(8), "eps": 1e-6},
    "silu_mul": lambda: {"gate": randn(3, 8), "up": randn(3, 8)},
    "rotary_append_": lambda: {
        "query": randn(2, 4, 8), "key": randn(2, 2, 8), "value": randn(2, 2, 8), "cos": randn(2, 8),
        "sin": randn(2, 8), "keys": randn(2, 2, 6, 8), "values": randn(2, 2, 6, 8), "positions": ROWS,
        "query_weight": randn(8), "key_weight": randn(8), "eps": 1e-6,
    },
    "sample_tokens": lambda: {
        "logits": randn(2, 11), "seeds": ROWS, "steps": ROWS, "temperature": torch.ones(2),
        "top_k": ROWS.int(), "top_p": torch.ones(2), "min_p": torch.zeros(2),
        "forbidden": torch.tensor([[1], [-1]]), "seen": torch.zeros(2, 11, dtype=torch.uint8),
        "repetition_penalty": torch.ones(2), "presence_penalty": torch.zeros(2),
    },
    "philox_uniform": lambda: {"seeds": ROWS, "steps": ROWS},
    "logprobs": lambda: {
        "logits": randn(2, 3, 11), "target": IDS, "mask": FULL, "temperature": 0.7, "return_entropy": True,
        "inplace_backward": False,
    },
    "cross_entropy": lambda: {
        "logits": randn(2, 3, 11), "target": IDS, "ignore_index": -100, "num_items": 3.0, "temperature": 0.7,
        "inplace_backward": False,
    },
    "linear_logprobs": lambda: head() | {"mask": FULL, "return_entropy": True},
    "linear_cross_entropy": lambda: head() | {"rows": ROWS, "ignore_index": -100, "num_items": 3.0},
    "grpo_token_loss": lambda: gains() | {"logprobs": randn(2, 3), "entropy": randn(2, 3)},
    "grpo_loss": lambda: gains() | {
        "logits": randn(2, 3, 11), "target": IDS, "temperature": 0.7, "inplace_backward": False
    },
    "linear_grpo_loss": lambda: gains() | head() | {"rows": torch.arange(6), "return_entropy": True},
    "group_advantages": lambda: {"rewards": randn(6), "group_size": 3, "scale": "group", "eps": 1e-4},
    "top_entropy_mask": lambda: {"entropy": randn(2, 3), "mask": FULL, "fraction": 0.5},
    "pool_latents": lambda: {"features": randn(6, 5), "counts": torch.tensor([4, 2]), "latent_size": 2},
    "cosine_latent_loss": lambda: {
        "hidden": randn(2, 3, 5), "target": randn(2, 5), "index": torch.tensor([1, 5]), "num_items": 2.0
    },
    "latent_state": lambda: {
        "rows": 2, "hidden_size": 5, "max_latents": 4, "dtype": torch.float32, "device": "cpu"
    },
    "forbidden_tokens": lambda: {
        "phase": ROWS.int(), "blocks": ROWS.int(), "pad_id": 8, "start_id": 9, "end_id": 10, "max_blocks": 2
    },
    "latent_feedback_step_": feedback,
    "shared_prefix_decode": decode,
    "chunk_size": lambda: {"rows": 5, "vocabulary": 11, "chunk_rows": 2},
}  # fmt: skip
MAY_BE_ELSEWHERE = {("pool_latents", "counts"), ("pool_latents", "features"), ("group_advantages", "rewards")}


def wrong_kinds(op: str, name: str, value: object) -> Iterator[tuple[str, object]]:
    """What the argument can never be, however lenient an op is."""
    yield from (("text", "x"), ("list", [1, 2]), ("complex", 1j), ("bool", True))
    if isinstance(value, Tensor):
        yield from (("number", 1.5), ("array", value.numpy()), ("sparse", value.to_sparse()))
        yield "complex tensor", value.to(torch.complex64)
        if (op, name) not in MAY_BE_ELSEWHERE:
            yield "meta tensor", value.to("meta")
        if value.is_floating_point() and (op, name) != ("group_advantages", "rewards"):
            yield from (("integers", value.long()), ("float8", value.to(torch.float8_e4m3fn)))
        elif not value.is_floating_point():
            yield "floats", value.float()
    else:
        yield from (("nan", math.nan), ("inf", math.inf), ("endless", 10**5000), ("2^70", 2**70))
        yield from (("tensor", torch.tensor(2.0)), ("array", np.ones(2)))
    if isinstance(value, int) and not isinstance(value, bool):
        yield from (("half", 0.5), ("whole float", 2.0))


# Devices are torch's own to refuse.
ARGUMENTS = [(op, name) for op, arguments in CALLS.items() for name in arguments() if name != "device"]


def call(op: str, arguments: dict[str, Any]) -> object:
    return getattr(kernels, op)(**arguments)


@pytest.mark.parametrize("op", CALLS)
def test_the_calls_are_right(op):
    call(op, CALLS[op]())


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_wrong_kinds_are_refused_by_name(op, name):
    right = CALLS[op]()[name]
    for label, wrong in wrong_kinds(op, name, right):
        if (isinstance(right, bool) and label == "bool") or (name, label) == ("num_items", "tensor"):
            continue  # right
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            call(op, CALLS[op]() | {name: wrong})


def test_every_op_is_tried():
    functions = {name for name in kernels.__all__ if inspect.isfunction(getattr(kernels, name))}
    assert functions == set(CALLS)


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "no dimension": lambda t: t.flatten()[0],
    "one more": lambda t: t[None],
    "flat": lambda t: t.flatten() if t.dim() > 1 else t[:, None],
    "shorter": lambda t: t[:-1],
    "none": lambda t: t[:0],
    "narrower": lambda t: t[..., :-1],
    "no width": lambda t: t[..., :0],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", CALLS)
def test_odd_shapes_are_refused_or_right(op, shape):
    for name, value in CALLS[op]().items():
        if not isinstance(value, Tensor):
            continue
        arguments = CALLS[op]()
        arguments[name] = SHAPES[shape](value)
        try:
            call(op, arguments)
        except ValueError as error:
            if "unpack" in str(error):
                raise AssertionError(f"{op}, {name}: {error}") from error


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("add_rms_norm", {"eps": -1.0}, "eps is -1.0; it must be 0 or more"),
        ("rotary_append_", {"eps": -1.0}, "eps is -1.0; it must be 0 or more"),
        ("logprobs", {"temperature": 0}, "temperature is 0; it must be 1e-38 or more"),
        ("logprobs", {"temperature": 1e-40}, "temperature is 1e-40; it must be 1e-38 or more"),
        ("linear_logprobs", {"softcap": 0.0}, "softcap is 0.0; it must be above 0"),
        ("grpo_token_loss", {"num_items": True}, "num_items is True; pass a number"),
        ("cross_entropy", {"num_items": torch.tensor(True)}, r"num_items is \(\) torch.bool; pass a number"),
        ("cross_entropy", {"num_items": -1}, "num_items is -1; it must be 0 or more"),
        ("sample_tokens", {"top_k": torch.ones(2)}, "top_k is torch.float32; it must be torch.int32"),
        ("sample_tokens", {"temperature": 1.0}, "temperature is 1.0; pass a tensor"),
        ("sample_tokens", {"temperature": torch.full((2,), torch.inf)}, "temperature of row 0 is inf"),
        ("silu_mul", {"gate": IDS, "up": IDS}, "gate is torch.int64; it must hold floating-point numbers"),
        ("latent_feedback_step_", {"pad_id": 11}, "pad_id is 11; embedding has rows 0 to 10"),
        ("latent_state", {"max_latents": -1}, "max_latents is -1; it must be an integer, at least 0"),
        ("pool_latents", {"latent_size": 0}, "latent_size is 0; it must be an integer, at least 1"),
    ],
)  # fmt: skip
def test_values_are_refused_with_a_remedy(op, change, message):
    with pytest.raises(ValueError, match=message):
        call(op, CALLS[op]() | change)


@pytest.mark.parametrize("items", [math.nan, -2.0, math.inf, -math.inf])
@pytest.mark.parametrize("op", [op for op, arguments in CALLS.items() if "num_items" in arguments()])
def test_a_number_of_items_is_looked_at_in_a_tensor_too(op, items):
    call(op, CALLS[op]() | {"num_items": torch.tensor(2.0)})
    numbers = ("num_items", "num_tokens") if "grpo" in op else ("num_items",)
    nothing = call(op, CALLS[op]() | {name: torch.tensor(0.0) for name in numbers})
    assert (nothing if isinstance(nothing, Tensor) else nothing[0]) == 0
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(ValueError, match=f"num_items is {items}; pass a finite number of items"):
            call(op, CALLS[op]() | {"num_items": torch.tensor(items, dtype=dtype)})


def test_a_number_of_items_on_a_device_is_looked_at_on_request(monkeypatch):
    monkeypatch.setattr(_common, "readable", lambda values: False)  # as on a GPU
    arguments = CALLS["grpo_token_loss"]() | {"num_items": torch.tensor(-2.0)}
    assert kernels.grpo_token_loss(**arguments)[0].isnan()
    monkeypatch.setenv("FOURDTHINKER_DEBUG", "1")
    with pytest.raises(ValueError, match=r"num_items is -2\.0"):
        kernels.grpo_token_loss(**arguments)


def test_a_tiny_number_of_items_is_no_error():
    assert kernels.cross_entropy(**CALLS["cross_entropy"]() | {"num_items": 1e-40}) > 1e36


@pytest.mark.parametrize("op", ["add_rms_norm", "silu_mul", "rotary_append_", "shared_prefix_decode"])
def test_ops_for_inference_say_that_they_have_no_gradient(op):
    inputs = [
        name for name, value in CALLS[op]().items() if isinstance(value, Tensor) and value.is_floating_point()
    ]
    for name in inputs:
        arguments = CALLS[op]()
        arguments[name].requires_grad_()
        with pytest.raises(
            ValueError, match=rf"{op} has no gradient, but {name} requires one; call it under"
        ):
            call(op, arguments)
        with torch.no_grad():
            call(op, arguments)


POOL = {"prompt_starts": torch.tensor([0]), "order": ROWS - 1, "row_starts": torch.tensor([0, 2])}


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        (
            "rotary_append_",
            {"positions": torch.tensor([0, 6])},
            r"positions has values from 0 to 6; they must be in \[0, 6\)",
        ),
        ("shared_prefix_decode", {"lengths": torch.tensor([1, 3])}, "lengths has values from 1 to 3"),
        ("shared_prefix_decode", {"prompt_lengths": torch.tensor([-1])}, "prompt_lengths has values from -1"),
        ("shared_prefix_decode", POOL | {"order": torch.tensor([0, 2])}, "order has values from 0 to 2"),
        (
            "shared_prefix_decode",
            POOL | {"prompt_starts": torch.tensor([-1])},
            "prompt_starts has values from -1",
        ),
    ],
)
def test_values_of_every_layer_are_looked_at_on_request(monkeypatch, op, change, message):
    monkeypatch.setenv("FOURDTHINKER_DEBUG", "1")
    call(op, CALLS[op]())
    with pytest.raises(ValueError, match=message):
        call(op, CALLS[op]() | change)


def test_the_help_explains_every_loss_type():
    """It is made of the table of losses, so that an entry there is all that a new one needs."""
    (field,) = (field for field in dataclasses.fields(GrpoOptions) if field.name == "loss_type")
    for name in field.metadata["choices"]:
        assert f"{name} (" in field.metadata["help"]
    assert "dr_grpo (clipped ratio; sequences times max_length)" in field.metadata["help"]
