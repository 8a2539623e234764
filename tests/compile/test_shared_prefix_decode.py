"""Shared-prefix decoding: every head size and dtype that it takes, on every GPU that the table knows.

With the heads of Qwen2.5-VL-3B (16 over 2) and Qwen3-VL-8B (32 over 8).
"""

from __future__ import annotations

import importlib

import pytest

from fourdthinker.kernels._gpu_architectures import ARCHITECTURES, SMALLER, row
from tests.compile.aot import compile_kernel

# The name in the package is the function.
module = importlib.import_module("fourdthinker.kernels.shared_prefix_decode")


def common(dtype, width, kv_heads, repeat):
    strides = ("head_stride", "stride")
    return {
        "query_ptr": f"*{dtype}", "query_stride": "i32", "key_ptr": f"*{dtype}", "value_ptr": f"*{dtype}",
        **{f"{side}_{name}": "i32" for side in ("key", "value") for name in strides}, "lengths_ptr": "*i32",
        "partial_ptr": "*fp32", "log_ptr": "*fp32", "scale": "fp32", "splits": "i32", "KV": kv_heads,
        "REP": repeat, "D": width, "UPCAST": False,
    }  # fmt: skip


def prompt_kernel(launch, *sizes):
    return common(*sizes) | {
        "key_group_stride": "i32", "value_group_stride": "i32", "group_size": "i32", "starts_ptr": "*i32",
        "order_ptr": "*i32", "row_starts_ptr": "*i32", "span": "i32", "BLOCK": launch.block,
        "QUERIES": launch.rows,
    }  # fmt: skip


def own_kernel(launch, merge, *sizes):
    return common(*sizes) | {
        "key_row_stride": "i32", "value_row_stride": "i32", "output_ptr": f"*{sizes[0]}", "before": "i32",
        "SPLIT": launch.span, "BLOCK": launch.block, "QUERIES": 16, "MERGE": merge,
    }  # fmt: skip


def check(kind, kernel, arguments, arch, launch, label):
    binary = compile_kernel(kernel, arguments, arch=arch, launch=launch, name=f"{kind[7:]} {label}")
    # float32 is for checking; its registers hold whole keys, since no tensor core takes them.
    assert binary.spills <= (32 if arguments["query_ptr"] == "*fp32" else 0)
    assert binary.blocks >= 1, f"{binary.shared} bytes of shared memory do not fit"
    assert "cp.async" in binary.ptx or max(binary.widths("ld")) == 16
    return binary


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("kv_heads", "repeat"), [(2, 8), (8, 4)])
@pytest.mark.parametrize(("dtype", "width"), [("bf16", 128), ("bf16", 256)])
def test_no_spills_wide_accesses_and_the_programs_that_are_counted_on(arch, kv_heads, repeat, dtype, width):
    sizes, label = (dtype, width, kv_heads, repeat), f"{dtype} {width} {kv_heads}x{repeat}"
    suffix = "_wide" if width > 128 else ""
    for kind in ("prefix_decode_prompt", "prefix_decode_prompt_few"):
        launch = row(kind + suffix, arch)
        arguments = prompt_kernel(launch, *sizes)
        binary = check(kind, module.prefix_decode_prompt_kernel, arguments, arch, launch, label)
        assert binary.blocks >= launch.resident
    launch = row(f"prefix_decode_own{suffix}", arch)
    for merge in (True, False):
        arguments = own_kernel(launch, merge, *sizes)
        check("prefix_decode_own", module.prefix_decode_own_kernel, arguments, arch, launch, label)


# The widest in float32 compiles for half a minute, so not on all; the narrow ones are small.
SIZES = [
    *((arch, "bf16", width) for arch in (80, 90) for width in (16, 32, 64)),
    *((arch, "bf16", width) for arch in SMALLER for width in (128, 256)),
    *((arch, "fp32", 256) for arch in (80, 90, 120)),
    *((90, "fp32", width) for width in (16, 64, 128)),
]


@pytest.mark.parametrize(("arch", "dtype", "width"), SIZES)
def test_every_head_size_fits(arch, dtype, width):
    sizes, label = (dtype, width, 4, 4), f"{dtype} {width} 4x4"
    suffix = "_float32" if dtype == "fp32" else "_wide" if width > 128 else ""
    launch = row(f"prefix_decode_prompt{suffix}", arch)
    arguments = prompt_kernel(launch, *sizes)
    check("prefix_decode_prompt", module.prefix_decode_prompt_kernel, arguments, arch, launch, label)
    launch = row(f"prefix_decode_own{suffix}", arch)
    arguments = own_kernel(launch, True, *sizes)
    check("prefix_decode_own", module.prefix_decode_own_kernel, arguments, arch, launch, label)
