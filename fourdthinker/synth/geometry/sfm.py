"""The camera's path from the frames alone, by COLMAP's structure from motion (extra `geometry`)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourdthinker.errors import GeometryError
from fourdthinker.synth.computer_vision import colmap, opencv
from fourdthinker.synth.geometry.conventions import inverted
from fourdthinker.synth.geometry.visual import Estimate, estimate_camera, key_frames
from fourdthinker.synth.tracks import Array, CameraTrack

_KEY_SECONDS = 0.2  # between frames that get a pose
_OVERLAP = 8  # frames that each is matched with
_FLAT = 0.8  # of the points near one plane, for a scene that is one
_LEAST_SHARE = 0.5  # of the frames in the model, for it to be one of the clip


def reconstruct_camera(
    frames: Sequence[NDArray[np.uint8]],
    times: Sequence[float] | Array,
    *,
    intrinsics: Array | None = None,
    movers: Sequence[NDArray[np.bool_]] | None = None,
    threads: int = 1,
) -> Estimate:
    """Estimate the camera's path from the frames of one shot, with COLMAP.

    COLMAP makes no model of a camera that only turns, and often none of one that turns before it moves; of a
    plane it makes either of two. Where its model holds fewer than half of the frames or is flat, the answer
    is that of `estimate_camera`; `source` says which.

    Args:
        frames: uint8 [H, W, 3], RGB, of one size.
        times: seconds, one for each frame.
        intrinsics: [3, 3] in pixels of the frames; None: COLMAP estimates the focal length.
        movers: bool [H, W] for each frame, true on objects that move; no feature is taken there.
        threads: that COLMAP uses.

    Returns:
        The track, of about five frames a second, and the points. A frame that is not in the model lies
        between its neighbours and has no confidence. The unit is the median depth of the points.

    Raises:
        GeometryError: as `estimate_camera`.
        ConfigError: pycolmap is not installed.
    """
    pycolmap = colmap()
    seconds = np.asarray(times, np.float64)
    keys = key_frames(seconds, _KEY_SECONDS)
    with tempfile.TemporaryDirectory(prefix="fourdthinker-") as name:
        folder = Path(name)
        names = _write(
            folder, [frames[k] for k in keys], None if movers is None else [movers[k] for k in keys]
        )
        models = _run(pycolmap, folder, intrinsics, threads)
    model = max(models.values(), key=lambda m: m.num_reg_images(), default=None)
    small = model is None or model.num_reg_images() < max(_LEAST_SHARE * len(keys), 2)
    if small or _is_flat(_points(model)):
        return estimate_camera(frames, seconds, intrinsics=intrinsics, movers=movers)
    height, width = frames[0].shape[:2]
    return _estimate(model, names, seconds[keys], (width, height))


def _write(
    folder: Path, frames: Sequence[NDArray[np.uint8]], movers: Sequence[NDArray[np.bool_]] | None
) -> list[str]:
    """Pictures and masks, as COLMAP reads them; the names of the pictures."""
    cv2 = opencv()
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    names = [f"{k:05d}.png" for k in range(len(frames))]
    for k, name in enumerate(names):
        _save(cv2, folder / "images" / name, cv2.cvtColor(frames[k], cv2.COLOR_RGB2BGR))
        if movers is not None:
            wide = cv2.dilate(movers[k].astype(np.uint8), np.ones((9, 9), np.uint8))
            _save(cv2, folder / "masks" / f"{name}.png", np.where(wide > 0, 0, 255).astype(np.uint8))
    return names


def _save(cv2: Any, path: Path, image: NDArray[np.uint8]) -> None:
    good, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not good:
        raise GeometryError(f"{path.name}: OpenCV cannot encode a picture of the shape {list(image.shape)}")
    path.write_bytes(data.tobytes())


def _run(pycolmap: Any, folder: Path, intrinsics: Array | None, threads: int) -> dict[int, Any]:
    pycolmap.logging.minloglevel = 3  # its progress goes to stderr otherwise
    reader = pycolmap.ImageReaderOptions()
    if any((folder / "masks").iterdir()):
        reader.mask_path = str(folder / "masks")
    mapping = pycolmap.IncrementalPipelineOptions()
    reader.camera_model = "SIMPLE_RADIAL"
    if intrinsics is not None:
        reader.camera_model = "PINHOLE"
        values = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
        reader.camera_params = ",".join(f"{value:.6f}" for value in values)
        mapping.ba_refine_focal_length = False
        mapping.mapper.abs_pose_refine_focal_length = False
    extraction, pairing = pycolmap.FeatureExtractionOptions(), pycolmap.SequentialPairingOptions()
    matching = pycolmap.FeatureMatchingOptions()
    extraction.sift.max_num_features = 4096
    pairing.overlap, pairing.quadratic_overlap = _OVERLAP, True
    extraction.num_threads = matching.num_threads = mapping.num_threads = threads
    mapping.random_seed = 0
    mapping.multiple_models = False
    mapping.extract_colors = False
    mapping.min_model_size = 3
    mapping.mapper.init_min_tri_angle = 4.0  # clips of a few seconds have little parallax
    mapping.mapper.init_max_forward_motion = 1.0
    mapping.mapper.init_min_num_inliers = 50
    paths = str(folder / "database.db"), str(folder / "images")
    pycolmap.set_random_seed(0)
    pycolmap.extract_features(
        *paths,
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
        device=pycolmap.Device.cpu,
    )
    pycolmap.match_sequential(
        paths[0], matching_options=matching, pairing_options=pairing, device=pycolmap.Device.cpu
    )
    (folder / "models").mkdir()
    found: dict[int, Any] = pycolmap.incremental_mapping(*paths, str(folder / "models"), options=mapping)
    return found


def _points(model: Any) -> Array:
    """[N, 3]."""
    return np.array([point.xyz for point in model.points3D.values()]).reshape(-1, 3)


def _is_flat(points: Array) -> bool:
    """Whether most points lie near one plane: two paths then explain the views, and COLMAP takes either."""
    if len(points) < 4:
        return True
    spread = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    limit = 0.1 * float(np.median(spread))  # the structure of a wrong one is bent
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b, c = points[rng.choice(len(points), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        length = float(np.linalg.norm(normal))
        if length > 1e-12 and (np.abs((points - a) @ normal) < limit * length).mean() > _FLAT:
            return True
    return False


def _estimate(model: Any, names: Sequence[str], times: Array, size: tuple[int, int]) -> Estimate:
    images = {image.name: image for image in model.images.values() if image.has_pose}
    known = np.array([name in images for name in names])
    inverse = [images[name].cam_from_world() for name in names if name in images]
    rotations = np.array([pose.rotation.matrix() for pose in inverse])
    translations = np.array([pose.translation for pose in inverse])
    poses = inverted(rotations, translations)
    points = _points(model)
    depth = np.einsum("tj,nj->tn", rotations[:, 2], points) + translations[:, 2, None]
    depth = depth[depth > 0]
    unit = float(np.median(depth)) if len(depth) else 1.0
    poses[:, :3, 3] /= unit
    camera = next(iter(model.cameras.values()))
    part = CameraTrack(times[known], poses, camera.calibration_matrix(), size, source="colmap")
    counts = np.array([images[n].num_points3D if n in images else 0 for n in names], np.float64)
    whole = part.resampled(times)
    return Estimate(
        CameraTrack(
            times,
            whole.poses,
            whole.intrinsics,
            size,
            confidence=np.where(known, np.clip((counts - 20) / 20, 0, 1), 0.0),
            source="colmap",
        ),
        points / unit,
    )
