"""The phases of the demo that need the model, run by two processes at once.

They are started by `torchrun -m fourdthinker.demo.work RUN_FOLDER`.

Training is data parallel, exactly as with `train/dift.py` and `train/grpo.py`. The evaluations of the
checkpoints are shared out between the processes.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from fourdthinker.backbones import load_checkpoint, save_checkpoint
from fourdthinker.demo.model import make_checkpoint
from fourdthinker.demo.pictures import (
    Features,
    LazySamples,
    Pictures,
    create_features,
    make_features,
    match_scale,
)
from fourdthinker.demo.settings import DemoSettings, TrainSettings
from fourdthinker.evaluate import evaluate
from fourdthinker.files import parse_json, write_json
from fourdthinker.kernels import GrpoOptions
from fourdthinker.records import Record, read_records
from fourdthinker.sampler import LatentSampler, SamplingConfig
from fourdthinker.trainers.dift import train_dift
from fourdthinker.trainers.driver import process_group, start_logging
from fourdthinker.trainers.grpo import train_grpo
from fourdthinker.trainers.run_folder import FINAL
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig

logger = logging.getLogger("fourdthinker.demo.work")  # run as a module, __name__ would be __main__

DONE = "done.json"
MAX_BLOCKS = 2  # of an answer: the solid in the first and in the last frame
# Checkpoints on the held-out questions, and what remains of the final ones without their own pictures.
ARMS: dict[str, tuple[str, Any]] = {
    "base": ("base", None),
    "dift": ("dift", None),
    "dift_control": ("dift_control", None),
    "rl": ("rl", None),
    "black_frames": ("rl", "black"),
    "other_frames": ("rl", "other"),
    "black_frames_control": ("dift_control", "black"),
    "other_frames_control": ("dift_control", "other"),
}


def is_done(run: Path, phase: str, settings: DemoSettings) -> bool:
    """Whether the outputs of a phase are there and were made from the same inputs."""
    try:
        found = parse_json((run / phase / DONE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("key") == settings.key(phase)


def mark_done(run: Path, phase: str, settings: DemoSettings, seconds: float) -> None:
    """Note that a phase is finished, and what its outputs were made from, for `is_done`."""
    write_json(run / phase / DONE, {"key": settings.key(phase), "seconds": round(seconds, 1)})


class StoppedError(RuntimeError):
    """A signal ended a training before its last update."""


def finished(path: Path) -> Path:
    """What a trainer returned, if it is the final checkpoint.

    Args:
        path: the folder that it gave.

    Returns:
        The same.

    Raises:
        StoppedError: a signal ended the run, and it is a checkpoint on the way.
    """
    if path.name != FINAL:
        raise StoppedError(f"a signal ended the training at {path}; start the same command to go on")
    return path


def wait_for_all() -> None:
    """Until every process is here; at once where there is only this one."""
    if dist.is_initialized():
        dist.barrier()


@dataclass
class Work:
    """What every phase needs."""

    run: Path
    settings: DemoSettings
    rank: int
    world: int

    def __post_init__(self) -> None:
        self.pictures = Pictures(self.run / "render")
        self.counts = {split: getattr(self.settings.render, split) for split in ("train", "rl", "test")}

    @property
    def features(self) -> Features:
        """What the base phase made of every clip and overlay."""
        return Features(self.run / "features", self.pictures)

    def records(self, name: str, kind: Any) -> list[Record]:
        """The records of one file of the render folder; `kind` as for `read_records`."""
        return read_records(self.run / "render" / f"{name}.jsonl", kind=kind)

    def final(self, phase: str) -> Path:
        """The checkpoint that a training phase leaves."""
        return self.run / phase / FINAL

    def common(self, phase: str, train: TrainSettings) -> dict[str, Any]:
        """Settings that both trainers take."""
        return {
            "output_dir": str(self.run / phase),
            "overwrite_output_dir": True,
            "max_steps": train.steps,
            "per_device_train_batch_size": max(1, train.batch // self.world),
            "learning_rate": train.learning_rate,
            "lr_scheduler_type": train.schedule,
            "warmup_steps": train.warmup,
            "weight_decay": train.weight_decay,
            "adam_beta2": train.beta2,
            "logging_steps": max(1, train.steps // 50),
            "report_to": [],
            "save_steps": 0,
            "seed": self.settings.seed,
            "use_cpu": True,
        }

    # -- phases

    def base(self, **options: Any) -> None:
        """Tower and language model together, on captions: where things are seen and how the ground slides.

        Args:
            options: settings of DIFT beside the demo's.
        """
        start = self.run / "base" / "start"
        if self.rank == 0:
            save_checkpoint(start, make_checkpoint(self.settings.model, self.settings.seed))
        wait_for_all()
        checkpoint = load_checkpoint(start)
        samples = LazySamples(self.records("captions", "dift"), checkpoint.encoder(), self.pictures)
        config = DiftConfig(
            **self.common("base", self.settings.base) | options,
            freeze_vision=False,
            ce_loss_weight=1.0,
            sim_loss_weight=0.0,
        )
        final = finished(train_dift(config, checkpoint=checkpoint, samples=samples))
        checkpoint = load_checkpoint(final)
        backbone = checkpoint.backbone.eval()
        factor = match_scale(backbone, self.pictures)
        if self.rank == 0:
            logger.info("base: features scaled by %.3f", factor)
            save_checkpoint(final, checkpoint)
            create_features(backbone, self.pictures, self.run / "features", self.counts)
        wait_for_all()
        make_features(backbone, self.pictures, self.run / "features", self.counts, self.rank, self.world)

    def dift(self) -> None:
        """Fine-tune the base model on reasoning with imagery."""
        self._dift("dift", "dift", "base", self.settings.dift)

    def dift_control(self) -> None:
        """As many further DIFT steps as 4DRL makes, on its prompts in its order, at its rates.

        Only the last updates differ, at a rate near zero: at the end of an epoch 4DRL leaves out prompts that
        do not fill an update, and DIFT does not.
        """
        self._dift("dift_control", "control", "dift", self.settings.rl)

    def _dift(self, phase: str, data: str, before: str, train: TrainSettings) -> None:
        checkpoint = load_checkpoint(self.final(before))
        encoder, features = checkpoint.encoder(), self.features
        samples = [features.sample(record, encoder) for record in self.records(data, "dift")]
        finished(train_dift(DiftConfig(**self.common(phase, train)), checkpoint=checkpoint, samples=samples))

    def rl(self) -> None:
        """4DRL from the checkpoint that DIFT left."""
        checkpoint = load_checkpoint(self.final("dift"))
        encoder, features = checkpoint.encoder(), self.features
        prompts = [features.prompt(record, encoder) for record in self.records("rl", "rl")]
        finished(train_grpo(GrpoConfig(**self.rl_options()), checkpoint=checkpoint, prompts=prompts))

    def rl_options(self) -> dict[str, Any]:
        """The settings of the demo's 4DRL."""
        train = self.settings.rl
        return self.common("rl", train) | {
            "num_generations": train.generations,
            "max_completion_length": train.max_tokens,
            "max_blocks": MAX_BLOCKS,
            "loss": GrpoOptions(beta=train.beta),
            "train_start": train.train_start,
            "drop_equal_groups": True,
            "log_rollouts_steps": max(1, train.steps // 5),
        }

    def sampling(self) -> SamplingConfig:
        """How the held-out questions are answered."""
        most = self.settings.evaluate.max_tokens
        return SamplingConfig(max_new_tokens=most, max_blocks=MAX_BLOCKS, seed=self.settings.seed)

    def evaluate(self) -> None:
        """Evaluate the final models on held-out questions, this rank's share of them, each to a JSON file."""
        records, features = self.records("test", "rl"), self.features
        settings = self.settings.evaluate
        for name in list(ARMS)[self.rank :: self.world]:
            phase, override = ARMS[name]
            checkpoint = load_checkpoint(self.final(phase))
            encoder = checkpoint.encoder()
            result = evaluate(
                LatentSampler(checkpoint.backbone),
                encoder,
                records,
                n=settings.samples,
                greedy=override is None,
                config=self.sampling(),
                batch_prompts=settings.batch,
                frames_override=override,
                prompts=[features.prompt(record, encoder) for record in records],
                name=name,
                progress=False,
            )
            values = {
                "name": name,
                "n": result.n,
                "greedy": result.greedy,
                "seconds": round(result.seconds, 1),
            }
            values |= {"settings": result.settings, "questions": [q.to_dict() for q in result.questions]}
            write_json(self.run / "evaluate" / f"{name}.json", values)
            logger.info("evaluated %s: %.3f in %.0f s", name, result.scores().mean(), result.seconds)


def main() -> None:
    """Run every phase whose outputs are not there yet, in order."""
    run = Path(sys.argv[1])
    settings = DemoSettings.from_dict(json.loads((run / "settings.json").read_text(encoding="utf-8")))
    start_logging()
    disable_progress_bar()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with process_group():
        work = Work(run, settings, dist.get_rank(), dist.get_world_size())
        phases: dict[str, Callable[[], None]] = {
            "base": work.base,
            "dift": work.dift,
            "rl": work.rl,
            "dift_control": work.dift_control,
            "evaluate": work.evaluate,
        }
        for name, phase in phases.items():
            if is_done(run, name, settings):
                logger.info("%s: done before, outputs kept", name)
                continue
            logger.info("%s: starts", name)
            started = time.perf_counter()
            phase()
            dist.barrier()
            if work.rank == 0:
                mark_done(run, name, settings, time.perf_counter() - started)
                logger.info("%s: done in %.0f s", name, time.perf_counter() - started)


if __name__ == "__main__":
    main()
