"""Count the bytes an op moves: lanes that kernels touch interpreted, and what torch does around them."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter


@dataclass
class Traffic:
    loaded: int = 0  # bytes, by kernels, lanes that are masked off left out
    stored: int = 0
    around: int = 0  # bytes read and written by torch's ops outside of kernels
    launches: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.loaded + self.stored + self.around


def _bytes(values: object) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, Tensor))


class _Around(TorchDispatchMode):
    """Adds up what torch's ops read and write; looks into this package's custom ops, not at them."""

    FREE = ("empty", "new_empty", "empty_like", "empty_strided", "set_", "is_same_size")
    FILLS = ("zeros", "full", "zero_", "fill_", "ones", "arange", "new_zeros", "zeros_like", "new_full")
    GATHERS = ("index", "gather", "index_select")  # read as much as they return
    SCATTERS = ("index_copy_", "index_put_", "_index_put_impl_", "scatter_")  # write what they are given

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic
        self.paused = False

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace.endswith("_kernels"):
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if not self.paused and not func.is_view and name not in self.FREE:
            read = 0 if name in self.FILLS else _bytes((args, kwargs))
            written = _bytes(result)
            if name in self.GATHERS:
                read = read - _bytes(args[0]) + written
            elif name in self.SCATTERS:
                read, written = read - _bytes(args[0]), _bytes(args[3] if name == "index_copy_" else args[2])
            elif name == "copy_":
                read -= _bytes(args[0])
            self.traffic.around += read + written
        return result


@contextmanager
def counting() -> Iterator[Traffic]:
    """Everything that happens inside is added to the ``Traffic`` that this gives."""
    traffic = Traffic()
    around = _Around(traffic)
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store = builder.create_masked_load, builder.create_masked_store
    atomic, launch = builder.create_atomic_rmw, executor.__call__

    def size(pointers: Any, mask: Any) -> int:
        # Lanes of one instruction that want the same address are served together.
        touched = np.unique(pointers.data[mask.data.astype(bool)]).size
        return touched * max(pointers.get_element_ty().primitive_bitwidth // 8, 1)

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        traffic.loaded += size(pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        traffic.stored += size(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def counted_atomic(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        traffic.loaded += size(pointers, mask)
        traffic.stored += size(pointers, mask)
        return atomic(self, op, pointers, value, mask, *rest)

    def counted_launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        traffic.launches.append(self.fn.__name__)
        around.paused = True  # the interpreter moves arguments about with torch
        try:
            return launch(self, *args, **kwargs)
        finally:
            around.paused = False

    with (
        mock.patch.object(builder, "create_masked_load", counted_load),
        mock.patch.object(builder, "create_masked_store", counted_store),
        mock.patch.object(builder, "create_atomic_rmw", counted_atomic),
        mock.patch.object(executor, "__call__", counted_launch),
        around,
    ):
        yield traffic


class _Twice(ast.NodeTransformer):
    """Every statement of a kernel that loads is executed twice."""

    def _twice(self, node: ast.Assign | ast.AugAssign | ast.Return) -> Any:
        loads = [n for n in ast.walk(node) if isinstance(n, ast.Attribute) and n.attr == "load"]
        if not loads:
            return node
        if isinstance(node, ast.Return):
            assert node.value is not None
            return [ast.Assign(targets=[ast.Name("again", ast.Store())], value=node.value), node]
        return [node, node]

    visit_Assign = visit_AugAssign = visit_Return = _twice


def copy_with_doubled_reads(kernels: Path, package: Path) -> None:
    """Copy the folder ``kernels`` to ``package``, all its kernels reading everything twice."""
    shutil.copytree(kernels, package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in package.glob("*.py"):
        tree = ast.fix_missing_locations(_Twice().visit(ast.parse(path.read_text())))
        path.write_text(ast.unparse(tree))
