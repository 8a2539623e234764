"""The kernel of the decode grammar against its reference, step by step, on everything it writes."""

from __future__ import annotations

import pytest
import torch

from fourdthinker.kernels import Recording, latent_feedback_step_, latent_state

PAD, START, END, EOS, FILL = 20, 21, 22, 7, 3


def run(backend, *, rows, width, dtype, mode, train_start, steps, strided=False, eos=(EOS, 8), max_latents=5,
        record=False, seen=True):  # fmt: skip
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    vocabulary = 25
    embedding = torch.randn(vocabulary, width, generator=generator).to(dtype)
    state = latent_state(rows, width, max_latents, dtype=dtype, device="cpu")
    choices = torch.tensor([0, 1, START, START, END, PAD, EOS])
    recording, more, kept = None, {}, {}
    if record:
        columns = 7  # fewer than the steps
        kept = {
            "tokens": torch.full((rows, columns), -9), "newest": torch.full((rows,), -1),
            "policy_mask": torch.zeros(rows, columns, dtype=torch.bool),
            "logprobs": torch.full((rows, columns), 5.0),
            "sampled_logprobs": torch.full((rows, columns), 5.0),
            "positions": torch.arange(rows), "forbidden": torch.full((rows, 3), -9),
        }  # fmt: skip
        if seen:
            kept["seen"] = torch.zeros(rows, vocabulary, dtype=torch.uint8)
        recording = Recording(**kept)
    trace = []
    for _ in range(steps):
        sampled = choices[torch.randint(0, len(choices), (rows,), generator=generator)]
        hidden = torch.randn(rows, width * (2 if strided else 1), generator=generator).to(dtype)[:, :width]
        outputs = {
            "emitted": torch.full((rows,), -9),
            "is_policy": torch.ones(rows, dtype=torch.bool),
            "next_embeds": torch.full((rows, width), torch.nan, dtype=dtype),
        }
        if record:
            drawn = torch.randn(2, rows, generator=generator)
            drawn[0, : rows // 3] = torch.nan
            more = {"logprobs": drawn[0], "sampled_logprobs": drawn[1], "max_blocks": 1}
        latent_feedback_step_(
            sampled, hidden, embedding, **state, **outputs, eos_ids=torch.tensor(eos, dtype=torch.int64),
            pad_id=PAD, start_id=START, end_id=END, fill_id=FILL, latent_size=2, mode=mode,
            train_start=train_start, backend=backend, recording=recording, **more,
        )  # fmt: skip
        trace.append({k: v.clone() for k, v in {**state, **outputs, **kept}.items()})
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


@pytest.mark.parametrize(
    "options",
    [{"eos": ()}, {"strided": True}, {"max_latents": 0}, {"record": True}, {"record": True, "seen": False}],
)
def test_no_eos_strided_hidden_no_history_and_recordings(options):
    base = {"rows": 6, "width": 33, "dtype": torch.float32, "mode": "exact", "train_start": False, "steps": 8}
    for kernel, reference in zip(
        run("triton", **base, **options), run("torch", **base, **options), strict=True
    ):
        for name, value in reference.items():
            torch.testing.assert_close(kernel[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
