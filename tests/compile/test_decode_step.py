"""The small kernels of a decode step at the widths of Qwen2.5-VL-3B and Qwen3-VL-4B."""

from __future__ import annotations

import pytest

from fourdthinker.kernels._gpu_architectures import ARCHITECTURES, row
from fourdthinker.kernels.add_rms_norm import add_rms_norm_kernel
from fourdthinker.kernels.rotary_append import rotary_append_kernel
from fourdthinker.kernels.silu_mul import silu_mul_kernel
from tests.compile.aot import compile_kernel


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("width", [2048, 2560])
def test_add_rms_norm(arch, width):
    arguments = {
        **{f"{name}_ptr": "*bf16" for name in ("x", "residual", "weight", "normed", "total")},
        "x_stride": "i32", "residual_stride": "i32", "eps": "fp32", "H": width,
        "BLOCK": 2048 if width == 2048 else 4096,
    }  # fmt: skip
    binary = compile_kernel(
        add_rms_norm_kernel,
        arguments,
        arch=arch,
        launch=row("add_rms_norm", arch),
        name=f"add_rms_norm {width}",
    )
    assert binary.spills == binary.stack == 0
    assert max(binary.widths("ld")) == 16


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("normed", [False, True])
def test_rotary_append(arch, normed):
    names = ("query", "key", "value", "cos", "sin", "keys", "values", "out")
    strides = ("query_stride", "key_stride", "value_stride", "cos_stride", "sin_stride")
    places = ("keys_row", "keys_head", "keys_step", "values_row", "values_head", "values_step")
    weight = "*bf16" if normed else None
    arguments = {
        **{f"{name}_ptr": "*bf16" for name in names}, **dict.fromkeys((*strides, *places), "i32"),
        "positions_ptr": "*i64", "query_weight_ptr": weight, "key_weight_ptr": weight, "eps": "fp32",
        "HEADS": 32 if normed else 16, "KV": 8 if normed else 2, "D": 128,
    }  # fmt: skip
    binary = compile_kernel(
        rotary_append_kernel,
        arguments,
        arch=arch,
        launch=row("rotary_append", arch),
        name=f"rotary_append {normed}",
    )
    assert binary.spills == binary.stack == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_silu_mul(arch):
    launch = row("silu_mul", arch)
    pointers = {f"{name}_ptr": "*bf16" for name in ("gate", "up", "out")}
    strides = dict.fromkeys(("gate_stride", "up_stride"), "i32")
    arguments = {**pointers, **strides, "H": 11008, "BLOCK": launch.block}
    binary = compile_kernel(silu_mul_kernel, arguments, arch=arch, launch=launch, name="silu_mul")
    assert binary.spills == binary.stack == 0
    assert max(binary.widths("ld")) == 16
