"""Which video a question is about, by what its line says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fourdthinker.evaluate.clips import without_pictures
from fourdthinker.records import Record, media_key, question_key, source_name, source_of


@pytest.mark.parametrize(
    ("source", "videos", "frames", "images", "name"),
    [
        ("film.mp4", ["clips/3.mp4"], [], [], "film.mp4"),
        ("", ["clips/3.mp4"], [], [], "clips/3.mp4"),
        (None, [], ["clips/7/0001.png", "clips/7/0009.png"], [], "clips/7"),
        (None, [], ["all/clip7_0001.png", "all/clip7_0002.png"], [], "all/clip7"),
        (None, [], ["1.png", "2.png"], [], "1.png"),
        (None, [], ["photos/12.png"], [], "photos/12.png"),
        (None, [], [], ["photos/12.png", "photos/13.png"], "photos/12.png\nphotos/13.png"),
        (None, ["a.mp4", "b.mp4"], [], ["c.png"], "a.mp4\nb.mp4\nc.png"),
        (None, [], [], [], None),
    ],
)
def test_a_line_names_its_video(
    source: object, videos: list[str], frames: list[str], images: list[str], name: str | None
) -> None:
    assert source_name(source, videos, frames, images) == name


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
    assert source_of(replace(mixed, media=mixed.media[::-1])) == "a.mp4\nb.png"
    bare = without_pictures(replace(mixed, turns=[("user", "Is <image> in <video>?")]))
    assert (bare.media_paths, bare.turns) == ([], [])


def test_what_is_read_and_what_is_asked() -> None:
    video = Record("ask", "a", "?", video="a.gif")
    assert media_key(video) == media_key(replace(video, question="!", id="b"))
    others = [
        replace(video, start=1.0), replace(video, end=2.0), replace(video, video=None, frames=["a.gif"]),
        replace(video, video=None, frames=["a.gif"], separate=True),
        replace(video, video=None, frames=["a.gif"], fps=2.0),
        replace(video, video=None, media=[("video", "a.gif"), ("image", "b.png")]),
        replace(video, video=None, media=[("image", "a.gif"), ("video", "b.png")]),
    ]  # fmt: skip
    assert len({media_key(record) for record in [video, *others]}) == 8
    told = [replace(video, system="Brief."), replace(video, turns=[("user", "In <video>?")])]
    assert len({str(question_key(record)) for record in [video, *told, *others]}) == 10
