"""The package as a user gets it: a wheel in another environment, started in an empty folder, no clone."""

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def clean_environment(**more: str) -> dict[str, str]:
    """Nothing that makes the clone importable."""
    values = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FOURDTHINKER_NO_EXT")}
    return {**values, **more}


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
        "import fourdthinker.kernels, fourdthinker._video as v, fourdthinker.kernels.pool_latents as p, sys\n"
        "assert 'kernels' not in sys.modules\n"
        "import numpy as np\n"
        "print(v.resize_patches(np.zeros((1, 9, 9, 3), np.uint8), 28, 28).shape)\n"
        "print(p.__file__)\nprint(v.__file__)",
    )
    shape, *files = out.splitlines()
    assert shape == "(4, 1176)"
    assert all(Path(name).is_relative_to(installed.prefix) for name in files), files


@pytest.mark.parametrize("trainer", ["dift", "grpo"])
def test_trainers_start_without_a_clone(installed, trainer):
    module = f"fourdthinker.trainers.{trainer}"
    out = installed.run(
        "python", "-m", "torch.distributed.run", "--nproc_per_node", "1", "-m", module, "--help"
    )
    assert "usage" in out.lower()
    assert "--config" in out


def test_the_command_is_installed(installed):
    assert "demo" in installed.run("fourdthinker", "--help")


BOTH_NAMES = """
import importlib, pathlib, sys
names = sorted(p.stem for p in pathlib.Path({root!r}, "kernels").glob("*.py") if p.stem != "__init__")
assert len(names) >= 7, names
for prefix in {order!r}:
    for name in names:
        importlib.import_module(prefix + "." + name)
import torch
ours = [name for name in torch._C._dispatch_get_all_op_names() if "kernels::" in name]
assert len(ours) == len(set(ours)), ours
one, two = (importlib.import_module(prefix + ".pool_latents").pool_latents for prefix in {order!r})
x, counts = torch.arange(12.0).view(6, 2), torch.tensor([6])
assert torch.equal(one(x, counts, 3), two(x, counts, 3))
"""


@pytest.mark.parametrize("order", [("kernels", "fourdthinker.kernels"), ("fourdthinker.kernels", "kernels")])
def test_kernels_under_both_names_in_one_process(tmp_path, order):
    """The clone on the path and the package installed: no op may be registered a second time."""
    code = BOTH_NAMES.format(root=str(ROOT), order=order)
    done = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr


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
