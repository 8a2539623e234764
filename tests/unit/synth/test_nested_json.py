"""JSON that is nested deeper than Python reads is a named error, as other damage is."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourdthinker.errors import ConfigError, GeometryError
from fourdthinker.synth.geometry.nerfstudio import read_nerfstudio
from fourdthinker.synth.run import Options, synthesise

NESTED = "[" * 200_000


def test_poses(tmp_path: Path) -> None:
    (tmp_path / "transforms.json").write_text(NESTED)
    with pytest.raises(GeometryError, match=r"transforms\.json: not of the form"):
        read_nerfstudio(tmp_path / "transforms.json", names=["a.png"], times=[0.0])


@pytest.mark.parametrize("text", [NESTED, "[1]"])
def test_settings_of_a_folder(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ConfigError, match=r"settings\.json: .*name a new folder"):
        synthesise(["scenes:1"], tmp_path, options=Options(workers=1, progress=False))
