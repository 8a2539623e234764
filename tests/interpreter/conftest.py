"""Switch on Triton's interpreter, which has to happen before any kernel is imported."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from tests.poison import poisoned_memory  # noqa: F401

_LATE = os.environ.get("TRITON_INTERPRET") != "1" and any(
    "kernels.latent_grammar" in name for name in sys.modules
)
os.environ.setdefault("TRITON_INTERPRET", "1")


def _index_arrays_of_one_element() -> None:
    """Mend triton 3.6, which takes `int()` of such arrays; numpy refuses that from 2.4 on."""
    import triton  # only now that the interpreter is switched on
    from triton.runtime import interpreter

    if not triton.__version__.startswith("3.6."):
        return
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patched


_index_arrays_of_one_element()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _LATE:
        reason = "kernels were imported for compilation already; run this lane in a process of its own"
        for item in items:
            if "/interpreter/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=reason))
