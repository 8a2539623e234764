"""Rendered worlds: perspective, occlusion, masks and motion are exact, and the files are real H.264."""

from dataclasses import replace

import av
import numpy as np
import pytest

from fourdthinker.worlds.scenes import (
    CAMERA_MOTIONS,
    COLOURS,
    DIRECTIONS,
    KEY_FRAMES,
    Solid,
    World,
    make_world,
    render,
    write_image,
    write_video,
)


def still(*solids: Solid, size: int = 64, frames: int = 2) -> World:
    """A camera at rest at (0, 0, 1.5), looking along y and a little down."""
    return World(
        seconds=(np.arange(frames) / 4).astype(np.float32),
        position=np.tile(np.array([0, 0, 1.5], np.float32), (frames, 1)),
        yaw=np.zeros(frames, np.float32),
        pitch=0.2,
        focal=0.8 * size,
        size=size,
        solids=solids,
        ground=np.linspace(0.3, 1, 256, dtype=np.float32).reshape(16, 16),
        tint=np.array([0.6, 0.6, 0.6], np.float32),
    )


def solid(colour: str, shape: str, x: float, y: float, size: float = 0.5, frames: int = 2) -> Solid:
    return Solid(colour, shape, size, np.tile(np.array([x, y, size], np.float32), (frames, 1)))


@pytest.mark.parametrize("shape", ["ball", "box", "can"])
def test_a_solid_is_seen_where_it_projects_to(shape: str) -> None:
    world = still(solid("green", shape, 0.7, 4.0))
    clip = render(world)
    rows, columns = np.nonzero(clip.mask(0)[0])
    x, y, _ = world.project(world.solids[0].centre)[0]
    assert abs(columns.mean() + 0.5 - x) < 0.8
    assert abs(rows.mean() + 0.5 - y) < 1.5
    green = clip.pixels[0][clip.mask(0)[0]].mean(0)
    assert green[1] > 2 * green[0]
    assert green[1] > 2 * green[2]


def test_size_in_the_image_shrinks_with_distance() -> None:
    near = render(still(solid("blue", "ball", 0, 3.0), size=128)).mask(0)[0].sum()
    far = render(still(solid("blue", "ball", 0, 6.0), size=128)).mask(0)[0].sum()
    assert 3.0 < near / far < 5.0


def test_depth_is_the_distance_to_the_surface() -> None:
    world = still(solid("blue", "ball", 0.0, 4.0), size=128)
    clip = render(world)
    expected = np.linalg.norm(world.solids[0].centre[0] - world.position[0]) - 0.5
    assert clip.depth[0][clip.mask(0)[0]].min() == pytest.approx(expected, abs=0.01)
    ground = clip.depth[0][clip.solid[0] == 0]
    # Every ground pixel satisfies the plane: height / sin(angle below the horizon).
    below = np.arctan((np.arange(128) + 0.5 - 64) / world.focal) + world.pitch
    straight = clip.depth[0][:, 64]
    on_ground = clip.solid[0][:, 64] == 0
    half_pixel = np.sqrt(1 + (0.5 / world.focal) ** 2)
    np.testing.assert_allclose(straight[on_ground], 1.5 / np.sin(below[on_ground]) * half_pixel, rtol=1e-3)
    assert ground.min() > 1.5
    assert np.isinf(clip.depth[0][0, 0])


def test_the_nearer_solid_hides_the_farther_in_either_order() -> None:
    near, far = solid("green", "box", 0, 3.0), solid("purple", "box", 0, 5.0)
    for solids in ((near, far), (far, near)):
        world = still(*solids)
        clip = render(world)
        index = solids.index(near)
        alone = render(replace(world, solids=(near,))).mask(0)
        assert (clip.mask(index) == alone).all()
        hidden = render(replace(world, solids=(far,))).mask(0)
        assert clip.mask(1 - index).sum() < hidden.sum()
        # The z-buffer: what is shown is the minimum over the solids.
        depths = [render(replace(world, solids=(s,))).depth for s in solids]
        np.testing.assert_array_equal(clip.depth, np.minimum(*depths))


def test_camera_axes_are_orthonormal_and_right_handed() -> None:
    world = make_world(3, "pan left", "away")
    for rotation in world.rotation:
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5)
    ahead = world.position + 3 * world.rotation[:, 2]
    np.testing.assert_allclose(world.project(ahead)[:, :2], world.size / 2, atol=1e-3)
    np.testing.assert_allclose(world.project(ahead)[:, 2], 3, atol=1e-4)
    assert world.intrinsics[0, 0] == pytest.approx(world.focal)


def test_panning_left_moves_the_picture_right() -> None:
    world = make_world(5, "pan left", "away")
    x = world.project(world.solids[1].centre)[:, 0]
    assert (np.diff(x) > 0).all()
    forward = make_world(5, "move forward", "left")
    depth = forward.project(forward.solids[1].centre)[:, 2]
    assert (np.diff(depth) < 0).all()


@pytest.mark.parametrize("camera", CAMERA_MOTIONS)
def test_worlds_keep_their_subjects_visible(camera: str) -> None:
    for seed, direction in enumerate(DIRECTIONS):
        world = make_world((seed, 1), camera, direction)
        clip = render(world)
        assert len({s.colour for s in world.solids}) == 3
        assert {s.colour for s in world.solids} <= set(COLOURS)
        for index in (0, 1):
            for frame in KEY_FRAMES:
                assert clip.mask(index)[frame].sum() >= 8
        moved = np.linalg.norm(world.solids[0].centre[-1] - world.solids[0].centre[0])
        assert moved > 1.1
        for other in world.solids[1:]:
            assert (other.centre == other.centre[0]).all()


def test_worlds_are_the_same_for_the_same_seed_only() -> None:
    first, second = (render(make_world((1, 2, 3), "move left", "right")) for _ in range(2))
    assert (first.pixels == second.pixels).all()
    assert (render(make_world((1, 2, 4), "move left", "right")).pixels != first.pixels).any()


def test_the_same_pixels_become_the_same_bytes(tmp_path):
    pixels = render(make_world(1, "move right", "left", frames=16, size=160)).pixels
    path, files = tmp_path / "a.mp4", set()
    for _ in range(8):
        write_video(path, pixels, 4)
        files.add(path.read_bytes())
    assert len(files) == 1


def test_video_is_h264_with_exact_times(tmp_path) -> None:
    clip = render(make_world(0, "pan right", "toward"))
    path = tmp_path / "clip.mp4"
    write_video(path, clip.pixels, clip.world.fps)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        frames = list(container.decode(stream))
    assert [frame.time for frame in frames] == pytest.approx([k / 4 for k in range(8)])
    decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(float)
    assert np.abs(decoded - clip.pixels).mean() < 6
    with pytest.raises(ValueError, match="even sides"):
        write_video(path, clip.pixels[:, :63], 4)


def test_image_round_trip(tmp_path) -> None:
    from PIL import Image

    pixels = render(make_world(1, "move left", "left")).pixels[0]
    write_image(tmp_path / "a.png", pixels)
    assert (np.asarray(Image.open(tmp_path / "a.png")) == pixels).all()
