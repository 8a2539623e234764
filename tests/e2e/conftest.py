"""What end-to-end tests of pages share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """With the module's `page` open, of which neither console nor page may complain in the end."""
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        found.open(page)
        yield found
        assert found.errors == []
