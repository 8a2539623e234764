"""The geometry stage: poses that are given, and the truth of scenes at a clip's frames and size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourdthinker.errors import ConfigError, GeometryError
from fourdthinker.synth import depths, labels, rle
from fourdthinker.synth.clips import Clip, RejectError
from fourdthinker.synth.context import Context
from fourdthinker.synth.geometry import Depth, Estimate, read_tum
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.labels import geometry, motion
from fourdthinker.synth.motion import camera_moves, unclear_spans
from fourdthinker.synth.run import synthesise
from fourdthinker.synth.scenes import Scene
from fourdthinker.synth.settings import SynthSettings
from fourdthinker.synth.tracks import CameraTrack, ObjectTrack
from fourdthinker.worlds.scenes import make_world, write_video


def clip_of(start: float, frames: int, height: int = 48, width: int = 64) -> Clip:
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    return Clip("v-0", start, start + frames / 10, np.arange(frames) / 10, pixels, (0,))


def context(tmp_path: Path, **given: str) -> Context:
    return Context(clip_of(2.0, 31), Source("v", "", "d", "g", "v", given=given), SynthSettings(), tmp_path)


def tum_file(tmp_path: Path, first: float) -> str:
    path = tmp_path / "path.txt"
    path.write_text("".join(f"{first + k / 10:.1f} 0 0 {k} 0 0 0 1\n" for k in range(31)))
    return str(path)


@pytest.mark.parametrize(("told", "metric"), [({}, False), ({"poses_metric": "true"}, True)])
def test_tum_poses_are_in_metres_only_where_that_is_said(
    tmp_path: Path, told: dict[str, str], metric: bool
) -> None:
    camera = geometry(context(tmp_path, poses=tum_file(tmp_path, 2.0), **told))["camera"]
    assert camera.metric is metric
    assert camera.times[0] == 0
    np.testing.assert_allclose(camera.centres[:, 2], np.arange(31), atol=1e-9)


def test_a_time_without_poses_has_no_label(tmp_path: Path) -> None:
    """Lost from 2 to 8 s, when it went in and out again."""
    times = np.arange(100) / 10
    path = tmp_path / "path.txt"
    path.write_text("".join(f"{t:.1f} 0 0 0 0 0 0 1\n" for t in times if t < 2 or t >= 8))
    given = {"poses": str(path), "poses_metric": "true"}
    one = Context(clip_of(0.0, 100), Source("v", "", "d", "g", "v", given=given), SynthSettings(), tmp_path)
    camera = geometry(one)["camera"]
    for track in (camera, read_tum(path, metric=True)):
        moves = camera_moves(track)
        assert [move.name for move in moves] == ["static", "static"]
        assert moves[0].end < 2.7
        assert moves[1].start > 7.3
        ((start, end),) = unclear_spans(track, moves)
        assert start < 2.7
        assert end > 7.3


def test_poses_without_a_unit_are_named(tmp_path: Path) -> None:
    """A track that only goes ahead: nothing of it can be said."""
    one = context(tmp_path, poses=tum_file(tmp_path, 2.0))
    found = one.results["geometry"] = geometry(one)
    assert any(text.startswith("translations: the poses have no known unit") for text in found["left_out"])
    found["camera"] = vars(found["camera"])
    with pytest.raises(RejectError, match="no known unit, so that only turns"):
        motion(one)


def test_why_a_distance_is_unclear_is_told(tmp_path: Path) -> None:
    """By its area the ball comes closer, by its length it stays as far."""
    one, times = context(tmp_path), np.arange(31) / 10
    camera = CameraTrack(times, np.tile(np.eye(4), (31, 1, 1)))
    away = np.linspace([-2.0, 0, 1], [0, 0, 1], 31)
    ball = ObjectTrack("ball", times, away, otherwise=away * np.linspace(1, 2.2, 31)[:, None])
    found = {"camera": vars(camera), "objects": [vars(ball)], "things": [0], "left_out": []}
    one.results["geometry"] = found
    told = motion(one)
    assert told["objects"] == [{"direction": "right", "distance": None, "speed": "constant speed"}]
    assert told["left_out"] == [
        "ball: distance: 'closer' by its area, not by its length; something may hide a part"
    ]
    found["objects"] = [vars(replace(ball, otherwise=None))]
    assert (motion(one)["objects"][0]["distance"], motion(one)["left_out"]) == ("closer", [])


def test_poses_of_a_part_of_the_video_are_not_shifted_to_its_start(tmp_path: Path) -> None:
    with pytest.raises(RejectError, match=r"poses from 9\.00 to 12\.00 s for a clip from 2\.00 to 5\.10 s"):
        geometry(context(tmp_path, poses=tum_file(tmp_path, 9.0)))


def test_metres_are_not_claimed_for_other_poses(tmp_path: Path) -> None:
    with pytest.raises(RejectError, match="poses_metric is for TUM lines, and poses_format is 'npz'"):
        geometry(context(tmp_path, poses="p.npz", poses_metric="true"))


def test_a_lens_that_cannot_be_is_named_with_its_file(tmp_path: Path) -> None:
    path = str(tmp_path / "p.npz")
    values = {"poses": np.tile(np.eye(4), (60, 1, 1)), "times": np.arange(60) / 10, "size": (64, 48)}
    lens = np.tile(np.diag([-5.0, 50.0, 1.0]), (60, 1, 1))
    np.savez(path, convention="opencv camera-to-world", intrinsics=lens, **values)
    with pytest.raises(
        RejectError, match=rf"^no geometry: {path}: npz: fx, fy, cx, cy = -5, 50, 0, 0 cannot be"
    ):
        geometry(context(tmp_path, poses=path))


def test_true_tracks_of_a_scene_are_at_the_clips_frames_and_size() -> None:
    world = make_world(1, "pan left", "right", frames=20, fps=10, size=64)
    scene = Scene(world, np.zeros((20, 64, 64), np.int8), np.zeros((20, 64, 64), np.float32))
    clip = clip_of(0.5, 10, height=64, width=128)
    camera, (mover, _) = scene.camera(clip), scene.things(clip)
    assert camera.times.tolist() == mover.times.tolist() == clip.times.tolist()
    assert camera.metric
    assert mover.metric
    expected = world.project(world.solids[0].centre)[5:15] * [2, 1, 1]
    np.testing.assert_allclose(camera.project(mover.positions), expected, atol=1e-3)


def test_the_estimator_is_chosen_and_depth_lifts_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wiring alone: estimators and depth have tests of their own."""
    clip = clip_of(0.0, 31, height=60, width=80)
    lens = np.array([[64.0, 0, 40], [0, 64, 30], [0, 0, 1]])
    poses = np.tile(np.eye(4), (31, 1, 1))
    poses[:, 0, 3] = np.linspace(0, 0.3, 31)
    points = np.random.default_rng(0).uniform([-1, -1, 2], [1, 1, 3], (200, 3))
    estimate = Estimate(CameraTrack(clip.times, poses, lens, (80, 60)), points)
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:50] = True
    thing = {"name": "box", "masks": [rle.encode(mask)] * 31}
    monkeypatch.setattr(labels, "reconstruct_camera", lambda frames, times, **known: estimate)
    monkeypatch.setattr(labels, "lens_of", lambda context: lens)
    values = np.full((31, 60, 80), 5.0, np.float32)
    monkeypatch.setattr(depths, "_stereo", lambda context: Depth(values, metric=True, source="stereo"))
    given = {"right": "r.mp4", "focal": "64", "baseline": "0.1"}
    one = Context(
        clip, Source("v", "", "d", "g", "v", given=given), SynthSettings(geometry="colmap"), tmp_path
    )
    one.results["segment"] = {"things": [thing]}
    found = geometry(one)
    assert found["camera"].metric
    assert found["camera"].centres[-1, 0] == pytest.approx(0.3 * 2, rel=0.3)  # points at 2.5 are 5 m away
    (track,) = found["objects"]
    assert (track.source, track.metric, found["things"]) == ("stereo", True, [0])
    np.testing.assert_allclose(track.positions[:, 2], 5.0)


def test_the_right_video_is_read_at_the_clips_times(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra synth)")
    path = tmp_path / "v.mp4"
    rng = np.random.default_rng(0)
    still = np.repeat(rng.integers(0, 255, (1, 96, 128, 3), np.uint8), 40, axis=0)
    write_video(path, still, 10)
    given = {"right": str(path), "focal": "100", "baseline": "0.1"}
    clip = clip_of(1.0, 5, height=96, width=128)
    one = Context(clip, Source("v", str(path), "d", "g", "v", given=given), SynthSettings(), tmp_path)
    assert depths._stereo(one).values.shape == (5, 96, 128)
    other = clip_of(1.0, 5, height=48, width=64)
    with pytest.raises(GeometryError, match="read at another size"):
        depths._stereo(replace(one, clip=other))


def test_stereo_depth_of_a_wide_pair_is_right(tmp_path: Path) -> None:
    """A wall 8 pixels apart in both pictures: 100 pixels * 0.4 m / 8 pixels = 5 m."""
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra synth)")
    wall = np.random.default_rng(0).integers(0, 256, (24, 44, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    for name, shift in (("left", 0), ("right", 8)):
        pixels = np.stack([wall[:, shift : shift + 160]] * 5)
        write_video(tmp_path / f"{name}.mp4", pixels, 10)
    clip = Clip("v-0", 0.0, 0.5, np.arange(5) / 10, np.stack([wall[:, :160]] * 5), (0,))
    given = {"right": str(tmp_path / "right.mp4"), "focal": "100", "baseline": "0.4"}
    source = Source("v", str(tmp_path / "left.mp4"), "d", "g", "v", given=given)
    one = Context(clip, source, SynthSettings(), tmp_path)
    depth = depths._stereo(one).values
    assert np.isfinite(depth).mean() > 0.3
    assert np.median(depth[np.isfinite(depth)]) == pytest.approx(5.0, rel=0.05)
    for frame in (0, 4):
        np.testing.assert_array_equal(depths.depth_of(one, frame), depth[frame])


def test_depth_of_a_frame_is_that_of_the_model_or_rejects_the_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depths, "_model", lambda weights: lambda frames: np.stack(frames)[..., 0] / 255)
    one = context(tmp_path, poses=tum_file(tmp_path, 2.0))
    with pytest.raises(RejectError, match="no depth for imagery=depth"):
        depths.depth_of(one, 3)
    seen = depths.depth_of(replace(one, settings=SynthSettings(depth_weights=tmp_path)), 3)
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen, np.float32(one.clip.pixels[3][..., 0] / 255))


@pytest.mark.parametrize(("metric", "why"), [(True, "give poses in metres"), (False, "has no scale")])
def test_given_poses_without_metres_keep_the_camera(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: bool, why: str
) -> None:
    class Model:
        def __init__(self) -> None:
            self.metric = metric

        def __call__(self, frames: list[np.ndarray]) -> np.ndarray:
            return np.ones((31, 48, 64), np.float32)

    monkeypatch.setattr(depths, "_model", lambda weights: Model())
    one = replace(
        context(tmp_path, poses=tum_file(tmp_path, 2.0)), settings=SynthSettings(depth_weights=tmp_path)
    )
    found = geometry(one)
    assert len(found["camera"].times) == 31
    assert found["objects"] == []
    reason, translations = found["left_out"]
    assert translations.startswith("translations: the poses have no known unit")
    assert reason.startswith("objects: ")
    assert why in reason


def rig_file(path: Path) -> str:
    """Of two cameras 0.4 m apart, with pictures of 320x192."""
    lens = {"K": [[200.0, 0, 159.5], [0, 200.0, 95.5], [0, 0, 1]], "distortion": []}
    values = {
        "image_size": [320, 192],
        "left": lens,
        "right": lens,
        "R": np.eye(3).tolist(),
        "T": [-0.4, 0, 0],
    }
    path.write_text(json.dumps(values))
    return str(path)


def test_the_left_camera_of_a_pair_is_the_clips_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Poses in TUM lines bring no lens; the estimator would guess one."""
    given = {"right": "r.mp4", "calibration": rig_file(tmp_path / "rig.json")}
    expected = [[100, 0, 80], [0, 100, 48], [0, 0, 1]]  # from the picture's corner, at half the size
    clip = clip_of(0.0, 31, height=96, width=160)
    values = np.full((31, 96, 160), 5.0, np.float32)
    monkeypatch.setattr(depths, "_stereo", lambda context: Depth(values, metric=True, source="stereo"))
    told = {**given, "poses": tum_file(tmp_path, 0.0), "poses_metric": "true"}
    one = Context(clip, Source("v", "", "d", "g", "v", given=told), SynthSettings(), tmp_path)
    one.results["segment"] = {"things": []}
    camera = geometry(one)["camera"]
    assert camera.intrinsics is not None
    np.testing.assert_allclose(camera.intrinsics[0], expected)
    assert camera.size == (160, 96)
    asked: list[Any] = []

    def estimator(frames: object, times: object, *, intrinsics: object, movers: object) -> Estimate:
        asked.append(intrinsics)
        raise GeometryError("no path")

    monkeypatch.setattr(labels, "estimate_camera", estimator)
    one = Context(clip, Source("v", "", "d", "g", "v", given=given), SynthSettings(), tmp_path)
    one.results["segment"] = {"things": []}
    with pytest.raises(RejectError, match="no path"):
        geometry(one)
    np.testing.assert_allclose(asked[0], expected)


def test_the_depth_of_a_calibrated_pair_is_that_of_its_focal_length(tmp_path: Path) -> None:
    """The wall of the test above, with its calibration for pictures of twice the size."""
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra synth)")
    wall = np.random.default_rng(0).integers(0, 256, (24, 44, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    for name, shift in (("left", 0), ("right", 8)):
        write_video(tmp_path / f"{name}.mp4", np.stack([wall[:, shift : shift + 160]] * 5), 10)
    clip = Clip("v-0", 0.0, 0.5, np.arange(5) / 10, np.stack([wall[:, :160]] * 5), (0,))
    left, right = str(tmp_path / "left.mp4"), str(tmp_path / "right.mp4")
    found = [
        depths._stereo(
            Context(
                clip,
                Source("v", left, "d", "g", "v", given={"right": right, **how}),
                SynthSettings(),
                tmp_path,
            )
        ).values
        for how in ({"calibration": rig_file(tmp_path / "rig.json")}, {"focal": "100", "baseline": "0.4"})
    ]
    assert np.isfinite(found[1]).mean() > 0.3
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_a_video_of_another_aspect_than_its_calibration_is_named_before_anything_is_done(
    tmp_path: Path,
) -> None:
    write_video(tmp_path / "left.mp4", np.zeros((4, 96, 128, 3), np.uint8), 10)
    rig_file(tmp_path / "rig.json")
    row = {"video": "left.mp4", "right": "left.mp4", "calibration": "rig.json"}
    path = tmp_path / "list.jsonl"
    path.write_text(
        json.dumps({"video": "none.mp4", "right": "x", "calibration": "rig.json"}) + "\n" + json.dumps(row)
    )
    with pytest.raises(
        ConfigError, match=r"rig\.json: image_size is 320x192 and left\.mp4 has 128x96 pixels"
    ):
        synthesise([str(path)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
