"""The extension and its fuzzer built with AddressSanitizer and UndefinedBehaviorSanitizer, and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"
FUZZ_SECONDS = 30
# Those that call the extension in ways of their own; the others only read more files through it.
NAMES = ("checks", "convert*", "decode", "formats", "image*", "orientation", "read_frames", "resize*")
TESTS = ("tests/fuzz/test_arguments.py", *(f"tests/unit/frames/test_{name}.py" for name in NAMES))

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no g++: nothing to build with sanitizers"
)


def run(command: list[str], environment: dict[str, str] | None = None, seconds: int = 600) -> str:
    """Output of a command that must end well."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=seconds, check=False,
    )  # fmt: skip
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{' '.join(command)}: status {done.returncode}\n{output[-8000:]}"
    return output


@pytest.fixture(scope="session")
def build() -> Path:
    """The folder of the build, made or brought up to date."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake, ninja = shutil.which("cmake", path=places), shutil.which("ninja", path=places)
    assert cmake is not None, "no cmake beside this Python: pip install cmake"
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    settings = ["-DCMAKE_CXX_COMPILER=g++", "-DCMAKE_BUILD_TYPE=", f"-DPython_EXECUTABLE={sys.executable}"]
    run([cmake, "-S", str(ROOT / "tests/sanitize"), "-B", str(BUILD), *generator, *settings])
    run([cmake, "--build", str(BUILD), "--parallel", str(len(os.sched_getaffinity(0)))])
    return BUILD


@pytest.fixture(scope="session")
def environment(build: Path) -> dict[str, str]:
    """For a Python that loads the sanitized extension."""
    extension = next((build / "extension").glob("_video*.so"))
    needed = dict(re.findall(r"(lib(?:asan|stdc\+\+)\.so)\S* => (\S+)", run(["ldd", str(extension)])))
    # The loader must bring the sanitizer in first, and the library whose exceptions it follows right after.
    preload = " ".join((needed["libasan.so"], needed["libstdc++.so"]))
    values = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    return {
        **values,
        "LD_PRELOAD": preload,
        "FOURDTHINKER_SANITIZED": str(extension),
        # Python and its packages never free all they have; what they leave is not looked at.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }


def test_sanitizer_sees_what_python_does(environment: dict[str, str]) -> None:
    write = "import ctypes; block = (ctypes.c_char * 64)(); ctypes.memset(block, 0, 65)"
    done = subprocess.run(
        [sys.executable, "-c", write], cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert b"heap-buffer-overflow" in done.stderr


def test_video_tests_pass(environment: dict[str, str]) -> None:
    files = sorted(str(path) for pattern in TESTS for path in ROOT.glob(pattern))
    assert len(files) >= len(TESTS)
    pytest_run = ["-m", "pytest", "-q", "-x", "-p", "tests.sanitize.plugin", "-p", "no:cacheprovider"]
    output = run([sys.executable, *pytest_run, *files], environment)
    assert re.search(r"\d{2,} passed", output), output[-2000:]


def test_converter_fuzzer_finds_nothing(build: Path, tmp_path: Path) -> None:
    fuzzer = str(build / "fuzz_convert")
    options = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(
        [fuzzer, str(FUZZ_SECONDS), "1"],
        cwd=tmp_path,
        env=options,
        capture_output=True,
        timeout=600,
        check=False,
    )
    left = tmp_path / "convert-input.bin"
    case = f"input {left.read_bytes().hex()}" if left.exists() else ""
    assert done.returncode == 0, f"{case}\n{done.stderr.decode(errors='replace')[-8000:]}"
    converted = int(re.search(rb"(\d+) converted", done.stdout)[1])
    assert converted >= FUZZ_SECONDS
