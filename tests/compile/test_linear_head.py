"""The logits kernels at the vocabularies of the released models."""

from __future__ import annotations

import pytest

from fourdthinker.kernels import _logits
from fourdthinker.kernels._gpu_architectures import ARCHITECTURES, row
from tests.compile.aot import compile_kernel


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("vocabulary", [151_668, 151_936])
@pytest.mark.parametrize(("entropy", "softcap"), [(False, False), (True, False), (True, True)])
def test_no_spills_and_wide_accesses(arch, vocabulary, entropy, softcap):
    launch, grad_launch = row("logits_stats", arch), row("logits_grad", arch)
    common = {
        "logits_ptr": "*fp32", "batch_rows": "i32", "row_stride": _logits.padded(vocabulary),
        "length": "i32", "bias_ptr": None, "target_ptr": "*i64", "mask_ptr": None, "normaliser_ptr": "*fp32",
        "entropy_ptr": "*fp32" if entropy else None, "rate": "fp32", "softcap": "fp32", "V": vocabulary,
        "SOFTCAP": softcap, "BLOCK": launch.block,
    }  # fmt: skip
    label = f"V={vocabulary}{' entropy' if entropy else ''}{' softcap' if softcap else ''}"
    binary = compile_kernel(
        _logits.logits_stats_kernel, {**common, "logprob_ptr": "*fp32", "more_ptr": None, "VECTOR": 4},
        arch=arch, launch=launch, name=f"logits stats {label}",
    )  # fmt: skip
    assert binary.spills == binary.stack == 0
    assert max(binary.widths("ld")) == 16
    # tanh by two sigmoids, which lost digits, had 3.5 more here and 5.6 below.
    assert binary.per_element(4) <= (26 if softcap else 12)
    gradient = {
        "grad_ptr": "*bf16", "grad_batch_rows": "i32", "grad_row_stride": 2 * _logits.padded(vocabulary),
        "grad_logprob_ptr": "*fp32", "grad_entropy_ptr": "*fp32" if entropy else None,
        "WIDTH": _logits.padded(vocabulary), "BLOCK": grad_launch.block,
    }  # fmt: skip
    binary = compile_kernel(
        _logits.logits_grad_kernel,
        {**common, **gradient},
        arch=arch,
        launch=grad_launch,
        name=f"logits grad {label}",
    )
    assert binary.spills == binary.stack == 0
    assert max(binary.widths("ld")) == 16
    assert max(binary.widths("st")) == 16
    assert binary.per_element(4) <= (25 if softcap else 8)
