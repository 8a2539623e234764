"""The kernel of the decode grammar against its reference, step by step, on everything it writes."""

from __future__ import annotations

import pytest
import torch

from fourdthinker.kernels import latent_feedback_step_, latent_state

PAD, START, END, EOS, FILL = 20, 21, 22, 7, 3


def run(backend, *, rows, width, dtype, mode, train_start, steps, strided=False, eos=(EOS, 8), max_latents=5):
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    vocabulary = 25
    embedding = torch.randn(vocabulary, width, generator=generator).to(dtype)
    state = latent_state(rows, width, max_latents, dtype=dtype, device="cpu")
    choices = torch.tensor([0, 1, START, START, END, PAD, EOS])
    trace = []
    for _ in range(steps):
        sampled = choices[torch.randint(0, len(choices), (rows,), generator=generator)]
        hidden = torch.randn(rows, width * (2 if strided else 1), generator=generator).to(dtype)[:, :width]
        outputs = {
            "emitted": torch.full((rows,), -9),
            "is_policy": torch.ones(rows, dtype=torch.bool),
            "next_embeds": torch.full((rows, width), torch.nan, dtype=dtype),
        }
        latent_feedback_step_(
            sampled, hidden, embedding, **state, **outputs, eos_ids=torch.tensor(eos, dtype=torch.int64),
            pad_id=PAD, start_id=START, end_id=END, fill_id=FILL, latent_size=2, mode=mode,
            train_start=train_start, backend=backend,
        )  # fmt: skip
        trace.append({k: v.clone() for k, v in {**state, **outputs}.items()})
    return trace


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 17), (9, 128), (0, 8), (2, 4100)])
@pytest.mark.parametrize(("mode", "train_start"), [("exact", False), ("reference", True)])
def test_equals_the_reference(dtype, rows, width, mode, train_start):
    options = {
        "rows": rows,
        "width": width,
        "dtype": dtype,
        "mode": mode,
        "train_start": train_start,
        "steps": 9,
    }
    for kernel, reference in zip(run("triton", **options), run("torch", **options), strict=True):
        for name, value in reference.items():
            assert torch.equal(kernel[name], value), name


@pytest.mark.parametrize("options", [{"eos": ()}, {"strided": True}, {"max_latents": 0}])
def test_no_eos_strided_hidden_and_no_history(options):
    base = {"rows": 6, "width": 33, "dtype": torch.float32, "mode": "exact", "train_start": False, "steps": 8}
    for kernel, reference in zip(
        run("triton", **base, **options), run("torch", **base, **options), strict=True
    ):
        for name, value in reference.items():
            assert torch.equal(kernel[name], value), name
