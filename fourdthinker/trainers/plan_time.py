"""GPUs by their data sheets, and how long an update of the weights would take on each."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from fourdthinker.backbones.common import Backbone
from fourdthinker.trainers.operations import Costs, Counts
from fourdthinker.trainers.plan_trace import BLOCKS, Shape, has_clips, has_targets
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig, TrainConfig

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
        sampling: operations of tower, prefill, reference, the entropies of `top_entropy` and the log-probs of
            the policy that sampled; in DIFT of the frozen tower and of the passes of `self_feed`, in an
            update that has them.
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


def work_of(config: TrainConfig, backbone: Backbone, shape: Shape) -> Work:
    """The work of an update in which every answer has its full length.

    Args:
        config: the settings.
        backbone: with what is trained set on it.
        shape: of a batch of a process.

    Returns:
        Operations of the passes, and bytes that decoding reads.
    """
    prompt, answer, rows = shape.prompt, shape.answer, shape.rows
    sequences = shape.prompts * config.gradient_accumulation_steps
    prompts = sequences
    if isinstance(config, GrpoConfig) and not config.share_prompt:
        prompts = sequences // config.num_generations
    costs = Costs.of(backbone)
    whole = Counts(
        tokens=sequences * (prompt + rows * answer),
        pairs=sequences * (prompt * prompt / 2 + rows * answer * (prompt + answer / 2)),
        logits=sequences * rows * answer,
        patches=0 if has_clips(config) else math.prod(shape.clip) * prompts,
    )
    training = costs.training(whole, config, recomputed=config.gradient_checkpointing)
    tower = costs.patch * whole.patches
    if not isinstance(config, GrpoConfig):
        assert isinstance(config, DiftConfig)
        fed = config.self_feed > 0
        alone = tower if config.freeze_vision or fed else 0.0
        if not has_targets(config):
            alone += costs.patch * math.prod(shape.overlay) * BLOCKS * sequences
        if fed:  # the prompt once, and the answer once for each latent of a block
            size, length = backbone.latents.latent_size, prompt + answer
            pairs = (prompt**2 + size * (length**2 - prompt**2)) / 2
            alone += costs.inference(Counts(sequences * (prompt + size * answer), sequences * pairs))
        return Work(training, alone, 0.0)
    prefill = Counts(prompts * prompt, prompts * prompt * prompt / 2, patches=whole.patches)
    sampling = costs.inference(prefill)
    # The reference sees the rollouts once, and so does the policy for the entropies, and for the log-probs
    # of those that later updates than the first are made on.
    passes = config.needs_reference + (config.top_entropy < 1) + 1 - 1 / config.shares
    sampling += passes * costs.inference(replace(whole, patches=0))
    element = backbone.embedding_weight.element_size()
    cached = 2 * backbone.num_layers * backbone.num_kv_heads * backbone.head_dim * element
    kept = cached * prompts * (prompt + config.num_generations * answer / 2)
    weights = backbone.hf.model.language_model.layers.parameters()
    read = sum(p.nbytes for p in weights) + backbone.head_weight.numel() * element
    decoded = answer * (config.gradient_accumulation_steps * read + kept)
    return Work(training, sampling / config.num_iterations, decoded / config.num_iterations)
