"""Inputs: files, folders, patterns, manifests, SpatialVID's layout, scenes, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourdthinker.errors import ConfigError
from fourdthinker.synth.depths import check_calibrations
from fourdthinker.synth.inputs import Refused, Source, candidates, open_candidate, scene_groups
from fourdthinker.synth.journal import Journal
from fourdthinker.synth.plan import plan
from fourdthinker.synth.run import Options
from fourdthinker.synth.settings import SynthSettings
from tests.unit.synth.geometry.test_calibration import written


def opened(inputs: list[str], out: Path) -> list[Source | Refused]:
    with Journal(out) as journal:
        found = candidates(inputs)
        groups = scene_groups(found, journal)
        return [open_candidate(candidate, journal, 0, groups) for candidate in found]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.mp4", "a 'quoted' näme\n.mp4", "deep/c.mov"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_folder_is_read_in_the_order_of_names(videos: Path, tmp_path: Path) -> None:
    found = opened([str(videos)], tmp_path / "out")
    assert [Path(source.shown).name for source in found] == ["a 'quoted' näme\n.mp4", "b.mp4", "c.mov"]
    assert all(isinstance(source, Source) for source in found)
    assert len({source.name for source in found}) == 3
    assert all(source.name.replace("-", "").replace("_", "").replace(".", "").isalnum() for source in found)


def test_names_follow_the_content(videos: Path, tmp_path: Path) -> None:
    path = videos / "b.mp4"
    before = opened([str(path)], tmp_path / "out")[0]
    os.utime(path)
    same = opened([str(path)], tmp_path / "out")[0]
    path.write_bytes(b"other content")
    after = opened([str(path)], tmp_path / "out")[0]
    assert same == before
    assert after.name != before.name


def test_a_pattern(videos: Path, tmp_path: Path) -> None:
    assert len(opened([str(videos / "**" / "*.mov")], tmp_path / "out")) == 1
    with pytest.raises(ConfigError, match="no file matches"):
        candidates([str(videos / "*.xyz")])


def test_the_same_path_is_listed_once(videos: Path) -> None:
    assert len(candidates([str(videos), str(videos / "b.mp4")])) == 3


def test_what_is_no_video_is_refused_with_a_reason(videos: Path, tmp_path: Path) -> None:
    (videos / "empty.mp4").touch()
    (videos / "notes.txt").write_text("x")
    (tmp_path / "outside.mp4").write_bytes(b"secret")
    (videos / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (videos / "broken.mp4").symlink_to(videos / "nothing.mp4")
    os.mkfifo(videos / "pipe.mp4")
    found = [one for one in opened([str(videos)], tmp_path / "out") if isinstance(one, Refused)]
    assert {Path(one.shown).name: one.reason for one in found} == {
        "empty.mp4": "empty file",
        "notes.txt": "not a video, by its suffix",
        "link.mp4": "a link out of its folder",
        "broken.mp4": "a link to nothing",
        "pipe.mp4": "not a regular file",
    }


def test_a_manifest(videos: Path, tmp_path: Path) -> None:
    rows = [
        {"video": "b.mp4", "objects": ["red car", " tree "], "start": 1, "end": 4.5, "licence": "CC0"},
        {"video": "missing.mp4"},
        {"video": "../../etc/passwd"},
    ]
    path = videos / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, missing, outside = opened([str(path)], tmp_path / "out")
    assert isinstance(first, Source)
    assert (first.objects, first.start, first.end, first.licence) == (("red car", "tree"), 1.0, 4.5, "CC0")
    assert isinstance(missing, Refused)
    assert missing.reason == "no such file"
    assert isinstance(outside, Refused)
    assert outside.reason == "a link out of its folder"
    whole = opened([str(videos / "b.mp4")], tmp_path / "out")[0]
    assert isinstance(whole, Source)
    assert whole.name != first.name
    assert whole.group == first.group


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"video": "b.mp4", "speed": 1}', "row 1: unknown key speed; known are"),
        ('{"path": "b.mp4"}', "row 1: no video"),
        ('{"video": "b.mp4", "calibration": "c.json"}', "row 1: no right; stereo is"),
        ('{"video": "b.mp4", "right": "c", "calibration": "c", "focal": 1}', "row 1: also focal; stereo is"),
        ('{"video": "b.mp4", "start": "soon"}', "start is 'soon'; give seconds"),
        ('{"video": "b.mp4", "poses_metric": "yes"}', "poses_metric is 'yes'; give true or false"),
        ('{"video": "b.mp4", "right": "c.mp4"}', "row 1: no baseline, no focal; stereo is"),
        ('{"video": "b.mp4", "right": "c", "focal": "x", "baseline": 1}', "focal is 'x'; give pixels"),
        (
            '{"video": "b.mp4", "right": "c", "focal": 0, "baseline": 1}',
            "focal is 0; give pixels, a number ab",
        ),
        (
            '{"video": "b.mp4", "right": "c", "focal": 9, "baseline": 0}',
            "baseline is 0; give metres, above 0",
        ),
        ('{"video": "b.mp4", "right": "c", "focal": 9, "baseline": 65}', "baseline is 65; .*and below 10"),
        ("{", "not a manifest"),
        ("", "holds no rows"),
    ],
)
def test_manifests_that_are_wrong(videos: Path, text: str, message: str) -> None:
    path = videos / "list.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        candidates([str(path)])


def test_a_stereo_pair(videos: Path, tmp_path: Path) -> None:
    path = videos / "list.jsonl"
    row = {"video": "b.mp4", "right": "c.mp4", "focal": 500, "baseline": 0.1}
    path.write_text(json.dumps(row))
    (missing,) = opened([str(path)], tmp_path / "out")
    assert isinstance(missing, Refused)
    assert missing.reason == "right: no file c.mp4"
    digests = set()
    for content in (b"one", b"other"):
        (videos / "c.mp4").write_bytes(content)
        (source,) = opened([str(path)], tmp_path / "out")
        assert isinstance(source, Source)
        assert source.given == {"right": str(videos / "c.mp4"), "focal": "500.0", "baseline": "0.1"}
        digests.add(source.digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("key", "rest"),
    [
        ("right", {"focal": 500, "baseline": 0.1}),
        ("calibration", {"right": "b.mp4"}),
        ("poses", {"poses_format": "npz"}),
    ],
)
def test_no_file_of_a_manifest_is_outside_of_its_folder(
    videos: Path, tmp_path: Path, key: str, rest: dict[str, Any]
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "x").write_text("{}")
    (videos / "link").symlink_to(secret / "x")
    path = videos / "list.jsonl"
    for named in ("../secret/x", str(secret / "x"), "link"):
        path.write_text(json.dumps({"video": "b.mp4", **rest, key: named}))
        (found,) = opened([str(path)], tmp_path / "out")
        assert isinstance(found, Refused), named
        assert found.reason.startswith(f"{key}: ")
        assert "lies outside" in found.reason


def test_the_content_of_a_calibration_belongs_to_the_key(videos: Path, tmp_path: Path) -> None:
    (videos / "c.mp4").write_bytes(b"right")
    path, rig = videos / "list.jsonl", videos / "rig.json"
    path.write_text(json.dumps({"video": "b.mp4", "right": "c.mp4", "calibration": "rig.json"}))
    digests = set()
    for metres in (0.1, 0.2):
        written(rig, T=[-metres, 0, 0])
        (source,) = opened([str(path)], tmp_path / "out")
        assert isinstance(source, Source)
        assert source.given == {"right": str(videos / "c.mp4"), "calibration": str(rig)}
        digests.add(source.digest)
    assert len(digests) == 2
    written(rig, T=[0, 0, 0])
    with pytest.raises(ConfigError, match=r"b\.mp4: calibration: .*rig\.json: T is \[0, 0, 0\]"):
        check_calibrations(candidates([str(path)]))


def test_a_calibration_that_is_refused_ends_no_run(videos: Path, tmp_path: Path) -> None:
    (videos / "c.mp4").write_bytes(b"right")
    (tmp_path / "rig.json").write_text("{}")
    path = videos / "list.jsonl"
    for named, reason in (
        ("none.json", "no file none.json"),
        ("../rig.json", "lies outside"),
        ("a\0b", "NUL"),
    ):
        path.write_text(json.dumps({"video": "b.mp4", "right": "c.mp4", "calibration": named}))
        check_calibrations(candidates([str(path)]))
        (found,) = opened([str(path)], tmp_path / "out")
        assert isinstance(found, Refused)
        assert reason in found.reason


def test_views_of_one_scene_are_of_one_group(videos: Path, tmp_path: Path) -> None:
    """Three cameras, each with its neighbour, and a pair of another scene: no split may part the views."""
    for name in "defgh":
        (videos / f"{name}.mp4").write_bytes(name.encode())
    pairs = [("d", "e"), ("e", "f"), ("f", "e"), ("g", "h")]
    rows = [{"video": f"{a}.mp4", "right": f"{b}.mp4", "focal": 500, "baseline": 0.1} for a, b in pairs]
    path = videos / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [source for source in opened([str(path)], tmp_path / "out") if isinstance(source, Source)]
    assert len(found) == 4
    assert len({source.group for source in found[:3]}) == 1
    assert found[3].group != found[0].group
    assert len({source.digest for source in found}) == 4


def test_a_copy_of_a_view_is_of_its_group(videos: Path, tmp_path: Path) -> None:
    """The right video of a pair lies elsewhere too, under another name, and is a video of its own there."""
    (videos / "r.mp4").write_bytes(b"right")
    (videos / "copy.mp4").write_bytes(b"right")
    path = videos / "list.jsonl"
    rows = [
        {"video": "b.mp4", "right": "r.mp4", "focal": 500, "baseline": 0.1},
        {"video": "copy.mp4", "start": 1},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pair, copy = opened([str(path)], tmp_path / "out")
    assert isinstance(pair, Source)
    assert isinstance(copy, Source)
    assert pair.group == copy.group


def test_a_file_that_takes_too_long_is_refused(videos: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "out") as journal:
        (one,) = candidates([str(videos / "b.mp4")])
        late = open_candidate(one, journal, 0, {}, timeout=0.0)
        assert isinstance(late, Refused)
        assert late.reason == "cannot be read (not within 0 s)"
        assert isinstance(open_candidate(one, journal, 0, {}), Source)
        assert isinstance(open_candidate(one, journal, 0, {}, timeout=0.0), Source)  # it is known by now


def test_a_csv_manifest(videos: Path, tmp_path: Path) -> None:
    path = videos / "list.csv"
    path.write_text('video,objects,start\nb.mp4,"car, tree",2\n')
    source = opened([str(path)], tmp_path / "out")[0]
    assert isinstance(source, Source)
    assert (source.objects, source.start, source.end) == (("car", "tree"), 2.0, None)


def test_spatialvid(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    (root / "videos" / "group_0001").mkdir(parents=True)
    (root / "videos" / "group_0001" / "x.mp4").write_bytes(b"video")
    notes = root / "annotations" / "group_0001" / "x"
    notes.mkdir(parents=True)
    for name in ("poses.npy", "intrinsics.npy"):
        np.save(notes / name, np.zeros((3, 7)))
    (notes / "indexes.txt").write_text("0 0")
    (notes / "instructions.json").write_text("{}")
    source = opened([str(root)], tmp_path / "out")[0]
    assert isinstance(source, Source)
    assert source.given == {"poses": str(notes / "poses.npy"), "poses_format": "spatialvid"}
    (notes / "instructions.json").write_text("{} ")  # is never read
    other = tmp_path / "other"  # a corpus of links to another disk
    other.mkdir()
    for name in ("videos", "annotations"):
        (other / name).symlink_to(root / name)
    assert isinstance(opened([str(other)], tmp_path / "out")[0], Source)
    assert opened([str(root)], tmp_path / "out")[0] == source
    seen = {source.digest}
    for name in ("poses.npy", "intrinsics.npy", "indexes.txt"):
        (notes / name).write_bytes(b"something else")
        changed = opened([str(root)], tmp_path / "out")[0]
        assert isinstance(changed, Source)
        assert changed.group == source.group
        seen.add(changed.digest)
    assert len(seen) == 4
    (notes / "indexes.txt").unlink()
    missing = opened([str(root)], tmp_path / "out")[0]
    assert isinstance(missing, Refused)
    assert missing.reason == "poses: no file indexes.txt"


def test_names_and_values_that_cost_only_their_item(videos: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(videos) + b"/caf\xe9.mp4")
    Path(odd).write_bytes(b"odd")
    os.mkfifo(videos / "pipe.npz")
    rows = [
        {"video": "caf\udce9.mp4"},
        {"video": "a\0.mp4"},
        {"video": "b.mp4", "id": "1", "objects": ["\ud800"]},
        {"video": "b.mp4", "start": 0, "poses": "pipe.npz"},
        {"video": "b.mp4", "start": 1, "poses": "none.npz"},
        {"video": "b.mp4", "start": 2, "poses": "\0.npz"},
        {"video": "b.mp4", "start": 3, "licence": ["CC"]},
        {"video": "b.mp4", "start": 4},
    ]
    path = videos / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    *refused, good = opened([str(path)], tmp_path / "out")
    assert isinstance(good, Source)
    assert [one.reason for one in refused if isinstance(one, Refused)] == [
        "its name is not UTF-8",
        "a path with the character NUL",
        "objects is not UTF-8",
        "poses: pipe.npz is not a regular file",
        "poses: no file none.npz",
        "a path with the character NUL",
        "licence is ['CC']; give text",
    ]
    assert refused[0].shown == "caf\\udce9.mp4"
    json.dumps([one.shown for one in refused], ensure_ascii=False).encode()
    assert plan([str(path)], SynthSettings(), Options())["videos"] == "8, 8 unreadable"
    path.unlink()
    (videos / "pipe.npz").unlink()
    assert sum(isinstance(one, Source) for one in opened([str(videos)], tmp_path / "out")) == 3


def test_a_folder_whose_name_is_not_utf8(videos: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    odd.mkdir()
    (odd / "v.mp4").write_bytes(b"v")
    (videos / "link.mp4").symlink_to(odd / "v.mp4")
    for given in (odd, videos / "link.mp4"):
        (found,) = opened([str(given)], tmp_path / "out")
        assert isinstance(found, Refused)
        assert found.reason in ("its name is not UTF-8", "a path that is not UTF-8")


def test_scenes(tmp_path: Path) -> None:
    found = opened(["scenes:3"], tmp_path / "out")
    assert [source.scene for source in found if isinstance(source, Source)] == [0, 1, 2]
    with pytest.raises(ConfigError, match="no such file or folder"):
        candidates(["scenes:0"])
