"""The two sampling kernels at the vocabulary of the released models."""

from __future__ import annotations

import pytest
import triton

from fourdthinker.kernels._launch import ARCHITECTURES, row
from fourdthinker.kernels._sample_kernel import sample_draw_kernel, sample_scan_kernel
from tests.compile.aot import compile_kernel

VOCABULARY = 151_936
ARGUMENTS = {
    "logits_stride": "i32", "temperature_ptr": "*fp32", "forbidden_ptr": "*i64", "figures_ptr": "*fp32",
    "first_ptr": "*i32", "V": VOCABULARY, "F": 3,
}  # fmt: skip
DRAW = {
    "seeds_ptr": "*i64", "steps_ptr": "*i64", "ids_ptr": "*i64", "logprobs_ptr": "*fp32",
    "sampled_ptr": "*fp32",
}  # fmt: skip
PENALTIES = {"seen_ptr": "*u8", "repetition_ptr": "*fp32", "presence_ptr": "*fp32"}
TRUNCATION = {"top_k_ptr": "*i32", "top_p_ptr": "*fp32", "min_p_ptr": "*fp32", "listed_ptr": "*i32"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("everything", [False, True])
def test_no_spills_and_wide_accesses(arch, dtype, everything):
    scan, draw = row("sample_scan", arch), row("sample_draw", arch)
    parts = triton.cdiv(VOCABULARY, scan.block)
    optional = PENALTIES | TRUNCATION | {"groups_ptr": "*fp32"}
    chosen = optional if everything else dict.fromkeys(optional)
    common = ARGUMENTS | {"logits_ptr": f"*{dtype}", "PARTS": parts, "BLOCK": scan.block} | {
        name: chosen[name] for name in (*PENALTIES, "groups_ptr")
    }  # fmt: skip
    label = f"{'all' if everything else 'plain'} {dtype}"
    binary = compile_kernel(sample_scan_kernel, common, arch=arch, launch=scan, name=f"sample_scan {label}")
    assert binary.spills == binary.stack == 0
    assert max(binary.widths("ld")) == 16
    assert everything or binary.occupancy >= 0.25  # two programs, 64 KB of float32 logits on their way
    arguments = common | DRAW | {name: chosen[name] for name in TRUNCATION}
    arguments["WIDTH"] = triton.next_power_of_2(parts)
    binary = compile_kernel(
        sample_draw_kernel, arguments, arch=arch, launch=draw, name=f"sample_draw {label}"
    )
    assert binary.spills == binary.stack == 0
    assert max(binary.widths("ld")) == 16
