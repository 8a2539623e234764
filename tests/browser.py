"""Headless Chromium, spoken to in the DevTools protocol over a pipe: no driver and no package are needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe",
)  # fmt: skip
_PATIENCE = 60
# Chromium reads commands from file descriptor 3 and writes answers to 4.
_LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page of a browser, 1280 pixels wide.

    Attributes:
        errors: what the console and the page complained of.
    """

    def __init__(self, folder: Path) -> None:
        """Start it with its own profile in `folder`; skips the test where there is no Chromium."""
        program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
        if program is None:
            pytest.skip("no chromium on the path")
        self.errors: list[str] = []
        self._buffer, self._number = b"", 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        given = [_above_the_first(fd) for fd in os.pipe()]
        told = [_above_the_first(fd) for fd in os.pipe()]
        self._process = subprocess.Popen(
            [
                sys.executable, "-c", _LAUNCHER, str(given[0]), str(told[1]), program, *_FLAGS,
                f"--user-data-dir={folder / 'profile'}", "--window-size=1280,1000", "about:blank",
            ],
            pass_fds=(given[0], told[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(given[0])
        os.close(told[1])
        self._write, self._read = given[1], told[0]
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(30)

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a command."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file, and wait until it is there."""
        for url in ("about:blank", path.resolve().as_uri() + fragment):  # a new fragment alone is no load
            self._events.clear()
            loader = self.call("Page.navigate", url=url)["loaderId"]
            while not any(_is_load(event, loader) for event in self._events):
                self._next()

    def run(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: int = 0) -> None:
        """A key, as a person presses it; letters need no code."""
        text = {"text": key} if len(key) == 1 else {}
        code = code or ord(key[0].upper())
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def picture(self, path: Path, *, dark: bool = False) -> None:
        """A picture of what is in view."""
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def _next(self) -> dict[str, Any]:
        """The next message; complaints are kept."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], _PATIENCE)
            data = os.read(self._read, 1 << 20) if ready else b""
            assert data, f"the browser has ended, or said nothing for {_PATIENCE} s"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        method, values = message.get("method"), message.get("params", {})
        if method is not None:
            self._events.append(message)
        if method == "Runtime.exceptionThrown":
            self.errors.append(values["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning"):
            self.errors.append(str(values["args"]))
        elif method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.errors.append(values["entry"]["text"])
        return message


def _is_load(event: dict[str, Any], loader: str) -> bool:
    """Whether a document is there with all that belongs to it."""
    values = event["params"]
    return event["method"] == "Page.lifecycleEvent" and (values["name"], values["loaderId"]) == (
        "load",
        loader,
    )


def _above_the_first(fd: int) -> int:
    """The same file under a number that is none of those that Chromium uses."""
    import fcntl

    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(fd)
    return copy
