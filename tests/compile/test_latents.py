"""pool_latents and cosine_latent_loss at the widths of the released models."""

from __future__ import annotations

import pytest

from fourdthinker.kernels._gpu_architectures import ARCHITECTURES, row
from fourdthinker.kernels.cosine_latent_loss import cosine_latent_kernel, cosine_latent_scale_kernel
from fourdthinker.kernels.pool_latents import pool_latents_kernel
from tests.compile.aot import compile_kernel


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("width", [2048, 3584])
def test_pool_latents(arch, width):
    launch = row("pool_latents", arch)
    arguments = {
        "features_ptr": "*bf16", "features_stride": "i32", "starts_ptr": "*i64", "counts_ptr": "*i64",
        "output_ptr": "*bf16", "latent_size": "i32", "H": width,
        "BLOCK_R": launch.rows, "BLOCK_H": launch.block,
    }  # fmt: skip
    binary = compile_kernel(
        pool_latents_kernel, arguments, arch=arch, launch=launch, name=f"pool_latents H={width}"
    )
    assert binary.spills == binary.stack == 0
    assert max(binary.widths("ld")) == 16


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("width", [2048, 3584])
def test_cosine_latent_loss(arch, width):
    arguments = {
        "hidden_ptr": "*bf16", "hidden_stride": "i32", "target_ptr": "*bf16", "target_stride": "i32",
        "index_ptr": "*i64", "scale_ptr": "*fp32", "cosine_ptr": "*fp32", "grad_ptr": "*bf16",
        "NEED_GRAD": True, "H": width, "EPSILON": 1e-8, "BLOCK_H": 4096 if width > 2048 else 2048,
    }  # fmt: skip
    binary = compile_kernel(
        cosine_latent_kernel,
        arguments,
        arch=arch,
        launch=row("cosine_latent", arch),
        name=f"cosine forward H={width}",
    )
    assert binary.spills == binary.stack == 0
    assert max(binary.widths("ld")) == 16
    assert max(binary.widths("st")) == 16
    scale = {k: arguments[k] for k in ("grad_ptr", "index_ptr", "H", "BLOCK_H")}
    binary = compile_kernel(
        cosine_latent_scale_kernel, {**scale, "upstream_ptr": "*fp32"}, arch=arch,
        launch=row("cosine_latent_scale", arch), name=f"cosine scale H={width}",
    )  # fmt: skip
    assert binary.spills == binary.stack == 0
