"""What is refused, kind by kind: every entry of the list of refusals, with its message."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, read_frames
from tests.oracle.files import STORAGE, Recipe, make
from tests.oracle.refusals import REFUSALS, refusal

KINDS = [
    Recipe("h261", "h261"),
    Recipe("h264-b", "mp4", STORAGE, hide=3),
]


@pytest.mark.parametrize("recipe", KINDS, ids=str)
def test_what_is_refused_and_why(tmp_path: Path, recipe: Recipe) -> None:
    clip = make(recipe, tmp_path)
    for way in ({"policy": FramePolicy()}, {"times": [clip.truth.begin]}, {"times": [0.3], "partial": True}):
        with pytest.raises(VideoError) as caught:
            read_frames(clip.path, **way)
        assert refusal(recipe, "policy", str(caught.value)) is not None
        assert str(clip.path) in str(caught.value)


def test_the_list_has_no_entry_that_nothing_needs() -> None:
    words = {entry.words for entry in REFUSALS}
    assert len(words) == len(REFUSALS)
