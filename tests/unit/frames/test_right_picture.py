"""Files of each kind, read in each way: the picture that is shown then, and upright, or an error by name.

One file stands for each kind; tests/fuzz/order.py draws many more.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from fourdthinker.errors import VideoError
from fourdthinker.frames import FrameSource, index_cache, read_frames
from fourdthinker.frames.container import Deadline, opened
from fourdthinker.frames.decode import decoded_frames
from fourdthinker.frames.orientation import Orientation, orientation_of
from fourdthinker.frames.timeline import Timeline
from tests.oracle.access import REFUSED, RIGHT, WRONG, Way, judge, limits, middles, settled, ways
from tests.oracle.files import (
    DUPLICATED,
    EXCHANGED,
    JITTERED,
    MESSAGE,
    MISSING,
    SHIFTED,
    STORAGE,
    UNEVEN,
    Recipe,
    make,
)
from tests.oracle.refusals import refusal

KINDS = [
    *(Recipe("h264-b", suffix, STORAGE) for suffix in ("mp4", "mkv", "ts", "flv")),
    Recipe("h264-pyramid", "mov", STORAGE),
    Recipe("h264-open", "mp4", STORAGE, hide=5),
    Recipe("h264-mbaff", "ts", STORAGE),
    Recipe("hevc-b", "mp4", STORAGE),
    Recipe("hevc-open", "mkv", STORAGE),
    Recipe("mpeg4-b", "mp4", STORAGE),
    Recipe("mpeg2-b", "ts", STORAGE),
    Recipe("h264-b", "asf"),
    Recipe("h264-b-flat", "mxf"),
    Recipe("h264-b", "avi"),
    Recipe("mpeg4-b", "avi"),
    *(Recipe(name, "mpg") for name in ("h264-b", "hevc-b")),
    Recipe("h264-b", "ts", MISSING, seed=1),
    Recipe("mpeg2-b", "mpg", MISSING, seed=1),
    Recipe("h264-pyramid", "mp4", UNEVEN, seed=2),
    Recipe("vp9", "webm", UNEVEN, seed=2),
    Recipe("hevc-b", "ts", SHIFTED, seed=2),
    Recipe("h264-b", "mkv", JITTERED, seed=2),
    Recipe("h264-b", "mp4", DUPLICATED, seed=2),
    Recipe("h264-b", "mp4", EXCHANGED, seed=2),
    Recipe("vp8-hidden", "webm", UNEVEN, seed=3),
    Recipe("av1", "mp4", SHIFTED, seed=3),
    Recipe("h264-b", "mp4", hide=7),
    Recipe("h264-open", "mkv", cut=1),
    Recipe("hevc-open", "mp4", cut=1),
    Recipe("h264-pyramid", "mp4", without=9),
    Recipe("h264", "mkv", without=5),
    Recipe("mpeg2-b", "ts", without=10),
    Recipe("mpeg4-b-fields", "mp4"),
    Recipe("h264-refresh", "ts"),
    Recipe("wmv2", "wmv"),
    Recipe("rv20", "rm"),
    *(Recipe("h264-b", "mp4", orientation=orientation, count=9) for orientation in range(2, 9)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("recipe", KINDS, ids=str)
def test_every_way_of_reading_gives_the_picture_shown_then(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make(recipe, tmp_path)
    draw = random.Random(str(recipe))
    if draw.random() < 0.5:
        monkeypatch.setenv(index_cache.VARIABLE, str(tmp_path / "index"))
    torch.set_num_threads(draw.choice((1, 2)))
    with limits(*draw.choice(((None, None), (0, 5)))):
        clip = settled(clip)
        judged = judge(clip, ways(clip, draw, singles=4))
    assert [f"{verdict.way}: {verdict.words}" for verdict in judged.of(WRONG)] == []
    unlisted = [v for v in judged.of(REFUSED) if refusal(recipe, v.way, v.words) is None]
    assert [f"{verdict.way}: {verdict.words}" for verdict in unlisted] == []
    assert judged.of(RIGHT) or judged.of(REFUSED)


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_each_picture_of_a_stream_refreshed_by_degrees(tmp_path: Path, suffix: str) -> None:
    """Its later keyframes are keyframes only for pictures that come several later."""
    clip = make(Recipe("h264-refresh", suffix, count=75), tmp_path)
    singles = [
        Way(f"{time:.2f}", lambda time=time: [read_frames(clip.path, times=[time])])
        for time in middles(clip.truth)[40:]
    ]
    assert judge(clip, singles).of(WRONG) == []


def test_orientation_that_the_first_picture_of_a_sequence_tells(tmp_path: Path) -> None:
    """A message in H.264 comes with keyframes alone and holds for the pictures after them."""
    clip = make(Recipe("h264-open", "ts", orientation=7, by=MESSAGE), tmp_path)
    times = middles(clip.truth)
    every = [Way("all", lambda: [read_frames(clip.path, times=times)], count=len(times))]
    every += [Way(f"{t:.2f}", lambda t=t: [read_frames(clip.path, times=[t])]) for t in times[1::6]]
    assert {verdict.outcome for verdict in judge(clip, every).verdicts} == {RIGHT}


def test_the_orientation_of_a_sequence_stays_with_each_of_its_frames(tmp_path: Path) -> None:
    """Frames are freed one by one, while others of the same sequence still wait to be converted."""
    clip = make(Recipe("h264-open", "ts", orientation=7, by=MESSAGE), tmp_path)
    deadline = Deadline(str(clip.path), None)
    with opened(clip.path, None, 1, deadline) as (container, video):
        timeline = Timeline(Fraction(1, 25), range(clip.recipe.count), clip.truth.end)
        frames = list(decoded_frames(container, video, timeline, range(12), deadline))
    del frames[4]
    gc.collect()
    found = {orientation_of(frame, "clip") for frame in frames}
    assert found == {Orientation.of_exif(7)}


def test_the_ticks_of_a_bare_stream_are_not_its_rate(tmp_path: Path) -> None:
    clip = make(Recipe("mpeg4", "m4v", rate=Fraction(30000, 1001)), tmp_path)
    with pytest.raises(VideoError, match="names no rate; give FrameSource"):
        read_frames(clip.path, times=[0.1])
    source = FrameSource(clip.path, fps=30000 / 1001)
    assert judge(clip, [Way("all", lambda: [read_frames(source, times=[0.01, 1.0])])]).of(RIGHT)
