"""What the GPU machine is brought: a wheel of this very tree, with NVDEC, that fits."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import gpu_bundle

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout in small, with a bundle of it."""
    for folder in (*gpu_bundle.SOURCES, ".gpu", "tools"):
        (tmp_path / folder).mkdir()
    (tmp_path / "kernels" / "one.py").write_text("1")
    for name in ("gpu_check.sh", "gpu_bundle.py", "gpu_check.py"):
        (tmp_path / "tools" / name).write_bytes((ROOT / "tools" / name).read_bytes())
    (tmp_path / ".gpu" / "x.whl").write_bytes(b"")
    (tmp_path / ".gpu" / "tree").write_text(gpu_bundle.digest(tmp_path) + "\n")
    return tmp_path


def day(tree: Path) -> subprocess.CompletedProcess[str]:
    """`gpu_check.sh` with an interpreter that has no package."""
    python = tree / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return subprocess.run(
        ["bash", str(tree / "tools" / "gpu_check.sh")], env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)},
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def test_a_bundle_of_this_tree_is_fresh(tree: Path) -> None:
    (tree / "kernels" / "one.pyc").write_bytes(b"compiled")
    gpu_bundle.require_fresh(tree)


def test_a_wheel_of_another_tree_is_refused_first(tree: Path) -> None:
    (tree / "kernels" / "one.py").write_text("2")
    done = day(tree)
    assert done.returncode == 1
    assert "was not built of this tree: run make gpu-bundle" in done.stderr


def test_without_the_package_and_without_a_bundle_the_day_does_not_begin(tree: Path) -> None:
    (tree / ".gpu" / "x.whl").unlink()
    done = day(tree)
    assert done.returncode == 2
    assert "run make gpu-bundle elsewhere" in done.stderr


def test_peers_are_installed_apart(tree: Path) -> None:
    (tree / ".gpu" / "peers").mkdir()
    (tree / ".gpu" / "peers" / "datasets.whl").write_bytes(b"")
    python = tree / "python"
    python.write_text('#!/bin/sh\necho "$PYTHONPATH $GPU_CHECK_PEERS $@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(tree / "tools" / "gpu_check.sh")], env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)},
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    (site, peers) = lines[-1].split()[:2]
    installed = {line.split()[-2]: line.split()[-1] for line in lines if "--target" in line}
    assert installed == {site: ".gpu/x.whl", peers: ".gpu/peers/datasets.whl"}
    assert set(gpu_bundle.COMPARED) >= {"trl", "datasets"}
    assert not set(gpu_bundle.COMPARED) & set(gpu_bundle.BROUGHT)


@pytest.mark.parametrize("missing", [[], ["nvdec_headers"], ["cuda", "nvdec_headers"]])
def test_a_wheel_without_nvdec_is_refused(tmp_path: Path, missing: list[str]) -> None:
    info = {name: name not in missing for name in ("cuda", "nvdec_headers")}
    wheel = tmp_path / "fourdthinker-0-cp312-cp312-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fourdthinker/_video.pyi", "def build_info() -> dict[str, bool]: ...")
        archive.writestr("fourdthinker/_video.py", f"def build_info(): return {info}")
    if missing:
        with pytest.raises(SystemExit, match=f"built without {', '.join(missing)}"):
            gpu_bundle.require_nvdec(sys.executable, wheel)
    else:
        gpu_bundle.require_nvdec(sys.executable, wheel)


def test_wheels_and_checkout_fit_together() -> None:
    assert 20 << 20 < gpu_bundle.limit(ROOT) < gpu_bundle.CARRIED
