"""GPUs by their data sheets, and how long an update of the weights would take on each."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from fourdthinker.backbones.common import Backbone
from fourdthinker.trainers.operations import Costs, Counts
from fourdthinker.trainers.settings import GrpoConfig, TrainConfig

PASSES, DECODING = 0.4, 0.6  # of the peak rate and of the bandwidth, what training and decoding reach


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet.

    Attributes:
        name: as its maker calls it.
        memory: GB.
        rate: dense bfloat16 operations a second, in 10^12.
        bandwidth: of its memory, in GB/s.
        slower: words in the names of boards with the same chip and other rates.
    """

    name: str
    memory: int
    rate: float
    bandwidth: float
    slower: frozenset[str] = frozenset()


DEVICES = (  # by memory, the smallest first
    Device("RTX 4090", 24, 165, 1008, frozenset({"D", "Laptop"})),
    Device("L40S", 48, 362, 864),
    Device("A100", 80, 312, 2039),
    Device("H100", 80, 989, 3350, frozenset({"PCIe", "NVL"})),
    Device("H200", 141, 989, 4800, frozenset({"NVL"})),
    Device("B200", 192, 2250, 8000),
)


def known_device(name: str) -> Device | None:
    """The GPU of a name.

    Args:
        name: as CUDA gives it, "NVIDIA H100 80GB HBM3" for example.

    Returns:
        Its data sheet; None of a board that is not listed, or a part of one (MIG).
    """
    words = set(re.split(r"[\s\-]+", name))
    for device in DEVICES:
        if set(device.name.split()) <= words and not words & {*device.slower, "MIG"}:
            return device
    return None


@dataclass(frozen=True)
class Work:
    """What one process does in an update.

    Attributes:
        training: operations of the passes with a loss.
        sampling: operations of tower, prefill and reference; in DIFT of the frozen tower.
        decoded: bytes that decoding reads: the weights once a step, and keys and values.
            Both are shared by the `num_iterations` updates on the same rollouts.
    """

    training: float
    sampling: float
    decoded: float

    def seconds(self, device: Device) -> tuple[float, float]:
        """Of training and of sampling on a device."""
        rate = PASSES * device.rate * 1e12
        decoding = self.decoded / (DECODING * device.bandwidth * 1e9)
        return self.training / rate, self.sampling / rate + decoding


def work_of(
    config: TrainConfig,
    backbone: Backbone,
    *,
    prompt: int,
    answer: int,
    rows: int,
    sequences: int,
    patches: int,
) -> Work:
    """The work of an update in which every answer has its full length.

    Args:
        config: the settings.
        backbone: with what is trained set on it.
        prompt: tokens of a prompt.
        answer: of an answer.
        rows: answers in a sequence, behind one copy of its prompt.
        sequences: of a process in a batch.
        patches: of a prompt's pictures.

    Returns:
        Operations of the passes, and bytes that decoding reads.
    """
    sequences *= config.gradient_accumulation_steps
    prompts = sequences
    if isinstance(config, GrpoConfig) and not config.share_prompt:
        prompts = sequences // config.num_generations
    costs = Costs.of(backbone)
    whole = Counts(
        tokens=sequences * (prompt + rows * answer),
        pairs=sequences * (prompt * prompt / 2 + rows * answer * (prompt + answer / 2)),
        logits=sequences * rows * answer,
        patches=patches * prompts,
    )
    training = costs.training(whole, config, recomputed=config.gradient_checkpointing)
    tower = costs.patch * whole.patches
    if not isinstance(config, GrpoConfig):
        return Work(training, tower if config.freeze_vision else 0.0, 0.0)
    prefill = Counts(prompts * prompt, prompts * prompt * prompt / 2, patches=whole.patches)
    sampling = costs.inference(prefill)
    if config.needs_reference:  # it sees the rollouts once
        sampling += costs.inference(replace(whole, patches=0))
    element = backbone.embedding_weight.element_size()
    cached = 2 * backbone.num_layers * backbone.num_kv_heads * backbone.head_dim * element
    kept = cached * prompts * (prompt + config.num_generations * answer / 2)
    weights = backbone.hf.model.language_model.layers.parameters()
    read = sum(p.nbytes for p in weights) + backbone.head_weight.numel() * element
    decoded = answer * (config.gradient_accumulation_steps * read + kept)
    return Work(training, sampling / config.num_iterations, decoded / config.num_iterations)
