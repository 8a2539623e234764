"""The package as a user gets it: a wheel in another environment, started in an empty folder, no clone."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest

from tests.unit.kernels.test_types import said_of

ROOT = Path(__file__).resolve().parents[2]


def clean_environment(**more: str) -> dict[str, str]:
    """Nothing that makes the clone importable."""
    left_out = ("PYTHONPATH", "FOURDTHINKER_NO_EXT", "FOURDTHINKER_CUDA")
    values = {k: v for k, v in os.environ.items() if k not in left_out}
    return {**values, **more}


def nvcc() -> str | None:
    """A CUDA compiler that is new enough for the extension."""
    program = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", said)
    return program if release and (int(release[1]), int(release[2])) >= (12, 8) else None


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        cwd=folder,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def build_wheel(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["-w", str(folder / "wheels"), f"-Cbuild-dir={folder / 'build'}", str(ROOT)]
    return run(command, ROOT, **environment)


class Installed:
    """A fresh environment with the wheel in it; torch and the rest come from the present environment.

    The present site-packages is a plain path entry there, so its editable install of the clone stays off.
    """

    def __init__(self, folder: Path, wheel: Path):
        self.wheel = wheel
        self.folder = folder / "empty"
        self.folder.mkdir()
        self.prefix = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.prefix)], check=True)
        self.bin = self.prefix / "bin"
        self.site = self.prefix / Path(sysconfig.get_path("purelib")).relative_to(sysconfig.get_path("data"))
        (self.site / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet"]
        subprocess.run([*command, "--no-deps", "--no-index", str(wheel)], check=True)

    def run(self, *command: str) -> str:
        """Standard output of a program of the environment, run in an empty folder."""
        done = run([str(self.bin / command[0]), *command[1:]], self.folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    done = build_wheel(folder, FOURDTHINKER_REQUIRE_EXT="1")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "wheels").glob("*.whl")
    assert not wheel.name.endswith("none-any.whl"), "no native extension inside"
    return Installed(folder, wheel)


def test_kernels_and_the_native_module_are_inside(installed):
    out = installed.run(
        "python",
        "-c",
        "import fourdthinker.kernels as p, fourdthinker._video as v, sys\n"
        "assert 'kernels' not in sys.modules\n"
        "import numpy as np\n"
        "print(v.resize_patches(np.zeros((1, 9, 9, 3), np.uint8), 28, 28).shape)\n"
        "print(p.__file__)\nprint(v.__file__)",
    )
    shape, *files = out.splitlines()
    assert shape == "(4, 1176)"
    assert all(Path(name).is_relative_to(installed.prefix) for name in files), files


BUILD = "import json, fourdthinker._video as v; print(json.dumps(v.build_info()))"
NEEDED = {"libc", "libm", "libstdc++", "libgcc_s", "libpthread", "libdl", "librt", "ld-linux-x86-64"}


def test_the_build_is_for_cuda_where_there_is_a_compiler_for_it(installed):
    info = json.loads(installed.run("python", "-c", BUILD))
    if nvcc() is None:
        assert not info["cuda"]
        assert "nvcc" in info["why_no_cuda"]
    else:
        assert info["cuda"], info
        assert info["archs"] == ["80-real", "90-real", "100"]
        assert info["nvdec_headers"] == Path("/usr/include/ffnvcodec/dynlink_nvcuvid.h").exists()


def test_it_links_neither_torch_nor_ffmpeg_nor_cuda(installed):
    """So one build serves every torch and machines without a GPU."""
    (module,) = (installed.site / "fourdthinker").glob("_video*.so")
    listed = subprocess.run(["ldd", str(module)], capture_output=True, text=True, check=True).stdout
    libraries = {Path(line.split()[0]).name.split(".so")[0] for line in listed.splitlines() if ".so" in line}
    assert libraries - {"linux-vdso"} <= NEEDED, listed


def test_a_cpu_build_on_request_and_an_editable_install(tmp_path):
    prefix = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(prefix)], check=True)
    python = str(prefix / "bin" / "python")
    site = prefix / Path(sysconfig.get_path("purelib")).relative_to(sysconfig.get_path("data"))
    (site / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", f"-Cbuild-dir={tmp_path / 'build'}", "--editable", str(ROOT)]
    done = run(command, tmp_path, FOURDTHINKER_CUDA="OFF", FOURDTHINKER_REQUIRE_EXT="1")
    assert done.returncode == 0, done.stdout + done.stderr
    told = run([python, "-c", BUILD + "; import fourdthinker; print(fourdthinker.__file__)"], tmp_path)
    assert told.returncode == 0, told.stderr
    info, where = told.stdout.splitlines()
    assert json.loads(info) == {
        "cuda": False,
        "why_no_cuda": "FOURDTHINKER_CUDA is OFF",
        "archs": [],
        "nvdec_headers": False,
    }
    assert Path(where).is_relative_to(ROOT / "fourdthinker")


@pytest.mark.parametrize(
    ("wish", "environment", "message"),
    [
        ("ON", {"CUDACXX": "/no/such/nvcc"}, "FOURDTHINKER_CUDA is ON, but /no/such/nvcc does not run"),
        ("ON", {"CUDACXX": "OLD"}, "FOURDTHINKER_CUDA is ON, but .*nvcc 12.6 is older than 12.8"),
        ("AUTO", {"CUDACXX": "OLD"}, "CPU build: nvcc 12.6 is older than 12.8"),
        ("AUTO", {"CUDACXX": "BROKEN"}, "CPU build: nvcc 13.0 does not work with this C..? compiler"),
        ("maybe", {}, "FOURDTHINKER_CUDA is 'maybe'|FOURDTHINKER_CUDA is 'MAYBE'"),
    ],
)
def test_what_the_configuration_says(tmp_path, wish, environment, message):
    for name, release in (("OLD", "12.6"), ("BROKEN", "13.0")):
        program = tmp_path / name
        program.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo "Cuda tools, release {release}, V1" || exit 1\n'
        )
        program.chmod(0o755)
    environment = {k: str(tmp_path / v) if v in ("OLD", "BROKEN") else v for k, v in environment.items()}
    script = f"""cmake_minimum_required(VERSION 3.24)
project(one LANGUAGES CXX)
include("{ROOT}/csrc/cuda/find.cmake")
"""
    (tmp_path / "CMakeLists.txt").write_text(script)
    command = ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build"), f"-DFOURDTHINKER_CUDA={wish}"]
    done = run(command, tmp_path, **environment)
    said = " ".join((done.stdout + done.stderr).split())
    assert re.search(message, said), said
    assert (done.returncode == 0) == (wish == "AUTO"), said


@pytest.mark.parametrize("trainer", ["dift", "grpo"])
def test_trainers_start_without_a_clone(installed, trainer):
    module = f"fourdthinker.trainers.{trainer}"
    out = installed.run(
        "python", "-m", "torch.distributed.run", "--nproc_per_node", "1", "-m", module, "--help"
    )
    assert "usage" in out.lower()
    assert "--config" in out


def test_each_kernel_is_inside_once_and_typed(installed, tmp_path):
    names = [
        name
        for name in zipfile.ZipFile(installed.wheel).namelist()
        if name.startswith("fourdthinker/kernels/")
    ]
    settings = ROOT / "kernels" / "tuned.json"  # launch settings that were measured
    files = [*(ROOT / "kernels").glob("*.py"), settings]
    assert sorted(names) == sorted(f"fourdthinker/kernels/{path.name}" for path in files)
    assert (installed.site / "fourdthinker" / "py.typed").exists()
    said = said_of(tmp_path, installed.site)
    assert 'Unexpected keyword argument "nonsense" for "linear_grpo_loss"' in said, said
    assert "Found 3 errors" in said, said


def test_the_command_is_installed(installed):
    assert "demo" in installed.run("fourdthinker", "--help")


def test_transformers_imports_with_the_repository_on_the_path():
    """It looks for a package called `kernels`, and ours must not be taken for it."""
    code = (
        "from transformers.utils import is_kernels_available\n"
        "from transformers import Qwen2_5_VLForConditionalGeneration, Trainer, AutoTokenizer\n"
        "import transformers.integrations.hub_kernels\n"
        "print(is_kernels_available())"
    )
    done = run([sys.executable, "-c", code], ROOT, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


def test_import_is_quick_and_brings_no_torch(tmp_path):
    code = "import fourdthinker, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=clean_environment(), check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2.0, seconds


def programs_without_compiler(folder: Path) -> str:
    """A PATH with the interpreter's own programs but no compiler."""
    folder.mkdir()
    for name in ("python", "cmake", "ninja"):
        program = Path(sysconfig.get_path("scripts"), name)
        if program.exists():
            (folder / name).symlink_to(program)
    return str(folder)


def test_without_a_compiler_a_pure_package_is_built(tmp_path):
    missing = {"PATH": programs_without_compiler(tmp_path / "bin"), "CXX": str(tmp_path / "no-such-c++")}
    done = build_wheel(tmp_path, FOURDTHINKER_REQUIRE_EXT="0", **missing)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    assert wheel.name.endswith("py3-none-any.whl")
    pure = Installed(tmp_path, wheel)
    out = pure.run(
        "python",
        "-c",
        "import importlib.util as u, fourdthinker.kernels as k\n"
        "print(u.find_spec('fourdthinker._video'), k.__file__)",
    )
    assert out.startswith("None " + str(pure.site)), out

    strict = build_wheel(tmp_path / "strict", FOURDTHINKER_REQUIRE_EXT="1", **missing)
    assert strict.returncode != 0
    assert "CMake configuration failed" in strict.stdout + strict.stderr


def test_the_extension_can_be_left_out_on_purpose(tmp_path):
    done = build_wheel(tmp_path, FOURDTHINKER_NO_EXT="1", FOURDTHINKER_REQUIRE_EXT="0")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    assert wheel.name.endswith("py3-none-any.whl")
