"""Two calibrated cameras: what their file may say, and the depth of frames that are not rectified."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourdthinker.errors import GeometryError
from fourdthinker.synth.geometry import Calibration, calibrated_depth, read_calibration, stereo_depth
from fourdthinker.synth.geometry.calibration import Lens
from fourdthinker.worlds.scenes import RenderedWorld, World, make_world, render
from tests.unit.synth.geometry.test_depth import along_axis

SIZE = 256
K = [[400.0, 0, 319.5], [0, 400.0, 239.5], [0, 0, 1]]
NONE = np.zeros(0)


def written(path: Path, **changes: Any) -> Path:
    """The file of two cameras 12 cm apart, with some of its keys replaced."""
    lens = {"K": K, "distortion": [-0.1, 0.02, 0, 0, 0]}
    values = {
        "image_size": [640, 480],
        "left": lens,
        "right": lens,
        "R": np.eye(3).tolist(),
        "T": [-0.12, 0, 0],
    }
    path.write_text(json.dumps(values | changes))
    return path


def test_a_calibration_is_read_and_scaled(tmp_path: Path) -> None:
    found = read_calibration(written(tmp_path / "c.json"))
    assert (found.size, found.baseline) == ((640, 480), pytest.approx(0.12))
    half = found.left.scaled(found.size, (320, 240))
    # The middle of the picture is 319.5 of the pixels 0 to 639, and 159.5 of 0 to 319.
    np.testing.assert_allclose(half.matrix, [[200, 0, 159.5], [0, 200, 119.5], [0, 0, 1]])
    np.testing.assert_array_equal(half.distortion, [-0.1, 0.02, 0, 0, 0])


def test_the_calibration_that_the_page_shows_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[4] / "docs" / "synthesis.md").read_text(encoding="utf-8")
    path = tmp_path / "c.json"
    path.write_text("{" + page.split("```\n{", 1)[1].split("```", 1)[0])
    assert read_calibration(path).size == (1280, 720)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"R": [[1, 0, 0], [0, 1, 0], [0, 0, 2]]}, r"c\.json: R is .*no rotation; give the matrix"),
        ({"R": [[1, 0, 0], [0, 1, 0], [0, 0, -1]]}, "no rotation"),
        ({"R": [0, 0.1, 0]}, "R is .*; give 3 rows of 3 numbers"),
        ({"T": [0, 0, 0]}, r"T is \[0, 0, 0\], a baseline of 0; give .* in metres"),
        ({"T": [-120.0, 0, 0]}, "a baseline of 120; give .* in metres"),
        ({"T": [0, 0, -0.12]}, "along the line between both"),
        ({"R": [[-1, 0, 0], [0, 1, 0], [0, 0, -1]], "T": [0, -0.1, 0]}, "or they look apart"),
        ({"left": {"K": np.zeros((3, 3)).tolist(), "distortion": []}}, "left.K is .* which no camera"),
        ({"right": {"K": [[400, 0], [0, 400]], "distortion": []}}, "right.K is .*; give 3 rows of 3"),
        ({"right": {"K": [[True] * 3] * 3, "distortion": []}}, "right.K is .*; give 3 rows of 3"),
        ({"left": {"K": [[400, 0, 320], [0, 400, 240], [0, 0, 2]], "distortion": []}}, "left.K is"),
        ({"left": {"K": K, "distortion": [0.1, 0.2]}}, "left.distortion is .*; give a list of 0, 4, 5 or 8"),
        ({"left": {"K": K, "distortion": [0, 0, 0, "x"]}}, "left.distortion is .*; give 4 numbers"),
        ({"left": {"K": K, "distortion": [1e9, 0, 0, 0]}}, "no coefficient is larger"),
        ({"left": {"K": K}}, "left: no distortion; its keys are K, distortion"),
        ({"left": 3}, "left is no object; give K, distortion"),
        ({"image_size": [640]}, "image_size is .*; give 2 numbers"),
        ({"image_size": [640.5, 480]}, "image_size is .*; give .width, height."),
        ({"baseline": 1}, "unknown key baseline; its keys are"),
    ],
)
def test_a_calibration_that_cannot_be_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GeometryError, match=message) as error:
        read_calibration(written(tmp_path / "c.json", **changes))
    assert str(tmp_path / "c.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "is no object; give R, T, image_size, left, right"),
        ('{"R": 1, "R": 2}', "no JSON"),
        ('{"R": NaN}', "no JSON"),
        ("[" * 5000, "no JSON"),
        (" " * (1 << 20) + "{}", "more than 1048576 bytes"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(GeometryError, match=message):
        read_calibration(path)
    with pytest.raises(GeometryError, match="cannot be read"):
        read_calibration(tmp_path / "none.json")
    with pytest.raises(GeometryError, match="cannot be read"):
        read_calibration("a\0b")


def pair(
    yaw: float, offset: tuple[float, float, float], size: int = SIZE
) -> tuple[World, World, Calibration]:
    """A still scene from two cameras: the right one turned left by `yaw` degrees, and moved.

    `offset` is in the left camera's axes, x to the right, y down.
    """
    world = make_world([2, 5], "move right", "away", size=size)
    still = tuple(replace(solid, centre=solid.centre[:1]) for solid in world.solids)
    left = replace(
        world, seconds=world.seconds[:1], position=world.position[:1], yaw=world.yaw[:1], solids=still
    )
    axes = left.rotation[0].astype(np.float64)
    moved = axes.T @ offset
    right = replace(
        left,
        position=left.position + moved.astype(np.float32),
        yaw=left.yaw + np.float32(np.deg2rad(yaw)),
    )
    there = right.rotation[0].astype(np.float64)
    matrix = left.intrinsics.astype(np.float64)
    matrix[:2, 2] -= 0.5
    lens = Lens(matrix, NONE)
    return left, right, Calibration("c.json", (size, size), lens, lens, there @ axes.T, -there @ moved)


def error_on_solids(found: np.ndarray, true: np.ndarray, solid: np.ndarray) -> tuple[float, float]:
    """Median relative error, and the share of the pixels of solids whose depth is known."""
    known = np.isfinite(found) & (solid > 0)
    return float(np.median(np.abs(found[known] / true[known] - 1))), known.sum() / (solid > 0).sum()


@pytest.mark.parametrize(
    ("yaw", "offset", "share"),
    [
        (6, (0.3, 0, 0), 0.8),
        (-6, (0.3, 0, 0.05), 0.8),
        (0, (0.3, 0, 0.17), 0.5),  # the common axes are turned by 30 degrees
        (5, (-0.3, 0, 0), 0.5),  # the neighbour stands on the other side
        (4, (0, -0.3, 0), 0.8),  # above
    ],
)
def test_depth_of_cameras_that_are_not_rectified(
    yaw: float, offset: tuple[float, float, float], share: float
) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra synth)")
    left, right, calibration = pair(yaw, offset)
    seen = render(left)
    found = calibrated_depth(list(seen.pixels), list(render(right).pixels), calibration)
    error, known = error_on_solids(found.values, along_axis(seen), seen.solid)
    assert error < 0.05
    assert known > share
    assert found.metric


def filmed(clip: RenderedWorld, lens: Lens) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Pictures, depth and solids of a world as a lens with distortion shows them."""
    import cv2

    grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1).reshape(-1, 1, 2).astype(np.float64)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-9)
    flat = cv2.undistortPoints(grid, lens.matrix, lens.distortion, criteria=criteria)
    where = flat.reshape(SIZE, SIZE, 2) * clip.world.focal + (clip.world.size - 1) / 2
    column, row = where.astype(np.float32).transpose(2, 0, 1)

    def shown(picture: np.ndarray, how: int) -> np.ndarray:
        return np.asarray(cv2.remap(picture, column, row, how, borderValue=-1))

    true = shown(along_axis(clip)[0].astype(np.float32), cv2.INTER_NEAREST)
    solid = shown(clip.solid[0].astype(np.int16), cv2.INTER_NEAREST)
    return [shown(clip.pixels[0], cv2.INTER_LINEAR)], true[None], solid[None]


def test_distortion_of_both_lenses_is_taken_out() -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra synth)")
    left, right, calibration = pair(5, (0.3, 0, 0), size=400)
    matrix = np.array([[230.0, 0, 127.5], [0, 230.0, 127.5], [0, 0, 1]])
    one = Lens(matrix, np.array([-0.3, 0.1, 0.001, -0.001, 0.0]))
    other = Lens(matrix, np.array([0.15, -0.02, 0.0, 0.0]))
    frames, true, solid = filmed(render(left), one)
    others, _, _ = filmed(render(right), other)
    rig = replace(calibration, size=(SIZE, SIZE), left=one, right=other)
    error, known = error_on_solids(calibrated_depth(frames, others, rig).values, true, solid)
    assert error < 0.05
    assert known > 0.8
    plain = replace(rig, left=Lens(matrix, NONE), right=Lens(matrix, NONE))
    assert error_on_solids(calibrated_depth(frames, others, plain).values, true, solid)[0] > 2 * error


def test_a_rectified_pair_has_the_depth_of_its_focal_length_and_baseline() -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra synth)")
    left, right, calibration = pair(0, (0.3, 0, 0))
    frames, others = list(render(left).pixels), list(render(right).pixels)
    found = calibrated_depth(frames, others, calibration)
    expected = stereo_depth(frames, others, focal=left.focal, baseline=0.3)
    assert np.isfinite(expected.values).mean() > 0.3
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)
    with pytest.raises(GeometryError, match=r"image_size is 256x256 and a frame has 256x128 pixels"):
        calibrated_depth([frames[0][:128]], [others[0][:128]], calibration)
    with pytest.raises(GeometryError, match="1 left and 0 right frames"):
        calibrated_depth(frames, [], calibration)


def test_a_lens_that_folds_the_picture_shows_nothing_beyond() -> None:
    """Where many rays end at one pixel, no depth is claimed."""
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra synth)")
    left, right, calibration = pair(0, (0.3, 0, 0))
    folding = Lens(calibration.left.matrix, np.array([-3.0, 0, 0, 0]))
    frames, others = list(render(left).pixels), list(render(right).pixels)
    found = calibrated_depth(frames, others, replace(calibration, left=folding, right=folding)).values[0]
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[SIZE // 2]).any()
