"""The stage imagery: which picture each question gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fourdthinker.synth import rle
from fourdthinker.synth.clips import Clip
from fourdthinker.synth.context import Context
from fourdthinker.synth.functions import draw, objects
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.settings import SynthSettings
from fourdthinker.synth.tracks import CameraTrack

GREYS = (0, 60, 120, 180, 240)


def context(out: Path, questions: list[dict[str, Any]], *imagery: str, seen: str = "") -> Context:
    """A clip of five grey frames, a second apart; `seen`: "x" for each frame that shows the thing."""
    (out / "media" / "c").mkdir(parents=True)
    times = np.arange(5.0)
    pixels = np.repeat(np.array(GREYS, np.uint8), 64 * 64 * 3).reshape(5, 64, 64, 3)
    mask = rle.encode(np.ones((64, 64), bool))
    things = [{"name": "ball", "masks": [mask if k == "x" else None for k in seen]}] if seen else []
    camera = vars(CameraTrack(times, np.tile(np.eye(4), (5, 1, 1))))
    objects = [{"name": "ball", "times": times, "positions": np.ones((5, 3)), "metric": True}] * len(things)
    results = {
        "segment": {"things": things},
        "geometry": {"camera": camera, "objects": objects, "things": list(range(len(things)))},
        "questions": {"questions": questions},
    }
    clip = Clip("c", 0.0, 4.0, times, pixels, tuple(range(5)))
    return Context(clip, Source("v", "", "d", "d", "v"), SynthSettings(imagery=imagery), out, results)


def asked(name: str, *instants: float, kind: str = "camera", thing: str | None = None) -> dict[str, Any]:
    return {"id": name, "type": kind, "end": 2.4, "support": {"object": thing, "instants": instants}}


def greys(out: Path, images: list[str]) -> list[int]:
    return [int(np.asarray(Image.open(out / path)).mean().round()) for path in images]


def test_the_next_instant_is_that_of_each_question(tmp_path: Path) -> None:
    found = draw(context(tmp_path, [asked("q", 0, 1), asked("r", 0, 3)], "next"))
    assert greys(tmp_path, found["q"]["images"]) == [pytest.approx(60, abs=2)]  # the last has no next one
    assert greys(tmp_path, found["r"]["images"]) == [pytest.approx(180, abs=2)]


def test_no_question_has_a_picture_twice(tmp_path: Path) -> None:
    found = draw(context(tmp_path, [asked("q", 0, 2)], "overlay", "silhouette"))
    assert found["q"]["kinds"] == ["map", "map"]
    assert found["q"]["instants"] == [0.0, 2.0]
    assert len(set(found["q"]["images"])) == 2


def test_the_imagery_of_a_prediction_ends_where_it_does(tmp_path: Path) -> None:
    both = [asked("q", 0, 2, kind="abs_dir_pred", thing="ball"), asked("r", 0, 2, thing="ball")]
    found = draw(context(tmp_path, both, "silhouette", seen="x..xx"))
    assert found["q"]["instants"] == [0.0]
    assert found["r"]["instants"] == [0.0, 3.0]


def test_the_map_of_a_prediction_tells_nothing_of_what_comes(tmp_path: Path) -> None:
    """Its scale is that of the path up to the end of the question, not of the whole clip."""
    pictures = []
    for name, far in (("near", 1.0), ("far", 50.0)):
        question = asked("q", 0, 2, kind="abs_dir_pred", thing="ball")
        clip = context(tmp_path / name, [question], "map", seen="xxxxx")
        positions = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3], [far, 0, 3], [2 * far, 0, 3]], float)
        clip.results["geometry"]["objects"][0]["positions"] = positions
        path = draw(clip)["q"]["images"][-1]
        pictures.append((tmp_path / name / path).read_bytes())
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("here", "everywhere", "names", "moving"),
    [
        (("cat",), ("cat",), ["cat"], "cat"),
        (("The red-ball", "dog"), ("red ball", "box"), ["The red-ball", "dog", "box"], None),
    ],
)
def test_a_name_of_the_manifest_and_the_settings_is_one(
    tmp_path: Path, here: tuple[str, ...], everywhere: tuple[str, ...], names: list[str], moving: str | None
) -> None:
    clip = Clip("c", 0.0, 4.0, np.arange(5.0), np.zeros((5, 64, 64, 3), np.uint8), tuple(range(5)))
    source = Source("v", "", "d", "d", "v", objects=here)
    found = objects(Context(clip, source, SynthSettings(names=everywhere), tmp_path))
    assert (found["names"], found["moving"]) == (names, moving)
