"""Ahead-of-time compilation needs real kernels, which cannot share a process with the interpreter."""

from __future__ import annotations

import os

import pytest

from tests.compile.aot import TABLE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        for item in items:
            if "/compile/" in item.path.as_posix():
                item.add_marker(
                    pytest.mark.skip(reason="TRITON_INTERPRET=1; run this lane in its own process")
                )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TABLE:
        terminalreporter.section("kernels, compiled ahead of time")
        header = f"{'kernel':<34}{'arch':>6}{'registers':>11}{'shared B':>10}{'spill B':>9}{'stack B':>9}"
        header += f"{'warps':>7}{'occupancy':>11}"
        terminalreporter.write_line(header)
        for line in sorted(TABLE):
            terminalreporter.write_line(line)
