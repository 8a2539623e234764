"""The decode-grammar kernel at the widths of the released models."""

from __future__ import annotations

import pytest

from fourdthinker.kernels._common import tile
from fourdthinker.kernels._gpu_architectures import ARCHITECTURES, row
from fourdthinker.kernels.latent_grammar import latent_feedback_kernel
from tests.compile.aot import compile_kernel

ARGUMENTS = {
    "sampled_ptr": "*i64", "hidden_ptr": "*bf16", "hidden_stride": "i32", "embedding_ptr": "*bf16",
    "embedding_stride": "i32", "steps_ptr": "*i64", "phase_ptr": "*i32", "blocks_ptr": "*i32",
    "finished_ptr": "*u8", "latents_ptr": "*bf16", "latents_stride": "i32", "latent_steps_ptr": "*i32",
    "latent_count_ptr": "*i32", "eos_ptr": "*i64", "emitted_ptr": "*i64", "policy_ptr": "*u8",
    "next_ptr": "*bf16", "next_stride": "i32", "eos_count": "i32", "max_latents": "i32", "pad_id": "i32",
    "start_id": "i32", "end_id": "i32", "fill_id": "i32", "latent_size": "i32", "TRAIN_START": False,
    "BLOCK_E": 2,
    "columns": "i32", "seen_stride": "i32", "max_blocks": "i32",
}  # fmt: skip
HISTORY = {
    "logprobs_ptr": "*fp32", "sampled_logprobs_ptr": "*fp32", "tokens_history_ptr": "*i64",
    "policy_history_ptr": "*u8", "logprobs_history_ptr": "*fp32", "sampled_history_ptr": "*fp32",
    "positions_ptr": "*i64", "newest_ptr": "*i64", "forbidden_ptr": "*i64", "seen_ptr": "*u8",
}  # fmt: skip


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("width", [2048, 3584])
@pytest.mark.parametrize("recording", [False, True])
def test_no_spills_and_wide_accesses(arch, width, recording):
    launch = row("latent_feedback", arch)
    history = HISTORY if recording else dict.fromkeys(HISTORY)
    arguments = {**ARGUMENTS, **history, "H": width, "EARLY_END": False, "BLOCK_H": tile(width, launch.block)}
    binary = compile_kernel(
        latent_feedback_kernel, arguments, arch=arch, launch=launch, name=f"latent_feedback H={width}"
    )
    assert binary.spills == binary.stack == 0
    assert max(binary.widths("ld")) == 16
    assert max(binary.widths("st")) == 16
