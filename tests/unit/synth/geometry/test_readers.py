"""Each reader on files written here by the source's own convention, for cameras with known motion."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from fourdthinker.errors import GeometryError
from fourdthinker.synth.geometry import (
    read_colmap,
    read_instructions,
    read_nerfstudio,
    read_npz,
    read_spatialvid,
    read_tum,
    write_npz,
)
from fourdthinker.synth.motion import camera_moves, unclear_spans
from fourdthinker.synth.tracks import CameraTrack, Move
from tests.unit.synth.paths import FORWARD, FOUR, NONE, steady, walked, yaw

FPS = 10.0


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """x y z w, written independently of the package: the eigenvector of a 4x4 matrix."""
    r = rotation
    k = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0], r[2, 1] - r[1, 2]],
            [r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1], r[0, 2] - r[2, 0]],
            [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
        ]
    )
    return np.linalg.eigh(k)[1][:, -1]


def w2c(track: CameraTrack) -> tuple[np.ndarray, np.ndarray]:
    inverse = np.linalg.inv(track.poses)
    return inverse[:, :3, :3], inverse[:, :3, 3]


def names(track: CameraTrack) -> list[str]:
    return [f"{k:04d}.jpg" for k in range(len(track.times))]


def spatialvid(track: CameraTrack, folder: Path) -> CameraTrack:
    rotations, translations = w2c(track)
    rows = [[*t, *quaternion(r)] for r, t in zip(rotations, translations, strict=True)]
    np.save(folder / "poses.npy", np.array(rows, np.float32))
    lens = [500 / 640, 510 / 480, 0.5, 0.5]
    np.save(folder / "intrinsics.npy", np.array([lens] * len(rows), np.float32))
    # As released: a pose for every sixth frame of 60.
    lines = [f"{k} {6 * k}" for k in range(len(rows))]
    (folder / "indexes.txt").write_text("# frame_seq orig_frame_idx\n" + "\n".join(lines))
    return read_spatialvid(folder, fps=60.0, size=(640, 480))


def nerfstudio(track: CameraTrack, folder: Path) -> CameraTrack:
    flip = np.diag([1.0, -1, -1, 1])
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": (pose @ flip).tolist()}
        for name, pose in zip(names(track), track.poses, strict=True)
    ]
    lens = {"fl_x": 1000.0, "fl_y": 1020.0, "cx": 640.0, "cy": 480.0, "w": 1280, "h": 960}
    (folder / "transforms.json").write_text(json.dumps({**lens, "frames": frames[::-1]}))
    return read_nerfstudio(
        folder / "transforms.json", names=names(track), times=track.times, size=(640, 480), depth=1.0
    )


def colmap_text(track: CameraTrack, folder: Path) -> CameraTrack:
    lines = ["# Image list"]
    for k, (r, t) in enumerate(zip(*w2c(track), strict=True)):
        x, y, z, w = quaternion(r)
        numbers = " ".join(f"{v:.9f}" for v in (w, x, y, z, *t))
        lines += [f"{k + 1} {numbers} 1 {names(track)[k]}", "10.0 20.0 7 30.0 40.0 -1" if k == 0 else ""]
    (folder / "cameras.txt").write_text("# Cameras\n1 PINHOLE 640 480 500 510 320 240\n")
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    point = track.centres[0] + track.rotations[0] @ [0.1, 0.2, 1.0]  # at depth 1, so that the unit stays
    (folder / "points3D.txt").write_text(f"7 {point[0]} {point[1]} {point[2]} 255 0 0 0.5 1 0\n")
    return read_colmap(folder, names=names(track), times=track.times)


def colmap_binary(track: CameraTrack, folder: Path) -> CameraTrack:
    (folder / "cameras.bin").write_bytes(
        struct.pack("<Q", 1) + struct.pack("<iiQQ", 1, 2, 640, 480) + struct.pack("<4d", 500, 320, 240, 0.01)
    )
    data = struct.pack("<Q", len(track.times))
    for k, (r, t) in enumerate(zip(*w2c(track), strict=True)):
        x, y, z, w = quaternion(r)
        data += struct.pack("<I7dI", k + 1, w, x, y, z, *t, 1) + f"sub/{names(track)[k]}".encode() + b"\0"
        data += struct.pack("<Q", 2) + struct.pack("<ddq", 1.0, 2.0, 9) + struct.pack("<ddq", 1.0, 2.0, -1)
    (folder / "images.bin").write_bytes(data)
    # Half of the frames' lengths: the point that all see is 2 ahead of the first, and nowhere else known.
    point = struct.pack("<Q3d3Bd", 9, *(track.centres[0] + 2 * track.rotations[0][:, 2]), 1, 2, 3, 0.5)
    (folder / "points3D.bin").write_bytes(struct.pack("<Q", 1) + point + struct.pack("<Qii", 1, 1, 0))
    return read_colmap(folder, names=names(track), times=track.times)


def tum(track: CameraTrack, folder: Path) -> CameraTrack:
    lines = ["# timestamp tx ty tz qx qy qz qw"]
    for time, pose in zip(track.times, track.poses, strict=True):
        values = (*pose[:3, 3], *quaternion(pose[:3, :3]))
        lines.append(f"{1311868164 + time:.6f} " + " ".join(f"{v:.4f}" for v in values))
    (folder / "groundtruth.txt").write_text("\n".join(lines))
    return read_tum(folder / "groundtruth.txt", metric=True)


def npz(track: CameraTrack, folder: Path) -> CameraTrack:
    write_npz(folder / "track.npz", track)
    return read_npz(folder / "track.npz")


def npz_inverse(track: CameraTrack, folder: Path) -> CameraTrack:
    poses = np.concatenate(
        [np.concatenate([r, t[:, None]], 1)[None] for r, t in zip(*w2c(track), strict=True)]
    )
    poses[:, :3, 3] *= 5
    values = {"times": track.times, "depth": 5.0}
    np.savez(folder / "track.npz", poses=poses, convention="opencv world-to-camera", **values)
    return read_npz(folder / "track.npz")


def npz_opengl(track: CameraTrack, folder: Path) -> CameraTrack:
    poses = track.poses @ np.diag([1.0, -1, -1, 1])
    np.savez(folder / "track.npz", poses=poses, convention="opengl camera-to-world", metric=True)
    return read_npz(folder / "track.npz", times=track.times)


READERS = {
    f.__name__: f
    for f in (spatialvid, nerfstudio, colmap_text, colmap_binary, tum, npz, npz_inverse, npz_opengl)
}


@pytest.mark.parametrize("path", FOUR)
@pytest.mark.parametrize("reader", READERS)
def test_the_four_paths_are_in_in_in_and_pan_only(reader, path, tmp_path):
    track, move = FOUR[path]
    found = camera_moves(READERS[reader](track, tmp_path))
    assert [m.name for m in found] == [move]
    assert (found[0].start, found[0].end) == pytest.approx((0, 3), abs=0.05)


@pytest.mark.parametrize("reader", READERS)
def test_every_move_keeps_its_name(reader, tmp_path):
    """One move after the other in six directions and turns, so that no axis can be mirrored or exchanged."""
    order = {
        "dolly in": ((0, 0, 0.5), (0, 0, 0)),
        "pan left": ((0, 0, 0), (0, -30, 0)),
        "truck right": ((0.5, 0, 0), (0, 0, 0)),
        "tilt up": ((0, 0, 0), (20, 0, 0)),
        "pedestal down": ((0, 0.5, 0), (0, 0, 0)),
        "roll clockwise": ((0, 0, 0), (0, 0, 20)),
    }
    values = list(order.values())
    track = walked(
        lambda t: np.array([values[int(x)][0] for x in t], float),
        lambda t: np.array([values[int(x)][1] for x in t], float),
        6,
        start=yaw(70),
        position=(3, -2, 5),
    )
    found = READERS[reader](track, tmp_path)
    moves = camera_moves(found)
    assert [m.name for m in moves] == list(order)
    assert [m.start for m in moves] == pytest.approx(range(6), abs=0.2)


@pytest.mark.parametrize("reader", ["spatialvid", "nerfstudio", "colmap_text", "npz"])
def test_the_lens_is_in_pixels_of_the_pictures(reader, tmp_path):
    found = READERS[reader](FOUR["forward"][0], tmp_path)
    assert found.size == (640, 480)
    np.testing.assert_allclose(found.intrinsics[0], [[500, 0, 320], [0, 510, 240], [0, 0, 1]], rtol=1e-6)


def test_the_unit_of_colmap_is_the_median_depth_of_what_is_seen(tmp_path):
    track = walked(FORWARD, NONE, 2)  # the point is 2 ahead, then 1: 1.5 in the median
    found = colmap_binary(track, tmp_path)
    np.testing.assert_allclose(found.centres[-1] - found.centres[0], [0, 0, 1 / 1.5], atol=1e-6)
    assert not found.metric


def test_spatialvid_times_are_those_of_the_videos_frames(tmp_path):
    spatialvid(FOUR["forward"][0], tmp_path)
    found = read_spatialvid(tmp_path, fps=29.97, size=(640, 480))
    assert found.times[1] == pytest.approx(6 / 29.97)


def test_tum_stamps_of_a_video_are_kept_and_those_of_a_clock_counted(tmp_path):
    path = tmp_path / "path.txt"
    path.write_text("2.5 0 0 0 0 0 0 1\n3.0 0 0 1 0 0 0 1\n")
    found = read_tum(path)
    assert found.times.tolist() == [2.5, 3.0]
    assert not found.metric
    path.write_text("1000001.5 0 0 0 0 0 0 1\n1000002.0 0 0 1 0 0 0 1\n")
    assert read_tum(path, metric=True).times.tolist() == [0.0, 0.5]


def test_spatialvids_own_labels_are_read_for_comparison(tmp_path):
    spatialvid(FOUR["forward"][0], tmp_path)
    (tmp_path / "instructions.json").write_text('{"0->3": ["Dolly In", "Roll CW"], "3->7": ["Stay"]}')
    assert read_instructions(tmp_path, fps=60.0) == (
        Move("camera", "dolly in", 0.0, 0.3),
        Move("camera", "roll clockwise", 0.0, 0.3),
        Move("camera", "static", 0.3, 0.7),
    )
    (tmp_path / "instructions.json").write_text('{"0->3": ["Fly"]}')
    with pytest.raises(GeometryError, match="unknown move 'Fly'"):
        read_instructions(tmp_path, fps=60.0)
    (tmp_path / "instructions.json").write_text('{"0->300": ["Stay"]}')
    with pytest.raises(GeometryError, match="not of the form"):
        read_instructions(tmp_path, fps=60.0)


def test_files_that_cannot_be_are_refused_by_name(tmp_path):
    track = walked(FORWARD, steady(0, 5, 0), 1)
    spatialvid(track, tmp_path)
    (tmp_path / "indexes.txt").write_text("0 0\n1 6\n")
    with pytest.raises(GeometryError, match="11 poses, 11 intrinsics and 2 lines"):
        read_spatialvid(tmp_path, fps=60.0, size=(640, 480))
    (tmp_path / "indexes.txt").write_text("zero 0\n")
    with pytest.raises(GeometryError, match=r"indexes\.txt:1: 'zero 0' is no line of 2 numbers"):
        read_spatialvid(tmp_path, fps=60.0, size=(640, 480))
    np.save(tmp_path / "poses.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(GeometryError, match="no array file"):
        read_spatialvid(tmp_path, fps=60.0, size=(640, 480))
    nerfstudio(track, tmp_path)
    with pytest.raises(GeometryError, match=r"no pose for 9999\.jpg"):
        read_nerfstudio(tmp_path / "transforms.json", names=["9999.jpg"], times=[0.0])
    with pytest.raises(GeometryError, match="another aspect ratio"):
        read_nerfstudio(tmp_path / "transforms.json", names=["0001.jpg"], times=[0.0], size=(480, 640))
    with pytest.raises(GeometryError, match="1 poses for 2 frames"):
        read_nerfstudio(tmp_path / "transforms.json", names=["0001.jpg"], times=[0.0, 1.0])


def test_colmap_and_npz_files_that_cannot_be_are_refused_by_name(tmp_path):
    track = walked(FORWARD, steady(0, 5, 0), 1)
    colmap_binary(track, tmp_path)
    data = (tmp_path / "images.bin").read_bytes()
    for cut in (4, 40, len(data) - 3):
        (tmp_path / "images.bin").write_bytes(data[:cut])
        with pytest.raises(GeometryError, match="damaged"):
            read_colmap(tmp_path, names=names(track), times=track.times)
    with pytest.raises(GeometryError, match="cannot be read"):
        read_colmap(tmp_path / "nowhere", names=names(track), times=track.times)
    tum(track, tmp_path)
    with pytest.raises(GeometryError, match="11 poses for 3 frames"):
        read_tum(tmp_path / "groundtruth.txt", times=[0.0, 1.0, 2.0])
    for values, message in (
        ({"poses": track.poses}, "convention is missing"),
        ({"poses": track.poses, "convention": "mine"}, "write one of"),
        ({"poses": track.poses, "convention": "opencv camera-to-world"}, "holds no times"),
        ({"poses": track.poses, "convention": "opencv camera-to-world", "pose": 1}, "unknown key 'pose'"),
        (
            {"poses": 3 * track.poses, "convention": "opencv camera-to-world", "times": track.times},
            "no rotation",
        ),
    ):
        np.savez(tmp_path / "bad.npz", **values)
        with pytest.raises(GeometryError, match=message):
            read_npz(tmp_path / "bad.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK not a zip")
    with pytest.raises(GeometryError, match=r"no .npz file"):
        read_npz(tmp_path / "bad.npz")


@pytest.mark.parametrize("unit", [0.01, 1.0, 100.0])
def test_translations_have_labels_where_their_unit_is_known(tmp_path: Path, unit: float) -> None:
    """1 m/s towards what is 10 m away, while turning: 0.1 depths a second, whatever the file's unit."""
    track = walked(steady(0, 0, 1.0), steady(0, 10, 0), 4)
    path = tmp_path / "path.txt"
    lines = []
    for time, pose in zip(track.times, track.poses, strict=True):
        values = (*(pose[:3, 3] / unit), *quaternion(pose[:3, :3]))
        lines.append(f"{time:.3f} " + " ".join(f"{v:.8f}" for v in values))
    path.write_text("\n".join(lines))
    poses = track.poses.copy()
    poses[:, :3, 3] /= unit
    keys = {"poses": poses, "convention": "opencv camera-to-world", "times": track.times}
    np.savez(tmp_path / "track.npz", **keys)
    for unknown in (read_tum(path), read_npz(tmp_path / "track.npz")):
        assert not unknown.scaled
        moves = camera_moves(unknown)
        assert [move.name for move in moves] == ["pan right"]
        ((start, end),) = unclear_spans(unknown, moves)
        assert (start, end) == (track.times[0], track.times[-1])
    whole = path.read_text()
    path.write_text(f"# depth {10 / unit}\n" + whole)
    np.savez(tmp_path / "track.npz", depth=10 / unit, **keys)
    for known in (read_tum(path), read_npz(tmp_path / "track.npz")):
        assert known.scaled
        assert sorted(move.name for move in camera_moves(known)) == ["dolly in", "pan right"]
        write_npz(tmp_path / "again.npz", known)
        assert read_npz(tmp_path / "again.npz").scaled
    for words in ("# Depth 4.2 m", "# median depth: 4.2"):
        path.write_text(f"{words}\n" + whole)
        assert read_tum(path).scaled
    path.write_text("# depth maps lie beside it\n" + whole)
    assert not read_tum(path).scaled
    path.write_text("# depth 4.2.1\n" + whole)
    with pytest.raises(GeometryError, match=r"'# depth 4\.2\.1' is no number"):
        read_tum(path)
    np.savez(tmp_path / "track.npz", depth=0, **keys)
    with pytest.raises(GeometryError, match="depth is 0; give the median depth"):
        read_npz(tmp_path / "track.npz")
    np.savez(tmp_path / "track.npz", depth=[4.2, 4.3], **keys)
    with pytest.raises(GeometryError, match="write one number, the median depth"):
        read_npz(tmp_path / "track.npz")


def test_a_camera_that_stays_needs_no_unit(tmp_path: Path) -> None:
    path = tmp_path / "path.txt"
    path.write_text("".join(f"{k / 10} 1 2 3 0 0 0 1\n" for k in range(30)))
    assert [move.name for move in camera_moves(read_tum(path))] == ["static"]
