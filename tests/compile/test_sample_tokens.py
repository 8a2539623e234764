"""The sampling kernels at the vocabulary of the released models."""

from __future__ import annotations

import pytest
import triton

from fourdthinker.kernels._gpu_architectures import ARCHITECTURES, row
from fourdthinker.kernels._sample_kernel import sample_draw_kernel, sample_scan_kernel
from fourdthinker.kernels._sample_truncate import sample_bracket_kernel, sample_list_kernel
from tests.compile.aot import compile_kernel

VOCABULARY = 151_936
RULES = {"top_k_ptr": "*i32", "top_p_ptr": "*fp32", "min_p_ptr": "*fp32"}
PENALTIES = {"seen_ptr": "*u8", "repetition_ptr": "*fp32", "presence_ptr": "*fp32"}
SCRATCH = {"counts_ptr": "*i16", "plan_ptr": "*i32", "kept_ptr": "*fp32", "listed_ptr": "*fp32"}
ARGUMENTS = {
    "logits_stride": "i32", "temperature_ptr": "*fp32", "forbidden_ptr": "*i64", "figures_ptr": "*fp32",
    "first_ptr": "*i32", "seeds_ptr": "*i64", "steps_ptr": "*i64", "ids_ptr": "*i64", "logprobs_ptr": "*fp32",
    "sampled_ptr": "*fp32", "V": VOCABULARY, "F": 3,
}  # fmt: skip
# Instructions of all warps of a program that reads 8,192 logits. Triton 3.6 makes the most of them.
MOST = {"sample_scan": 8_400, "sample_list": 11_200}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("features", ["plain", "truncated", "all"])
def test_no_spills_and_wide_accesses(arch, dtype, features):
    scan = row("sample_scan", arch)
    parts = triton.cdiv(VOCABULARY, scan.block)
    optional = RULES | SCRATCH | PENALTIES
    chosen = dict.fromkeys(optional)
    chosen |= {} if features == "plain" else RULES | SCRATCH
    chosen |= PENALTIES if features == "all" else {}
    given = {"logits_ptr": f"*{dtype}", "PARTS": parts, "BLOCK": scan.block}
    given |= ARGUMENTS | chosen | {"WIDTH": triton.next_power_of_2(parts)}
    kernels = {"sample_scan": sample_scan_kernel, "sample_draw": sample_draw_kernel}
    if features != "plain":
        kernels |= {"sample_bracket": sample_bracket_kernel, "sample_list": sample_list_kernel}
    for name, kernel in kernels.items():
        launch = row(name, arch)
        arguments = {parameter: given[parameter] for parameter in kernel.arg_names}
        binary = compile_kernel(
            kernel, arguments, arch=arch, launch=launch, name=f"{name} {features} {dtype}"
        )
        assert binary.spills == binary.stack == 0
        if name == "sample_bracket":  # which reads no logits
            continue
        assert max(binary.widths("ld")) == 16
        if name == "sample_scan" and features != "plain":  # scores are counted by two instructions each
            assert binary.sass.count("ATOMS.POPC.INC") == scan.block // (32 * launch.num_warps)
        if name == "sample_list":  # indices are sums of warps
            assert "REDUX.SUM" in binary.sass
        if features == "truncated" and name in MOST and arch == 90:
            assert binary.instructions * launch.num_warps <= MOST[name]
        if name != "sample_draw":  # two programs, 64 KB of float32 logits on their way
            assert features == "all" or binary.occupancy >= 0.25
