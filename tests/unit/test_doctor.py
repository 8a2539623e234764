"""What `fourdthinker doctor` says about the native module."""

import re
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest

from fourdthinker import doctor

CPU = {"cuda": False, "why_no_cuda": "no nvcc was found", "archs": [], "nvdec_headers": False}
CUDA = {"cuda": True, "why_no_cuda": None, "archs": ["80-real", "100"], "nvdec_headers": True}


def test_bounds_are_those_of_the_package(monkeypatch):
    """One list of versions: pyproject.toml's, through the metadata."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    stated, extra = project["dependencies"], "peft>=1; extra == 'train'"
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: [*stated, extra])
    found = doctor.requirements()
    assert found["torch"] == ("2.11", "2.14")
    assert found["triton"] == ("3.6", "3.8")
    assert found["rich"] == (None, None)
    assert len(found) == len(stated)
    assert "peft" not in found
    assert all(doctor.installed(name) for name in found)


OK = ("ok", "_video", "")
LIBRARY = ("ok", "NVDEC library", "is there")


def findings(monkeypatch, info, refusals=(), gpu=False):
    module: Any = types.ModuleType("fourdthinker._video")
    module.build_info = lambda: info
    module.nvdec_missing = lambda: dict(refusals).get("library")
    module.nvdec_refusal = lambda codec, *_: dict(refusals).get(codec)
    monkeypatch.setitem(sys.modules, "fourdthinker._video", module if info else None)
    monkeypatch.setattr(doctor, "_has_gpu", lambda: gpu)
    return [(f.status, f.name, f"{f.text} | {f.remedy}") for f in doctor._video()]


@pytest.mark.parametrize(
    ("info", "refusals", "gpu", "expected"),
    [
        (None, (), False, [("note", "_video", "slower fallback | install a C.. compiler")]),
        (CPU, (), False, [("ok", "_video", "CPU build.*no nvcc was found. | $")]),
        (CPU, (), True, [("note", "_video", "CPU build.* | install CUDA's nvcc, 12.8")]),
        (
            {**CUDA, "nvdec_headers": False},
            (),
            True,
            [("ok", "_video", "CUDA build for 80-real, 100"), ("note", "NVDEC", "on the host | .*nvenc-dev")],
        ),
        (
            CUDA,
            (),
            True,
            [OK, LIBRARY, ("ok", "NVDEC", "h264, hevc, vp9, av1 on the GPU | $")],
        ),
        (
            CUDA,
            {"av1": "this chip has none"},
            True,
            [OK, LIBRARY, ("ok", "NVDEC", "decodes h264, hevc, vp9 on the GPU; not av1")],
        ),
        (
            CUDA,
            {"library": "libnvcuvid.so.1 cannot be opened"},
            True,
            [
                ("ok", "_video", ""),
                ("note", "NVDEC library", "libnvcuvid.so.1 cannot be opened | check the driver"),
            ],
        ),
        (
            CUDA,
            dict.fromkeys(doctor.DECODERS, "device 0 cannot be used"),
            True,
            [OK, LIBRARY, ("note", "NVDEC", "device 0 cannot be used | check the driver")],
        ),
    ],
)
def test_which_path_is_live(monkeypatch, info, refusals, gpu, expected):
    found = findings(monkeypatch, info, refusals, gpu)
    assert [f[:2] for f in found] == [e[:2] for e in expected]
    for (_, _, text), (_, _, pattern) in zip(found, expected, strict=True):
        pattern = pattern.replace(" | ", r" \| ")
        assert not pattern or re.search(pattern, text), text
