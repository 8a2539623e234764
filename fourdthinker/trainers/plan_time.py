"""GPUs by their data sheets, and how long an update of the weights would take on each."""

from __future__ import annotations

from dataclasses import dataclass

from fourdthinker.backbones.common import Backbone
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
    """

    name: str
    memory: int
    rate: float
    bandwidth: float


DEVICES = (  # by memory, the smallest first
    Device("RTX 4090", 24, 165, 1008),
    Device("L40S", 48, 362, 864),
    Device("A100", 80, 312, 2039),
    Device("H100", 80, 989, 3350),
    Device("H200", 141, 989, 4800),
    Device("B200", 192, 2250, 8000),
)


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
    weights = list(backbone.hf.model.language_model.layers.parameters())
    layers = sum(p.numel() for p in weights)
    head, width = backbone.head_weight.numel(), backbone.num_heads * backbone.head_dim
    tower = 2.0 * sum(p.numel() for p in backbone.visual.parameters()) * patches * prompts
    pairs = sequences * (prompt * prompt / 2 + rows * answer * (prompt + answer / 2))
    forward = 2.0 * layers * sequences * (prompt + rows * answer)
    forward += 4.0 * backbone.num_layers * width * pairs
    logits = 2.0 * head * sequences * rows * answer
    lora = config.lora
    whole = lora is None  # below an adapter no gradient of a weight is made
    head_trained = lora is None or lora.train_embeddings
    training = forward * ((3 if whole else 2) + config.gradient_checkpointing)
    training += logits * (3 if head_trained else 2)
    training += 0 if config.freeze_vision else 3 * tower
    sampling = tower if config.freeze_vision else 0.0
    if not isinstance(config, GrpoConfig):
        return Work(training, sampling, 0.0)
    sampling = (
        tower
        + 2.0 * layers * prompts * prompt
        + 2.0 * backbone.num_layers * width * prompts * prompt * prompt
    )
    element = backbone.embedding_weight.element_size()
    cached = 2 * backbone.num_layers * backbone.num_kv_heads * backbone.head_dim * element
    kept = cached * prompts * (prompt + config.num_generations * answer / 2)
    batches = config.gradient_accumulation_steps
    read = sum(p.nbytes for p in weights) + head * element
    decoded = answer * (batches * read + kept)
    sampling += (forward + logits) if config.needs_reference else 0.0  # the reference sees the rollouts once
    return Work(training, sampling / config.num_iterations, decoded / config.num_iterations)
