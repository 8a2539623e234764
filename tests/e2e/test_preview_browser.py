"""The preview of a synthesis in a browser: pictures, paths and filters are there, from one file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fourdthinker.synth.preview import write_preview
from fourdthinker.synth.run import Options, synthesise
from fourdthinker.synth.settings import read_settings
from tests.browser import Browser

SCENES = 4
CARDS = "[...document.querySelectorAll('article')]"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of some rendered scenes, elsewhere than the pictures, which it holds itself."""
    folder = tmp_path_factory.mktemp("preview")
    settings = read_settings(None, analysis_fps=4, splits={"train": 0.5, "test": 0.5})
    synthesise([f"scenes:{SCENES}"], folder / "out", settings, Options(workers=2, progress=False))
    return write_preview(folder / "out", page=folder / "page.html")


@pytest.fixture(scope="module")
def records(page: Path) -> list[dict[str, object]]:
    found = [path.read_text() for path in sorted((page.parent / "out").glob("dift-*.jsonl"))]
    return [json.loads(line) for text in found for line in text.splitlines()]


def test_each_question_has_its_pictures_and_its_path(
    browser: Browser, records: list[dict[str, object]]
) -> None:
    assert browser.run("location.protocol") == "file:"
    assert browser.run(f"{CARDS}.length") == len(records) > SCENES
    assert browser.run("[...document.images].every(p => p.complete && p.naturalWidth > 0)")
    assert browser.run(f"{CARDS}.every(card => card.querySelectorAll('.strip img').length > 1)")
    assert browser.run(f"{CARDS}.every(card => card.querySelectorAll('.reasoning img').length > 0)")
    assert browser.run(
        f"{CARDS}.every(card => card.querySelector('path.camera').getBBox().width < 100"
        " && card.querySelector('circle.camera').getBoundingClientRect().width > 3)"
    )
    assert browser.run("[...document.querySelectorAll('path.object')].some(p => p.getTotalLength() > 10)")


def test_nothing_is_wider_than_the_window(browser: Browser) -> None:
    width = "document.documentElement.scrollWidth"
    assert browser.run(f"{width} <= innerWidth")
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=420, height=800, deviceScaleFactor=1, mobile=False
    )
    assert browser.run(f"{width} <= innerWidth")
    # Nor do the filters, which are several lines then, lie over a card that is gone to.
    browser.run(f"{CARDS}[1].scrollIntoView()")
    bottom = browser.run("document.querySelector('nav').getBoundingClientRect().bottom")
    assert bottom <= browser.run(f"{CARDS}[1].getBoundingClientRect().top")
    browser.call("Emulation.clearDeviceMetricsOverride")


def chosen(browser: Browser, key: str, value: str) -> int:
    """Questions shown with that filter alone, all of which must have that value."""
    box = f"document.querySelector('select[data-key={key}]')"
    shown = f"{CARDS}.filter(card => card.getBoundingClientRect().height > 0)"
    browser.run(f"{box}.value = {json.dumps(value)}; {box}.dispatchEvent(new Event('change'))")
    count: int = browser.run(f"{shown}.length")
    assert browser.run("document.getElementById('count').value") == f"{count} shown"
    assert browser.run(f"{shown}.every(card => card.dataset.{key} === {json.dumps(value)})")
    browser.run(f"{box}.value = ''; {box}.dispatchEvent(new Event('change'))")
    return count


@pytest.mark.parametrize("key", ["type", "split", "source"])
def test_filters(browser: Browser, records: list[dict[str, object]], key: str) -> None:
    values = browser.run(f"[...document.querySelectorAll('select[data-key={key}] option')].map(o => o.value)")
    assert len(values) > 2
    counts = [chosen(browser, key, value) for value in values[1:]]
    assert min(counts) > 0
    assert sum(counts) == len(records)


def test_words_are_found(browser: Browser, records: list[dict[str, object]]) -> None:
    for words, expected in (("CAMERA", range(1, len(records) + 1)), ("no such words", range(1))):
        browser.run(
            f"document.getElementById('search').value = {json.dumps(words)};"
            "document.getElementById('search').dispatchEvent(new Event('input'))"
        )
        assert browser.run(f"{CARDS}.filter(card => !card.hidden).length") in expected
