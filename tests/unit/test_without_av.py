"""Without PyAV every module imports, and reading a video says what to install."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import importlib, sys
sys.modules["av"] = None
from pathlib import Path
import fourdthinker
folder = Path(fourdthinker.__file__).parent
hosts = ("__main__", "lmms_eval", "vlmeval")  # the last two are imported by programs of that name
files = [path.relative_to(folder.parent) for path in folder.rglob("*.py") if path.stem not in hosts]
for file in files:
    importlib.import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
print(len(files))
from fourdthinker.errors import ConfigError
from fourdthinker.frames import read_frames
try:
    read_frames(b"not a video")
except ConfigError as error:
    print(error)
from fourdthinker.doctor import _decoding
print(*_decoding())
"""


def test_every_module_imports_and_the_remedy_is_named() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported, reading, doctor = done.stdout.splitlines()
    assert int(imported) > 100
    assert reading.startswith("<bytes>: reading a video needs PyAV")
    assert "pip install av" in reading
    assert "missing" in doctor
    assert "pip install av" in doctor
