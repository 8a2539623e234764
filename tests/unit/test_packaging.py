"""The tools behind `make`: which torch is installed, what is missing, which lanes run; hosts in the repo."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pip
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import install_torch, lanes, prepare

ROOT = Path(__file__).resolve().parents[2]


# --- which torch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "requires", "cpu"),
    [
        ("2.13.0+cpu", ["filelock", "sympy>=1.13.3"], True),
        ("2.13.0+cpu", ["nvidia-cublas==13.1.0.3"], True),
        ("2.13.0", ["filelock", 'optree>=0.13 ; extra == "optree"'], True),
        ("2.13.0", ["filelock", 'nvidia-nccl-cu13==2.28.9 ; platform_system == "Linux"'], False),
        ("2.13.0", ["cuda-toolkit[cublas,cudart]==13.0.2", "triton==3.7.1"], False),
        ("2.13.0", ["cudaless", 'nvidia-cudnn-cu13 ; extra == "cuda"'], True),
        ("2.13.0+cu130", [], False),
        ("2.13.0+rocm7.1", [], False),
        ("2.13.0", None, True),
    ],
)
def test_cpu_builds_are_told_by_version_and_requirements(version, requires, cpu):
    metadata = {"version": version} if requires is None else {"version": version, "requires_dist": requires}
    assert install_torch.is_cpu_build(metadata) is cpu


def fake_wheel(index: Path, version: str, requires: list[str]) -> None:
    """A torch wheel with nothing in it but its version, in a package index of plain files."""
    folder = index / "torch"
    folder.mkdir(parents=True, exist_ok=True)
    name, info = f"torch-{version}-py3-none-any.whl", f"torch-{version}.dist-info"
    metadata = "\n".join(["Metadata-Version: 2.1", "Name: torch", f"Version: {version}"])
    metadata += "".join(f"\nRequires-Dist: {line}" for line in requires) + "\n"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr("torch/__init__.py", f"__version__ = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    href = name.replace("+", "%2B")
    (folder / "index.html").write_text(f'<a href="{href}">{name}</a>')


class Machine:
    """An empty environment, a usual source of packages, and nvidia-smi with or without a GPU."""

    def __init__(self, folder: Path):
        self.folder, self.usual, self.cpu = folder, folder / "usual", folder / "cpu"
        self.python = folder / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        (folder / "lib").mkdir()
        (folder / "lib" / "pip").symlink_to(Path(pip.__file__).parent)
        (folder / "bin").mkdir()
        self.set_gpu(False)
        (folder / "constraints.txt").write_text("torch==2.13.0\n")

    def set_gpu(self, present: bool) -> None:
        answer = "echo 'GPU 0: NVIDIA H200'" if present else "echo 'no driver' >&2; exit 9"
        program = self.folder / "bin" / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{answer}\n")
        program.chmod(0o755)

    def install(self, cpu_index: str | None) -> subprocess.CompletedProcess:
        variables = {
            k: v for k, v in os.environ.items() if not k.startswith("PIP_") and k != "TORCH_CPU_INDEX"
        }
        variables |= {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder / "lib"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": self.usual.as_uri(),
            "PIP_NO_CACHE_DIR": "1",
        }
        if cpu_index is not None:
            variables["TORCH_CPU_INDEX"] = cpu_index
        script = [sys.executable, str(ROOT / "tools" / "install_torch.py"), "--python", str(self.python)]
        script += ["--constraints", str(self.folder / "constraints.txt")]
        return subprocess.run(script, env=variables, capture_output=True, text=True, check=False)

    def installed(self) -> str | None:
        ask = "import importlib.util as u; print(u.find_spec('torch') and __import__('torch').__version__)"
        answer = subprocess.run([self.python, "-c", ask], capture_output=True, text=True, check=True)
        return answer.stdout.strip()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


CUDA = ["filelock", 'nvidia-cublas==13.1.0.3 ; platform_system == "Linux"']


def test_without_gpu_a_cuda_candidate_is_replaced_from_the_cpu_index(machine):
    # The index has no nvidia-cublas at all: an attempt to fetch it would fail.
    fake_wheel(machine.usual, "2.13.0", CUDA)
    fake_wheel(machine.cpu, "2.13.0+cpu", ["filelock"])
    done = machine.install(machine.cpu.as_uri())
    assert done.returncode == 0, done.stderr
    assert machine.installed() == "2.13.0+cpu"
    assert machine.cpu.as_uri() in done.stderr
    again = machine.install(machine.cpu.as_uri())
    assert again.returncode == 0
    assert "already installed" in again.stderr


def test_without_gpu_a_cpu_candidate_is_taken_as_it_is(machine):
    fake_wheel(machine.usual, "2.13.0+cpu", ["filelock"])
    done = machine.install((machine.folder / "nowhere").as_uri())
    assert done.returncode == 0, done.stderr
    assert machine.installed() == "2.13.0+cpu"


def test_with_gpu_the_usual_source_is_taken(machine):
    machine.set_gpu(True)
    fake_wheel(machine.usual, "2.13.0", CUDA)
    fake_wheel(machine.cpu, "2.13.0+cpu", ["filelock"])
    done = machine.install(machine.cpu.as_uri())
    assert done.returncode == 0, done.stderr
    assert machine.installed() == "2.13.0"


@pytest.mark.parametrize(
    ("cpu_index", "message"),
    [
        (None, "torch 2.13.0 would bring CUDA packages.*set TORCH_CPU_INDEX"),
        ("usual", "offers torch 2.13.0, which is no CPU build either"),
        ("empty", "pip finds no torch.*TORCH_CPU_INDEX"),
    ],
)
def test_without_gpu_cuda_is_never_installed(machine, cpu_index, message):
    fake_wheel(machine.usual, "2.13.0", CUDA)
    done = machine.install(cpu_index and (machine.folder / cpu_index).as_uri())
    assert done.returncode != 0
    assert re.search(message, done.stderr, re.DOTALL), done.stderr
    assert machine.installed() == "None"


# --- what is missing --------------------------------------------------------------------------------------


def test_a_complete_machine_misses_nothing():
    assert prepare.missing_packages(extension=True) == []


def test_missing_parts_are_named_as_debian_names_them(monkeypatch, tmp_path):
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(prepare.shutil, "which", lambda name: None)
    monkeypatch.setattr(prepare.sysconfig, "get_path", lambda name: str(tmp_path))
    assert prepare.missing_packages(extension=True) == [f"{version}-venv", "g++", f"{version}-dev"]
    assert prepare.missing_packages(extension=False) == [f"{version}-venv"]


def test_without_root_the_command_is_named_and_nothing_runs(monkeypatch):
    monkeypatch.setattr(prepare.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(prepare.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(prepare.subprocess, "run", lambda *a, **k: pytest.fail("ran a command"))
    with pytest.raises(SystemExit, match=r"sudo apt-get install -y python3\.11-venv g\+\+"):
        prepare.install_packages(["python3.11-venv", "g++"])


def test_root_installs_with_apt_and_stops_when_it_fails(monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 100 if command[1] == "install" else 0)

    monkeypatch.setattr(prepare.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(prepare.os, "geteuid", lambda: 0)
    monkeypatch.setattr(prepare.subprocess, "run", run)
    with pytest.raises(SystemExit, match="apt-get install failed"):
        prepare.install_packages(["g++"])
    assert [command[:2] for command in commands] == [["apt-get", "update"], ["apt-get", "install"]]
    assert commands[1][-1] == "g++"


def test_headers_of_nvdec_are_wanted_only_for_a_cuda_build(monkeypatch, tmp_path):
    compiler, header = tmp_path / "nvcc", tmp_path / "header.h"
    compiler.write_text("")
    monkeypatch.setattr(prepare, "NVDEC_HEADER", str(header))
    monkeypatch.setenv("CUDACXX", str(tmp_path / "none"))
    assert not prepare.wants_nvdec_headers()
    monkeypatch.setenv("CUDACXX", str(compiler))
    assert prepare.wants_nvdec_headers()
    monkeypatch.setenv("FOURDTHINKER_CUDA", "off")
    assert not prepare.wants_nvdec_headers()
    monkeypatch.delenv("FOURDTHINKER_CUDA")
    header.write_text("")
    assert not prepare.wants_nvdec_headers()


@pytest.mark.parametrize("root", [True, False])
def test_a_build_without_the_headers_of_nvdec_goes_on_and_says_so(monkeypatch, caplog, root):
    ran = []

    def run(command, **_):
        ran.append(command)
        return subprocess.CompletedProcess(command, 100)

    monkeypatch.setattr(prepare.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(prepare.os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(prepare.subprocess, "run", run)
    prepare.offer_nvdec()
    assert bool(ran) is root
    assert "libffmpeg-nvenc-dev is not installed: the extension is built without GPU decoding" in caplog.text


def test_the_oldest_python_is_the_one_that_the_package_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest = ".".join(map(str, prepare.OLDEST))  # written there too: it runs before anything is installed
    assert project["project"]["requires-python"] == f">={oldest}"
    assert project["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert project["tool"]["mypy"]["python_version"] == oldest


def test_an_old_python_is_refused(monkeypatch):
    monkeypatch.setattr(prepare.sys, "version_info", (3, 9, 2, "final", 0))
    with pytest.raises(SystemExit, match=r"3\.11 or newer.*make PYTHON="):
        prepare.main([])


# --- lanes ------------------------------------------------------------------------------------------------


def test_only_the_interpreter_lane_runs_under_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert lanes.environment("interpreter", coverage=False)["TRITON_INTERPRET"] == "1"
    for lane in {*lanes.LANES, *lanes.ON_REQUEST} - {"interpreter"}:
        assert "TRITON_INTERPRET" not in lanes.environment(lane, coverage=False)


def test_an_unknown_lane_is_named():
    names = ", ".join((*lanes.LANES, *lanes.ON_REQUEST))
    with pytest.raises(SystemExit, match=rf"unknown lane 'units': choose one of {names}"):
        lanes.main(["units"])


@pytest.mark.parametrize(
    ("lane", "content", "status"),
    [
        ("unit", None, 0),
        ("unit", "def test_a():\n    assert 0\n", 1),  # shared out over processes
        ("fuzz", "def test_a():\n    pass\n", 0),
        ("fuzz", "def test_a():\n    assert 0\n", 1),
        ("fuzz", "import nothing_here", 1),
    ],
)
def test_the_status_of_a_lane(monkeypatch, tmp_path, caplog, lane, content, status):
    folder = tmp_path / "tests" / lane
    folder.mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    if content is not None:
        (folder / "test_one.py").write_text(content)
    monkeypatch.setattr(lanes, "ROOT", tmp_path)
    monkeypatch.setattr(lanes, "TESTS", tmp_path / "tests")
    with caplog.at_level("INFO"):
        assert lanes.main([lane]) == status
    assert ("no tests in" in caplog.text) is (content is None)


def test_what_a_lane_has_beside_the_environment_is_installed_once(monkeypatch, tmp_path):
    commands = []

    def pip(command, **options):
        commands.append(command)
        Path(command[command.index("--target") + 1]).mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(lanes, "FOLDERS", tmp_path)
    monkeypatch.setattr(lanes.subprocess, "run", pip)
    for _ in range(2):
        assert lanes.install_beside("others") == lanes.install_beside("unit") == 0
    assert [command[-1] for command in commands] == [
        str(ROOT / "requirements" / f"{name}.txt") for name in ("deepspeed", "transformers4", "lmms_eval")
    ]
    values = lanes.environment("others", coverage=False)
    assert values["PYTHONPATH"].split(os.pathsep) == [
        str(tmp_path / "deepspeed"),
        str(tmp_path / "lmms_eval"),
    ]
    assert values["FOURDTHINKER_TRANSFORMERS_4"] == str(tmp_path / "transformers4")
    assert values["FOURDTHINKER_FSDP"] == "1"
    assert "FOURDTHINKER_FSDP" not in lanes.environment("e2e", coverage=False)
    assert all((ROOT / "tests" / name).is_file() for name in lanes.FILES["others"])


def test_ci_runs_every_lane_that_needs_no_gpu():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    run = workflow["jobs"]["lanes"]["strategy"]["matrix"]["lane"]
    assert set(run) == {*lanes.LANES, *lanes.ON_REQUEST} - {"gpu"}


def test_every_test_folder_is_a_lane():
    folders = {
        path.parent.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").rglob("test_*.py")
    }
    assert folders <= {*lanes.LANES, *lanes.ON_REQUEST}


# --- the repository ---------------------------------------------------------------------------------------


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_only_package_host_named_is_the_cpu_index_of_the_makefile():
    domains = [
        "py" + "pi.org",
        "python" + "hosted.org",
        "py" + "torch.org",
        "ana" + "conda.org",
        "npm" + "js.org",
    ]
    domains += ["docker" + ".io", "gh" + "cr.io", "pypi." + "nvidia.com"]
    pattern = re.compile("|".join(re.escape(domain) for domain in domains), re.IGNORECASE)
    named = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        named += [
            (path.relative_to(ROOT).as_posix(), line) for line in text.splitlines() if pattern.search(line)
        ]
    assert [place for place, _ in named] == ["Makefile"], named
    assert named[0][1].startswith("TORCH_CPU_INDEX ?= ")


# --- dependencies -----------------------------------------------------------------------------------------

# Distribution -> what it is imported as, where the names differ.
IMPORTED_AS = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "opencv-python-headless": "cv2",
    "qwen-vl-utils": "qwen_vl_utils",
    "liger-kernel": "liger_kernel",
    "scikit-learn": "sklearn",
    "pytest-benchmark": "pytest_benchmark",
}
# Never imported by us, and still needed.
BY_NAME = {
    "accelerate": "transformers' Trainer imports it",
    "tensorboard": "transformers imports it for report_to=[tensorboard]",
}
# Programs that evaluate models, ours among them: who uses one has installed it.
HOSTS = {"lmms_eval", "vlmeval"}
# Programs, plug-ins and what builds the package, started by tests and by `make`.
PROGRAMS = {
    "coverage", "ruff", "mypy", "clang-format", "types-PyYAML",
    "scikit-build-core", "nanobind", "cmake", "ninja", "pytest-xdist",
}  # fmt: skip
SCOPES = {
    "": ("fourdthinker", "kernels", "train"),
    "train": ("fourdthinker",),
    "zero": ("fourdthinker",),
    "ray": ("fourdthinker",),
    "track": ("fourdthinker",),
    "synth": ("fourdthinker",),
    "audit": ("fourdthinker",),
    "geometry": ("fourdthinker",),
    "eval": ("fourdthinker",),
    "bench": ("bench",),
    "dev": ("tests",),
}


def requirements() -> dict[str, dict[str, Requirement]]:
    """Extra, "" for the core -> name -> requirement, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: {r.name: r for r in map(Requirement, lines)} for extra, lines in lists.items()}


def imported(folders: Sequence[str]) -> set[str]:
    """The first part of everything that is imported or looked for by name (importorskip, find_spec)."""
    return set().union(*map(imported_in, folders))


@cache
def imported_in(folder: str) -> set[str]:
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").partition(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "importorskip":
                found.add(ast.literal_eval(node.args[0]).partition(".")[0])
    return found


def test_extras_hold_what_code_imports_and_nothing_else():
    assert set(requirements()) == set(SCOPES)
    for extra, found in requirements().items():
        names = imported(SCOPES[extra])
        unused = [n for n in found if IMPORTED_AS.get(n, n) not in names and n not in {*BY_NAME, *PROGRAMS}]
        assert unused == [], f"nothing in {SCOPES[extra]} imports these of extra {extra!r}"


def test_what_code_imports_is_declared():
    declared = {IMPORTED_AS.get(n, n) for found in requirements().values() for n in found}
    ours = {"fourdthinker", "kernels", "bench", "tools", "tests"}
    foreign = imported(("fourdthinker", "kernels", "train")) - set(sys.stdlib_module_names) - ours
    assert foreign - declared == HOSTS


def test_the_constraints_pin_what_the_package_allows():
    pins = dict(
        line.split("==")
        for line in (ROOT / "requirements/constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert pins["torch"].startswith("2.13.")
    assert all(re.fullmatch(r"[0-9][\w.]*", version) for version in pins.values()), json.dumps(pins)
    installed = requirements()
    for extra in ("", "train", "synth", "geometry", "audit", "eval", "dev"):  # what `make` installs
        for name, requirement in installed[extra].items():
            pin = {canonicalize_name(n): v for n, v in pins.items()}[canonicalize_name(name)]
            assert requirement.specifier.contains(pin), f"{name}: {pin} is pinned, {requirement} is allowed"
