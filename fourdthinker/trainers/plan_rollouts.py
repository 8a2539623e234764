"""What sampling rollouts takes beside the weights: the tower, prefill, keys and values, logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fourdthinker.backbones.common import Backbone
from fourdthinker.sampler import MAX_ROWS, cache_bytes, clips_at_once, prefilled_at_once
from fourdthinker.trainers.live_bytes import LiveBytes
from fourdthinker.trainers.plan_sizes import bytes_of
from fourdthinker.trainers.plan_trace import Shape, features, has_clips, pixels
from fourdthinker.trainers.settings import GrpoConfig


@dataclass(frozen=True)
class Sampling:
    """Bytes of the rollouts of some prompts.

    Attributes:
        features: of all clips.
        tower: of its call with most clips, the features it gives left out.
        cache: keys and values.
        beside: what is there beside these at the worst moment, of prefill, a decode step or joined weights.
    """

    features: int
    tower: int
    cache: int
    beside: int

    @property
    def most(self) -> int:
        """At the worst moment, without features: the tower runs before there are keys and values."""
        return max(self.tower, self.cache + self.beside)


def sampling(
    config: GrpoConfig, backbone: Backbone, shape: Shape, each: int, *, joins: bool, on_cpu: bool
) -> Sampling:
    """The rollouts of the prompts that a process samples together.

    Args:
        config: the settings.
        backbone: on the meta device, with weights as passes see them.
        shape: of the prompts, as many as it says.
        each: rollouts of a prompt.
        joins: whether the weights of layers that read the same input are joined for the time of it.
        on_cpu: whether it would run on a CPU.
    """
    prompts, new = shape.prompts, config.max_completion_length
    rows = prompts * each
    tower = 0 if has_clips(config) else _tower(backbone, shape, prompts, on_cpu)
    largest = max(_prefill(backbone, shape, prompts, on_cpu), _logits(backbone, rows, on_cpu))
    if joins:
        largest = max(largest, *map(_joined, backbone.hf.model.language_model.layers))
    cache = cache_bytes(backbone, prompts, shape.prompt, rows, new)
    latents = min(config.max_blocks * backbone.latents.latent_size, new) if config.latents else 0
    fed = min(rows, MAX_ROWS) * latents * backbone.hidden_size * backbone.embedding_weight.element_size()
    return Sampling(prompts * features(backbone, shape).nbytes, tower, cache, largest + fed)


def _tower(backbone: Backbone, shape: Shape, clips: int, on_cpu: bool) -> int:
    """A call of the tower, with its pixels: on a GPU in its type, on a CPU as they are joined."""
    count = clips_at_once(clips, shape.clip[0] * shape.clip[1] * shape.clip[2], on_cpu=on_cpu)
    patches, grids = pixels(backbone, shape.clip, count)
    with torch.no_grad(), LiveBytes() as live:
        made = backbone.encode_vision(patches, grids)
    narrow = next(backbone.visual.parameters()).element_size() < patches.element_size()  # that copy is traced
    return live.peak - made.nbytes + (on_cpu or not narrow) * patches.nbytes


def _prefill(backbone: Backbone, shape: Shape, prompts: int, on_cpu: bool) -> int:
    together, piece = prefilled_at_once(prompts, shape.prompt, on_cpu=on_cpu)
    given = [features(backbone, shape) for _ in range(together)]
    batch: dict[str, Any] = {
        "input_ids": torch.empty(together, shape.prompt, dtype=torch.long, device="meta"),
        "vision_index": torch.empty(together * shape.vision, dtype=torch.long, device="meta"),
        "vision_features": given,
    }
    backbone.eval()
    # Later pieces see the former ones through a mask, with which no kernel of a GPU takes fewer keys than
    # queries.
    later, element = min(piece, shape.prompt - piece), backbone.embedding_weight.element_size()
    repeated = 2 * together * backbone.num_heads * shape.prompt * backbone.head_dim * element
    masked = later * shape.prompt * (1 + element) + (0 if on_cpu else repeated)
    largest = 0
    for size, more in ((piece, 0), (later, masked))[: 1 + (later > 0)]:
        positions = torch.empty(3, together, size, dtype=torch.long, device="meta")
        with torch.no_grad(), LiveBytes() as live:
            embeds = backbone.embed_inputs(batch).embeds
            backbone.decode(embeds[:, :size], positions)
        largest = max(largest, live.peak + more)
    return largest


def _logits(backbone: Backbone, rows: int, on_cpu: bool) -> int:
    """Of a decode step; a CPU draws from copies of them, and widens a part of the head."""
    return min(rows, MAX_ROWS) * backbone.head_weight.shape[0] * 4 * (4 if on_cpu else 1)


def _joined(layer: Any) -> int:
    """What stands twice while the weights of a layer are joined, a group after the other."""
    mlp, attention = layer.mlp, layer.self_attn
    groups = (mlp.gate_proj, mlp.up_proj), (attention.q_proj, attention.k_proj, attention.v_proj)
    return max(bytes_of(p for module in group for p in module.parameters()) for group in groups)
