"""What the stages of one clip work on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourdthinker.synth.clips import Clip
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.scenes import Scene
from fourdthinker.synth.settings import SynthSettings


@dataclass
class Context:
    """What the stages of one clip work on.

    Attributes:
        clip: frames and times.
        source: that it is of, and what is given with it.
        settings: of the run.
        out: the output folder, for media.
        results: stage -> its result.
        scene: the scene that the clip shows, where it is one of the project's own.
        share: processes that share the limits of an endpoint.
    """

    clip: Clip
    source: Source
    settings: SynthSettings
    out: Path
    results: dict[str, Any] = field(default_factory=dict)
    scene: Scene | None = None
    share: int = 1
