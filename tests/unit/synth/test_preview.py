"""The page about synthesised data: everything is in it, and nothing of the data runs."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from fourdthinker.errors import ConfigError
from fourdthinker.synth import preview
from fourdthinker.synth.folder import check_folder
from fourdthinker.synth.preview import write_preview
from fourdthinker.synth.settings import SynthSettings
from fourdthinker.synth.write import Made, write_all
from tests.odd_values import ODD, spoilt
from tests.unit.synth.test_write import make

HOSTILE = "<script>alert('x')</script>\" onload=\"alert(1)"


def page(tmp_path: Path, **changes: object) -> str:
    made = [Made(**{**vars(one), **changes}) for one in make(tmp_path, 4)]
    write_all(made, SynthSettings(splits={"train": 1.0}), tmp_path)
    return write_preview(tmp_path).read_text()


def test_a_card_shows_question_options_pictures_and_paths(tmp_path: Path) -> None:
    above = {"camera": [[0, 0], [0, 1]], "object": [[1, 1], [1, 2]]}
    text = page(tmp_path, extra={"interval": [0.0, 1.0], "imagery": ["overlay, 0.0 s"], "above": above})
    assert text.count("<article") == 12
    assert text.count("data:image/jpeg;base64,") == 12 * 4
    assert '<li class="right"><b>B</b> Pan Right' in text
    assert "0.0 to 1.0 s" in text
    assert "overlay, 0.0 s" in text
    assert text.count('<path class="camera"') == text.count('<path class="object"') == 12
    assert "http" not in text.replace("http-equiv", "")


def test_nothing_of_the_data_runs(tmp_path: Path) -> None:
    options = {"A": HOSTILE, "B": "Pan Right"}
    text = page(tmp_path, text=HOSTILE, type=HOSTILE, options=options)
    assert text.count("<script>") == 1
    assert 'onload="' not in text
    assert "&lt;script&gt;alert" in text


@pytest.mark.parametrize(("most", "rare"), [(60, 2), (12, 2), (5, 2), (3, 1)])
def test_as_many_questions_as_wanted_are_shown(tmp_path: Path, most: int, rare: int) -> None:
    """Of a frequent type only its equal share was shown, although the other types had not as many."""
    made = [
        Made(**{**vars(one), "type": "often" if k > 1 else "seldom"})
        for k, one in enumerate(make(tmp_path, 4))
    ]
    write_all(made, SynthSettings(splits={"train": 1.0}), tmp_path)
    text = write_preview(tmp_path, most=most).read_text()
    assert text.count("<article") == min(most, len(made))
    assert text.count('<article data-type="seldom"') == rare


def test_a_camera_alone_has_a_path(tmp_path: Path) -> None:
    text = page(tmp_path, extra={"above": {"camera": [[0, 0], [0, 0]]}})
    assert '<path class="object"' not in text


@pytest.mark.parametrize("line", [b'{"id": "cut', b"[1]", b'{"id": "\xff"}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    write_all(make(tmp_path, 1), SynthSettings(splits={"train": 1.0}), tmp_path)
    path = tmp_path / "dift-train-00000.jsonl"
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(ConfigError, match=r"dift-train-00000\.jsonl:4: .*; run the synthesis once more"):
        write_preview(tmp_path)


@pytest.mark.parametrize("key", ["extra", "options", "image_input", "image_output", "seconds"])
def test_a_record_of_another_form_is_named(tmp_path: Path, key: str) -> None:
    write_all(make(tmp_path, 1), SynthSettings(splits={"train": 1.0}), tmp_path)
    path = tmp_path / "dift-train-00000.jsonl"
    first = json.loads(path.read_bytes().splitlines()[0])
    path.write_text(json.dumps(first | {key: 7}) + "\n")
    with pytest.raises(ConfigError, match=rf"record '{first['id']}' is not as a synthesis writes it"):
        write_preview(tmp_path)


def test_what_is_no_page_is_not_replaced(tmp_path: Path) -> None:
    write_all(make(tmp_path, 1), SynthSettings(splits={"train": 1.0}), tmp_path)
    path = tmp_path / "dift-train-00000.jsonl"
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="is there and no page"):
        write_preview(tmp_path, page=path)
    assert path.read_bytes() == before
    assert write_preview(tmp_path) == write_preview(tmp_path)  # a page is


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither records nor summary"):
        write_preview(tmp_path)


def test_a_run_without_records_shows_what_became_of_its_videos(tmp_path: Path) -> None:
    stages = {"questions": {"done": 0, "rejected": {"nothing clear to ask about": 2}}}
    (tmp_path / "summary.json").write_text(json.dumps({"stages": stages}))
    text = write_preview(tmp_path).read_text()
    assert "0 of 0 questions" in text
    assert "nothing clear to ask about" in text


def test_no_picture_from_elsewhere_gets_into_the_page(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_all(make(out, 1), SynthSettings(splits={"train": 1.0}), out)
    path = out / "dift-train-00000.jsonl"
    first = json.loads(path.read_bytes().splitlines()[0])
    picture = next(iter(first["image_input"]))
    (tmp_path / "secret.jpg").write_bytes((out / picture).read_bytes())
    (out / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    for named in ("../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg"):
        path.write_text(json.dumps(first | {"image_input": [named]}) + "\n")
        with pytest.raises(ConfigError, match="outside of the folder"):
            write_preview(out)


def test_the_folder_may_be_a_link_and_its_media_may_not(tmp_path: Path) -> None:
    """The remedy was to run the synthesis once more, which went through the link again."""
    out, disk = tmp_path / "out", tmp_path / "disk"
    out.mkdir()
    write_all(make(out, 1), SynthSettings(splits={"train": 1.0}), out)
    out.rename(disk)
    out.symlink_to(disk)
    write_preview(out)
    (disk / "media").rename(tmp_path / "media")
    (disk / "media").symlink_to(tmp_path / "media")
    for refused in (write_preview, lambda out: check_folder(out, SynthSettings(), update=False)):
        with pytest.raises(ConfigError, match=r"media is a link to .*; move the whole folder to that disk"):
            refused(out)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:8])
def test_odd_values_of_records_and_summary_are_named(
    odd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(make(tmp_path, 1), SynthSettings(splits={"train": 1.0}), tmp_path)
    monkeypatch.setattr(preview, "_picture", lambda path, rows, label: preview.Shown("data:,", 1, 1, label))
    path, taken, said = tmp_path / "dift-train-00000.jsonl", [], []
    above = {"camera": [[0, 0], [0, 1]], "object": [[1, 1], [1, 2]]}
    record = json.loads(path.read_bytes().splitlines()[0])
    record |= {"extra": {"interval": [0.0, 1.0], "imagery": ["overlay"], "above": above}}
    for changed in spoilt(record, odd):
        with contextlib.suppress(ConfigError):
            preview._whole_card("train", changed, tmp_path)
            taken.append(changed)
    path.write_text("".join(json.dumps(line) + "\n" for line in taken))
    write_preview(tmp_path, most=1000)
    stage = {"done": 3, "rejected": {"dark": 1}, "failed": {}, "quarantined": {}}
    summary = {"stages": {"ingest": stage}, "refused": [{"input": "a.mp4", "reason": "gone"}]}
    for changed in spoilt(summary, odd):
        (tmp_path / "summary.json").write_text(json.dumps(changed))
        try:
            preview._stages(preview._read_summary(tmp_path / "summary.json"))
        except ConfigError as error:
            said.append(str(error))
    assert [text for text in said if "summary.json: " not in text] == []
