"""The kernels over given logits at production sizes, in the dtypes that models hand out."""

from __future__ import annotations

import pytest

from fourdthinker.kernels import _logits
from fourdthinker.kernels._gpu_architectures import ARCHITECTURES, row
from tests.compile.aot import compile_kernel


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("vocabulary", [151_668, 151_936, 152_064])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_no_spills_and_wide_accesses(arch, vocabulary, dtype):
    # Rows of 151,668 bf16 that somebody else allocated begin on 8 bytes; ours are padded.
    size = 2 if dtype == "bf16" else 4
    load = 8 if dtype == "bf16" and vocabulary % 8 else 16
    for entropy, more in ((False, False), (True, False), (True, True)):
        common = {
            "logits_ptr": f"*{dtype}", "batch_rows": "i32", "row_stride": vocabulary, "length": "i32",
            "bias_ptr": None, "target_ptr": "*i64", "mask_ptr": "*u8", "normaliser_ptr": "*fp32",
            "entropy_ptr": "*fp32" if entropy else None, "rate": "fp32", "softcap": "fp32", "V": vocabulary,
            "SOFTCAP": False,
        }  # fmt: skip
        label = f"{dtype} {vocabulary}{' entropy' if entropy else ''}{' more' if more else ''}"
        launch = row("logits_stats", arch)
        statistics = {"logprob_ptr": "*fp32", "more_ptr": "*fp32" if more else None, "VECTOR": load // size}
        binary = compile_kernel(
            _logits.logits_stats_kernel, {**common, **statistics, "BLOCK": launch.block},
            arch=arch, launch=launch, name=f"logits stats {label}",
        )  # fmt: skip
        assert binary.spills == binary.stack == 0
        assert max(binary.widths("ld")) == load
        # A GPU of 4 TB/s has 15 instructions an element of bf16; the loop had 16, 22 with entropy.
        assert binary.per_element(size) <= 9 + 2 * entropy + 3 * more + 2 * (load == 8)
        if more:
            continue
        gradient = {
            "grad_ptr": f"*{dtype}", "grad_batch_rows": "i32", "grad_row_stride": _logits.padded(vocabulary),
            "WIDTH": _logits.padded(vocabulary),
            "grad_logprob_ptr": "*fp32", "grad_entropy_ptr": "*fp32" if entropy else None,
        }  # fmt: skip
        launch = row("logits_grad", arch)
        binary = compile_kernel(
            _logits.logits_grad_kernel, {**common, **gradient, "BLOCK": launch.block},
            arch=arch, launch=launch, name=f"logits grad {label}",
        )  # fmt: skip
        assert binary.spills == binary.stack == 0
        assert max(binary.widths("ld")) == load
        assert max(binary.widths("st")) == 16
        # Above 10 the 5 GB of a step of GRPO would be bound by issue; plain exp and a comparison had 15.
        assert binary.per_element(size) <= 7.5 + 2 * entropy + (load == 8)
