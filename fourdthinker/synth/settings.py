"""What a synthesis run depends on, and which of it matters to which stage."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from fourdthinker.frames import FramePolicy
from fourdthinker.settings import Float, Int, Name, Settings, make_config, make_section, origins, read_yaml

# In this order; those of one clip first, then those that need the whole corpus.
CLIP_STAGES = ("objects", "segment", "geometry", "motion", "questions", "imagery")
CORPUS_STAGES = ("options", "narrate", "write")
STAGES = ("ingest", *CLIP_STAGES, *CORPUS_STAGES)
VERSION = 8  # raised when a stage's results change although its settings do not

# The settings that the result of a stage of one clip depends on, beside those of the stages before it;
# corpus.py makes the keys of the stages of the whole corpus.
_MATTERS = {
    "ingest": (
        "frames",
        "analysis_fps",
        "analysis_pixels",
        "min_seconds",
        "max_seconds",
        "window_seconds",
        "cut_histogram",
        "cut_difference",
        "max_source_pixels",
    ),
    "objects": ("names", "namer_model", "namer_weights"),
    "segment": ("least_area", "segment_weights"),
    "geometry": ("geometry", "depth_weights"),
    "motion": (),
    "questions": ("seed",),
    "imagery": ("imagery",),
}
WEIGHTS = ("namer_weights", "segment_weights", "depth_weights")  # settings that name a checkpoint's folder
_SPLIT = re.compile(r"[A-Za-z0-9_]+")

# What a run may cost changes nothing of what it makes: another run in the same folder may have other limits.
LIMITS = (
    "namer_max_calls",
    "narrator_max_calls",
    "narrator_budget",
    "narrator_price_in",
    "narrator_price_out",
)


def _frames(value: Any) -> Any:
    return make_section(FramePolicy, value, "frames")


class SynthSettings(Settings):
    """Settings of a run; see docs/synthesis.md. A new one is a field here and, if of clips, in `_MATTERS`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    groups: ClassVar[dict[str, str]] = {
        "seed": "Clips and frames",
        "names": "What is asked about",
        "segment_weights": "Masks, camera, depth and imagery",
        "narrator_model": "Reasoning",
        "splits": "Records",
    }

    seed: Int = Field(default=0, ge=0, description="Seed of questions, options, wordings and splits.")
    frames: Annotated[FramePolicy, BeforeValidator(_frames)] = Field(
        default_factory=FramePolicy, description="The frames that records name."
    )
    analysis_fps: Float = Field(
        default=10.0, ge=2, le=60,
        description="Frames a second that the stages see; with fewer than 2 nothing that moves is followed.",
    )  # fmt: skip
    analysis_pixels: Int = Field(
        default=854 * 480, ge=64 * 64, description="Height * width of these frames at most."
    )
    min_seconds: Float = Field(
        default=3.0, ge=1, description="Seconds of a clip at least; shorter shots are rejected."
    )
    max_seconds: Float = Field(
        default=15.0, gt=0, description="Seconds of a clip at most; longer shots are split."
    )
    window_seconds: Float = Field(
        default=120.0, gt=0, description="Seconds of a long video that one process reads at once."
    )
    cut_histogram: Float = Field(
        default=0.25, gt=0, le=1, description="Share of the colours that a cut replaces at least."
    )
    cut_difference: Float = Field(
        default=0.06, gt=0, le=1, description="Mean change of a pixel at a cut at least."
    )
    max_source_pixels: Int = Field(
        default=2**26, ge=1, description="Videos and pictures of more pixels are rejected."
    )

    names: tuple[Name, ...] = Field(
        default=(), description="Names of the objects to ask about, in every clip."
    )
    namer_model: Name | None = Field(
        default=None,
        description="Model of an OpenAI-compatible endpoint that names objects where no names are given.",
    )
    namer_weights: Path | None = Field(
        default=None, description="Folder of a Qwen-VL checkpoint that names objects instead."
    )
    namer_max_calls: Int | None = Field(
        default=None,
        ge=0,
        description="Requests for names of a run at most, shared out to its processes; null: no limit.",
    )
    segment_weights: Path | None = Field(
        default=None, description="Folder of SAM 3 for videos; null: masks of what moves, without weights."
    )
    least_area: Float = Field(
        default=0.001, gt=0, le=0.3, description="Share of the picture that a mask covers at least."
    )
    geometry: Literal["opencv", "colmap"] = Field(
        default="opencv", description="What estimates the camera's path where none is given."
    )
    depth_weights: Path | None = Field(
        default=None,
        description="Folder of a depth model of transformers; null: objects stand on the ground.",
    )
    imagery: tuple[Literal["overlay", "silhouette", "depth", "trail", "map", "next"], ...] = Field(
        default=("overlay",),
        min_length=1,
        description="What an <output_image> shows, in this order at each instant.",
    )
    narrator_model: Name | None = Field(
        default=None,
        description="Model of an OpenAI-compatible endpoint that writes the reasoning; null: the geometry "
        "tells it.",
    )
    narrator_max_calls: Int | None = Field(
        default=None,
        ge=0,
        description="Requests for reasoning of a run at most, attempts counted; null: no limit.",
    )
    narrator_budget: Float | None = Field(
        default=None,
        ge=0,
        description="Money for reasoning of a run at most, in the unit of the prices; null: no limit.",
    )
    narrator_price_in: Float = Field(
        default=0.0, ge=0, description="Price of a million tokens that the endpoint reads."
    )
    narrator_price_out: Float = Field(
        default=0.0, ge=0, description="Price of a million tokens that the endpoint writes."
    )
    splits: dict[str, Float] = Field(
        default_factory=lambda: {"train": 0.9, "val": 0.05, "test": 0.05},
        description="Names of the splits, and their shares of the source videos.",
    )
    shard_records: Int = Field(default=10_000, ge=1, description="Records of one JSONL file at most.")

    _contents: dict[str, str] = PrivateAttr(default_factory=dict)  # setting of weights -> their digest

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.min_seconds > self.max_seconds / 2:
            raise ValueError(
                f"min_seconds is {self.min_seconds} and max_seconds {self.max_seconds}; "
                "min_seconds <= max_seconds / 2 must hold, so that what is left of a shot is long enough"
            )
        if self.window_seconds < self.max_seconds:
            raise ValueError(
                f"window_seconds is {self.window_seconds}; give at least max_seconds = {self.max_seconds}"
            )
        seen = self.shortest
        wanted = len(self.frames.times(seen / self.analysis_fps))
        if wanted > seen:
            raise ValueError(
                f"frames asks for {wanted} frames of the shortest clip, and with min_seconds = "
                f"{self.min_seconds:g} and analysis_fps = {self.analysis_fps:g} only {seen} are read; raise "
                "analysis_fps, or lower frames.fps or frames.min_frames"
            )
        if self.namer_model is not None and self.namer_weights is not None:
            raise ValueError("namer_model and namer_weights are both given; choose one of them")
        if self.narrator_budget is not None and self.narrator_price_in + self.narrator_price_out == 0:
            raise ValueError(
                f"narrator_budget is {self.narrator_budget} and the prices are 0; give narrator_price_in "
                "and narrator_price_out, of a million tokens"
            )
        if not self.splits or min(self.splits.values()) < 0 or abs(sum(self.splits.values()) - 1) > 1e-6:
            raise ValueError(f"splits is {self.splits}; give names and shares that sum to 1")
        if wrong := [name for name in self.splits if not _SPLIT.fullmatch(name)]:
            raise ValueError(
                f"splits names {wrong[0]!r}, a part of file names; use letters A-Z, a-z, digits and _"
            )
        return self

    @property
    def shortest(self) -> int:
        """Frames of the shortest clip: of min_seconds, or half of what is just too long for one clip."""
        least = math.ceil((self.min_seconds - 1e-6) * self.analysis_fps)
        too_long = math.floor((self.max_seconds + 1e-6) * self.analysis_fps) + 1
        return min(least, too_long // 2)

    def plain(self) -> dict[str, Any]:
        """For JSON; `read_settings` takes it back."""
        values = self.model_dump(mode="json", exclude={"frames"})
        return {**values, "frames": self.frames.to_dict()}

    def with_contents(self, digests: dict[str, str]) -> Self:
        """The same, of models whose weights have these contents.

        Args:
            digests: name of a setting of weights -> digest, for each that is given.

        Returns:
            Settings that `key` can be asked of.
        """
        known = self.model_copy()
        known._contents = dict(digests)
        return known

    def key(self, stage: str, before: str) -> str:
        """Changes with everything that the result of a stage depends on; of weights, with their content.

        Args:
            stage: "ingest" or one of CLIP_STAGES.
            before: the key of the stage before it, or the digest of the source for the first one.

        Returns:
            32 hexadecimal digits.
        """
        values = {name: getattr(self, name) for name in _MATTERS[stage]}
        values = {k: asdict(v) if isinstance(v, FramePolicy) else v for k, v in values.items()}
        values |= {k: self._contents[k] for k in WEIGHTS if values.get(k) is not None}
        text = json.dumps([VERSION, stage, before, values], sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_settings(path: Path | None, *, fps: float | None = None, **given: Any) -> SynthSettings:
    """Settings from a YAML file, replaced by what was given besides.

    Args:
        path: the file, or None.
        fps: of `frames`, whose other values are the file's; None: not given.
        given: values by name; None: not given.

    Returns:
        The settings.

    Raises:
        ConfigError: a file that cannot be read, an unknown key, or a value out of range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    values = {} if path is None else read_yaml(path)
    frames = values.get("frames", {})
    if fps is not None and isinstance(frames, dict):  # anything else is refused below
        given["frames"] = frames | {"fps": fps}
    origin = origins(path, given)
    if frames and "frames" in given:  # of the file and of the command line
        return make_config(SynthSettings, values | given, origin=lambda k: origin("" if k == "frames" else k))
    return make_config(SynthSettings, values | given, origin=origin)
