"""README and docs do not lie: records are read, commands parse, settings, names and files exist."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fourdthinker import cli
from fourdthinker.errors import ConfigError, RecordError
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
            assert record.answer in (record.options or ["4"]), page
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


def shell_lines() -> Iterator[tuple[str, list[str]]]:
    """Page and words of each command in a block of commands; what sets variables before it is left out."""
    for kind in ("", "bash"):
        for page, block in blocks(kind):
            begins = rf"^(?:[A-Z_]+=\S+ )*(?:srun|{'|'.join(PROGRAMS)}) "
            if re.search(begins, block, re.MULTILINE):  # else it is a drawing
                words = [command_of(line) for line in block.replace("\\\n", " ").splitlines()]
                yield from ((page.name, found) for found in words if found)


def command_of(line: str) -> list[str]:
    """The words of a line of a shell; [] where it only sets something."""
    inside = re.search(r'^srun bash -c "(.*)"$', line)
    if inside:
        line = inside[1].rpartition("; exec ")[2].replace("\\$", "$").replace('\\"', '"')
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return [] if words[:1] == ["export"] else words


def check_fourdthinker(words: list[str]) -> bool:
    return parses(words[1:])


def check_training(words: list[str]) -> bool:
    """A script or module of ours with a config and settings that it takes; "..." stands for others."""
    named = [w for w in words if w.endswith(".py")] or [words[words.index("-m") + 1]]
    module = named[0].removesuffix(".py").replace("/", ".")
    kind = DiftConfig if "dift" in module else GrpoConfig
    assert "dift" in module or "grpo" in module
    assert importlib.util.find_spec(module.replace("train.", "fourdthinker.trainers.", 1))
    overrides = [w for w in words if re.match(r"[\w.]+=", w)]
    if "--config" in words:
        config = words[words.index("--config") + 1]
        load_config(kind, None if config == "my.yaml" else ROOT / config, overrides)
        return True
    known = set(kind.model_fields)
    return words[-1] == "..." and {w.partition("=")[0].partition(".")[0] for w in overrides} <= known


def check_pip(words: list[str]) -> bool:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    wanted = [found[1] for w in words if (found := re.fullmatch(r"\.\[([\w,]+)\]", w))]
    return {name for text in wanted for name in text.split(",")} <= set(extras)


def check_make(words: list[str]) -> bool:
    return (
        re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE) is not None
    )


def arguments_of(file: str, function: str) -> set[str]:
    """Parameters of a function of a module that cannot be imported everywhere, and the flags it declares."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    (found,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function]
    flags = {
        c.value for c in ast.walk(found) if isinstance(c, ast.Constant) and str(c.value).startswith("--")
    }
    return {a.arg for a in (*found.args.args, *found.args.kwonlyargs)} | flags


def check_lmms(words: list[str]) -> bool:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    given = {pair.partition("=")[0] for pair in words[words.index("--model_args") + 1].split(",")}
    known = arguments_of("fourdthinker/integrations/lmms_eval.py", "__init__")
    return words[words.index("--model") + 1] in points["lmms_eval.models"] and given <= known


def check_python(words: list[str]) -> bool:
    if words[1].endswith(".py"):
        return check_training(words)
    if words[2] == "bench":  # tests/unit/bench/test_commands.py
        return True
    assert words[2] == "fourdthinker.integrations.vlmeval"
    known = arguments_of("fourdthinker/integrations/vlmeval.py", "main") | {"--model", "--data"}  # its own
    return words[3].endswith("run.py") and {w for w in words if w.startswith("--")} <= known


PROGRAMS = {
    "fourdthinker": check_fourdthinker, "torchrun": check_training, "python": check_python, "pip": check_pip,
    "make": check_make, "lmms_eval": check_lmms, "ray": lambda words: words[1] == "start",
}  # fmt: skip


def test_every_line_of_a_block_of_commands_is_taken() -> None:
    shown = list(shell_lines())
    assert len(shown) > 40
    assert {words[0] for _, words in shown} == set(PROGRAMS)
    assert [(page, words) for page, words in shown if not PROGRAMS[words[0]](words)] == []


@pytest.mark.parametrize(
    "line",
    [
        "fourdthinker eval --bensh vsi", "pip install '.[none]'", "make nothing",
        "lmms_eval --model fourdthinker --model_args path=x", "torchrun train/dift.py nothing=3 ...",
        "python -m fourdthinker.integrations.vlmeval run.py --checkpoint x",
    ],
)  # fmt: skip
def test_a_command_that_is_none_is_found(line: str) -> None:
    words = command_of(line)
    assert not PROGRAMS[words[0]](words)
    with pytest.raises(ConfigError, match="colour"):
        check_training(command_of("torchrun train/grpo.py --config train/configs/grpo_3b.yaml colour=red"))


def test_commands_within_a_sentence_have_flags_that_exist() -> None:
    (commands_,) = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    found = 0
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for words in (said.split() for said in re.findall(r"`fourdthinker ([^`]+)`", text)):
            if not words[0].startswith("-"):
                assert words[0] in commands_.choices, (page.name, words)
                known = commands_.choices[words[0]]._option_string_actions
                assert {w for w in words if w.startswith("--")} <= set(known), (page.name, words)
                found += 1
    assert found > 20


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
        for target in re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
