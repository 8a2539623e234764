"""What the bench of training steps runs: sizes, prompts with a clip, and a step of our trainer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import _measure as measure
from bench._sampler_cases import IDS
from fourdthinker.backbones import Checkpoint
from fourdthinker.backbones.common import Backbone
from fourdthinker.positions import mrope_positions
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.records import Record
from fourdthinker.reward_calls import Reward
from fourdthinker.samples import Prompt, Vision
from fourdthinker.trainers.arguments import training_arguments
from fourdthinker.trainers.batches import Items
from fourdthinker.trainers.grpo import make_trainer
from fourdthinker.trainers.settings import GrpoConfig
from fourdthinker.trainers.update import Parts

# Tokens of a prompt -> the patches of its clip: frame pairs, height, width; a quarter as many vision tokens.
GRIDS = {40: (2, 4, 4), 250: (4, 12, 16), 1000: (8, 18, 26), 4000: (16, 26, 38)}


@dataclass(frozen=True)
class Case:
    """One race: ``prompts`` of ``prompt_tokens`` each, ``completions`` of ``new_tokens`` for each of them."""

    prompt_tokens: int
    completions: int
    new_tokens: int
    prompts: int

    @property
    def positions(self) -> int:
        """Of a training forward in which a prompt stands once."""
        return self.prompts * (self.prompt_tokens + self.completions * self.new_tokens)


@dataclass(frozen=True)
class Task:
    """Prompts with a clip of random patches, ``grid`` (t, h, w) of every clip."""

    prompts: list[Prompt]
    grid: tuple[int, int, int]


def make_task(backbone: Backbone, case: Case) -> Task:
    """Random words around a clip of random patches, as many tokens as the case says."""
    generator = torch.Generator().manual_seed(1)
    grid = GRIDS[case.prompt_tokens]
    pads = grid[0] * grid[1] * grid[2] // 4
    start, end = torch.tensor([IDS["vision_start"]]), torch.tensor([IDS["vision_end"]])
    prompts = []
    for number in range(case.prompts):
        words = torch.randint(3, 150_000, (case.prompt_tokens - pads - 2,), generator=generator)
        ids = torch.cat([words[:8], start, torch.full((pads,), IDS["video"]), end, words[8:]])
        clip = torch.randn(4 * pads, backbone.vision.patch_dim, generator=generator)
        positions, following = mrope_positions(
            ids, grid_thw=torch.tensor([grid]), seconds_per_grid=[1.0], image_token_id=IDS["image"],
            video_token_id=IDS["video"], tokens_per_second=backbone.vision.tokens_per_second or 0.0,
        )  # fmt: skip
        record = Record("rl", str(number), "Which way does it move?")
        vision = Vision(torch.tensor([grid]), clip, seconds_per_grid=[1.0])
        prompts.append(Prompt(ids, positions, following, vision, record))
    return Task(prompts, grid)


def reward_of(ids: Sequence[int]) -> float:
    """A reward that differs between completions."""
    return float(sum(ids) % 7)


class Timed:
    """A trainer whose ``train()`` makes one update; AdamW's state is there from the beginning.

    Attributes:
        seconds: of the parts of the last step, by name.
    """

    trainer: Any

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.seconds = trainer, {}
        trainer.create_optimizer()
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    def time(self, owner: Any, method: str, name: str) -> None:
        """Let calls of a method of ``owner`` add their seconds to ``seconds[name]``."""
        call = getattr(owner, method)

        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            found = call(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            return found

        setattr(owner, method, run)

    def __call__(self) -> None:
        """Make a step."""
        self.seconds.clear()
        self.trainer.train()

    def kept_bytes(self) -> int:
        """Of weights and optimizer state, which are there before and after a step."""
        states = self.trainer.optimizer.state.values()
        state = [value for entry in states for value in entry.values() if isinstance(value, Tensor)]
        return sum(t.nbytes for t in (*self.trainer.model.parameters(), *state))

    def peak_bytes(self) -> int:
        """Of all tensors at the worst moment of a step: weights and optimizer state included."""
        device = next(self.trainer.model.parameters()).device.type
        return self.kept_bytes() + measure.peak_allocated(self, device)


class OurStep(Timed):
    """A step of our trainer.

    Args:
        backbone: of the model, changed in place.
        task: what is trained on.
        case: how many rows and tokens.
        folder: for the files of Trainer.
        checkpointing: whether layers are recomputed in the backward pass.
    """

    def __init__(
        self, backbone: Backbone, task: Task, case: Case, folder: Path, *, checkpointing: bool = False
    ) -> None:
        config = GrpoConfig(
            output_dir=str(folder), use_cpu=backbone.device.type == "cpu", report_to=[], save_steps=0,
            logging_steps=1_000, log_rollouts=0, max_steps=1, per_device_train_batch_size=case.prompts,
            num_generations=case.completions, max_completion_length=case.new_tokens, learning_rate=1e-6,
            lr_scheduler_type="constant", loss={"beta": 0.0}, rewards=["ids"], reward_weights=[1.0],
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        checkpoint = Checkpoint(backbone, _NoWords(), backbone.default_policy(), PromptStyle(instruction=""))
        parts = Parts(training_arguments(config), checkpoint, Items(task.prompts), None)
        trainer = make_trainer(config, [Reward("ids", _reward, wanted=("tokens",))], parts)
        trainer._unchecked = False  # that comparison is made once in a run
        super().__init__(trainer)
        self.time(trainer, "sample", "generation")
        self.time(trainer, "training_step", "loss")

    @contextmanager
    def on_update(self, call: Callable[[], Any]) -> Iterator[list[Any]]:
        """Within the block, run ``call(forward and backward of the update)`` in their place."""
        found: list[Any] = []
        step = self.trainer.training_step

        def run(*args: Any, **kwargs: Any) -> Any:
            found.append(call(lambda: step(*args, **kwargs)))  # type: ignore[call-arg]
            return torch.zeros(())

        self.trainer.training_step = run
        try:
            yield found
        finally:
            self.trainer.training_step = step


def _reward(text: str, record: Record, tokens: Tensor) -> float:
    return reward_of(tokens.tolist())


class _NoWords:
    """A tokenizer as far as rollouts ask for one."""

    def decode(self, ids: Any, **options: Any) -> str:
        return ""
