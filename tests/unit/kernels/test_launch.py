"""The table of launch settings: which row a device takes, and what the build reads from the file."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fourdthinker.kernels import _gpu_architectures as gpus

decode = importlib.import_module("fourdthinker.kernels.shared_prefix_decode")  # the package has the function
ROOT = Path(__file__).parents[3]


@pytest.fixture
def capabilities(monkeypatch):
    """Two made-up GPUs, 0 of sm_90 and 1 of sm_121; gives the indices that were asked about."""
    asked = []

    def capability(index):
        asked.append(index)
        return [(9, 0), (12, 1)][index]

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    gpus._capability.cache_clear()
    yield asked
    gpus._capability.cache_clear()


def test_the_architecture_is_asked_once_per_device(capabilities):
    for _ in range(2):
        assert gpus.architecture(torch.device("cuda", 0)) == 90
        assert gpus.architecture(torch.device("cuda", 1)) == 121
    assert gpus.architecture(torch.device("cpu")) is None
    assert capabilities == [0, 1]


def test_the_multiprocessors_are_asked_once_per_device(monkeypatch):
    asked = []

    def properties(index):
        asked.append(index)
        return SimpleNamespace(multi_processor_count=(132, 64)[index])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    gpus._multiprocessors.cache_clear()
    for _ in range(2):
        assert gpus.multiprocessors(torch.device("cuda", 0)) == 132
        assert gpus.multiprocessors(torch.device("cuda", 1)) == 64
    assert gpus.multiprocessors(torch.device("cpu")) > 0
    gpus._multiprocessors.cache_clear()
    assert asked == [0, 1]


@pytest.mark.parametrize(
    ("tiles", "longest", "span"),
    [
        (32, 16_384, 1376),  # 12 splits of 396 programs
        (32, 4096, 512),  # never less, so 8
        (64, 16_384, 2752),
        (500, 4096, 4096),  # more than are resident: not split
    ],
)
def test_prompts_are_split_into_as_many_programs_as_a_gpu_holds(tiles, longest, span, monkeypatch):
    monkeypatch.setattr(decode, "multiprocessors", lambda device: 132)
    launch = gpus.row("prefix_decode_prompt", 90)
    assert decode.prompt_span(tiles, longest, launch, torch.device("cuda", 0)) == span


def test_a_gpu_takes_its_own_row_and_else_the_default(capabilities, monkeypatch):
    own = gpus.Launch(num_warps=2, block=256)
    made_up = gpus.Architecture(shared=0, rows={"silu_mul": own})
    monkeypatch.setitem(gpus.ARCHITECTURES, 121, made_up)
    assert gpus.settings("silu_mul", torch.device("cuda", 1)) == own
    for op, device in (("silu_mul", "cuda:0"), ("silu_mul", "cpu"), ("sample_scan", "cuda:1")):
        assert gpus.settings(op, torch.device(device)) == gpus.DEFAULT[op]
    monkeypatch.delitem(gpus.ARCHITECTURES, 121)
    assert gpus.settings("silu_mul", torch.device("cuda", 1)) == gpus.DEFAULT["silu_mul"]


def test_no_architecture_has_a_row_for_an_unknown_op():
    for architecture in gpus.ARCHITECTURES.values():
        assert set(architecture.rows) <= set(gpus.DEFAULT)


def test_no_other_file_holds_settings():
    files = [path for path in (ROOT / "kernels").glob("*.py") if path.name != "_gpu_architectures.py"]
    text = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert len(text) > 20
    setting = re.compile(r"num_warps|num_stages|\bBLOCK\w*=\d|tile\(\w+, \d")
    assert [name for name in text if setting.search(text[name])] == []


def test_the_build_reads_the_architectures_from_the_table():
    cmake = (ROOT / "csrc" / "cuda" / "find.cmake").read_text(encoding="utf-8")
    line = re.search(r'CMAKE_CUDA_ARCHITECTURES REGEX "([^"]+)"', cmake)
    assert line is not None
    table = (ROOT / "kernels" / "_gpu_architectures.py").read_text(encoding="utf-8")
    listed = [int(text.split(":")[0]) for text in re.findall(line[1] + ".*", table, re.MULTILINE)]
    assert listed == sorted(gpus.ARCHITECTURES)  # the last is compiled for what comes after it, too
