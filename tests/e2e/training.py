"""What the trainer tests share: tiny videos and records, samples in memory, processes started by torchrun."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fourdthinker.backbones import Checkpoint, save_checkpoint
from fourdthinker.frames import FramePolicy
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.records import Record
from fourdthinker.samples import Prompt, Sample, Vision
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
POLICY = FramePolicy(fps=2.0, max_frames=4, max_pixels=56 * 56)
POLICIES = {"qwen2_5_vl": POLICY, "qwen3_vl": replace(POLICY, max_pixels=64 * 64, factor=32)}
BARE: dict[str, Any] = {  # a run that reports to its own log alone, and saves at its end
    "use_cpu": True,
    "report_to": [],
    "save_steps": 0,
    "logging_steps": 1,
    "warmup_steps": 0,
}
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "TOKENIZERS_PARALLELISM": "false",
}


def write_video(path: Path, shade: int, *, frames: int = 8, size: int = 56) -> None:
    """A second of H.264: a bright square that moves over a plain ground."""
    import av  # a GPU machine trains without it

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for k in range(frames):
            picture = np.full((size, size, 3), shade, np.uint8)
            picture[10:30, 3 * k : 3 * k + 20] = 255 - shade
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_data(folder: Path, number: int) -> tuple[Path, Path]:
    """Tiny videos, overlays and the record files of both trainers: (dift.jsonl, rl.jsonl)."""
    folder.mkdir(parents=True, exist_ok=True)
    dift: list[dict[str, Any]] = []
    rl: list[dict[str, Any]] = []
    for i in range(number):
        write_video(folder / f"{i}.mp4", 20 + 10 * i)
        overlays = []
        for j in range(1 + i % 2):
            overlays.append(f"{i}_{j}.png")
            Image.new("RGB", (56, 56), (30 * i, 200, 40 * j)).save(folder / overlays[-1])
        answer = "AB"[i % 2]
        text = "left" if answer == "A" else "right"
        thought = (
            f"<think> I picture {' then '.join(['<output_image>'] * len(overlays))} {'and ' * i}</think>"
        )
        dift.append(
            {
                "id": f"d{i}",
                "video": f"{i}.mp4",
                "text_input": "Which way does the cube move?\n\nA. left\nB. right",
                "text_output": f"{thought} <answer> {answer}. {text} </answer>",
                "image_output": overlays,
            }
        )
        question = "Which way does the cube move?"
        rl.append(
            {
                "id": f"r{i}",
                "video_path": f"{i}.mp4",
                "Question": question,
                "A": "left",
                "B": "right",
                "Correct": answer,
            }
        )
    paths = folder / "dift.jsonl", folder / "rl.jsonl"
    for path, records in zip(paths, (dift, rl), strict=True):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return paths


def write_model(folder: Path, family: str = "qwen2_5_vl") -> Path:
    style = PromptStyle(instruction="")
    checkpoint = tiny_checkpoint(family=family, hidden=32, layers=1, policy=POLICIES[family], style=style)
    save_checkpoint(folder, checkpoint)
    return folder


def samples(checkpoint: Checkpoint, number: int, *, seed: int = 0) -> list[Sample]:
    """Samples in memory, of unequal lengths, with 1 to 3 blocks, a third of them without pictures."""
    backbone = checkpoint.backbone
    latents, generator = backbone.latents, torch.Generator().manual_seed(seed)
    width, result = (1 + backbone.deepstack_levels) * backbone.hidden_size, []
    for i in range(number):
        length = 40 + 7 * (i % 5)
        ids = torch.randint(0, 300, (length,), generator=generator)
        blocks = 1 + i % 3
        for b in range(blocks):
            start = length - 7 * (b + 1)
            ids[start] = latents.start_id
            ids[start + 1 : start + 5] = latents.pad_id
            ids[start + 5] = latents.end_id
        labels = ids.clone()
        labels[: 12 + i % 4] = -100
        labels[ids == latents.pad_id] = -100
        vision = None
        if i % 3:
            ids[2:10] = backbone.vision.video_token_id
            vision = Vision(torch.tensor([[2, 4, 4]]), features=torch.randn(8, width, generator=generator))
        result.append(
            Sample(
                ids,
                torch.arange(length).expand(3, length),
                labels,
                vision,
                latents=torch.randn(4 * blocks, 32, generator=generator),
                vision_index=(ids == backbone.vision.video_token_id).nonzero()[:, 0],
                latent_index=(ids == latents.pad_id).nonzero()[:, 0],
            )
        )
    return result


def pixel_samples(checkpoint: Checkpoint, number: int) -> list[Sample]:
    """Samples of which the second has a clip and a block of imagery, as pixels; the others are text alone."""
    backbone, generator = checkpoint.backbone, torch.Generator().manual_seed(7)
    latents, result = backbone.latents, []
    for i in range(number):
        ids = torch.randint(0, 300, (28 + 3 * (i % 4),), generator=generator)
        pictures: list[Vision | None] = [None, None]
        if i == 1:
            ids[2:6] = backbone.vision.video_token_id
            ids[20:26] = torch.tensor([latents.start_id, *[latents.pad_id] * 4, latents.end_id])
            grid, width = torch.tensor([[1, 4, 4]]), backbone.vision.patch_dim
            pictures = [Vision(grid, torch.randn(16, width, generator=generator)) for _ in range(2)]
        labels = ids.masked_fill(ids == latents.pad_id, -100)
        labels[:12] = -100
        result.append(
            Sample(
                ids,
                torch.arange(len(ids)).expand(3, -1),
                labels,
                *pictures,
                vision_index=(ids == backbone.vision.video_token_id).nonzero()[:, 0],
                latent_index=(ids == latents.pad_id).nonzero()[:, 0],
            )
        )
    return result


def prompts(checkpoint: Checkpoint, number: int, *, seed: int = 0) -> list[Prompt]:
    """Prompts in memory, of unequal lengths, with a record each."""
    backbone, generator = checkpoint.backbone, torch.Generator().manual_seed(seed)
    width, result = (1 + backbone.deepstack_levels) * backbone.hidden_size, []
    for i in range(number):
        length = 20 + 3 * (i % 4)
        ids = torch.randint(0, 300, (length,), generator=generator)
        ids[2:10] = backbone.vision.video_token_id
        vision = Vision(torch.tensor([[2, 4, 4]]), features=torch.randn(8, width, generator=generator))
        record = Record(
            "rl", f"p{i}", "?", options={"A": "left", "B": "right"}, answer="A", where=f"memory:{i}"
        )
        result.append(Prompt(ids, torch.arange(length).expand(3, length), length, vision, record))
    return result


def length_reward(text: str, record: Record) -> float:
    """Something that differs between the rollouts of an untrained model."""
    return (len(text) * 7 + len(record.id)) % 11 / 10


def torchrun(processes: int, *arguments: str) -> subprocess.Popen[str]:
    """Start `torchrun` in a session of its own, so that its workers end with it when it hangs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*command, "--nproc_per_node", str(processes), *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, timeout: float = 400) -> str:
    """The output of a process that must succeed."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    assert process.returncode == 0, output[-20000:]
    return output


def killed(processes: int, trainer: str, step: int, *arguments: str) -> None:
    """A run that dies at the end of a step, without any chance to clean up."""
    worker = str(Path(__file__).with_name("killed_worker.py"))
    process = torchrun(processes, worker, trainer, str(step), *arguments)
    output, _ = process.communicate(timeout=400)
    assert process.returncode != 0
    assert "SIGKILL" in output, output[-4000:]


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that belong to steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "learning_rate" in line]


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    """Step -> what was written of its evaluation."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "eval_seconds" in line}


def evaluated(line: dict[str, float]) -> dict[str, float]:
    """What an evaluation found, without what the machine decides."""
    return {k: v for k, v in line.items() if k.startswith("eval_") and k != "eval_seconds"}


def unexplained(line: dict[str, Any]) -> set[str]:
    """The metrics of a line that docs/training.md says nothing of."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = page[page.index("### Metrics") : page.index("### Evaluation during training")]
    known = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE))))
    assert len(known) > 40
    others = re.compile(r"reward_\w+|latent_cos_\d+|step|epoch")
    return {name for name in line if name not in known and not others.fullmatch(name)}


MEASURED = ("time_", "sampling_", "eval_seconds", "memory")


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics without what the machine decides: seconds, shares of time, speed, memory."""
    return {k: v for k, v in line.items() if not k.startswith(MEASURED) and not k.endswith("_per_second")}


def settings(values: dict[str, Any]) -> list[str]:
    """As `key=value` arguments."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def relative_difference(
    a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], names: Sequence[str]
) -> dict[str, float]:
    return {name: ((a[name] - b[name]).norm() / b[name].norm()).item() for name in names}
