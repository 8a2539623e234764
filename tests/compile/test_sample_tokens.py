"""The sampling kernel at the vocabulary of the released models."""

from __future__ import annotations

import pytest
import triton

from fourdthinker.kernels._launch import ARCHITECTURES, row
from fourdthinker.kernels._sample_kernel import sample_tokens_kernel
from tests.compile.aot import compile_kernel

ARGUMENTS = {
    "logits_ptr": "*bf16", "logits_stride": "i32", "seeds_ptr": "*i64", "steps_ptr": "*i64",
    "temperature_ptr": "*fp32", "forbidden_ptr": "*i64", "ids_ptr": "*i64", "logprobs_ptr": "*fp32",
    "sampled_ptr": "*fp32", "V": 151_936, "F": 3,
}  # fmt: skip
OPTIONAL = {
    "top_k_ptr": "*i32", "top_p_ptr": "*fp32", "min_p_ptr": "*fp32", "seen_ptr": "*u8",
    "repetition_ptr": "*fp32", "presence_ptr": "*fp32", "listed_ptr": "*i32",
}  # fmt: skip


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("everything", [False, True])
def test_no_spills_and_wide_accesses(arch, everything):
    launch = row("sample_tokens", arch)
    tiles = triton.next_power_of_2(triton.cdiv(ARGUMENTS["V"], launch.block))
    arguments = (
        ARGUMENTS
        | {"BLOCK": launch.block, "TILES": tiles}
        | (OPTIONAL if everything else dict.fromkeys(OPTIONAL))
    )
    name = "sample_tokens all" if everything else "sample_tokens plain"
    binary = compile_kernel(sample_tokens_kernel, arguments, arch=arch, launch=launch, name=name)
    assert binary.spills == binary.stack == 0
    assert max(binary.widths("ld")) == 16
