"""The native resize against Pillow, and its patch layout against plain numpy.

DESIGN asks for at most 1 level of difference and 0.25 on average; the fixed-point arithmetic, the order of
the passes and the rounding between them are Pillow's (13 and later), so the tests ask for equality.
"""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

video = pytest.importorskip("fourdthinker._video", reason="built without the native extension")

FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])


def noise(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def checker(frames: int, height: int, width: int) -> np.ndarray:
    """Pure black and white squares of one to three pixels: the worst case for overshoot and its clamping."""
    y, x = np.mgrid[:height, :width]
    images = [((y // (k % 3 + 1) + x // (k % 3 + 1)) % 2 * 255).astype(np.uint8) for k in range(frames)]
    return np.stack(images)[..., None].repeat(3, axis=3)


def text(frames: int, height: int, width: int) -> np.ndarray:
    pages = []
    for k in range(frames):
        page = Image.new("RGB", (width, height), (250, 250, 245))
        draw = ImageDraw.Draw(page)
        for row in range(0, height, 11):
            draw.text(
                (row % 7, row), f"{k} The quick brown fox 0123456789 jumps " * 4, fill=(row % 256, 10, 30)
            )
        pages.append(np.asarray(page))
    return np.stack(pages)


def pillow(pixels: np.ndarray, height: int, width: int, resample: str) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.fromarray(x).resize((width, height), FILTERS[resample])) for x in pixels]
    )


def plain_patches(pixels: np.ndarray, patch: int = 14, merge: int = 2, temporal: int = 2) -> np.ndarray:
    """uint8 [T, h, w, 3] -> float32 patches, as the Qwen processors arrange them."""
    while len(pixels) % temporal:
        pixels = np.concatenate([pixels, pixels[-1:]])
    t, h, w, _ = pixels.shape
    values = ((pixels / 255.0 - MEAN) / DEVIATION).astype(np.float32).transpose(0, 3, 1, 2)
    values = values.reshape(
        t // temporal, temporal, 3, h // patch // merge, merge, patch, w // patch // merge, merge, patch
    )
    return values.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * temporal * patch * patch)


SIZES = {
    "down": ((90, 160), (28, 56)),
    "down, odd": ((101, 173), (37, 59)),
    "up": ((28, 40), (84, 140)),
    "up, odd": ((13, 17), (61, 47)),
    "narrower and taller": ((40, 200), (112, 56)),
    "wider and shorter": ((200, 40), (56, 112)),
    "40 to 1": ((1120, 1120), (28, 28)),
    "40 to 1 on the height, which goes first": ((1120, 40), (28, 28)),
    "40 to 1 on the width": ((30, 1120), (28, 28)),
    "height only": ((75, 56), (28, 56)),
    "width only": ((28, 75), (28, 33)),
    "same": ((31, 33), (31, 33)),
    "to one pixel": ((9, 7), (1, 1)),
    "from one pixel": ((1, 1), (28, 28)),
}


@pytest.mark.parametrize("resample", sorted(FILTERS))
@pytest.mark.parametrize("content", [noise, checker, text])
@pytest.mark.parametrize("case", SIZES)
def test_equal_to_pillow(case, content, resample):
    (height, width), (new_height, new_width) = SIZES[case]
    pixels = content(2, height, width)
    out = video.resize(pixels, new_height, new_width, resample)
    assert out.dtype == np.uint8
    assert out.shape == (2, new_height, new_width, 3)
    np.testing.assert_array_equal(out, pillow(pixels, new_height, new_width, resample))


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 90)] * 4),
    resample=st.sampled_from(sorted(FILTERS)),
    threads=st.integers(0, 5),
    seed=st.integers(0, 2**16),
)
def test_equal_to_pillow_at_any_size(size, resample, threads, seed):
    height, width, new_height, new_width = size
    pixels = np.where(noise(1, height, width, seed) > 127, 255, 0).astype(np.uint8)
    out = video.resize(pixels, new_height, new_width, resample, threads)
    np.testing.assert_array_equal(out, pillow(pixels, new_height, new_width, resample))


@pytest.mark.parametrize("resample", sorted(FILTERS))
@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_patches_are_the_resized_pixels_in_qwen_order(frames, resample):
    pixels = noise(frames, 77, 131)
    out = video.resize_patches(pixels, 56, 84, resample)
    assert out.dtype == np.float32
    assert out.shape == ((frames + 1) // 2 * 4 * 6, 1176)
    np.testing.assert_allclose(out, plain_patches(video.resize(pixels, 56, 84, resample)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("patch", "merge", "temporal"), [(16, 2, 2), (4, 1, 1), (3, 3, 4)])
def test_patches_of_other_families(patch, merge, temporal):
    height, width = 2 * patch * merge, 3 * patch * merge
    pixels = noise(5, 70, 90)
    out = video.resize_patches(pixels, height, width, "bicubic", patch, merge, temporal)
    expected = plain_patches(video.resize(pixels, height, width, "bicubic"), patch, merge, temporal)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 7])
@pytest.mark.parametrize("size", [(360, 64), (64, 360)])
def test_threads_do_not_change_the_result(frames, size):
    pixels = noise(frames, *size)
    single = video.resize(pixels, 140, 56, "lanczos", 1)
    patches = video.resize_patches(pixels, 140, 56, "lanczos", threads=1)
    for threads in (0, 2, 3, 16):
        np.testing.assert_array_equal(video.resize(pixels, 140, 56, "lanczos", threads), single)
        np.testing.assert_array_equal(
            video.resize_patches(pixels, 140, 56, "lanczos", threads=threads), patches
        )


@pytest.mark.parametrize(("height", "factor"), [(31, 3), (34, 3), (33, 5)])
def test_bands_that_begin_on_a_whole_sample(height, factor):
    """Enlarged by an odd factor, every `factor`-th row has one tap, and the rows after it begin before it.

    Wide and repeated, so that bands are not all taken by the thread that happens to have made what they lack.
    """
    pixels = noise(1, height, 20000)
    expected = pillow(pixels, height * factor, 20000, "lanczos")
    for threads in (2, 3, 3, 4, 5):
        out = video.resize(pixels, height * factor, 20000, "lanczos", threads)
        np.testing.assert_array_equal(out, expected)


def test_callers_threads_run_at_the_same_time():
    """The interpreter lock is free while pixels are worked on: another thread counts on meanwhile."""
    pixels = noise(40, 360, 640)
    counted, done = 0, threading.Event()

    def work():
        video.resize(pixels, 168, 308, "lanczos", 1)
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    while not done.is_set():
        counted += 1
        time.sleep(0.0005)
    worker.join()
    assert counted > 3


def test_reads_torch_tensors_and_read_only_arrays():
    torch = pytest.importorskip("torch")
    pixels = noise(2, 30, 40)
    expected = video.resize(pixels, 28, 28)
    np.testing.assert_array_equal(video.resize(torch.from_numpy(pixels), 28, 28), expected)
    pixels.setflags(write=False)
    np.testing.assert_array_equal(video.resize(pixels, 28, 28), expected)


def test_result_owns_its_memory():
    first = video.resize(noise(1, 50, 50), 28, 28)
    copy = first.copy()
    for _ in range(20):
        video.resize(noise(1, 50, 50, seed=1), 28, 28)
    np.testing.assert_array_equal(first, copy)


GOOD = noise(2, 30, 40)
BAD = {
    "three dimensions": (GOOD[0], 28, 28, "lanczos", r"\[30, 40, 3\].*x\[None\]"),
    "five dimensions": (
        GOOD[None],
        28,
        28,
        "lanczos",
        r"5 dimensions.*expected \[frames, height, width, 3\]",
    ),
    "float": (GOOD.astype(np.float32), 28, 28, "lanczos", r"not uint8.*astype\('uint8'\)"),
    "int8": (GOOD.astype(np.int8), 28, 28, "lanczos", "not uint8"),
    "channels first": (
        np.ascontiguousarray(GOOD.transpose(0, 3, 1, 2)),
        28,
        28,
        "lanczos",
        "40 channels.*RGB",
    ),
    "no frames": (GOOD[:0], 28, 28, "lanczos", r"empty.*\[0, 30, 40, 3\]"),
    "no rows": (np.ascontiguousarray(GOOD[:, :0]), 28, 28, "lanczos", "empty"),
    "strided": (GOOD[:, ::2], 28, 28, "lanczos", "not C-contiguous.*ascontiguousarray"),
    "reversed": (GOOD[::-1], 28, 28, "lanczos", "not C-contiguous"),
    "height zero": (GOOD, 0, 28, "lanczos", r"height is 0.*1\.\.65536"),
    "width negative": (GOOD, 28, -28, "lanczos", r"width is -28"),
    "width too large": (GOOD, 28, 28 * 10**6, "lanczos", r"width is 28000000"),
    "resample": (GOOD, 28, 28, "box", "unknown resample 'box'.*'lanczos' or 'bicubic'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_its_remedy(case):
    pixels, height, width, resample, message = BAD[case]
    for call in (video.resize, video.resize_patches):
        with pytest.raises(ValueError, match=message):
            call(pixels, height, width, resample)


def test_bad_threads():
    with pytest.raises(ValueError, match="threads is -1"):
        video.resize(GOOD, 28, 28, "lanczos", -1)
    with pytest.raises(ValueError, match="threads is 5000"):
        video.resize_patches(GOOD, 28, 28, "lanczos", threads=5000)


def test_bad_patch_shapes():
    with pytest.raises(ValueError, match=r"size 28x42 .*multiple of patch \* merge = 28.*FramePolicy.size"):
        video.resize_patches(GOOD, 28, 42)
    with pytest.raises(ValueError, match="patch is 0"):
        video.resize_patches(GOOD, 28, 28, patch=0)
    with pytest.raises(ValueError, match="temporal is -2"):
        video.resize_patches(GOOD, 28, 28, temporal=-2)
