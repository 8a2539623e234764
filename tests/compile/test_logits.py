"""The kernels over given logits at production sizes, in the dtypes that models hand out."""

from __future__ import annotations

import pytest

from fourdthinker.kernels import _logits
from fourdthinker.kernels._launch import ARCHITECTURES, row
from tests.compile.aot import compile_kernel


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("vocabulary", [151_668, 151_936, 152_064])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_no_spills_and_wide_accesses(arch, vocabulary, dtype):
    # Rows of 151,668 bf16 that somebody else allocated begin on 8 bytes; ours are padded.
    size = 2 if dtype == "bf16" else 4
    load = 8 if dtype == "bf16" and vocabulary % 8 else 16
    for entropy in (False, True):
        common = {
            "logits_ptr": f"*{dtype}", "batch_rows": "i32", "row_stride": vocabulary, "length": "i32",
            "bias_ptr": None, "target_ptr": "*i64", "mask_ptr": "*u8", "normaliser_ptr": "*fp32",
            "entropy_ptr": "*fp32" if entropy else None, "rate": "fp32", "softcap": "fp32", "V": vocabulary,
            "SOFTCAP": False,
        }  # fmt: skip
        gradient = {
            "grad_ptr": f"*{dtype}", "grad_batch_rows": "i32", "grad_row_stride": _logits.padded(vocabulary),
            "WIDTH": _logits.padded(vocabulary),
            "grad_logprob_ptr": "*fp32", "grad_entropy_ptr": "*fp32" if entropy else None,
        }  # fmt: skip
        for kernel, arguments, launch in (
            (
                _logits.logits_stats_kernel,
                {**common, "logprob_ptr": "*fp32", "VECTOR": load // size},
                row("logits_stats", arch),
            ),
            (_logits.logits_grad_kernel, {**common, **gradient}, row("logits_grad", arch)),
        ):
            name = f"given{kernel.__name__} {dtype} {vocabulary}"
            arguments["BLOCK"] = launch.block
            binary = compile_kernel(kernel, arguments, arch=arch, launch=launch, name=name)
            assert binary.spills == binary.stack == 0
            assert max(binary.widths("ld")) == load
            if kernel is _logits.logits_stats_kernel:
                # A GPU of 4 TB/s has 15 instructions an element of bf16; the loop had 16, 22 with entropy.
                bound = (11 if entropy else 9) + (2 if load == 8 else 0)
                assert binary.per_element(size) <= bound
            assert kernel is _logits.logits_stats_kernel or max(binary.widths("st")) == 16
