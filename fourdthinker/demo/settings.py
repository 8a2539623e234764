"""Sizes, steps and rates of the demo, one group for each phase."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from fourdthinker.frames import FramePolicy
from fourdthinker.prompt_style import PromptStyle

PHASES = ("render", "base", "dift", "rl", "dift_control", "evaluate")
# What each phase starts from; a phase is done again when its own settings or those of one of these changed.
NEEDS = {
    "render": (),
    "base": ("render",),
    "dift": ("base",),
    "rl": ("dift",),
    "dift_control": ("dift",),
    "evaluate": ("dift", "rl", "dift_control"),
}
POLICY = FramePolicy(fps=4.0, max_frames=8, max_pixels=56 * 56)
STYLE = PromptStyle(instruction="")


@dataclass(frozen=True)
class RenderSettings:
    """Clips of each split; each is asked up to three questions. `size` in pixels, `frames` at POLICY.fps."""

    train: int = 4000
    rl: int = 1900
    test: int = 440
    frames: int = 8
    size: int = 64


@dataclass(frozen=True)
class ModelSettings:
    """Sizes of the demo's model, which is trained from nothing."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    intermediate: int = 384
    tower_hidden: int = 128
    tower_layers: int = 2
    tower_heads: int = 4
    tower_intermediate: int = 256
    latent_size: int = 4


@dataclass(frozen=True)
class TrainSettings:
    """`batch`: sequences (or, for 4DRL, prompts) of one update, over all processes."""

    steps: int
    learning_rate: float
    schedule: str
    batch: int = 32
    warmup: int = 20
    weight_decay: float = 0.01
    beta2: float = 0.98


@dataclass(frozen=True)
class RlSettings(TrainSettings):
    """4DRL.

    `train_start`: the choice to open a block is trained as well. The paper leaves it out; then a block opened
    at a wrong position is never itself penalised, and long runs drift (LOG.md).
    """

    generations: int = 8
    max_tokens: int = 40
    beta: float = 0.05
    train_start: bool = True


@dataclass(frozen=True)
class EvaluateSettings:
    """How the demo asks its held-out questions."""

    samples: int = 4
    max_tokens: int = 40
    batch: int = 64


@dataclass(frozen=True)
class DemoSettings:
    """Everything that a run of the demo depends on."""

    seed: int = 0
    render: RenderSettings = field(default_factory=RenderSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    base: TrainSettings = field(default_factory=lambda: TrainSettings(1000, 1.5e-3, "cosine", batch=16))
    dift: TrainSettings = field(default_factory=lambda: TrainSettings(800, 1e-3, "cosine"))
    rl: RlSettings = field(default_factory=lambda: RlSettings(170, 6e-5, "linear", warmup=10))
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def key(self, phase: str) -> str:
        """Changes with everything that the outcome of `phase` depends on."""
        own: dict[str, Any] = {
            "phase": phase,
            "seed": self.seed,
            "needs": [self.key(name) for name in NEEDS[phase]],
        }
        if phase == "base":
            own["model"] = asdict(self.model)
        # The control makes as many updates as 4DRL, at the same rates.
        own["settings"] = asdict(getattr(self, "rl" if phase == "dift_control" else phase))
        own["media"] = [POLICY.to_dict(), asdict(STYLE)]
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DemoSettings:
        """Of what `to_dict` gave. Raises TypeError or KeyError for other keys."""
        kinds: dict[str, Any] = {
            "render": RenderSettings,
            "model": ModelSettings,
            "base": TrainSettings,
            "dift": TrainSettings,
            "rl": RlSettings,
            "evaluate": EvaluateSettings,
        }
        return cls(seed=values["seed"], **{name: kind(**values[name]) for name, kind in kinds.items()})


def quick_settings(seed: int = 0) -> DemoSettings:
    """Every phase in seconds; nothing is learned."""
    return DemoSettings(
        seed=seed,
        render=RenderSettings(train=48, rl=24, test=24),
        model=ModelSettings(hidden=64, layers=2, intermediate=128, tower_hidden=64, tower_intermediate=128),
        base=TrainSettings(8, 1e-3, "cosine", batch=16, warmup=2),
        dift=TrainSettings(12, 1e-3, "cosine", batch=16, warmup=2),
        rl=RlSettings(3, 2e-4, "linear", batch=8, warmup=1, generations=4, max_tokens=24),
        evaluate=EvaluateSettings(samples=4, max_tokens=24),
    )
