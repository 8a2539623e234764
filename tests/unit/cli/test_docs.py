"""README and docs do not lie: records are read, commands parse, settings, names and files exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fourdthinker import cli
from fourdthinker.errors import RecordError
from fourdthinker.records import read_records
from fourdthinker.sampler import LATENT_MODES
from fourdthinker.trainers.settings import DiftConfig, GrpoConfig
from fourdthinker.trainers.settings_files import load_config

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for found in re.finditer(
            r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            if found[1] == language:
                yield page, found[2]


def commands(program: str) -> list[list[str]]:
    lines = [line for kind in ("", "bash") for _, block in blocks(kind) for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]


@pytest.fixture
def media(tmp_path: Path) -> Path:
    for name in ("clips/a.mp4", "clips/b.mp4", "clips/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"video")
    pictures = (
        "overlays/a1-0",
        "overlays/a1-1",
        "overlays/a2",
        "frames/a/0",
        "frames/a/1",
        "frames/a/2",
        "frames/b/0",
        "frames/b/1",
    )
    for name in pictures:
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (28, 28)).save(path)
    return tmp_path


def test_every_record_shown_is_read(media: Path) -> None:
    shown = list(blocks("json"))
    assert len(shown) >= 8
    for page, block in shown:
        path = media / "data.jsonl"
        path.write_text(block, encoding="utf-8")
        (record,) = read_records(path)
        if '"Question"' in block or '"solution"' in block:
            assert record.answer in record.options, page
        else:
            assert record.text_output, page
    path.write_text(block.replace('"video"', '"vidoe"'), encoding="utf-8")
    with pytest.raises(RecordError, match="vidoe"):
        read_records(path)


def test_every_command_shown_is_one() -> None:
    shown = commands("fourdthinker")
    assert {words[1] for words in shown} >= {"eval", "report", "generate", "init"}
    assert [words for words in shown if not parses(words[1:])] == []


def test_help_and_docs_name_every_latent_mode(capsys: pytest.CaptureFixture[str]) -> None:
    """The parser writes them out, since it imports nothing heavy."""
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    shown = capsys.readouterr().out
    page = (ROOT / "docs" / "latents.md").read_text(encoding="utf-8")
    assert [mode for mode in LATENT_MODES if not re.search(rf"\b{mode}\b", shown)] == []
    assert [mode for mode in LATENT_MODES if f"`{mode}`" not in page] == []


def parses(words: list[str]) -> bool:
    """Whether the command takes these arguments; those that print something and end, too."""
    try:
        cli._parser().parse_args(words)
    except SystemExit as stop:
        return stop.code == 0
    return True


def test_every_training_command_and_setting_exists() -> None:
    shown = commands("torchrun")
    assert len(shown) >= 4
    for words in shown:
        script = next(w for w in words if w.endswith(".py"))
        assert (ROOT / script).is_file()
        if "--config" not in words:  # the same command with other flags of torchrun
            assert words[-1] == "..."
            continue
        config = words[words.index("--config") + 1]
        overrides = [w for w in words if re.match(r"[\w.]+=", w)]
        load_config(DiftConfig if "dift" in script else GrpoConfig, ROOT / config, overrides)


def test_settings_named_in_the_pages_of_training_exist() -> None:
    pages = ("training", "dift", "4drl", "data")
    text = "".join((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in pages)
    known = {*DiftConfig.model_fields, *GrpoConfig.model_fields}
    named = {found.partition(".")[0] for found in re.findall(r"`([a-z_]+(?:\.\w+)?)=", text)}
    assert len(named) > 10
    assert named - {"key"} <= known


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith("https://"):
                continue
            path, _, heading = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), (page.name, target)
            assert not heading or heading in headings(file), (page.name, target)


def headings(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in found}


def test_python_examples_name_things_that_exist() -> None:
    shown = list(blocks("python"))
    assert len(shown) >= 3
    for page, block in shown:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                for name in node.names:
                    assert hasattr(module, name.name), (page.name, name.name)


def test_make_targets_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
