"""The cache of vision features: files that were cut off, media that change while a run reads them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fourdthinker.backbones import Checkpoint
from fourdthinker.errors import RecordError
from fourdthinker.prompt_style import PromptStyle
from fourdthinker.records import Record
from fourdthinker.trainers.batches import Items
from fourdthinker.trainers.vision_cache import VisionCache
from tests.clips import picture
from tests.e2e.training import POLICY
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny_checkpoint(hidden=32, layers=1, policy=POLICY, style=PromptStyle(instruction=""))


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Two, each with a picture that is asked about and one of imagery."""
    made = []
    for name in ("a", "b"):
        paths = [str(tmp_path / f"{name}{k}.png") for k in range(2)]
        for k, path in enumerate(paths):
            Image.fromarray(picture(k, 64, 64)).save(path)
        text = "<output_image> left"
        record = Record("dift", name, "Where?", frames=[paths[0]], text_output=text, images=[paths[1]])
        record.where = f"data.jsonl:{name}"
        made.append(record)
    return made


@pytest.fixture
def cache(checkpoint: Checkpoint, records: list[Record], tmp_path: Path) -> VisionCache:
    made = VisionCache(
        tmp_path / "cache", checkpoint.backbone, checkpoint.encoder(), clips=True, imagery=True
    )
    assert made.fill(checkpoint.backbone, records) == 4
    return made


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_file_that_is_cut_off_is_computed_again(
    checkpoint: Checkpoint,
    cache: VisionCache,
    records: list[Record],
    share: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    latents = cache.sample(records[0]).latents
    assert latents is not None
    latents = latents.clone()  # the file is mapped
    files = sorted(cache.folder.rglob("*.safetensors"))
    sizes = [path.stat().st_size for path in files]
    for path in files[:3]:
        os.truncate(path, int(share * path.stat().st_size))
    assert cache.fill(checkpoint.backbone, records) == 3
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert {message.split(": damaged")[0] for message in warnings} == set(map(str, files[:3]))
    assert [path.stat().st_size for path in files] == sizes
    after = cache.sample(records[0])
    assert after.latents is not None
    torch.testing.assert_close(after.latents, latents)
    assert cache.fill(checkpoint.backbone, records) == 0


def touched(cache: VisionCache, path: Path) -> None:
    os.utime(path, (1, 1))


def removed(cache: VisionCache, path: Path) -> None:
    path.unlink()


def cut(cache: VisionCache, path: Path) -> None:
    for file in cache.folder.rglob("*.safetensors"):
        os.truncate(file, 100)


@pytest.mark.parametrize("name", ["a0.png", "a1.png"])
@pytest.mark.parametrize("change", [touched, removed, cut])
def test_media_that_change_during_a_run_name_their_record(
    cache: VisionCache,
    records: list[Record],
    tmp_path: Path,
    name: str,
    change: Callable[[VisionCache, Path], None],
) -> None:
    change(cache, tmp_path / name)
    items: Items[Any] = Items(records[:1], cache.sample)
    with pytest.raises(RecordError) as error:
        items[0]
    message = str(error.value)
    assert message.startswith("record 'a' (data.jsonl:a): ")
    assert name in message or change is cut
    assert "on_bad_record=skip" in message


def test_media_that_change_during_a_run_are_skipped_when_asked(
    cache: VisionCache, records: list[Record], tmp_path: Path
) -> None:
    os.utime(tmp_path / "a0.png", (1, 1))
    index, sample = Items(records, cache.sample, tmp_path / "rejected.jsonl")[0]
    assert index == 1
    assert sample is not None
    (line,) = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["where"] == "data.jsonl:a"


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("no picture")])
def test_media_that_broke_since_a_run_began_are_left_out_of_the_cache_when_asked(
    checkpoint: Checkpoint,
    cache: VisionCache,
    records: list[Record],
    tmp_path: Path,
    change: Callable[[Path], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The records of a run that goes on are those that it began with."""
    change(tmp_path / "a0.png")
    with pytest.raises(RecordError, match=r"^data\.jsonl:a: .*a0\.png"):
        cache.fill(checkpoint.backbone, records)
    cache.fill(checkpoint.backbone, records, skip=True)
    assert any(line.startswith("data.jsonl:a: ") and "a0.png" in line for line in caplog.messages)
    assert cache.sample(records[1]).latents is not None


def test_ranks_divide_alike_though_one_misses_a_file(
    checkpoint: Checkpoint, records: list[Record], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Or what is behind it in the list would be computed by nobody."""
    cache = VisionCache(
        tmp_path / "cache", checkpoint.backbone, checkpoint.encoder(), clips=True, imagery=True
    )
    cache.fill(checkpoint.backbone, records, rank=1, world_size=2)
    hidden = Path(records[0].frames[0])
    hidden.rename(tmp_path / "hidden.png")
    cache.fill(checkpoint.backbone, records, rank=0, world_size=2, skip=True)
    (tmp_path / "hidden.png").rename(hidden)
    assert cache.fill(checkpoint.backbone, records) == 1  # the one that rank 0 could not see
