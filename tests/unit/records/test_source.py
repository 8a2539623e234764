"""Which video a question is about, by what its line says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fourdthinker.evaluate.clips import without_pictures
from fourdthinker.records import Record, source_name, source_of


@pytest.mark.parametrize(
    ("source", "video", "frames", "name"),
    [
        ("film.mp4", "clips/3.mp4", [], "film.mp4"),
        ("", "clips/3.mp4", [], "clips/3.mp4"),
        (None, None, ["clips/7/0001.png", "clips/7/0009.png"], "clips/7"),
        (None, None, ["all/clip7_0001.png", "all/clip7_0002.png"], "all/clip7"),
        (None, None, ["1.png", "2.png"], "1.png"),
        (None, None, ["photos/12.png"], "photos/12.png"),
        (None, None, [], None),
    ],
)
def test_a_line_names_its_video(
    source: object, video: str | None, frames: list[str], name: str | None
) -> None:
    assert source_name(source, video, frames) == name


def test_two_parts_of_one_clip_are_of_one_source_and_separate_images_are_not() -> None:
    early, late = (
        Record("ask", i, "?", frames=[f"v/{k}.png", f"v/{k + 1}.png"]) for i, k in (("a", 1), ("b", 5))
    )
    assert source_of(early) == source_of(late) == "v"
    early.separate = late.separate = True
    assert source_of(early) != source_of(late)
    assert source_of(Record("ask", "c", "?")) == "text:c"
    mixed = Record("ask", "d", "?", media=[("video", "a.mp4"), ("image", "b.png")])
    assert source_of(mixed) == "a.mp4\nb.png"
    bare = without_pictures(replace(mixed, turns=[("user", "Is <image> in <video>?")]))
    assert (bare.media_paths, bare.turns) == ([], [])
