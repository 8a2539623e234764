"""The CUDA part of the native module: what its build contains, and NVDEC's loop against a made-up driver."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fourdthinker.frames.native import native
from tests.compile.aot import ARCHITECTURES, TABLE

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = "FOURDTHINKER_REQUIRE_CUDA_BUILD"  # set by .ci/run: what cannot be checked is then a failure
KERNEL = re.compile(r"(horizontal|vertical)INS0_\d+(Surfaces|Packed)E")
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def leave_out(reason: str) -> None:
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{reason}, and {REQUIRED}=1 is set")
    pytest.skip(reason)


def cuobjdump(*arguments: str) -> str:
    """Its output for the installed module."""
    module = native()
    if module is None:
        leave_out("fourdthinker._video is not built")
    info = module.build_info()
    if not info["cuda"]:
        leave_out(f"fourdthinker._video is built without CUDA: {info['why_no_cuda']}")
    program = shutil.which("cuobjdump")
    if program is None:
        triton = pytest.importorskip("triton")
        program = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run(
        [program, *arguments, module.__file__], capture_output=True, text=True, check=True
    ).stdout


def test_machine_code_for_each_architecture_and_ptx_for_later_ones():
    assert sorted(re.findall(r"\.sm_(\d+)\.cubin", cuobjdump("--list-elf"))) == sorted(
        map(str, ARCHITECTURES)
    )
    assert re.findall(r"\.sm_(\d+)\.ptx", cuobjdump("--list-ptx")) == [str(max(ARCHITECTURES))]


def test_registers_and_no_local_memory():
    found, arch, kernel = [], 0, ""
    for line in cuobjdump("-res-usage").splitlines():
        if line.startswith("arch = sm_"):
            arch = int(line.removeprefix("arch = sm_"))
        elif "Function " in line:
            name = KERNEL.search(line)
            kernel = f"_video {name[1]}<{name[2]}>" if name else line
        elif resources := RESOURCES.search(line):
            registers, stack, shared, local = map(int, resources.groups())
            found.append((kernel, arch))
            warps = 8
            blocks = min(65536 // (warps * 32 * (registers + 7 & ~7)), 64 // warps)
            TABLE.append(
                f"{kernel:<34}{arch:>6}{registers:>11}{shared:>10}{local:>9}{stack:>9}{warps:>7}"
                f"{blocks * warps / 64:>11.2f}"
            )
            assert (stack, local) == (0, 0), f"{kernel} spills on sm_{arch}"
            assert registers <= 64, f"{kernel} on sm_{arch}: below half of the warps are resident"
    kernels = {
        f"_video {axis}<{source}>" for axis in ("horizontal", "vertical") for source in ("Surfaces", "Packed")
    }
    assert sorted(found) == sorted((name, arch) for name in kernels for arch in ARCHITECTURES)


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    """The program in nvdec_fake.cpp, with the sanitizers that this compiler has."""
    if not Path("/usr/include/ffnvcodec/dynlink_nvcuvid.h").exists():
        leave_out("ffnvcodec/dynlink_nvcuvid.h is not installed (Debian: libffmpeg-nvenc-dev)")
    compiler = next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), None)
    if compiler is None:
        leave_out("no C++ compiler")
    program = tmp_path_factory.mktemp("nvdec") / "nvdec_fake"
    sources = [str(Path(__file__).with_name("nvdec_fake.cpp"))]
    sources += [str(ROOT / "csrc" / "cuda" / name) for name in ("decoders.cpp", "nvdec.cpp")]
    command = [
        compiler,
        "-std=c++20",
        "-g",
        "-Wall",
        "-Wextra",
        "-Wno-missing-field-initializers",
        "-pthread",
    ]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{ROOT / 'csrc'}", *sources]
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


SCENARIOS = [
    "chosen_frames",
    "every_frame",
    "missing_frames",
    "seek",
    "shown_twice",
    "size_changes",
    "decoders_are_kept",
    "ten_bits",
    "refusals",
    "damage",
    "damaged_references",
    "damage_that_matters_not",
    "lost_pictures",
    "status_is_not_told",
    "sink_fails",
    "wrong_batches",
    "several_at_once",
]


def test_every_scenario_runs(fake):
    listed = subprocess.run([str(fake)], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(listed) == sorted(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nvdec_against_a_made_up_driver(fake, scenario):
    done = subprocess.run([str(fake), scenario], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("chroma", ["420", "422"])
@pytest.mark.parametrize("depth", [8, 10, 12])
def test_surfaces_are_read_as_the_cpu_reads_planes(fake, chroma, depth):
    """What the decoder maps, through the passes of the GPU run on the host, against its samples in planes."""
    video = native()
    if video is None:
        leave_out("fourdthinker._video is not built")
    done = subprocess.run(
        [str(fake), "painted", chroma, str(depth)], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    line, data = done.stdout.split(b"\n", 1)
    name, *numbers = line.decode().split()
    interleaved, bits, shift, height, width, *window = map(int, numbers)
    assert (name, interleaved, bits, shift) == (chroma, 1, depth, 0 if depth == 8 else 16 - depth)
    assert (height, width, window) == (38, 70, [0, 0, 29, 68])
    kind = np.dtype(np.uint8 if depth == 8 else np.uint16)
    samples = np.frombuffer(data, kind).reshape(-1, width)
    assert len(samples) == height + (height if chroma == "422" else height // 2)
    planes = [(at.ctypes.data, width * kind.itemsize) for at in (samples, samples[height:])]
    options = {"height": 28, "width": 56, "crop": tuple(window), "chroma": chroma}
    got = np.zeros((1, 28, 56, 3), np.uint8)
    surface = {"interleaved": True, "depth": bits, "shift": shift}
    video.cuda_convert([planes], got.ctypes.data, [0], 1, (height, width), -1, 0, **options, **surface)

    def plane(index: int, rows: int, columns: int) -> np.ndarray:
        y, x = np.mgrid[:rows, :columns]
        return ((5 * 31 + index * 57 + y * 13 + x * 7) % (1 << depth)).astype(kind)

    rows = height if chroma == "422" else height // 2
    planar = plane(0, height, width), plane(1, rows, width // 2), plane(2, rows, width // 2)
    assert np.array_equal(got, video.convert([planar], depth=depth, **options))
