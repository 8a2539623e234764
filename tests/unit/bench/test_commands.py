"""Every command line of a bench that the docs show is one that the bench takes, and all take `--save`."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench import __main__ as command
from bench import kernels
from tools import gpu_check

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").glob("*.py")])
FILLED = {"NAME": "|".join(command.names()), "REV": "HEAD", "FOLDER": "folder", "TEXT": "h264"}


class ParsedError(Exception):
    """Raised where a bench would begin to measure."""


def shown() -> Iterator[tuple[str, list[str]]]:
    """(page and command as it stands there, arguments), for each alternative; `[--x]` as if written out."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.findall(r"(?:^|`|<code>)(?:chrt -f 10 )?\s*python -m bench ([^`\n]+)", text, re.M):
            words = shlex.split(found.replace("[", "").replace("]", ""))
            words = [FILLED.get(word, word) for word in words]
            for name in words[0].split("|"):
                rest = [word.split("|")[0] for word in words[1:]]
                yield f"{page.name}: {found}", [name, *rest]


SHOWN = [case for case in shown() if not case[1][0].startswith("<")]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, *given: object) -> argparse.Namespace:
        real(parser, *given)  # type: ignore[call-overload]
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)


def test_commands_are_found() -> None:
    assert len(SHOWN) > 20
    assert {words[0] for _, words in SHOWN} == set(command.names())


@pytest.mark.usefixtures("parsed")
@pytest.mark.parametrize(("where", "words"), SHOWN)
def test_a_command_of_the_docs_is_taken(where: str, words: list[str]) -> None:
    with pytest.raises(ParsedError):
        command.run(words)


@pytest.mark.usefixtures("parsed")
def test_a_bench_of_the_gpu_day_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of them are started in the rehearsal as they are on the day."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    begin = len(gpu_check.BENCH)
    commands = [c for stage in gpu_check.STAGES for c in (*stage.commands, *(stage.rehearsal or ()))]
    benches = [c[begin:] for c in commands if c[:begin] == gpu_check.BENCH]
    assert len(benches) > 15
    for words in benches:
        with pytest.raises(ParsedError):
            command.run(list(words))


@pytest.mark.usefixtures("parsed")
@pytest.mark.parametrize("name", command.names())
def test_every_bench_saves_when_told_to_and_only_then(name: str) -> None:
    with pytest.raises(ParsedError):
        command.run([name, "--save"])
    with pytest.raises(SystemExit):
        command.run([name, "--no-save"])


WRONG = [
    ("training --repeats 0", "--repeats: '0' is no whole number of 1 or more"),
    ("training --new-tokens -3", "--new-tokens: '-3' is no whole"),
    ("training --completions 1", "--completions 1: the advantages of a group of one are 0"),
    ("training --completions", "expected at least one argument"),
    ("kernels --repeats -2", "--repeats: '-2' is no whole"),
    ("kernels --threads 0", "--threads: '0' is no whole"),
    ("kernels --must-hold --vocabularies -5", "'-5' is no whole"),
    ("kernels --errors --size wide", "--errors has no size wide; give one of tiny"),
    ("sampler --batch 0", "--batch: '0' is no whole"),
    ("sampler_ops --repeats x", "--repeats: 'x' is no whole"),
    ("tower --shapes 7b", "invalid choice: '7b'"),
    ("step --sizes 64 0 16", "--sizes: '0' is no whole"),
    ("resize --repeats 0", "--repeats: '0' is no whole"),
    ("soak --steps 0", "--steps: '0' is no whole"),
    ("damage --cases 0", "--cases: '0' is no whole"),
    ("geometry --scenes 0", "--scenes: '0' is no whole"),
    ("synthesis --videos 0", "--videos: '0' is no whole"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_what_cannot_be_measured_is_an_error_of_one_line(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.run(words.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_revision_without_kernels_is_an_error_of_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "rates", lambda *_: {"copy": 1.0, "matmul": 1.0})
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert command.run(["kernels", "--size", "tiny", "--threads", "1", "--base", "no-such"]) == 2
    assert caplog.messages[-1].startswith("--base no-such: ")


@pytest.mark.parametrize("words", [["video", "--quick"], ["damage", "--cases", "2"]])
def test_what_is_too_little_for_a_figure_is_not_saved(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.run([*words, "--save"])
    assert "leave out" in capsys.readouterr().err
