"""Frame folders, lists and separate images; resizing and patches with and without the compiled extension."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fourdthinker.errors import ConfigError, VideoError
from fourdthinker.frames import FramePolicy, patchify, read_images, resize
from fourdthinker.frames import convert as convert_module
from tests.clips import numbers, picture


@pytest.fixture(params=["native", "fallback"])
def path_taken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fallback":
        monkeypatch.setattr(convert_module, "native", lambda: None)
    elif convert_module.native() is None:
        pytest.skip("fourdthinker._video is not built here")
    return request.param


def save(folder: Path, number: int, size: tuple[int, int] = (56, 56)) -> Path:
    path = folder / f"frame_{number:04d}.png"
    Image.fromarray(picture(number, *size)).save(path)
    return path


def test_folder_and_list_are_a_clip_at_the_rate_of_the_policy(tmp_path: Path) -> None:
    paths = [save(tmp_path, k) for k in range(5)]
    (tmp_path / "notes.txt").write_text("not a picture")
    folder = read_images(tmp_path, FramePolicy(fps=2))
    assert numbers(folder.pixels) == [0, 1, 2, 3, 4]
    assert folder.seconds == pytest.approx([0, 0.5, 1, 1.5, 2])
    assert folder.seconds_per_grid == pytest.approx(1.0)
    assert folder.kind == "video"
    reverse = read_images(paths[::-1], FramePolicy())
    assert numbers(reverse.pixels) == [4, 3, 2, 1, 0]
    assert reverse.seconds_per_grid == pytest.approx(2.0)


def test_more_frames_than_allowed_are_spread_over_the_true_times(tmp_path: Path) -> None:
    paths = [save(tmp_path, k) for k in range(10)]
    frames = read_images(paths, FramePolicy(max_frames=4))
    assert numbers(frames.pixels) == [0, 2, 5, 7]
    assert frames.seconds == pytest.approx([0, 2.5, 5, 7.5])
    assert frames.seconds_per_grid == pytest.approx(5.0)


def test_own_times_of_a_list(tmp_path: Path) -> None:
    paths = [save(tmp_path, k) for k in range(8)]
    assert numbers(read_images(paths, FramePolicy(fps=1), fps=4).pixels) == [0, 4]
    uneven = read_images(paths, FramePolicy(fps=1), seconds=[0, 0.1, 0.9, 1.0, 1.7, 2.5, 2.6, 2.7])
    assert numbers(uneven.pixels) == [0, 3, 4]
    assert uneven.shown == [0, 1.0, 1.7]
    for seconds in ([0.0, 1.0], [0.0] * 8):
        with pytest.raises(VideoError, match="one time a frame, increasing"):
            read_images(paths, seconds=seconds)


def test_clip_as_patches_repeats_an_odd_last_frame(tmp_path: Path, path_taken: str) -> None:
    paths = [save(tmp_path, k) for k in range(3)]
    odd = read_images(paths, out="patches")
    even = read_images([*paths, paths[-1]], out="patches")
    assert odd.grid_thw.tolist() == [[2, 4, 4]]
    assert torch.equal(odd.patches, even.patches)


def test_separate_images_keep_their_sizes_and_a_row_each(tmp_path: Path, path_taken: str) -> None:
    paths = [save(tmp_path, 1, (56, 56)), save(tmp_path, 2, (56, 112))]
    frames = read_images(paths, out="patches", separate=True)
    assert frames.kind == "image"
    assert frames.grid_thw.tolist() == [[1, 4, 4], [1, 4, 8]]
    assert frames.patches.shape == (16 + 32, 1176)
    one = frames.patches.view(-1, 3, 2, 14, 14)
    assert torch.equal(one[:, :, 0], one[:, :, 1])
    with pytest.raises(VideoError, match="112x56, 56x56 do not stack"):
        read_images(paths, separate=True)
    assert read_images(paths[:1], separate=True).pixels.shape == (1, 56, 56, 3)


def test_patch_layout(path_taken: str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 56, 84, 3), dtype=np.uint8)
    patches, grid = patchify(pixels)
    assert grid.tolist() == [[2, 4, 6]]
    row = 0
    mean, std = np.array(convert_module.CLIP_MEAN), np.array(convert_module.CLIP_STD)
    normal = (pixels / 255 - mean) / std
    for t in range(2):
        for block_row in range(2):
            for block_column in range(3):
                for i in range(2):
                    for j in range(2):
                        top, left = 14 * (2 * block_row + i), 14 * (2 * block_column + j)
                        cut = normal[2 * t : 2 * t + 2, top : top + 14, left : left + 14]
                        expected = torch.from_numpy(cut.transpose(3, 0, 1, 2).reshape(-1)).float()
                        torch.testing.assert_close(patches[row], expected, rtol=0, atol=1e-6)
                        row += 1
    assert row == len(patches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_patches_of_another_family(path_taken: str, dtype: torch.dtype) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    mean, std = (0.5, 0.4, 0.6), (0.5, 0.25, 0.125)
    patches, grid = patchify(pixels, patch=16, mean=mean, std=std, dtype=dtype)
    assert grid.tolist() == [[2, 4, 6]]
    assert patches.dtype == dtype
    rows = patches.view(2, 2, 3, 2, 2, 3, 2, 16, 16).float()  # group, block, in block, channel, time, place
    whole = rows.permute(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(4, 64, 96, 3)
    exact = (torch.from_numpy(pixels).double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    ulp = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(whole[:3].double(), exact, rtol=ulp, atol=1e-6)
    assert torch.equal(whole[3], whole[2])


@settings(deadline=None, max_examples=25)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    to=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    resample=st.sampled_from(["lanczos", "bicubic"]),
    seed=st.integers(0, 9),
)
def test_resize_is_that_of_pillow(
    size: tuple[int, int], to: tuple[int, int], resample: str, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    method = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}[resample]
    expected = np.stack([np.asarray(Image.fromarray(frame).resize(to[::-1], method)) for frame in pixels])
    ours = resize(pixels, to, resample).numpy()
    assert abs(ours.astype(int) - expected).max() <= 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_module, "native", lambda: None)
        assert np.array_equal(resize(pixels, to, resample).numpy(), expected)


def test_fallback_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fourdthinker._video", None)
    monkeypatch.delattr("fourdthinker._video", raising=False)
    convert_module.native.cache_clear()
    try:
        for _ in range(2):
            resize(np.zeros((1, 9, 9, 3), dtype=np.uint8), (5, 5))
    finally:
        convert_module.native.cache_clear()
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "is not built" in caplog.text


def test_upright_and_rgb(tmp_path: Path) -> None:
    gray = Image.fromarray(picture(5, 56, 84)[..., 0])
    exif = gray.getexif()
    exif[0x0112] = 6  # shown turned by a quarter
    gray.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert read_images(tmp_path / "turned.jpg", separate=True).pixels.shape == (1, 84, 56, 3)


def test_bad_pictures(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name, words in [
        ("cut.png", "not a readable picture"),
        ("empty.png", "is empty"),
        ("text.png", "not a readable picture"),
        ("script.png", "not a readable picture"),
        ("none.png", "no such file"),
    ]:
        with pytest.raises(VideoError, match=words) as caught:
            read_images([good, tmp_path / name])
        assert name in str(caught.value)
    (tmp_path / "sub").mkdir()
    with pytest.raises(VideoError, match="holds no pictures"):
        read_images(tmp_path / "sub")
    with pytest.raises(VideoError, match="clip of no frames"):
        read_images([])
    other = save(tmp_path, 2, (56, 84))
    with pytest.raises(
        VideoError, match=r"frame_0002\.png: 84x56 pixels, in a clip whose first frame has 56x56"
    ):
        read_images([good, other])
    with pytest.raises(ConfigError, match="out is"):
        read_images([good], out="float")


def test_pixels_of_a_wrong_kind() -> None:
    with pytest.raises(ValueError, match=r"float32 \[1, 28, 28, 3\]; uint8"):
        patchify(torch.zeros(1, 28, 28, 3))
    with pytest.raises(ValueError, match="30x28 pixels cannot be cut into patches"):
        patchify(torch.zeros(1, 30, 28, 3, dtype=torch.uint8))
