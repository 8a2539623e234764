"""Who may import whom, circles, private names, sizes: read from the source with `ast`, nothing is imported.

docs/architecture.md shows the same table of tiers; `test_the_document_shows_the_same_tiers` compares them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the top tier to the lowest. A component imports components of its own tier and of those below, never of
# those above, and the lowest tier imports nothing of the package.
TIERS: tuple[tuple[str, ...], ...] = (
    ("cli", "train"),
    ("trainers", "synth", "serve", "report", "integrations", "demo", "doctor"),
    ("evaluate", "audit", "generate", "thinker"),
    ("sampler", "objectives", "rewards", "reward_calls", "reward_runs", "judges", "worlds"),
    ("backbones", "prompts", "prompt_style", "samples"),
    ("records", "frames", "answers", "latents", "positions", "transcript", "vision"),
    ("errors", "files", "settings", "progress", "ray_cluster"),
    ("kernels", "_video"),
)
# Reached by everyone through their `__init__` alone.
FACES = ("files", "frames", "kernels", "records", "sampler", "settings")
# Outside the package: they may import any component, and no component imports them.
OUTSIDE = ("bench", "tools", "tests")

MOST_LINES = 450
LONGEST_FUNCTION = 60  # lines without the docstring
# A longer function, and why it is not cut.
LONG_FUNCTIONS: dict[str, str] = {
    "kernels/_sample_kernel.py:sample_draw_kernel": "a Triton kernel: its stages share registers",
    "kernels/grpo_token_loss.py:grpo_token_loss_kernel": "a Triton kernel: its terms share registers",
    "kernels/_grammar_kernel.py:latent_feedback_kernel": "a Triton kernel: the whole grammar",
    "kernels/_prefix_decode_kernels.py:prefix_decode_prompt_kernel": "a Triton kernel: the loop over keys",
}


@dataclass(frozen=True)
class Module:
    name: str  # fourdthinker.frames.read, fourdthinker.kernels.sample_tokens, train.dift, ...
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    @property
    def where(self) -> str:
        return self.path.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Import:
    module: str  # what is imported, as an absolute name; may be of another distribution
    name: str  # the name taken from it; "" for a plain `import`
    line: int


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


@cache
def modules() -> dict[str, Module]:
    """Everything of ours but the tests, by the name it is imported under."""
    found = {}
    for path in python_files("fourdthinker", "kernels", "train", "bench", "tools"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        name = ".".join(("fourdthinker", *parts) if parts[0] == "kernels" else parts)
        found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def component(name: str) -> str:
    """The component that a module of ours belongs to: frames, thinker, kernels, train, bench, ..."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if first == "fourdthinker" else first


def imports_of(module: Module) -> Iterator[Import]:
    """All of them, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = module.package.split(".")
            base = base[: len(base) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                if (
                    full in modules() and not is_exported(source, alias.name)
                ) or full == "fourdthinker._video":
                    yield Import(full, "", node.lineno)
                else:
                    yield Import(source, alias.name, node.lineno)


@cache
def is_exported(package: str, name: str) -> bool:
    """Whether a package's face takes `name` from a module of the same name: then it is no module."""
    face = modules().get(package)
    return face is not None and any(
        isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names)
        for node in ast.walk(face.tree)
    )


@cache
def imports() -> tuple[tuple[Module, Import], ...]:
    """Every import of something of ours."""
    ours = {*modules(), "fourdthinker._video"}
    return tuple((m, i) for m in modules().values() for i in imports_of(m) if i.module in ours)


def tier(name: str) -> int:
    for number, components in enumerate(TIERS):
        if name in components:
            return number
    raise AssertionError(f"{name} stands on no tier: put it into TIERS and into docs/architecture.md")


# --- who may import whom ----------------------------------------------------------------------------------


def upward_imports() -> set[str]:
    wrong = set()
    for module, found in imports():
        importer, imported = component(module.name), component(found.module)
        if importer in OUTSIDE or importer == imported or not importer:
            continue
        if not imported:  # the package's own __init__, which holds the version
            continue
        if imported in OUTSIDE or tier(imported) < tier(importer) or tier(importer) == len(TIERS) - 1:
            wrong.add(f"{module.where} imports {found.module}")
    return wrong


def imports_past_a_face() -> set[str]:
    wrong = set()
    for module, found in imports():
        importer, imported = component(module.name), component(found.module)
        face = f"fourdthinker.{imported}"
        if importer != imported and imported in FACES and found.module != face and importer not in OUTSIDE:
            wrong.add(f"{module.where} imports {found.module}")
    return wrong


def private_names_of_others() -> set[str]:
    """Private modules, names and attributes of another component; the bench and the tools are others too."""
    wrong = set()
    for module in modules().values():
        aliases: dict[str, str] = {}
        for found in imports_of(module):
            other = found.module.partition(".")[0] in {"fourdthinker", "bench", "tools", "train"}
            if not other or component(found.module) in {component(module.name), "_video"}:
                continue
            for part in (*found.module.split("."), found.name):
                if part.startswith("_") and not part.startswith("__"):
                    wrong.add(f"{module.where} uses {found.module}.{found.name}".rstrip("."))
            if not found.name:
                aliases[found.module.rpartition(".")[2]] = found.module
        for node in ast.walk(module.tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in aliases
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
            ):
                wrong.add(f"{module.where} uses {aliases[node.value.id]}.{node.attr}")
    return wrong


def circles() -> set[str]:
    """Groups of modules that import each other, type-only imports counted.

    An import of a.b.c from outside of a.b runs a/b/__init__.py too, so it is an import of a.b as well.
    """
    edges: dict[str, set[str]] = {name: set() for name in modules()}
    for module, found in imports():
        if found.module not in edges:
            continue
        edges[module.name].add(found.module)
        face = f"fourdthinker.{component(found.module)}"
        if component(found.module) != component(module.name) and face in edges:
            edges[module.name].add(face)
    for name, targets in edges.items():
        targets.discard(name)
    return {" <-> ".join(sorted(group)) for group in strongly_connected(edges) if len(group) > 1}


def strongly_connected(edges: dict[str, set[str]]) -> list[set[str]]:
    """Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(edges[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            position = stack.index(name)
            groups.append(set(stack[position:]))
            del stack[position:]

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return groups


def imports_of_top_level_kernels() -> set[str]:
    """transformers looks for a package of that name, so ours is imported as fourdthinker.kernels alone."""
    wrong = set()
    trees = {m.path: m.tree for m in modules().values()}
    for path in python_files("tests"):
        text = path.read_text(encoding="utf-8")
        if "kernels" in text:
            trees[path] = ast.parse(text)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            if any(name.partition(".")[0] == "kernels" for name in names):
                wrong.add(f"{path.relative_to(ROOT).as_posix()} imports kernels")
    return wrong


# --- sizes ------------------------------------------------------------------------------------------------


def long_files() -> set[str]:
    files = list(python_files("fourdthinker", "kernels", "train", "bench", "tools"))
    for ending in ("*.cpp", "*.hpp", "*.h", "*.inl", "*.cu", "*.cuh", "*.cmake"):
        files += sorted((ROOT / "csrc").rglob(ending))
    return {
        path.relative_to(ROOT).as_posix()
        for path in files
        if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES
    }


def lines_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    has_docstring = ast.get_docstring(function, clean=False) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def long_functions() -> set[str]:
    return {
        f"{module.where}:{node.name}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and lines_without_docstring(node) > LONGEST_FUNCTION
    }


# --- the tests --------------------------------------------------------------------------------------------

RULES = {
    rule.__name__: rule
    for rule in (
        upward_imports,
        imports_past_a_face,
        private_names_of_others,
        circles,
        imports_of_top_level_kernels,
        long_files,
        long_functions,
    )
}


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_its_rules(rule):
    allowed = set(LONG_FUNCTIONS) if rule == "long_functions" else set()
    assert RULES[rule]() == allowed


def test_every_component_stands_on_one_tier():
    names = [name for components in TIERS for name in components]
    assert len(names) == len(set(names))
    for name in modules():
        if component(name) and component(name) not in OUTSIDE:
            tier(component(name))


def test_the_document_shows_the_same_tiers():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| *\d+ *\|([^|]*)\|", text, re.MULTILINE)
    assert tuple(tuple(re.findall(r"`(\w+)`", row)) for row in rows) == TIERS


def test_private_members_of_trainer_are_in_the_files_that_the_document_names():
    """Methods of ours that transformers' Trainer calls, or private ones of its objects that we call."""
    from accelerate import Accelerator
    from transformers import Trainer, TrainingArguments

    theirs = {
        name
        for cls in (Trainer, Accelerator, TrainingArguments)
        for name in vars(cls)
        if name.startswith("_") and not name.startswith("__")
    } | {"_internal_call"}
    found = set()
    for path in python_files("fourdthinker/trainers"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", getattr(node, "name", getattr(node, "arg", None)))
            if name in theirs and isinstance(node, (ast.Attribute, ast.FunctionDef, ast.arg)):
                found.add(path.name)
    text = " ".join((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split())
    said = r"private members of transformers and accelerate are touched, (.*?arguments\.py)`"
    sentence = re.search(said, text)
    assert sentence is not None
    assert found <= set(re.findall(r"\w+\.py", sentence[0])), found
    assert len(found) > 1


def test_files_that_the_document_names_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    every = {path.name for path in python_files("fourdthinker", "kernels")}
    assert set(re.findall(r"`(\w+\.py)`", text)) <= every
    paths = re.findall(r"`((?:fourdthinker|csrc|kernels)/[\w/.]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_rule_catches_what_it_forbids(monkeypatch, tmp_path):
    """The rules themselves, on a small package that breaks each of them."""
    files = {
        "fourdthinker/__init__.py": "",
        "fourdthinker/errors.py": "from fourdthinker.frames import read",  # upward
        "fourdthinker/frames/__init__.py": "from fourdthinker.frames.reading import read",
        "fourdthinker/frames/reading.py": "import fourdthinker.errors\n" * 451,  # a circle, a long file
        "fourdthinker/records.py": "from fourdthinker.frames.reading import _secret",  # face, private name
        "fourdthinker/prompts.py": "from fourdthinker import latents\nlatents._hidden",  # a private attribute
        "fourdthinker/latents.py": "def long():\n" + "    1\n" * 60,
        "kernels/__init__.py": "import kernels.op",
        "train/__init__.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    modules.cache_clear()
    imports.cache_clear()
    try:
        assert upward_imports() == {"fourdthinker/errors.py imports fourdthinker.frames"}
        assert imports_past_a_face() == {"fourdthinker/records.py imports fourdthinker.frames.reading"}
        assert private_names_of_others() == {
            "fourdthinker/records.py uses fourdthinker.frames.reading._secret",
            "fourdthinker/prompts.py uses fourdthinker.latents._hidden",
        }
        assert circles() == {"fourdthinker.errors <-> fourdthinker.frames <-> fourdthinker.frames.reading"}
        assert imports_of_top_level_kernels() == {"kernels/__init__.py imports kernels"}
        assert long_files() == {"fourdthinker/frames/reading.py"}
        assert long_functions() == {"fourdthinker/latents.py:long"}
    finally:
        modules.cache_clear()
        imports.cache_clear()


def test_every_path_that_the_document_names_exists():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.]+/[\w./]*)`", text))
    assert len(named) > 20
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_tests_are_laid_out_like_the_package():
    """A package's unit tests are in the folder of the same name; bench is a package of its own."""

    def packages(root: Path) -> set[str]:
        return {path.parent.relative_to(root).as_posix() for path in root.rglob("__init__.py")}

    with_code = {name for name in packages(ROOT / "fourdthinker") if name != "."} | {"kernels"}
    tested = packages(ROOT / "tests" / "unit") - {".", "bench"}
    assert tested == with_code
