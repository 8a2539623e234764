"""One training step of a 3B model of random weights on the CPU: ``python -m bench full_size``.

In bfloat16: a DIFT step with SGD, and a 4DRL step of an adapter (2 prompts x 2 rollouts of 32 tokens). True
shapes, dtypes and a tied head are run; the peak of resident memory is compared with that of the plan
(``--dry-run``). Each step is a process of its own and needs about 16 GB of free memory.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from bench import _measure as measure
from bench._sampler_cases import LATENTS, build, make_prompts
from fourdthinker.backbones.adapters import add_lora
from fourdthinker.backbones.common import Backbone
from fourdthinker.kernels import GrpoOptions
from fourdthinker.objectives import dift_objective, grpo_objective
from fourdthinker.sampler import LatentSampler, SamplingConfig, encode_prompts, replay_batch
from fourdthinker.trainers.plan import make_plan
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig

STEPS = ("dift", "grpo")
PROMPT, VISION, ANSWER = 128, 64, 128  # of DIFT
GRID = (2, 8, 8)  # of the clip of a 4DRL prompt
GROUP, COMPLETION = 2, 32
LIMIT = 20e9
ADAPTER = {"r": 16, "alpha": 32.0, "dropout": 0.0}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class _Linear(torch.autograd.Function):
    """A linear layer whose backward pass copies the weight transposed.

    For grad @ weight in bfloat16, torch on a CPU without AVX-512 takes a loop that is 30 times slower than
    the one for inputs @ weight.T.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.has_bias = bias is not None
        out = inputs @ weight.t()
        return out if bias is None else out + bias

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        (grad,) = grads
        rows = grad.flatten(0, -2)
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = (rows @ weight.t().contiguous().t()).view_as(inputs)
        if ctx.needs_input_grad[1]:
            dw = rows.t() @ inputs.flatten(0, -2)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            db = rows.sum(0)
        return dx, dw, db


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = _Linear.apply(inputs, weight, bias)
    assert isinstance(out, Tensor)
    return out


def dift_step(backbone: Backbone) -> None:
    """Forward, backward and SGD on all weights but the tower's."""
    length = PROMPT + ANSWER
    ids = torch.randint(0, 150_000, (1, length))
    answer = torch.arange(PROMPT, length)
    target = torch.full((1, length), -100)
    target[0, PROMPT:] = ids[0, PROMPT:]
    width = backbone.hidden_size
    batch: dict[str, Any] = {
        "input_ids": ids,
        "position_ids": torch.arange(length).expand(3, 1, -1),
        "vision_index": torch.arange(VISION),
        "vision_features": torch.randn(VISION, width, dtype=backbone.dtype),
        "latent_index": answer[8:16],
        "latents": torch.randn(8, width, dtype=backbone.dtype),
        "target": target,
        "rows": answer,
    }
    trained = [p for p in backbone.parameters() if p.requires_grad]
    objective = functools.partial(dift_objective, num_tokens=float(ANSWER), num_latents=8.0)
    loss, *_ = backbone(batch, objective)
    loss.backward()
    torch.optim.SGD(trained, lr=1e-3, foreach=False).step()


def grpo_step(backbone: Backbone) -> None:
    """Rollouts, the training forward over shared prompts, backward and AdamW on the adapter."""
    prompts = make_prompts(backbone, 2, GRID)
    with torch.no_grad():
        features = encode_prompts(backbone, prompts)
        rollout = LatentSampler(backbone).sample(
            prompts, GROUP, SamplingConfig(max_new_tokens=COMPLETION), seeds=[1, 2, 3, 4], features=features
        )
    batch = replay_batch(rollout, prompts, features=features, share=True)
    batch["advantages"] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    trained = [p for p in backbone.parameters() if p.requires_grad]
    backbone.train()
    loss, *_ = backbone(
        batch, functools.partial(grpo_objective, options=GrpoOptions(beta=0.0), num_items=4.0)
    )
    loss.backward()
    torch.optim.AdamW(trained, lr=1e-5, foreach=False).step()


def planned(step: str, backbone: Backbone) -> float:
    """What the plan says the step holds: bytes."""
    values: dict[str, Any] = {"dtype": "bfloat16", "use_cpu": True, "gradient_checkpointing": True}
    with TemporaryDirectory() as folder:
        config = backbone.hf.config.to_dict()
        config |= {
            "latent_size": LATENTS.latent_size, "latent_token_id": LATENTS.pad_id,
            "latent_start_id": LATENTS.start_id, "latent_end_id": LATENTS.end_id,
        }  # fmt: skip
        Path(folder, "config.json").write_text(json.dumps(config, default=str))
        values |= {"model": folder}
        if step == "dift":
            cached = {"cache_dir": "none", "cache_video": True}  # the batch has features and latents
            plan = make_plan(DiftConfig(**values, **cached, max_prompt_tokens=PROMPT), on_cpu=True)
            # SGD on the weights themselves.
            return plan.phases["training"] - plan.parts["optimizer"] - plan.parts["master weights"]
        lora = ADAPTER | {"target_modules": TARGETS}
        options = {"num_generations": GROUP, "max_completion_length": COMPLETION, "loss": {"beta": 0.0}}
        plan = make_plan(
            GrpoConfig(
                **values,
                **options,
                lora=lora,
                max_prompt_tokens=GRID[0] * GRID[1] * GRID[2] // 4 + 52,
                per_device_train_batch_size=2,
            ),
            on_cpu=True,
        )
        return plan.phases["training"]


def one(step: str, shape: str) -> None:
    """In a process of its own: its row to stdout."""
    torch.manual_seed(0)
    torch.nn.functional.linear = _linear
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    backbone = build(shape, "cpu", torch.bfloat16)
    backbone.freeze_vision()
    if step == "grpo":
        add_lora(backbone, target_modules=TARGETS, **ADAPTER)
    backbone.gradient_checkpointing_enable()
    backbone.train()
    plan, started = planned(step, backbone), time.perf_counter()
    (dift_step if step == "dift" else grpo_step)(backbone)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row = {
        "step": step, "shape": shape, "peak_GB": round(peak / 1e9, 2),
        "of_the_step_GB": round((peak - before) / 1e9, 2),
        "plan_GB": round(plan / 1e9, 2), "plan_over_measured": round(plan / (peak - before), 3),
        "seconds": round(seconds, 1),
    }  # fmt: skip
    sys.stdout.write(json.dumps(row) + "\n")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench full_size", description=__doc__)
    parser.add_argument("--shape", default="3b", help="of bench sampler")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--only", choices=STEPS, help=argparse.SUPPRESS)
    measure.add_save(parser)
    options = parser.parse_args(argv)
    if options.only:
        one(options.only, options.shape)
        return 0
    rows = []
    for step in options.steps:
        command = [sys.executable, "-m", "bench", "full_size", "--only", step, "--shape", options.shape]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(result.stdout.splitlines()[-1]))
    measure.show("One step of a model of random weights in bfloat16 on the CPU", rows)
    if options.save:
        measure.save("full_size", rows, "cpu", replacing=("step", "shape"))
    sys.stdout.write(json.dumps({"rows": rows}) + "\n")
    return int(any(row["peak_GB"] * 1e9 > LIMIT or abs(row["plan_over_measured"] - 1) > 0.15 for row in rows))
