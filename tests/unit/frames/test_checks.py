"""Arguments that no file could make right: each is a ConfigError with its name, its value and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fourdthinker.errors import ConfigError
from fourdthinker.frames import (
    FramePolicy,
    FrameSource,
    iterate_frames,
    patchify,
    read_frames,
    read_images,
    read_many,
    resize,
)
from fourdthinker.frames import convert as convert_module

NAN, INF = float("nan"), float("inf")
PICTURES = np.zeros((1, 28, 28, 3), np.uint8)
THREE = "give three finite numbers, one for each of red, green and blue"
DTYPES = r"; choose one of torch\.float32, torch\.float16, torch\.bfloat16"

LOOKS: list[tuple[dict[str, Any], str]] = [
    ({"mean": (0.5, 0.5)}, rf"mean is \(0\.5, 0\.5\); {THREE}"),
    ({"mean": 0.5}, rf"mean is 0\.5; {THREE}"),
    ({"mean": None}, rf"mean is None; {THREE}"),
    ({"mean": "abc"}, rf"mean is 'abc'; {THREE}"),
    ({"mean": torch.tensor(0.5)}, rf"mean is tensor\(0\.5.*; {THREE}"),
    ({"mean": (0.5, NAN, 0.5)}, rf"mean\[1\] is nan; {THREE}"),
    ({"mean": (0.5, 0.5, INF)}, rf"mean\[2\] is inf; {THREE}"),
    ({"std": (0.5, "a", 0.5)}, rf"std\[1\] is 'a'; {THREE}, above 0"),
    ({"std": (0.5, 0.0, 0.5)}, rf"std is \(0\.5, 0\.0, 0\.5\); {THREE}, above 0"),
    ({"std": (0.5, -0.1, 0.5)}, rf"std is \(0\.5, -0\.1, 0\.5\); {THREE}, above 0"),
    ({"std": [1.0] * 4}, rf"std is \[1\.0, 1\.0, 1\.0, 1\.0\]; {THREE}"),
]
DTYPES_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"dtype": torch.float64}, r"dtype is torch\.float64" + DTYPES),
    ({"dtype": torch.uint8}, r"dtype is torch\.uint8" + DTYPES),
    ({"dtype": "float32"}, r"dtype is 'float32'" + DTYPES),
    ({"dtype": None}, "dtype is None" + DTYPES),
    ({"dtype": []}, r"dtype is \[\]" + DTYPES),
]
PLACES: list[tuple[dict[str, Any], str]] = [
    ({"device": "cudda"}, "device is 'cudda'; use 'cpu', 'cuda' or 'cuda:N'"),
    ({"device": None}, "device is None; use 'cpu', 'cuda' or 'cuda:N'"),
    ({"device": 10**30}, r"device is 1000000.*; use 'cpu', 'cuda' or 'cuda:N'"),
    ({"device": 1.5}, r"device is 1\.5; use 'cpu', 'cuda' or 'cuda:N'"),
    ({"device": "meta"}, r"device is 'meta'; use 'cpu' or 'cuda', and move what is read with \.to\(\)"),
    ({"out": "rgb"}, "out is 'rgb'; choose 'uint8' or 'patches'"),
    ({"out": ["uint8"]}, r"out is \['uint8'\]; choose 'uint8' or 'patches'"),
    ({"policy": {"fps": 1}}, r"policy is \{'fps': 1\}; give a FramePolicy"),
]
CLOCK: list[tuple[dict[str, Any], str]] = [
    ({"times": [0.0, NAN]}, r"times\[1\] is nan; give finite seconds"),
    ({"times": [INF]}, r"times\[0\] is inf; give finite seconds"),
    ({"times": ["0.5"]}, r"times\[0\] is '0\.5'; give finite seconds"),
    ({"times": torch.zeros(2, device="meta")}, r"times\[0\] is tensor.*; give finite seconds"),
    ({"times": [None]}, r"times\[0\] is None; give finite seconds"),
    ({"times": [[0.0]]}, r"times\[0\] is \[0\.0\]; give finite seconds"),
    ({"times": "0"}, "times is '0'; give finite seconds"),
    ({"times": 0.5}, r"times is 0\.5; give finite seconds"),
    ({"times": []}, "times is empty; give at least one time"),
    ({"times": [0.0], "end": 1.0}, "give times, or start and end, not both"),
    ({"start": "0"}, "start is '0'; give seconds"),
    ({"end": NAN}, "end is nan; give seconds"),
]
STREAMS: list[tuple[dict[str, Any], str]] = [
    ({"stream": -1}, "stream is -1; give the index of a stream in the container, or None for the best"),
    ({"stream": 0.0}, r"stream is 0\.0; give the index"),
    ({"stream": True}, "stream is True; give the index"),
    ({"stream": "0"}, "stream is '0'; give the index"),
]
TIMEOUTS: list[tuple[dict[str, Any], str]] = [
    ({"timeout": 0}, "timeout is 0; give seconds above 0, or None for no limit"),
    ({"timeout": -1.0}, r"timeout is -1\.0; give seconds above 0"),
    ({"timeout": NAN}, "timeout is nan; give seconds above 0"),
    ({"timeout": "600"}, "timeout is '600'; give seconds above 0"),
]


def cases(*tables: list[tuple[dict[str, Any], str]]) -> Callable[[Any], Any]:
    rows = [row for table in tables for row in table]
    return pytest.mark.parametrize(("wrong", "words"), rows, ids=[str(row[0]) for row in rows])


@pytest.fixture
def nothing_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check comes before any file is touched."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr("fourdthinker.frames.reading.opened", refuse)
    monkeypatch.setattr("fourdthinker.frames.images.load_image", refuse)
    monkeypatch.setattr("fourdthinker.frames.read.is_image", refuse)


@pytest.mark.usefixtures("nothing_opened")
class TestBeforeAnyFile:
    @cases(LOOKS, DTYPES_WRONG, PLACES, CLOCK, STREAMS, TIMEOUTS)
    def test_read_frames(self, wrong: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=f"^{words}"):
            read_frames("v.mp4", **wrong)

    @cases(LOOKS, DTYPES_WRONG, PLACES, CLOCK, STREAMS)
    def test_iterate_frames(self, wrong: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=f"^{words}"):
            next(iterate_frames("v.mp4", **wrong))

    @cases(LOOKS, DTYPES_WRONG, PLACES, TIMEOUTS)
    def test_read_many(self, wrong: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=f"^{words}"):
            next(read_many(["v.mp4"], **wrong))

    @cases(
        LOOKS,
        PLACES,
        [
            ({"fps": 0}, "fps is 0; give pictures a second above 0"),
            ({"fps": INF}, "fps is inf; give pictures a second above 0"),
            ({"fps": "2"}, "fps is '2'; give pictures a second above 0"),
            ({"seconds": [0.0, NAN]}, r"seconds\[1\] is nan; give one finite time for each picture"),
            ({"seconds": 1.0}, r"seconds is 1\.0; give one finite time for each picture"),
        ],
    )
    def test_read_images(self, wrong: dict[str, Any], words: str) -> None:
        for separate in (False, True):
            with pytest.raises(ConfigError, match=f"^{words}"):
                read_images(["a.png", "b.png"], separate=separate, **wrong)

    @pytest.mark.parametrize("source", [None, 5, ["v.mp4"], bytearray(b"v"), FrameSource])
    def test_sources(self, source: Any) -> None:
        for call in (
            lambda: FrameSource(source),
            lambda: read_frames(source),
            lambda: next(iterate_frames(source)),
            lambda: next(read_many([source])),
        ):
            with pytest.raises(ConfigError, match=r"^source is .*; give a path, the bytes of a file"):
                call()

    @pytest.mark.parametrize(
        ("paths", "words"),
        [
            (None, "paths is of type NoneType"),
            (5, "paths is of type int"),
            ([None], r"paths\[0\] is None"),
            (["a.png", b"b.png"], r"paths\[1\] is b'b\.png'"),
            (b"a", r"paths\[0\] is 97"),
        ],
    )
    def test_paths(self, paths: Any, words: str) -> None:
        with pytest.raises(ConfigError, match=f"^{words}; give a folder, a picture, or a list of pictures"):
            read_images(paths)

    @pytest.mark.parametrize("value", [0, -1, 2.0, "2", None, True])
    def test_counts(self, value: Any) -> None:
        with pytest.raises(ConfigError, match=f"^batch is {value!r}; give a number of frames above 0"):
            next(iterate_frames("v.mp4", batch=value))
        if value is not None:
            with pytest.raises(ConfigError, match=f"^workers is {value!r}; give a number of threads above 0"):
                next(read_many(["v.mp4"], workers=value))


@pytest.mark.parametrize(("devices", "asked"), [(0, "cuda"), (0, "cuda:1"), (1, "cuda:1")])
def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, devices: int, asked: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    words = "; torch has 1, from 'cuda:0' on" if devices else ", and torch finds no CUDA device.*use 'cpu'"
    for call in (read_frames, read_images):
        for device in (asked, torch.device(asked)):
            with pytest.raises(ConfigError, match=f"^device is '{asked}'{words}"):
                call("v.mp4", device=device)


@pytest.fixture(params=["compiled", "pillow"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pillow":
        monkeypatch.setattr(convert_module, "native", lambda: None)


@pytest.mark.usefixtures("either")
class TestPictures:
    @pytest.mark.parametrize(
        ("size", "resample", "words"),
        [
            ((14, 0), "lanczos", r"size\[1\] is 0; give \(height, width\), two whole numbers above 0"),
            ((14.0, 14), "lanczos", r"size\[0\] is 14\.0; give"),
            ((14,), "lanczos", r"size is \(14,\); give"),
            (14, "lanczos", "size is 14; give"),
            (None, "lanczos", "size is None; give"),
            ("ab", "lanczos", r"size\[0\] is 'a'; give"),
            ((14, 14), "nearest", "resample is 'nearest'; choose one of lanczos, bicubic"),
            ((28, 28), "nearest", "resample is 'nearest'; choose one of lanczos, bicubic"),
            ((14, 14), None, "resample is None; choose one of lanczos, bicubic"),
        ],
    )
    def test_resize(self, size: Any, resample: Any, words: str) -> None:
        with pytest.raises(ConfigError, match=f"^{words}"):
            resize(PICTURES, size, resample)

    @cases(
        LOOKS,
        DTYPES_WRONG,
        [
            ({"patch": 0}, "patch is 0; give the side of a patch in pixels"),
            ({"patch": 14.0}, r"patch is 14\.0; give the side of a patch in pixels"),
            ({"merge": 0}, "merge is 0; give the side of a block in patches"),
            ({"temporal": -2}, "temporal is -2; give the number of frames that a patch spans"),
        ],
    )
    def test_patchify(self, wrong: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=f"^{words}"):
            patchify(PICTURES, **wrong)

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            (PICTURES[0], r"pictures are uint8 \[28, 28, 3\]; uint8 \[frames, height, width, 3\] is needed"),
            (torch.zeros(1, 28, 28, 3), r"pictures are float32 \[1, 28, 28, 3\]; uint8"),
            (PICTURES[:0], r"pictures are uint8 \[0, 28, 28, 3\]; uint8"),
            (None, "pictures are of type NoneType; give a tensor or an array"),
            ([[1]], "pictures are of type list; give a tensor or an array"),
        ],
    )
    def test_pictures_of_another_kind(self, wrong: Any, words: str) -> None:
        for call in (lambda: resize(wrong, (28, 28)), lambda: patchify(wrong)):
            with pytest.raises(ValueError, match=f"^{words}"):
                call()


def test_what_is_no_list_or_float_but_means_one(tmp_path: Path) -> None:
    """Arrays, tensors and numpy's own numbers."""
    for k in range(4):
        Image.fromarray(np.full((28, 28, 3), 50 * k, np.uint8)).save(tmp_path / f"{k}.png")
    mean, std = (0.5, 0.25, 0.125), (0.5, 1.0, 2.0)
    want = read_images(tmp_path, FramePolicy(fps=2), fps=4, out="patches", mean=mean, std=std)
    for kind in (np.array, torch.tensor, list):
        got = read_images(
            str(tmp_path),
            FramePolicy(fps=2),
            fps=np.float64(4),
            out="patches",
            mean=kind(mean),
            std=kind(std),
        )
        assert torch.equal(got.patches, want.patches)
        assert torch.equal(patchify(PICTURES, mean=kind(mean))[0], patchify(PICTURES, mean=mean)[0])
    assert resize(PICTURES, torch.Size([14, 14])).shape == resize(PICTURES, np.array([14, 14])).shape
    source = FrameSource(tmp_path / "v.mp4", stream=np.int64(0))
    assert source.stream == 0
