"""What is refused, kind by kind: every entry of the list of refusals, with its message and in the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourdthinker.errors import VideoError
from fourdthinker.frames import FramePolicy, read_frames
from tests.oracle.files import Recipe, make
from tests.oracle.refusals import REFUSALS, refusal

DOCS = Path(__file__).resolve().parents[3] / "docs" / "video.md"
KINDS = [Recipe("h261", "h261"), Recipe("mjpeg", "mjpeg"), Recipe("av1", "obu")]


@pytest.mark.parametrize("recipe", KINDS, ids=str)
def test_what_is_refused_and_why(tmp_path: Path, recipe: Recipe) -> None:
    clip = make(recipe, tmp_path)
    for way in ({"policy": FramePolicy()}, {"times": [clip.truth.begin]}, {"times": [0.3], "partial": True}):
        with pytest.raises(VideoError) as caught:
            read_frames(clip.path, **way)
        assert refusal(recipe, "policy", str(caught.value)) is not None
        assert str(clip.path) in str(caught.value)


def test_the_table_of_the_docs_and_the_list_of_refusals_are_one() -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    head = next(k for k, line in enumerate(lines) if line.startswith("| kind of file |"))
    refused = set()
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        kind, _, named = (cell.strip() for cell in line.strip("|").split("|"))
        if named:
            refused.add(kind)
    assert refused == {entry.kind for entry in REFUSALS}
    assert len({entry.words for entry in REFUSALS}) == len(REFUSALS) == len(refused)
