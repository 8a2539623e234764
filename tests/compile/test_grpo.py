"""The kernels of the GRPO loss."""

from __future__ import annotations

import re

import pytest

from fourdthinker.kernels import GrpoOptions
from fourdthinker.kernels._gpu_architectures import ARCHITECTURES, row
from fourdthinker.kernels._grpo_metrics import LARGEST, METRICS
from fourdthinker.kernels.group_advantages import SCALES, group_advantages_kernel
from fourdthinker.kernels.grpo_token_loss import grpo_token_loss_kernel
from tests.compile.aot import compile_kernel


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_group_advantages(arch):
    launch = row("group_advantages", arch)
    for scale in SCALES:
        arguments = {
            "rewards_ptr": "*fp32", "output_ptr": "*fp32", "rewards": "i32", "group_size": "i32",
            "eps": "fp32", "SCALE": scale, "BLOCK_G": 16, "BLOCK_R": launch.block,
        }  # fmt: skip
        name = f"group_advantages {scale}"
        binary = compile_kernel(group_advantages_kernel, arguments, arch=arch, launch=launch, name=name)
        assert binary.spills == binary.stack == 0
        assert not re.search(r"\b(max|min)\.f32", binary.ptx)  # they drop NaN, which the interpreter does not


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["grpo token", "grpo sequence", "cispo token", "sapo token", "vespo token"])
def test_grpo_token_loss(arch, kind):
    launch, (loss_type, level) = row("grpo_token_loss", arch), kind.split()
    options = GrpoOptions(loss_type=loss_type, ratio_level=level)
    floats = ("logprobs", "advantages", "old", "ref", "sampler", "entropy", "scale", "loss", "grad",
              "entropy_grad", "sums")  # fmt: skip
    arguments = {
        **{f"{name}_ptr": "*fp32" for name in floats}, "mask_ptr": "*u8", "entropy_mask_ptr": "*u8",
        "length": "i32", "advantage_stride": "i32", "advantage_step": "i32", "beta": "fp32", "low": "fp32",
        "high": "fp32", "delta": "fp32", "rate": "fp32", "power": "fp32", "other_rate": "fp32",
        "other_power": "fp32", "sampler_floor": "fp32", "sampler_cap": "fp32", "off_policy_bound": "fp32",
        "entropy_coef": "fp32", "TERM": options.term, "KL": "k3", "KL_RATIO": "sapo" in kind,
        "CORRECTS_SEQUENCES": "sequence" in kind, "MASKED": "sapo" in kind, "OFF_POLICY": "sapo" in kind,
        "PER_SEQUENCE": options.per_sequence, "MULTIPLIES_RATIOS": options.multiplies_ratios,
        "POOLS_SLOPES": "sequence" in kind, "PER_LENGTH": "grpo" in kind, "MEAN_ENTROPY": "grpo" in kind,
        "CORRECTS_RATIOS": options.multiplies_ratios, "CORRECTS_TERMS": not options.multiplies_ratios,
        "METRICS": len(METRICS), "LARGEST": LARGEST, "BLOCK": launch.block,
    }  # fmt: skip
    name = f"grpo_token_loss {kind}"
    binary = compile_kernel(
        grpo_token_loss_kernel,
        arguments,
        arch=arch,
        launch=launch,
        name=name,
        unaligned=("advantage_stride",),
    )
    assert binary.spills == binary.stack == 0
