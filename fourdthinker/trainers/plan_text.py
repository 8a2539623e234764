"""The plan of a run in words: what `--dry-run` prints."""

from __future__ import annotations

import os

from fourdthinker.trainers.plan import Plan, make_plan
from fourdthinker.trainers.plan_sizes import OPTIMIZERS
from fourdthinker.trainers.plan_time import DECODING, DEVICES, PASSES, Device
from fourdthinker.trainers.settings import TrainConfig


def plan_text(config: TrainConfig) -> str:
    """The plan of a run in words, for the processes of `WORLD_SIZE` and the devices of this machine."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = config.use_cpu
    plan = make_plan(config, world_size=world_size, on_cpu=on_cpu)
    shape, billions = plan.shape, plan.parameters / 1e9
    lines = [
        f"model: {config.model}, {billions:.3g} billion parameters, {plan.trained / 1e9:.3g} trained",
        f"largest forward: {shape.prompts} prompts of {shape.prompt} tokens ({shape.vision} of pictures), "
        f"{shape.rows} answers of {shape.answer} each: {shape.positions} positions",
        f"memory of each of {world_size} {'processes' if on_cpu else 'GPUs'}, in GB:",
    ]
    lines += [f"  {name:<16} {size / 1e9:8.2f}" for name, size in plan.parts.items() if size]
    if config.optim not in OPTIMIZERS:
        lines.append(
            f"  (the state of {config.optim} is not known; counted are the 8 bytes a weight of AdamW)"
        )
    lines.append("at the same time:")
    lines += [f"  {name:<16} {size / 1e9:8.2f}" for name, size in plan.phases.items()]
    fits = [device for device in DEVICES if _holds(device, plan.least)]
    if not on_cpu:
        named = ", ".join(f"{device.name} ({device.memory} GB)" for device in fits)
        lines.append(f"fits {named or f'no GPU of {DEVICES[-1].memory} GB'}")
        if slow := [device.name for device in fits if not _holds(device, plan.peak)]:
            lines.append(f"on {', '.join(slow)} rollouts gather layer by layer, which is slower")
        if len(fits) < len(DEVICES):
            lines.append(
                "smaller by: max_tokens_per_forward, gradient_checkpointing=true, lora, and on several GPUs "
                "fsdp=true or deepspeed (ZeRO)"
            )
    if config.cache_dir is not None:
        clip, picture = plan.cache
        lines.append(f"cache on disk: {clip / 1e6:.2f} MB a clip, {picture / 1e3:.3g} KB an imagery picture")
    if not on_cpu:
        lines += _times(plan)
    return "\n".join(lines) + "\n"


def _holds(device: Device, peak: int) -> bool:
    return peak * 1.1 <= device.memory * 1e9  # the allocator's own share


def _times(plan: Plan) -> list[str]:
    """The time of an update on the GPUs that it fits."""
    lines = [
        f"time of an update with answers of full length, at {PASSES:.0%} of the peak rate and, in decoding, "
        f"{DECODING:.0%} of the bandwidth (without reading of videos, rewards and communication):"
    ]
    for device in DEVICES:
        if _holds(device, plan.peak):
            training, sampling = plan.work.seconds(device)
            sheet = f"{device.rate:.0f} TFLOP/s, {device.bandwidth:.0f} GB/s"
            lines.append(
                f"  {device.name:<10} {training + sampling:8.2f} s: training {training:.2f}, before it "
                f"{sampling:.2f} ({sheet})"
            )
    return lines if len(lines) > 1 else []
