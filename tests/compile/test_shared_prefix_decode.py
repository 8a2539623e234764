"""Shared-prefix decoding with the heads of Qwen2.5-VL-3B (16 over 2) and Qwen3-VL-8B (32 over 8)."""

from __future__ import annotations

import importlib

import pytest

from fourdthinker.kernels._launch import ARCHITECTURES, row
from tests.compile.aot import compile_kernel

# The name in the package is the function.
module = importlib.import_module("fourdthinker.kernels.shared_prefix_decode")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("kv_heads", "repeat"), [(2, 8), (8, 4)])
def test_no_spills_and_wide_accesses(arch, kv_heads, repeat):
    own_launch, many, few = (row(f"prefix_decode_{op}", arch) for op in ("own", "prompt", "prompt_few"))
    strides = ("head_stride", "stride")
    common = {
        "query_ptr": "*bf16", "query_stride": "i32", "key_ptr": "*bf16", "value_ptr": "*bf16",
        **{f"{side}_{name}": "i32" for side in ("key", "value") for name in strides}, "lengths_ptr": "*i32",
        "partial_ptr": "*fp32", "log_ptr": "*fp32", "scale": "fp32", "KV": kv_heads, "REP": repeat, "D": 128,
        "UPCAST": False,
    }  # fmt: skip
    common["splits"] = "i32"
    prompt = {
        **common, "key_group_stride": "i32", "value_group_stride": "i32", "group_size": "i32",
        "starts_ptr": "*i32", "order_ptr": "*i32", "row_starts_ptr": "*i32",
        "span": "i32",
    }  # fmt: skip
    own = {
        **common, "key_row_stride": "i32", "value_row_stride": "i32", "output_ptr": "*bf16", "before": "i32",
        "SPLIT": own_launch.span, "BLOCK": own_launch.block, "QUERIES": 16, "MERGE": True,
    }  # fmt: skip
    cases = [
        (module.prefix_decode_prompt_kernel, prompt | {"BLOCK": many.block, "QUERIES": many.rows}, many),
        (module.prefix_decode_prompt_kernel, prompt | {"BLOCK": few.block, "QUERIES": few.rows}, few),
        (module.prefix_decode_own_kernel, own, own_launch),
        (module.prefix_decode_own_kernel, own | {"MERGE": False}, own_launch),
    ]  # fmt: skip
    for kernel, arguments, launch in cases:
        binary = compile_kernel(
            kernel, arguments, arch=arch, launch=launch, name=f"decode{kernel.__name__} {kv_heads}x{repeat}"
        )
        assert binary.spills == binary.stack == 0
        assert "cp.async" in binary.ptx or max(binary.widths("ld")) == 16
