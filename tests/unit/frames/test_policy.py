"""The frame policy: times, sizes, and what it refuses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdthinker.errors import ConfigError
from fourdthinker.frames import FramePolicy

sides = st.integers(1, 5000)


@settings(deadline=None, max_examples=200)
@given(
    duration=st.floats(0, 4000),
    start=st.floats(-10, 1000),
    fps=st.sampled_from([0.5, 1.0, 2.0, 24.0, 30000 / 1001]),
    bounds=st.tuples(st.integers(1, 64), st.integers(0, 64)),
)
def test_times(duration: float, start: float, fps: float, bounds: tuple[int, int]) -> None:
    policy = FramePolicy(fps=fps, min_frames=bounds[0], max_frames=bounds[0] + bounds[1])
    times = policy.times(duration, start)
    free = max(1, math.ceil(duration * fps - 1e-6))
    assert len(times) == min(max(free, policy.min_frames), policy.max_frames)
    step = 1 / fps if len(times) == free else duration / len(times)
    assert times == pytest.approx([start + k * step for k in range(len(times))])
    assert times[0] == start
    assert times[-1] <= start + duration + 1e-6


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (0.0, [0.0]),
        (0.4, [0.0]),
        (1.0, [0.0]),
        (1.0000005, [0.0]),
        (1.001, [0.0, 1.0]),
        (3.2, [0.0, 1.0, 2.0, 3.0]),
    ],
)
def test_times_by_hand(duration: float, expected: list[float]) -> None:
    assert FramePolicy().times(duration) == expected


def test_capped_times_keep_true_seconds() -> None:
    times = FramePolicy(max_frames=50).times(100.0, 7.0)
    assert len(times) == 50
    assert times[1] - times[0] == pytest.approx(2.0)
    assert times[-1] == pytest.approx(7.0 + 49 * 2.0)


@settings(deadline=None, max_examples=300)
@given(height=sides, width=sides, factor=st.sampled_from([28, 32]))
def test_size_is_bounded_and_a_multiple(height: int, width: int, factor: int) -> None:
    policy = FramePolicy(factor=factor, min_pixels=4 * factor * factor)
    h, w = policy.size(height, width)
    assert h % factor == 0
    assert w % factor == 0
    assert min(h, w) >= factor
    assert h * w <= policy.max_pixels
    assert h * w >= policy.min_pixels or max(height, width) > 16 * min(height, width)
    assert policy.size(width, height) == (w, h)


@settings(deadline=None, max_examples=200)
@given(height=st.integers(200, 3000), width=st.integers(200, 3000))
def test_large_pictures_are_scaled_and_floored(height: int, width: int) -> None:
    policy = FramePolicy()
    if height * width <= policy.max_pixels or max(height, width) > 8 * min(height, width):
        return
    scale = math.sqrt(policy.max_pixels / (height * width))
    assert policy.size(height, width) == (int(height * scale / 28) * 28, int(width * scale / 28) * 28)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((720, 1280), (336, 588)),
        ((1080, 1920), (336, 588)),
        ((336, 588), (336, 588)),
        ((270, 480), (280, 476)),
        ((10, 10), (28, 28)),
        ((448, 448), (448, 448)),
        ((1280, 720), (588, 336)),
        ((10, 100000), (28, 7168)),
    ],
)
def test_size_by_hand(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert FramePolicy().size(*size) == expected


def test_round_trip_and_unknown_keys() -> None:
    policy = FramePolicy(fps=2.5, max_frames=7, min_frames=3, factor=32, resample="bicubic")
    assert FramePolicy.from_dict(policy.to_dict()) == policy
    assert FramePolicy.from_dict({}) == FramePolicy()
    with pytest.raises(ConfigError, match="unknown key rate"):
        FramePolicy.from_dict({"rate": 2})


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"fps": 0.0}, "fps is 0.0"),
        ({"fps": float("nan")}, "fps"),
        ({"min_frames": 3, "max_frames": 2}, "min_frames is 3"),
        ({"max_frames": 0}, "max_frames"),
        ({"factor": 27}, "factor is 27"),
        ({"max_pixels": 100}, "max_pixels 100"),
        ({"min_pixels": 10**9}, "min_pixels"),
        ({"resample": "nearest"}, "resample is 'nearest'"),
    ],
)
def test_refused_policies(values: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        FramePolicy(**values)


def test_refused_clips() -> None:
    with pytest.raises(ConfigError, match="duration"):
        FramePolicy().times(float("inf"))
    with pytest.raises(ConfigError, match="0x5"):
        FramePolicy().size(0, 5)
