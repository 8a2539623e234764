"""Pictures and features of the demo's records, kept so that no video is decoded twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from fourdthinker.backbones.common import Backbone
from fourdthinker.demo.settings import POLICY
from fourdthinker.files import create_array
from fourdthinker.frames import patchify
from fourdthinker.prompts import Encoder
from fourdthinker.records import Record
from fourdthinker.samples import Prompt, Sample, Vision

_CHUNK = 64


def clip_of(record: Record) -> tuple[str, int]:
    """Split and number of the clip that a record asks about."""
    path = Path(record.video or "")
    return path.parent.name, int(path.stem)


def solid_of(record: Record) -> int:
    """The solid that a record's overlays show."""
    return int(Path(record.images[0]).name.split(".")[1].removeprefix("solid"))


class Pictures:
    """What rendering kept of the decoded frames, as the frame policy reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str) -> np.ndarray:
        """An array of the render folder, mapped into memory when it is first asked for."""
        if name not in self._arrays:
            self._arrays[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return self._arrays[name]

    def clip(self, split: str, index: int) -> Vision:
        """A clip as patches."""
        pixels = torch.from_numpy(np.array(self.array(f"{split}.frames")[index]))
        patches, grid = patchify(pixels)
        return Vision(grid, patches, seconds_per_grid=[2 / POLICY.fps])

    def overlays(self, split: str, index: int) -> Vision:
        """All overlays of a clip as patches: solid 0 at the key frames, then solid 1."""
        pixels = np.array(self.array(f"{split}.overlays")[index])
        images = torch.from_numpy(pixels.reshape(-1, *pixels.shape[2:]))
        patches, grid = patchify(images, separate=True)
        return Vision(grid, patches, kind="image")

    def blank(self) -> Vision:
        """The shape of a clip without its patches: all that text and positions depend on."""
        return replace(self.clip("train", 0), patches=None)


class LazySamples(Sequence[Sample]):
    """Encoded records; patches are made on access, since all of them would not fit into memory."""

    def __init__(self, records: Sequence[Record], encoder: Encoder, pictures: Pictures) -> None:
        blank = pictures.blank()
        self.samples = [encoder.sample(record, blank) for record in records]
        self.clips = [clip_of(record) for record in records]
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return replace(self.samples[index], vision=self.pictures.clip(*self.clips[index]))


class Features:
    """Features of the frozen tower for every clip, and the latent targets of every overlay."""

    def __init__(self, folder: Path, pictures: Pictures) -> None:
        self.folder, self.shape = folder, pictures.blank()
        self._arrays: dict[str, Tensor] = {}

    def array(self, name: str) -> Tensor:
        """A tensor of the feature folder, read when it is first asked for."""
        if name not in self._arrays:
            self._arrays[name] = torch.from_numpy(np.load(self.folder / f"{name}.npy"))
        return self._arrays[name]

    def clip(self, record: Record) -> Vision:
        """The clip of a record as features, in place of patches."""
        split, index = clip_of(record)
        return replace(self.shape, features=self.array(f"{split}.clips")[index])

    def prompt(self, record: Record, encoder: Encoder) -> Prompt:
        """A record's prompt, with the features of its clip."""
        return encoder.prompt(record, self.clip(record))

    def sample(self, record: Record, encoder: Encoder) -> Sample:
        """A record as a training example, with the features of its clip and its latent targets."""
        split, index = clip_of(record)
        latents = self.array(f"{split}.imagery")[index, solid_of(record)]
        return encoder.sample(record, self.clip(record), latents)


def make_features(
    backbone: Backbone, pictures: Pictures, folder: Path, counts: dict[str, int], rank: int, world: int
) -> None:
    """Write this process's share of what `Features` reads, into the files that `create_features` has made.

    Args:
        backbone: encodes the pictures.
        pictures: what is encoded.
        folder: of the files.
        counts: records of each split.
        rank: of this process.
        world: processes that share the work.
    """
    for split, count in counts.items():
        share = range(rank * count // world, (rank + 1) * count // world)
        for start in range(share.start, share.stop, _CHUNK):
            rows = range(start, min(share.stop, start + _CHUNK))
            _fill(
                folder / f"{split}.clips.npy",
                rows,
                _encode(backbone, [pictures.clip(split, i) for i in rows]),
            )
            if (folder / f"{split}.imagery.npy").exists():
                visions = [pictures.overlays(split, i) for i in rows]
                targets = backbone.imagery_targets(*_joined(visions))
                _fill(folder / f"{split}.imagery.npy", rows, targets)


def create_features(backbone: Backbone, pictures: Pictures, folder: Path, counts: dict[str, int]) -> None:
    """Empty files for `make_features`."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = int(pictures.blank().grid_thw.prod()) // backbone.vision.merge_size**2
    for split, count in counts.items():
        shapes: dict[str, tuple[int, ...]] = {"clips": (count, merged, backbone.hidden_size)}
        if (pictures.folder / f"{split}.overlays.npy").exists():
            solids, frames = pictures.array(f"{split}.overlays").shape[1:3]
            shapes["imagery"] = (count, solids, frames * backbone.latents.latent_size, backbone.hidden_size)
        for name, shape in shapes.items():
            create_array(folder / f"{split}.{name}.npy", np.float32, shape)


@torch.no_grad()
def match_scale(backbone: Backbone, pictures: Pictures) -> float:
    """Scale the tower's output, and return the factor.

    Afterwards latents are on average as long as the hidden states that generation feeds back in their place
    (sqrt of the width, after the final norm). A tower trained from nothing ends several times too long.
    Training shows a model the targets, generation its own hidden states: of another length, they would be
    something that it has never seen.
    """
    shown = range(min(64, len(pictures.array("train.overlays"))))
    targets = backbone.imagery_targets(*_joined([pictures.overlays("train", i) for i in shown]))
    factor = backbone.hidden_size**0.5 / float(targets.norm(dim=-1).mean())
    last = [module for module in backbone.visual.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.weight.mul_(factor)
    if last.bias is not None:
        last.bias.mul_(factor)
    return factor


@torch.no_grad()
def _encode(backbone: Backbone, visions: list[Vision]) -> Tensor:
    return backbone.encode_vision(*_joined(visions))


def _joined(visions: list[Vision]) -> tuple[Tensor, Tensor]:
    patches = [vision.patches for vision in visions if vision.patches is not None]
    return torch.cat(patches), torch.cat([vision.grid_thw for vision in visions])


def _fill(path: Path, rows: range, values: Tensor) -> None:
    stored = np.load(path, mmap_mode="r+")
    stored[rows.start : rows.stop] = values.detach().cpu().numpy().reshape(len(rows), *stored.shape[1:])
