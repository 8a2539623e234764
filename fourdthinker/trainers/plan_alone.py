"""The phases of a run without gradient: rollouts, other passes, own latents, evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fourdthinker.backbones.common import Backbone
from fourdthinker.sampler import cache_bytes
from fourdthinker.trainers.plan_rollouts import sampling
from fourdthinker.trainers.plan_sizes import Gathered
from fourdthinker.trainers.plan_trace import Shape, trace_alone
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig, TrainConfig


@dataclass(frozen=True)
class Alone:
    """Bytes beside what is there all the time, and beside the features that are kept for training.

    Attributes:
        phases: at the worst moment, by phase, with the weights that are gathered for it.
        in_turn: what phases need less where layers are gathered one after the other.
        parts: of what is there in these phases, by name.
    """

    phases: dict[str, int]
    in_turn: dict[str, int]
    parts: dict[str, int]


def without_gradient(
    config: TrainConfig, backbone: Backbone, shape: Shape, asked: Shape, gathered: Gathered, *, on_cpu: bool
) -> Alone:
    """What the phases without gradient of a process hold.

    Args:
        config: the settings.
        backbone: on the meta device, with weights as passes see them.
        shape: of the largest forward.
        asked: of a micro-batch.
        gathered: weights that are whole for a time.
        on_cpu: whether it would run on a CPU.
    """
    joins = not (gathered.everything or on_cpu or config.lora)
    whole: dict[str, int] = {}
    parts: dict[str, int] = {}
    evaluation = 0
    if isinstance(config, GrpoConfig):
        whole, parts = _of_rollouts(config, backbone, shape, asked, joins=joins, on_cpu=on_cpu)
    elif isinstance(config, DiftConfig) and config.self_feed:
        passes = _passes(config, backbone, shape, on_cpu=on_cpu, logits=False)
        cache = cache_bytes(backbone, shape.prompts, shape.prompt, shape.prompts, shape.answer)
        whole["own latents"] = passes + cache
    if config.eval_data:
        held_out = replace(asked, prompts=config.per_device_eval_batch_size, rows=1)
        if isinstance(config, GrpoConfig):
            each = config.num_generations_eval or 1
            made = sampling(config, backbone, held_out, each, joins=joins, on_cpu=on_cpu)
            whole["evaluation"] = evaluation = made.most + made.features
        else:
            evaluation = _passes(config, backbone, held_out, on_cpu=on_cpu)
        parts["evaluation"] = evaluation
    phases = {name: gathered.everything + size for name, size in whole.items()}
    if evaluation:  # DIFT's calls the model as training does
        phases.setdefault("evaluation", gathered.alone + evaluation)
    in_turn = dict.fromkeys(whole, gathered.in_turn)
    if isinstance(config, GrpoConfig) and config.rollout_workers:  # to whom whole weights are sent
        in_turn["rollouts"] = 0
    return Alone(phases, in_turn, {"gathered weights": gathered.everything if whole else 0} | parts)


def _of_rollouts(
    config: GrpoConfig, backbone: Backbone, shape: Shape, asked: Shape, *, joins: bool, on_cpu: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of 4DRL's phases before an update, and parts of them."""
    found, parts = {"rollouts": 0}, {}
    if not config.rollout_workers:
        prompts = replace(asked, prompts=config.per_device_train_batch_size)
        made = sampling(config, backbone, prompts, config.num_generations, joins=joins, on_cpu=on_cpu)
        # Of a tower that is trained, the features of a micro-batch are there for its rollouts alone.
        seen = 0 if config.freeze_vision else made.features
        found["rollouts"] = made.most + seen
        parts = {"KV cache": made.cache, "sampling": made.beside, "vision": made.tower + seen}
    if config.needs_reference or config.top_entropy < 1 or config.shares > 1:
        found["other passes"] = _passes(config, backbone, shape, on_cpu=on_cpu)
    return found, parts


def _passes(
    config: TrainConfig, backbone: Backbone, shape: Shape, *, on_cpu: bool, logits: bool = True
) -> int:
    """Of passes over a batch, with its pictures where they are not kept anyway."""
    held, pictures = trace_alone(config, backbone, shape, on_cpu=on_cpu, logits=logits)
    kept = isinstance(config, GrpoConfig) and config.freeze_vision
    return held + (0 if kept else pictures)
