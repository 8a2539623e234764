"""What the packages offer says, of every function, what its parameters are and what it returns."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

# Packages whose `__init__` is their public face, and modules that are used by name.
FACES = (
    "fourdthinker",
    "fourdthinker.backbones",
    "fourdthinker.demo",
    "fourdthinker.evaluate",
    "fourdthinker.frames",
    "fourdthinker.kernels",
    "fourdthinker.records",
    "fourdthinker.report",
    "fourdthinker.sampler",
    "fourdthinker.evaluate.scoring",
    "fourdthinker.files",
    "fourdthinker.generate",
    "fourdthinker.latents",
    "fourdthinker.objectives",
    "fourdthinker.positions",
    "fourdthinker.prompts",
    "fourdthinker.rewards",
    "fourdthinker.samples",
    "fourdthinker.thinker",
    "fourdthinker.trainers.dift",
    "fourdthinker.trainers.grpo",
    "fourdthinker.transcript",
    "fourdthinker.worlds.scenes",
)
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
                if not member.startswith("_") and inspect.isroutine(getattr(value, member)):
                    yield f"{name}.{key}.{member}", getattr(value, member)


OFFERED = dict(found for face in FACES for found in offered(face))


def gaps(function: Callable[..., Any]) -> list[str]:
    """What a docstring leaves out. One parameter may be explained by the summary; a method's result too."""
    text, signature = inspect.getdoc(function) or "", inspect.signature(function)
    parameters = [name for name in signature.parameters if name not in ("self", "cls")]
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


@pytest.mark.parametrize("name", OFFERED)
def test_a_public_function_says_what_it_takes_and_returns(name):
    assert gaps(OFFERED[name]) == []


def test_enough_is_offered():
    assert len(OFFERED) > 120


def test_gaps_are_found():
    def sparse(a: int, b: int) -> int:
        """Adds.

        Args:
            a: one number.
            c: another.
        """
        return a + b

    assert gaps(sparse) == ["b is not in Args", "c is in Args, but no parameter", "no Returns"]
