"""What the packages offer says, of every function, what its parameters are and what it returns."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fourdthinker import kernels

ROOT = Path(__file__).resolve().parents[2]
# Modules inside packages that are used by name, beside every package's face and every module at the top.
NAMED = (
    "fourdthinker.audit.blocks",
    "fourdthinker.audit.latents",
    "fourdthinker.audit.run",
    "fourdthinker.evaluate.prompt_batches",
    "fourdthinker.evaluate.letters",
    "fourdthinker.evaluate.scoring",
    "fourdthinker.files.locks",
    "fourdthinker.records.forms",
    "fourdthinker.synth.functions",
    "fourdthinker.synth.labels",
    "fourdthinker.synth.tracks",
    "fourdthinker.trainers.dift",
    "fourdthinker.trainers.grpo",
    "fourdthinker.trainers.plan_time",
    "fourdthinker.trainers.replay",
    "fourdthinker.worlds.scenes",
)


def faces() -> list[str]:
    """Every package and every module directly below `fourdthinker`, and those that are used by name."""
    found = {"fourdthinker", "fourdthinker.kernels", *NAMED}
    for path in (ROOT / "fourdthinker").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__" or len(parts) == 2:
            found.add(".".join(part for part in parts if part != "__init__"))
    return sorted(found)


_SECTION = r"^%s:\n((?:    .*\n?|\n)+)"
_NOTHING = (None, "None", inspect.Signature.empty)


def offered(name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions of `__all__` or, without one, those defined in the module; methods of its classes."""
    module = import_module(name)
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == name]
    for key in getattr(module, "__all__", own):
        value = getattr(module, key)
        if inspect.isfunction(value) and not key.startswith("_"):
            yield f"{name}.{key}", value
        elif inspect.isclass(value) and not key.startswith("_"):
            for member in vars(value):
                method = getattr(value, member)
                if not member.startswith("_") and inspect.isroutine(method) and callable(method):
                    yield f"{name}.{key}.{member}", method


OFFERED = dict(found for face in faces() for found in offered(face))


def gaps(function: Callable[..., Any]) -> list[str]:
    """What a docstring leaves out. One parameter may be explained by the summary; a method's result too."""
    text, signature = inspect.getdoc(function) or "", inspect.signature(function)
    own = ("self", "cls") if "." in function.__qualname__ else ()  # of a method
    parameters = [name for name in signature.parameters if name not in own]
    section = re.search(_SECTION % "Args", text, re.MULTILINE)
    listed = re.findall(r"^    (\w+): \S", section[1], re.MULTILINE) if section else []
    out = ["no docstring"] if not text else []
    if section or len(parameters) > 1:
        out += [f"{name} is not in Args" for name in parameters if name not in listed]
        out += [f"{name} is in Args, but no parameter" for name in listed if name not in parameters]
    several = len(parameters) > 1 or "." not in function.__qualname__
    if (
        several
        and signature.return_annotation not in _NOTHING
        and not re.search(r"^(Returns|Yields):$", text, re.M)
    ):
        out.append("no Returns")
    return out


# Every function with so many parameters lists them, public or not to the package, and everything here.
MANY = 6
THROUGHOUT = (
    "kernels._head",
    "kernels._head_arguments",
    "kernels._logits",
    "sampler.step",
    "sampler.store",
    "sampler.prefill",
    "sampler.attention",
)


def defined(name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions and methods that a module defines, but private ones; `__init__` has the class's docstring."""
    for key, value in vars(import_module(name)).items():
        if getattr(value, "__module__", "") != name or key.startswith("_"):
            continue
        if inspect.isfunction(value):
            yield f"{name}.{key}", value
        elif inspect.isclass(value):
            for member in vars(value):
                method = getattr(value, member)
                if inspect.isroutine(method) and callable(method) and not member.startswith("_"):
                    yield f"{name}.{key}.{member}", method


# Imported by a program that need not be installed.
HOSTED = ("integrations.lmms_eval", "integrations.vlmeval")


def with_many_parameters() -> dict[str, Callable[..., Any]]:
    files = [path for folder in ("fourdthinker", "kernels") for path in (ROOT / folder).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    modules = {
        re.sub(r"^kernels\b", "fourdthinker.kernels", name).removesuffix(".__init__") for name in names
    }
    return {
        name: function
        for module in sorted(modules)
        if not module.endswith(("__main__", *HOSTED))
        for name, function in defined(module)
        if len(parameters_of(function)) >= MANY
        or (module.endswith(THROUGHOUT) and len(parameters_of(function)) > 2)
    }


def parameters_of(function: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    return [p.name for p in found if p.name not in ("self", "cls") and p.kind not in kinds]


def unlisted(function: Callable[..., Any]) -> list[str]:
    """Parameters in no `Args:`, neither the function's nor those of the op that its docstring refers to."""
    text = inspect.getdoc(function) or ""
    other = re.search(r"those of\s+``(\w+)``", text)
    if other:
        text += "\n\n" + (inspect.getdoc(getattr(kernels, other[1])) or "")
    listed = [
        name
        for section in re.findall(_SECTION % "Args", text, re.MULTILINE)
        for name in re.findall(r"^    (\w+): \S", section, re.MULTILINE)
    ]
    listed += re.findall(r"^``(\w+)``: ", text, re.MULTILINE) if other else []
    return [name for name in parameters_of(function) if name not in listed]


def test_every_function_of_many_parameters_lists_them():
    found = with_many_parameters()
    assert len(found) > 40
    assert {name: missing for name, function in found.items() if (missing := unlisted(function))} == {}


def test_unlisted_parameters_are_found():
    def sparse(logits: int, b: int) -> None:
        """Arguments are those of ``sample_tokens``."""

    assert unlisted(sparse) == ["b"]


@pytest.mark.parametrize("name", sorted(OFFERED))
def test_a_public_function_says_what_it_takes_and_returns(name):
    assert gaps(OFFERED[name]) == []


def test_the_tree_says_what_is_public():
    assert {"fourdthinker.audit", "fourdthinker.doctor", "fourdthinker.synth.geometry"} <= set(faces())
    assert len(OFFERED) > 200


def test_gaps_are_found():
    def sparse(a: int, b: int) -> int:
        """Adds.

        Args:
            a: one number.
            c: another.
        """
        return a + b

    assert gaps(sparse) == ["b is not in Args", "c is in Args, but no parameter", "no Returns"]
