"""The oracle itself: marks survive orientation, size and codecs; the truth of a file is as it was made."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.oracle.coded import ENCODERS, add_stream, encoded
from tests.oracle.files import (
    ALL_STAMPS,
    HOLDS,
    MISSING,
    STORAGE,
    TRUE,
    Recipe,
    containers_for,
    make,
    stamps_for,
)
from tests.oracle.marks import VIEWER, Mark, mark_of, marked, stored_as
from tests.oracle.recipes import drawn
from tests.oracle.surgery import listed


@pytest.mark.parametrize("orientation", range(1, 9))
def test_marks_tell_number_and_orientation(orientation: int) -> None:
    for number in (0, 1, 37, 512, 1023):
        stored = stored_as(marked(number), orientation)
        assert mark_of(stored) == Mark(number, orientation)
        assert mark_of(VIEWER[orientation](stored)) == Mark(number)
        square = Image.fromarray(stored).resize((56, 56), Image.Resampling.LANCZOS)
        assert mark_of(square) == Mark(number, orientation)


def test_mixed_pictures_say_nothing() -> None:
    mixed = (marked(3).astype(int) + marked(5)) // 2
    assert mark_of(mixed) is None
    halves = np.concatenate([marked(3)[:32], marked(60)[32:]])
    assert mark_of(halves) is None
    assert mark_of(np.zeros((64, 96, 3))) is None


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_keep_the_marks(tmp_path: Path, name: str) -> None:
    encoder, count = ENCODERS[name], 30
    suffix = next(iter(HOLDS[name.split("-")[0]]))
    path = make(Recipe(name, suffix, count=count), tmp_path).path
    with av.open(str(path)) as container:
        marks = [mark_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    hidden = range(encoder.hides - 1, count, encoder.hides) if encoder.hides else ()
    assert marks == [Mark(number) for number in range(count) if number not in hidden]


def test_files_differ_from_truth_where_they_should(tmp_path: Path) -> None:
    """Each way of stamping does what its name says to the file, and the truth is what was intended."""
    truths = {}
    for stamps in ALL_STAMPS:
        clip = make(Recipe("h264-b", "ts", stamps, seed=3), tmp_path)
        stored = listed(clip.path)
        increasing = None not in stored and stored == sorted(stored)
        assert (None in stored) == (stamps == MISSING)
        assert increasing == (stamps == STORAGE)
        assert [number for _, number in clip.truth.frames] == list(range(40))
        truths[stamps] = [round(begin - clip.truth.begin, 3) for begin, _ in clip.truth.frames]
    assert truths[TRUE] == truths[STORAGE] == truths[MISSING] == [round(k * 0.04, 3) for k in range(40)]
    hidden = make(Recipe("h264-b", "mp4", hide=7), tmp_path).truth
    assert hidden.frames[0] == (0.0, 7)
    cut = make(Recipe("h264-open", "mkv", cut=1), tmp_path)
    first = cut.truth.frames[0][1]
    assert first > 3
    with av.open(str(cut.path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert min(packet.pts for packet in packets) < packets[0].pts  # leading ones


def test_every_container_and_way_of_stamping_is_drawn() -> None:
    recipes = [drawn(number) for number in range(4000)]
    assert {recipe.encoder for recipe in recipes} == set(ENCODERS)
    made = {(recipe.encoder.split("-")[0], recipe.suffix) for recipe in recipes}
    assert made == {(name.split("-")[0], s) for name in ENCODERS for s in containers_for(name)}
    kinds = {(recipe.suffix, recipe.stamps) for recipe in recipes}
    assert kinds == {
        (s, kind) for name in ENCODERS for s in containers_for(name) for kind in stamps_for(name, s)
    }
    assert {recipe.orientation for recipe in recipes} == set(range(1, 9))


def test_packets_are_numbered_in_order_of_storage(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "c.nut"), "w") as container:
        stream = add_stream(container, ENCODERS["h264-b-flat"], Fraction(25))
        packets = encoded(stream, ENCODERS["h264-b-flat"], 9)
        assert [packet.number for packet in packets] == [0, 4, 1, 2, 3, 8, 5, 6, 7]
        assert [packet.key for packet in packets] == [True] + [False] * 8
        for packet in packets:
            container.mux(packet.packet)
