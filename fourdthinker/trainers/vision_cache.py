"""Vision features of records, computed once and kept on disk.

A file of the cache is named by everything that its content depends on: the weights of the tower, the frame
policy, and the identity of the media (path, size, time of change, and the part of the clip that is looked
at). A changed file or tower is therefore another file of the cache; nothing is ever overwritten by something
different.

Files are written at once but not synced: of the power loss that leaves a file too short the next run takes
notice, since safetensors say how long they are, and computes it again.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fourdthinker.errors import RecordError, VideoError
from fourdthinker.files import make_folder, write_bytes
from fourdthinker.prompts import Encoder
from fourdthinker.records import media_key
from fourdthinker.sampler import encode_imagery, encode_visions
from fourdthinker.samples import Prompt, Sample, Vision
from fourdthinker.trainers.batches import Items, same
from fourdthinker.trainers.halved import Halved
from fourdthinker.trainers.loader import Loader, errors_of_workers

if TYPE_CHECKING:
    from fourdthinker.backbones.common import Backbone
    from fourdthinker.records import Record

logger = logging.getLogger(__name__)

_RECORDS_PER_BATCH = 16
_FORM = 3  # of the files; those of another one are not read


def tower_fingerprint(backbone: Backbone) -> str:
    """A hash of the vision tower's weights: their names, shapes, dtype and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.visual.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype};".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


class VisionCache:
    """Features of records on disk. Holds no model, so that loader workers can have it.

    Args:
        folder: where the files are; several runs and ranks may share it.
        backbone: its tower and latent settings name the files.
        encoder: its frame policy does too.
        clips: keep the features of what is asked about.
        imagery: keep the latent targets of the overlays.
    """

    def __init__(
        self, folder: str | Path, backbone: Backbone, encoder: Encoder, *, clips: bool, imagery: bool
    ) -> None:
        self.folder, self.encoder, self.clips, self.imagery = Path(folder), encoder, clips, imagery
        spec = backbone.latents
        tower, policy = tower_fingerprint(backbone), asdict(encoder.policy)
        self._base = {"form": _FORM, "tower": tower, "policy": policy}
        self._latents = {"latent_size": spec.latent_size, "compress": spec.compress_strategy}

    def sample(self, record: Record) -> Sample:
        """The training sample of a record; what the cache keeps is read from it, the rest from the media.

        Raises:
            VideoError: media that cannot be read, or have changed since their features were computed.
        """
        clip = self._clip(record)
        latents = None
        if self.imagery and record.images:
            latents = _read_kept(self._imagery_path(record), record.images)[0]["latents"]
        return self.encoder.sample(record, clip, latents)

    def prompt(self, record: Record) -> Prompt:
        """The prompt of a record, its clip from the cache if that keeps clips.

        Raises:
            VideoError: as `sample`.
        """
        return self.encoder.prompt(record, self._clip(record))

    @torch.no_grad()
    def fill(
        self,
        backbone: Backbone,
        records: Sequence[Record],
        *,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        skip: bool = False,
    ) -> int:
        """Compute what is missing for `records`, this rank's share.

        Args:
            backbone: whose tower computes.
            records: what will be asked for.
            rank: this process's number.
            world_size: how many processes share the work.
            workers: processes that read the media.
            skip: warn of media that cannot be read, and compute nothing of them.

        Returns:
            How many files are missing at first.

        Raises:
            RecordError: media that cannot be read, without `skip`.
        """
        # Divided before looking what is there: ranks look at different times, and must still divide alike.
        share = list(self._needed(records, skip).items())[rank::world_size]
        todo = [(path, work) for path, work in share if work is not None and not _is_whole(path)]
        if not todo:
            return 0
        logger.info("computing vision features: %d files into %s", len(todo), self.folder)
        halved = Halved("vision features")
        items: Items[Any] = Items([(*work, skip) for _, work in todo], self._read)
        loader = Loader(items, batch_size=_RECORDS_PER_BATCH, collate_fn=same, num_workers=workers)
        rest = iter(loader)
        while True:
            with errors_of_workers():
                batch = next(rest, None)
            if batch is None:
                break
            for kind, encode in (("clip", encode_visions), ("imagery", encode_imagery)):
                mine = [
                    (index, vision)
                    for index, vision in batch
                    if vision is not None and todo[index][1][0] == kind
                ]
                some = [vision for _, vision in mine]
                parts = halved(functools.partial(_listed, encode, backbone), some)
                for (index, vision), values in zip(mine, itertools.chain(*parts), strict=True):
                    _write(todo[index][0], kind, vision, values.cpu().contiguous())
        return len(todo)

    def _needed(self, records: Sequence[Record], skip: bool) -> dict[Path, tuple[str, Record] | None]:
        """Every file of the cache -> what is in it, and the first record that asks for it.

        None: its media are not there. They keep their place, for other ranks may see them.
        """
        needed: dict[Path, tuple[str, Record] | None] = {}
        for record in records:
            for kind, media, path_of in (
                ("clip", self.clips and record.shown, self._clip_path),
                ("imagery", self.imagery and record.images, self._imagery_path),
            ):
                if not media:
                    continue
                try:
                    needed.setdefault(path_of(record), (kind, record))
                except VideoError as error:
                    _tell_of(record, error, skip)
                    needed.setdefault(Path(kind, repr((media, record.start, record.end))), None)
        return needed

    def _read(self, work: tuple[str, Record, bool]) -> Vision | None:
        kind, record, skip = work
        try:
            return self._vision(kind, record)
        except VideoError as error:
            _tell_of(record, error, skip)
            return None

    def _vision(self, kind: str, record: Record) -> Vision:
        if kind == "imagery":
            return self.encoder.overlays(record)
        vision = self.encoder.read(record)
        if vision is None:
            raise ValueError(f"{record.where}: no media to compute features of")
        return vision

    def outline(self, record: Record) -> Vision | None:
        """The clip of a record without its features, as the cache keeps it: enough to count its tokens.

        Raises:
            VideoError: as `sample`.
        """
        return self._clip(record, without=("features",))

    def _clip(self, record: Record, without: tuple[str, ...] = ()) -> Vision | None:
        if not (self.clips and record.shown):
            return None
        stored, told = _read_kept(self._clip_path(record), [path for _, path in record.shown], without)
        seconds, times, grid = stored.get("seconds_per_grid"), stored.get("times"), stored["grid_thw"]
        kinds = json.loads(told["kinds"])
        lengths = [t for (t, _, _), kind in zip(grid.tolist(), kinds, strict=True) if kind == "video"]
        return Vision(
            grid,
            features=stored.get("features"),
            kind=kinds[0] if len(set(kinds)) == 1 else "mixed",
            seconds_per_grid=None if seconds is None else seconds.tolist(),
            times=None if times is None else [part.tolist() for part in times.split(lengths)],
            times_from=told["times_from"],
            kinds=kinds if len(set(kinds)) > 1 else None,
        )

    def _clip_path(self, record: Record) -> Path:
        shown, *part = media_key(record)
        return self._path({"clip": [[kind, *_identity(path)] for kind, path in shown], "part": part})

    def _imagery_path(self, record: Record) -> Path:
        return self._path({"imagery": [_identity(path) for path in record.images], **self._latents})

    def _path(self, what: dict[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(self._base | what, sort_keys=True).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"


def _tell_of(record: Record, error: VideoError, skip: bool) -> None:
    """Name the record whose media cannot be read, in an error or with `skip` a warning."""
    if not skip:
        raise RecordError(f"{record.where}: {error}") from error
    logger.warning("%s: %s; no features of it are computed", record.where, error)


def _listed(
    encode: Callable[[Backbone, Sequence[Vision]], Iterator[Tensor]],
    backbone: Backbone,
    visions: Sequence[Vision],
) -> list[Tensor]:
    return list(encode(backbone, visions))


def _identity(path: str) -> list[Any]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(
            f"{path}: cannot be read ({error.strerror}); mend it or leave the record out"
        ) from error
    return [os.path.realpath(path), status.st_size, status.st_mtime_ns]


def _is_whole(path: Path) -> bool:
    """Whether a file of the cache is there, and as long as its own header says."""
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt"):
            return True
    except (SafetensorError, OSError) as error:
        logger.warning("%s: damaged (%s); it is computed again", path, error)
        return False


def _read_kept(
    path: Path, media: Sequence[str], without: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file of the cache; VideoError, naming the media, where it is gone or cut."""
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name not in without]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}, file.metadata()
    except FileNotFoundError as error:
        raise VideoError(
            f"{', '.join(media)}: changed since the cache has its features, or {path} was removed"
        ) from error
    except (SafetensorError, OSError) as error:
        raise VideoError(f"{', '.join(media)}: the features in {path} cannot be read ({error})") from error


def _write(path: Path, kind: str, vision: Vision, values: Tensor) -> None:
    content = {"latents" if kind == "imagery" else "features": values}
    if kind == "clip":
        content["grid_thw"] = vision.grid_thw.cpu().contiguous()
        if vision.seconds_per_grid is not None:
            content["seconds_per_grid"] = torch.tensor(vision.seconds_per_grid, dtype=torch.float64)
        if vision.times is not None:
            every = [seconds for clip in vision.times for seconds in clip]
            content["times"] = torch.tensor(every, dtype=torch.float64)
    make_folder(path.parent)
    told = {"times_from": vision.times_from, "kinds": json.dumps(vision.kind_of_each)}
    write_bytes(path, save(content, told), sync=False)
