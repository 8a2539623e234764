"""Depth: read, from stereo, from a model's weights, brought to a track's unit; objects lifted by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fourdthinker.errors import CheckpointError, GeometryError
from fourdthinker.synth import rle
from fourdthinker.synth.geometry import aligned, in_metres, read_depth, scene_camera, scene_object
from fourdthinker.synth.geometry.depth import Depth
from fourdthinker.synth.geometry.lift import ground_plane, lift_object
from fourdthinker.synth.motion import distance_change, object_direction, seen_part
from fourdthinker.synth.tracks import CameraTrack
from fourdthinker.worlds.scenes import RenderedWorld, World, make_world, render


def along_axis(clip: RenderedWorld) -> np.ndarray:
    """Depth along the optical axis, of a clip that knows it along each ray."""
    world = clip.world
    grid = (np.arange(world.size) + 0.5 - world.size / 2) / world.focal
    x, y = np.meshgrid(grid, grid)
    return clip.depth / np.sqrt(1 + x**2 + y**2)


@pytest.fixture(scope="module")
def clip() -> RenderedWorld:
    return render(make_world([2, 5], "move right", "away", size=96))


def test_depth_is_read_from_stated_keys(tmp_path):
    values = np.array([[[1.0, 0.0], [np.inf, -2.0]]] * 3, np.float32)
    np.savez(tmp_path / "depth.npz", depth=values, metric=True)
    found = read_depth(tmp_path / "depth.npz", frames=3)
    assert found.metric
    np.testing.assert_array_equal(found.values[0], [[1, np.nan], [np.nan, np.nan]])
    with pytest.raises(GeometryError, match="depth of 3 frames for 4"):
        read_depth(tmp_path / "depth.npz", frames=4)
    np.savez(tmp_path / "depth.npz", depth=values)
    with pytest.raises(GeometryError, match="write depth and metric"):
        read_depth(tmp_path / "depth.npz", frames=3)
    with pytest.raises(GeometryError, match=r"give \[T, H, W\]"):
        Depth(np.zeros((2, 2)), True, "here")


def test_stereo_finds_the_depth_of_what_it_sees(clip):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (extra synth)")
    assert cv2
    from fourdthinker.synth.geometry import stereo_depth

    world, baseline = make_world([2, 5], "move right", "away", size=256), 0.3
    left = render(world)
    right = render(replace(world, position=world.position + world.rotation[:, 0] * np.float32(baseline)))
    found = stereo_depth(
        list(left.pixels[:2]), list(right.pixels[:2]), focal=world.focal, baseline=baseline, disparities=32
    )
    true = along_axis(left)[:2]
    near = np.isfinite(found.values) & (left.solid[:2] > 0)
    assert near.sum() > 0.3 * (left.solid[:2] > 0).sum()
    error = np.abs(found.values[near] - true[near]) / true[near]
    assert np.median(error) < 0.05
    assert found.metric


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": 0.0}, "above 0"),
        ({"focal": 5000.0}, "pixels of these frames"),
        ({"disparities": 30}, "of 16"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(change, message):
    from fourdthinker.synth.geometry import stereo_depth

    frames = [np.zeros((48, 64, 3), np.uint8)]
    values = {"focal": 60.0, "baseline": 0.1, "disparities": 32} | change
    with pytest.raises(GeometryError, match=message):
        stereo_depth(frames, frames, **values)
    with pytest.raises(GeometryError, match="1 left and 0 right"):
        stereo_depth(frames, [], focal=60.0, baseline=0.1)


def test_relative_inverse_depth_gets_the_tracks_unit(clip):
    camera = scene_camera(clip.world)
    true = along_axis(clip)
    inverse = np.where(np.isfinite(true), 0.3 * (1 / true) - 0.02, 0).astype(np.float32)
    points = points_of(clip.world)
    found = aligned(inverse, camera, points, "model")
    near = clip.solid > 0
    np.testing.assert_allclose(found.values[near], true[near], rtol=0.05)
    with pytest.raises(GeometryError, match="points of the scene are seen"):
        aligned(inverse, camera, points[:5], "model")
    with pytest.raises(GeometryError, match="depth of 2 frames for 8 poses"):
        aligned(inverse[:2], camera, points, "model")


def test_depth_in_metres_gives_a_path_its_scale(clip):
    camera, points = scene_camera(clip.world), points_of(clip.world)
    poses = camera.poses.copy()
    poses[:, :3, 3] /= 4
    small = replace(camera, poses=poses, metric=False)
    depth = Depth(along_axis(clip), True, "truth")
    found = in_metres(small, points / 4, depth)
    assert found.metric
    np.testing.assert_allclose(found.centres, camera.centres, rtol=0.02)
    with pytest.raises(GeometryError, match="0 points of the scene have a depth"):
        in_metres(small, points[:0], depth)


def points_of(world: World) -> np.ndarray:
    """On the ground before the camera."""
    rng = np.random.default_rng(0)
    return np.stack([rng.uniform(-3, 3, 400), rng.uniform(2.5, 9, 400), np.zeros(400)], axis=1)


def test_objects_are_lifted_by_depth_and_by_the_ground(clip):
    camera, item = scene_camera(clip.world), scene_object(clip.world, 0)
    masks = list(clip.mask(0))
    ground = ground_plane(camera, points_of(clip.world))
    np.testing.assert_allclose(ground.normal, [0, 0, 1], atol=1e-6)
    by_depth = lift_object("can", masks, camera.times, camera, depth=Depth(along_axis(clip), True, "truth"))
    by_ground = lift_object("can", masks, camera.times, camera, ground=ground)
    for found in (by_depth, by_ground):
        off = np.linalg.norm((found.positions - item.positions)[:, :2], axis=1)
        assert np.median(off) < 0.6  # its surface, or where it stands, is not its middle
        end = float(camera.times[-1])
        assert object_direction(found, camera, 0, end) == "away from the camera"
        assert distance_change(found, camera, 0, end) == distance_change(item, camera, 0, end)
    np.testing.assert_allclose(by_depth.boxes[0], rle.box(masks[0]))


def test_masks_that_say_little_are_not_trusted(clip):
    camera = scene_camera(clip.world)
    masks = list(clip.mask(0))
    masks[2] = np.zeros_like(masks[2])
    masks[3] = np.ones_like(masks[3])  # it reaches the border
    ground = ground_plane(camera, points_of(clip.world))
    found = lift_object("can", masks, camera.times, camera, ground=ground)
    assert found.confidence.tolist() == [1, 1, 0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(found.positions[2], found.positions[1])
    with pytest.raises(GeometryError, match="no mask is large enough"):
        lift_object("can", [masks[2]] * 8, camera.times, camera, ground=ground)
    with pytest.raises(GeometryError, match="from a camera that moves"):
        lift_object("can", masks, camera.times, camera)


def test_size_says_how_the_distance_changes_where_the_camera_stays():
    world = make_world([2, 5], "pan left", "away", size=96)
    clip, camera, item = render(world), scene_camera(world), scene_object(world, 0)
    masks, end = list(clip.mask(0)), float(camera.times[-1])
    found = lift_object("can", masks, camera.times, replace(camera, metric=False))
    far = np.linalg.norm(item.positions - camera.centres, axis=1)
    np.testing.assert_allclose(
        np.linalg.norm(found.positions - camera.centres, axis=1), far / far[0], rtol=0.1
    )
    unscaled = replace(camera, metric=False)
    assert object_direction(found, unscaled, 0, end) is None  # a part of it is hidden in the first frame
    assert object_direction(found, unscaled, 0.25, end) == "away from the camera"


def test_a_mask_of_which_a_part_is_hidden_is_not_trusted():
    world = make_world([2, 5], "pan left", "away", size=96)
    masks, camera = list(render(world).mask(0)), replace(scene_camera(world), metric=False)
    whole = lift_object("can", masks, camera.times, camera).confidence
    columns = np.flatnonzero(masks[3].any(axis=0))
    masks[3][:, : (columns[0] + columns[-1]) // 2] = False
    found = lift_object("can", masks, camera.times, camera).confidence
    assert whole[3] == 1
    assert np.flatnonzero(found != whole).tolist() == [3]


def test_of_what_is_hidden_less_and_less_no_change_of_distance_is_told():
    """A disc gets smaller by a quarter, and less of its middle is hidden: its visible area stays."""
    times = np.linspace(0, 3, 16)
    lens = np.array([[200.0, 0, 100], [0, 200, 100], [0, 0, 1]])
    camera = CameraTrack(times, np.tile(np.eye(4), (16, 1, 1)), lens, (200, 200))
    row, column = np.mgrid[-100:100, -100:100]
    radii, off = np.linspace(42, 32, 16), np.hypot(row, column)
    discs = [off < radius for radius in radii]
    seen = [(off < radius) & (off**2 >= radius**2 - 32**2) for radius in radii]
    whole = lift_object("ball", discs, times, camera)
    assert distance_change(whole, camera, 0, 3) == "farther"
    part = lift_object("ball", seen, times, camera)
    by_area, by_length = (distance_change(one, camera, 0, 3) for one in part.readings())
    assert (by_area, by_length) == ("same", "farther")
    assert distance_change(part, camera, 0, 3) is None
    assert distance_change(seen_part(part, camera), camera, 0.1, 2.9) is None
    assert part.confidence.min() == 1  # so that direction and speed are told as ever


def test_a_turn_of_the_camera_changes_no_distance_by_size():
    """A ball covers more pixels at the border of a picture than in its middle, from the same distance."""
    world = make_world([2, 5], "pan left", "away", size=128, frames=5)
    ball = replace(world.solids[0], shape="ball", size=0.5, centre=np.tile(np.float32([0, 5, 1]), (5, 1)))
    yaw = np.linspace(0, 0.4, 5, dtype=np.float32)
    world = replace(world, solids=(ball,), yaw=yaw, position=np.tile(np.float32([0, 0, 2]), (5, 1)))
    camera = replace(scene_camera(world), metric=False)
    found = lift_object("ball", list(render(world).mask(0)), camera.times, camera)
    for one in found.readings():
        np.testing.assert_allclose(np.linalg.norm(one.positions - camera.centres, axis=1), 1, rtol=0.03)


def test_there_is_no_ground_where_points_lie_nowhere_level(clip):
    camera = scene_camera(clip.world)
    wall = points_of(clip.world)[:, [0, 2, 1]] + [0, 6, 0]
    assert ground_plane(camera, wall) is None
    assert ground_plane(camera, wall[:5]) is None


def test_a_depth_model_is_run_from_its_folder(tmp_path):
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    from fourdthinker.synth.geometry.depth_model import DepthModel

    config = DepthAnythingConfig(
        backbone_config={
            "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
            "image_size": 56, "patch_size": 14, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False,
            "apply_layernorm": True,
        },
        patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
        head_hidden_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path)
    model = DepthModel(tmp_path, long_side=56)
    frames = np.random.default_rng(0).integers(0, 255, (2, 40, 60, 3), np.uint8)
    found = model(list(frames))
    assert found.shape == (2, 40, 60)
    assert np.isfinite(found).all()
    assert not model.metric
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        DepthModel(tmp_path / "nowhere")
