"""What the model is fed: prompts, training samples, and batches of them. Plain data, picklable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fourdthinker.errors import ConfigError
from fourdthinker.frames import Frames, patchify
from fourdthinker.vision import VisionSpec

if TYPE_CHECKING:
    from fourdthinker.records import Record

Batch = dict[str, Any]  # tensors by name, or lists of them; `collate` and `sampler.replay_batch` say which
IGNORE = -100
FRAMES, BARRED = 1, 2  # of `bottleneck`: positions of frames, and those that do not see them


@dataclass
class Vision:
    """Pictures of one prompt or training sample, clip after clip or image after image.

    Attributes:
        grid_thw: int64 [n, 3], patches in time, height and width.
        patches: float32 [sum t*h*w, patch_dim]; None when there are `features`.
        features: [sum t*h*w/4, (1 + D) * H], as `Backbone.encode_vision` gives them: merged features in
            raster order; None when there are only `patches`.
        kind: "video" or "image": which pad token stands for the features; "mixed": as `kinds` says.
        seconds_per_grid: for videos, one number for each; None: 1.0.
        times: for videos, of each the seconds from its first frame to the middle of every temporal patch;
            None: as `seconds_per_grid` has it.
        times_from: how the times of a video were learnt (`Frames`).
        kinds: of "mixed" pictures, the kind of each.
    """

    grid_thw: Tensor
    patches: Tensor | None = None
    features: Tensor | None = None
    kind: str = "video"
    seconds_per_grid: list[float] | None = None
    times: list[list[float]] | None = None
    times_from: str = "container"
    kinds: list[str] | None = None

    @property
    def kind_of_each(self) -> list[str]:
        """The kind of each clip and image."""
        return [self.kind] * len(self.grid_thw) if self.kinds is None else self.kinds

    @classmethod
    def joined(cls, visions: Sequence[Vision]) -> Vision:
        """Pictures with patches, in this order.

        Args:
            visions: clips and images, one at least.

        Returns:
            All of them as one.
        """
        if len(visions) == 1:
            return visions[0]
        kinds = [kind for vision in visions for kind in vision.kind_of_each]
        clips = [vision for vision in visions if vision.kind == "video"]
        return cls(
            torch.cat([vision.grid_thw for vision in visions]),
            torch.cat([vision.patches for vision in visions if vision.patches is not None]),
            kind=kinds[0] if len(set(kinds)) == 1 else "mixed",
            seconds_per_grid=[s for clip in clips for s in clip.seconds_per_grid or ()] or None,
            times=[t for clip in clips for t in clip.times or ()] or None,
            times_from=next((v.times_from for v in clips if v.times_from != "container"), "container"),
            kinds=kinds if len(set(kinds)) > 1 else None,
        )

    @classmethod
    def from_frames(cls, frames: Frames, spec: VisionSpec) -> Vision:
        """Make patches of what was read, as a model takes them.

        Args:
            frames: pixels, which are cut into patches, or patches.
            spec: of the model.

        Returns:
            The patches with their grids and times.

        Raises:
            ConfigError: pixels that are no multiple of the spec's patches, or patches of another size.
        """
        patches, grid = frames.patches, frames.grid_thw
        if patches is None or grid is None:
            if frames.pixels is None:
                raise ConfigError(f"frames of {frames.source}: neither pixels nor patches are there")
            height, width = frames.pixels.shape[1:3]
            if height % spec.factor or width % spec.factor:
                raise ConfigError(
                    f"frames of {frames.source} are {height}x{width} pixels, and a {spec.family} needs "
                    f"multiples of {spec.factor}; resize them by a frame policy with factor={spec.factor}"
                )
            patches, grid = patchify(
                frames.pixels,
                separate=frames.kind == "image",
                patch=spec.patch_size,
                merge=spec.merge_size,
                temporal=spec.temporal_patch_size,
                mean=spec.mean,
                std=spec.std,
            )
        if patches.shape[1] != spec.patch_dim:
            raise ConfigError(
                f"patches of {frames.source} have {patches.shape[1]} values, and a {spec.family} reads "
                f"{spec.patch_dim}; they were cut for another family, so read the frames again"
            )
        if frames.kind != "video":
            return cls(grid, patches, kind=frames.kind)
        shown, last = frames.seconds, spec.temporal_patch_size - 1
        middles = [
            (shown[i] + shown[min(i + last, len(shown) - 1)]) / 2 - shown[0]
            for i in range(0, len(shown), spec.temporal_patch_size)
        ]
        seconds = [frames.seconds_per_grid]
        times = [middles] if middles else None
        return cls(grid, patches, seconds_per_grid=seconds, times=times, times_from=frames.times_from)


@dataclass
class Prompt:
    """What the sampler starts from.

    Attributes:
        input_ids: int64 [P].
        position_ids: int64 [3, P].
        next_position: text position of the first sampled id.
        vision: the pictures.
        record: what the prompt was made of.
        family: the model_type that it was made for; None: not known.
        assistant_prefix: text of the answer that the prompt already holds ("<think>\n" with Qwen3-VL
            Thinking); the whole answer is this and what is sampled.
    """

    input_ids: Tensor
    position_ids: Tensor
    next_position: int
    vision: Vision | None = None
    record: Record | None = None
    family: str | None = None
    assistant_prefix: str = ""


def joined(parts: Tensor | Sequence[Tensor]) -> Tensor:
    """Rows of pictures as one tensor.

    Args:
        parts: as a batch has them: one tensor [N, ...], or several, one after the other.

    Returns:
        [N, ...]; of a single tensor no copy.
    """
    if isinstance(parts, Tensor):
        return parts
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device.

    Args:
        batch: tensors, or lists of them, by name.
        device: where they go.

    Returns:
        The same names; what was on the device is no copy.
    """
    return {
        name: value.to(device) if isinstance(value, Tensor) else [part.to(device) for part in value]
        for name, value in batch.items()
    }


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.long)


@dataclass
class Sample:
    """One training sequence.

    Attributes:
        input_ids: int64 [S].
        position_ids: int64 [3, S].
        labels: int64 [S], -100 where nothing is supervised.
        imagery: the pictures that the blocks stand for, in order.
        latents: instead of `imagery`: their cached targets [N, H], K a block.
        vision_index: positions of the vision pads in `input_ids`.
        latent_index: positions of the latent pads in `input_ids`.
        family: the model_type that it was made for; None: not known.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    vision: Vision | None = None
    imagery: Vision | None = None
    latents: Tensor | None = None
    record: Record | None = None
    vision_index: Tensor = field(default_factory=_none)
    latent_index: Tensor = field(default_factory=_none)
    family: str | None = None


def _bottleneck(sample: Sample) -> Tensor:
    """[S] int32: `FRAMES` at vision pads, `BARRED` at the words of each answer behind its first block.

    START and the latents of later blocks see the frames; END, which is seen by all that follows, does not.
    """
    latent = torch.zeros(sample.input_ids.shape, dtype=torch.bool)
    latent[sample.latent_index] = True
    answer = (sample.labels != IGNORE) | latent
    begins = answer & ~F.pad(answer[:-1], (1, 0))
    made = latent.long().cumsum(0)
    behind = made > torch.where(begins, made, 0).cummax(0).values  # an answer does not begin with a latent
    start = F.pad(latent[1:], (0, 1)) & ~latent
    kinds = (answer & behind & ~latent & ~start).int() * BARRED
    kinds[sample.vision_index] = FRAMES
    return kinds


def collate(
    samples: Sequence[Sample], pad_id: int, *, packed: bool = False, bottleneck: bool = False
) -> Batch:
    """Training samples to one batch of tensors.

    Args:
        samples: n of them, at least one.
        pad_id: fills up `input_ids`.
        packed: one sequence holds all of them, one behind the other, none of which sees another; else each is
            a sequence of its own, padded on the right.
        bottleneck: the words of an answer behind its first block do not see the frames.

    Returns:
        With B = n sequences, or B = 1: input_ids, labels [B, S] int64; attention_mask [B, S] int64, unless
        packed; if packed or with a bottleneck segments [B, S] int32 (see `packed_mask`), and with one
        bottleneck [B, S] int32, `FRAMES` or `BARRED` or 0; position_ids [3, B, S] int64; target [B, S] int64:
        labels shifted left by one, those of a sample's first position nowhere; rows [M]: flat positions b*S+p
        with a target; latent_index [N], vision_index [Mv]: flat positions of latent and of vision pads. When
        there are any: patches [P, patch_dim] with grid_thw [n, 3], or vision_features [Mv, (1 + D) * H]; and
        imagery_patches with imagery_grid_thw, or latents [N, H].

    Raises:
        ConfigError: no samples; some bring patches and others cached features (or pictures and cached
            latents).
    """
    if not samples:
        raise ConfigError("a batch of no samples cannot be made")
    lengths = [sample.input_ids.shape[0] for sample in samples]
    shape = (1, sum(lengths)) if packed else (len(samples), max(lengths))
    starts = [sum(lengths[:i]) if packed else i * shape[1] for i in range(len(samples))]
    ids, segments = torch.full(shape, pad_id), torch.full(shape, -1, dtype=torch.int32)
    labels, target = torch.full(shape, IGNORE), torch.full(shape, IGNORE)
    positions, kinds = torch.ones(3, *shape, dtype=torch.long), torch.zeros(shape, dtype=torch.int32)
    for number, (sample, start, length) in enumerate(zip(samples, starts, lengths, strict=True), 1):
        own = slice(start, start + length)
        ids.view(-1)[own] = sample.input_ids
        segments.view(-1)[own] = number
        labels.view(-1)[own] = sample.labels
        target.view(-1)[start : start + length - 1] = sample.labels[1:]
        positions.view(3, -1)[:, own] = sample.position_ids
        if bottleneck:
            kinds.view(-1)[own] = _bottleneck(sample)
    batch: Batch = {
        "input_ids": ids,
        **({} if packed else {"attention_mask": (segments > 0).long()}),
        **({"segments": segments} if packed or bottleneck else {}),
        **({"bottleneck": kinds} if bottleneck else {}),
        "position_ids": positions,
        "labels": labels,
        "target": target,
        "rows": (target.flatten() != IGNORE).nonzero().flatten(),
        "vision_index": torch.cat([s.vision_index + start for s, start in zip(samples, starts, strict=True)]),
        "latent_index": torch.cat([s.latent_index + start for s, start in zip(samples, starts, strict=True)]),
    }
    batch |= _pictures([s.vision for s in samples], "", "vision_features")
    latents = [s.latents for s in samples if s.latents is not None]
    imagery = _pictures([s.imagery for s in samples], "imagery_", "latents")
    if latents and imagery:
        raise ConfigError("a batch mixes cached latents and pictures of imagery; cache all samples or none")
    return batch | ({"latents": torch.cat(latents)} if latents else imagery)


def _pictures(visions: Sequence[Vision | None], prefix: str, cached: str) -> Batch:
    present = [vision for vision in visions if vision is not None]
    if not present:
        return {}
    features = [vision.features for vision in present if vision.features is not None]
    if len(features) == len(present):
        return {cached: torch.cat(features)}
    patches = [vision.patches for vision in present if vision.patches is not None]
    if features or len(patches) != len(present):
        raise ConfigError("a batch mixes cached vision features and patches; cache all samples or none")
    grid = torch.cat([vision.grid_thw for vision in present])
    return {f"{prefix}patches": torch.cat(patches), f"{prefix}grid_thw": grid}
