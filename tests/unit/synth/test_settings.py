"""The settings of synthesis are read and explained as those of training are."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_
from hypothesis.strategies import floats, integers, none, one_of

from fourdthinker import cli
from fourdthinker.errors import ConfigError
from fourdthinker.frames import FramePolicy
from fourdthinker.settings import settings_of
from fourdthinker.synth import clips
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.settings import SynthSettings, read_settings

NOISE = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3)).astype(np.uint8)
SOURCE = Source("v", "", "d", "g", "v")


def read(tmp_path: Path, text: str, **given: object) -> SynthSettings:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return read_settings(path, **given)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nnames: [a]\nseed: 2\n", "'seed' stands in lines 1 and 3; keep one"),
        ("frames: {fps: 1, fps: 2}\n", "'fps' stands twice"),
        ("narator_model: m\n", "unknown key 'narator_model', the nearest are narrator_model"),
        ("frames: {fpz: 1}\n", "unknown key 'frames.fpz', the nearest are frames.fps"),
        ("fps: 1\n", "unknown key 'fps', the nearest are frames.fps"),
        ("seed: true\n", "seed is True (bool); give a whole number"),
        ("min_seconds: .nan\n", "min_seconds is nan"),
        ("min_seconds: 0.2\n", "min_seconds is 0.2; give at least 1"),  # of one frame nothing can be said
        ("analysis_fps: 1.5\n", "analysis_fps is 1.5; give at least 2"),  # every object was lost
        ("least_area: 0.5\n", "least_area is 0.5; give at most 0.3"),  # every object was lost
        ("frames: {fps: 24}\n", "only 30 are read; raise analysis_fps"),  # 20 of 50 frames were missing
        ("frames: {min_frames: 40}\n", "frames asks for 40 frames of the shortest clip"),
        ("max_seconds: .inf\n", "max_seconds is inf; give a finite number"),
        ("cut_histogram: 2\n", "cut_histogram is 2; give at most 1"),
        ("imagery: []\n", "imagery is empty; name at least one"),
        ("imagery: [photo]\n", "imagery[0] is 'photo'; choose one of overlay, silhouette"),
        ("names: 3\n", "names is 3 (int); give a list"),
        ("3: 4\n", "the key 3 is no text"),
        ("- 1\n", "holds a list; write `key: value` lines"),
        ("a: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_in_a_file(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert said in str(error.value)
    assert "c.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_value_of_the_command_line_is_said_to_stand_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"command line: seed is -1.*c\.yaml: shard_records is 0"):
        read(tmp_path, "shard_records: 0\n", seed=-1)


def test_frames_a_second_of_the_command_line_go_before_the_files(tmp_path: Path) -> None:
    """The file alone was read first, and refused for the value that was replaced."""
    frames = read(tmp_path, "frames: {fps: 24, max_frames: 40}\n", fps=2.0).frames
    assert (frames.fps, frames.max_frames) == (2.0, 40)
    with pytest.raises(ConfigError, match=r"c\.yaml: frames"):
        read(tmp_path, "frames: 3\n", fps=2.0)


def test_a_wrong_frame_policy_of_file_and_command_line_is_said_to_stand_in_both(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml and command line: frames: .*max_frames is -1"):
        read(tmp_path, "frames: {max_frames: -1}\n", fps=2.0)
    with pytest.raises(ConfigError, match=r"c\.yaml and command line: frames asks for 72 frames"):
        read(tmp_path, "frames: {max_frames: 90}\n", fps=24.0)
    with pytest.raises(ConfigError, match=r"^command line: frames: .*fps is -1"):
        read(tmp_path, "seed: 1\n", fps=-1.0)


@pytest.mark.parametrize(
    "text",
    [
        "min_seconds: 3.04\nframes: {fps: 10, max_frames: 200}\n",
        "min_seconds: 3.1\nanalysis_fps: 4\nframes: {fps: 4}\n",
    ],
)
def test_a_clip_is_a_whole_number_of_frames_long(text: str, tmp_path: Path) -> None:
    """31 and 13 frames are read of the shortest clip; 30 and 12 were said to be."""
    settings = read(tmp_path, text)
    assert settings.shortest in (31, 13)


@settings_(max_examples=60, deadline=None, database=None)
@given(
    rate=floats(2, 9),
    fps=one_of(none(), floats(0.5, 12)),
    least=floats(1, 2),
    most=floats(2, 4),
    low=integers(1, 12),
    high=integers(1, 12),
)
def test_what_is_accepted_has_all_its_frames_and_what_is_refused_would_not(
    rate: float, fps: float | None, least: float, most: float, low: int, high: int
) -> None:
    """Shots of every length, cut as those of a video are; fps None: the same rate as the stages'."""
    frames = FramePolicy(fps=rate if fps is None else fps, min_frames=low, max_frames=low + high)
    values = {
        "frames": frames,
        "analysis_fps": rate,
        "min_seconds": least,
        "max_seconds": max(most, 2 * least),
    }
    settings = SynthSettings().model_copy(update=values)
    whole = True
    for count in range(1, round(settings.max_seconds * rate) + 2):
        held = [(k / rate, NOISE[k % 2]) for k in range(count)]
        for clip in clips._split(SOURCE, held, settings):
            if isinstance(clip, clips.Clip):
                whole &= len(clip.chosen) == len(frames.times(len(clip.times) / rate))
    with nullcontext() if whole else pytest.raises(ConfigError, match=r"only .* are read"):
        SynthSettings(**values)


def test_settings_read_back_equal(tmp_path: Path) -> None:
    settings = read(tmp_path, "segment_weights: w\nframes: {fps: 2}\nnames: [a, b]\nsplits: {train: 1}\n")
    assert settings.segment_weights == Path("w")
    assert settings.names == ("a", "b")
    assert read_settings(None, **settings.plain()) == settings


def test_every_setting_is_explained_and_the_help_shows_those_that_are_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {setting.key: setting for _, group in settings_of(SynthSettings) for setting in group}
    assert {key.partition(".")[0] for key in every} == set(SynthSettings.model_fields)
    assert [key for key, setting in every.items() if len(setting.text) <= 10] == []
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        cli.main(["synth", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for key in ("seed", "frames.fps", "names", "namer_model", "geometry", "imagery", "narrator_model"):
        assert f"{every[key].text} ({every[key].kind}; default: {every[key].default})" in shown
