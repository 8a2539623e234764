"""Without PyAV every module imports, and reading a video says what to install."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def run(code: str) -> str:
    """What a fresh interpreter prints in which `import av` fails."""
    blocked = 'import sys; sys.modules["av"] = None\n'
    done = subprocess.run(
        [sys.executable, "-c", blocked + textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports() -> None:
    printed = run("""
        import importlib
        from pathlib import Path
        import fourdthinker
        folder = Path(fourdthinker.__file__).parent
        files = [path.relative_to(folder.parent) for path in folder.rglob("*.py")]
        for file in files:
            if file.stem != "__main__":
                importlib.import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
        print(len(files))
    """)
    assert int(printed) > 100


def test_reading_a_video_names_the_remedy() -> None:
    printed = run("""
        from fourdthinker.errors import ConfigError
        from fourdthinker.frames import read_frames
        try:
            read_frames(b"not a video")
        except ConfigError as error:
            print(error)
    """)
    assert printed.startswith("<bytes>: reading a video needs PyAV")
    assert "pip install av" in printed


def test_doctor_names_the_remedy() -> None:
    printed = run("""
        from fourdthinker.doctor import _decoding
        print(*_decoding())
    """)
    assert "missing" in printed
    assert "pip install av" in printed
