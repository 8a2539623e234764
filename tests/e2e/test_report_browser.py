"""The report in a browser: 200 rollouts, filters, links, keys, curves, dark, on paper, without complaint."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourdthinker.report import write_report
from tests.browser import Browser
from tests.unit.report.test_report import example_results

GROUPS, ROWS, TOKENS = 25, 8, 300
BLOCK = ["<|latent_start|>", *["<|latent_pad|>"] * 4, "<|latent_end|>"]
ARROW_LEFT = 37


def rollouts(folder: Path) -> list[str]:
    """25 groups of 8 completions of 300 tokens with a block each, about five clips of eight frames."""
    rng = np.random.default_rng(0)
    for clip in range(5):
        for k in range(8):
            noise = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((224, 168)).save(folder / f"{clip}-{k}.png")
    lines = []
    for number in range(GROUPS):
        equal = number % 5 == 0
        for _ in range(ROWS):
            right = equal or rng.random() < (0.3 if number < 10 else 0.8)
            words = [f" word{int(k)}" for k in rng.integers(0, 500, TOKENS)]
            tokens = [*words[:100], *BLOCK, *words[100:], "<answer>", "B" if right else "A", "</answer>"]
            near = [
                {
                    "medium": 0,
                    "share": float(rng.random()),
                    "seconds": None,
                    "box": [0.25, 0.5, 0.5, 0.75],
                    "cosine": 0.3,
                }
                for _ in range(4)
            ]
            lines.append(
                {
                    "step": 1 if number < 10 else 90, "id": f"clip-{number % 10 if number < 20 else number}",
                    "type": ("camera", "object")[number % 2], "question": "Which way does it go?",
                    "options": {"A": "left", "B": "right"}, "answer": "B",
                    "media": [["frame", f"{number % 5}-{k}.png"] for k in range(8)], "text": "".join(tokens),
                    "tokens": tokens, "logprobs": [*(-rng.exponential(0.4, len(tokens))).round(4)],
                    "reward": float(right), "rewards": {"accuracy_reward": float(right)},
                    "advantage": float(right) - 0.5, "length": len(tokens), "finish_reason": "eos",
                    "blocks": [{"norms": [31.0] * 4, "cosines": [0.8, 0.7, 0.6, 0.5], "nearest": near}],
                }
            )  # fmt: skip
    return [json.dumps(line) for line in lines]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    (run / "rollouts.jsonl").write_text("\n".join(rollouts(run)) + "\n")
    steps = [{"step": k, "loss": 2.0 - k / 100, "reward": k / 100} for k in range(1, 91)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    (run / "results.json").write_text(json.dumps(example_results()))
    return write_report(run, groups=GROUPS)


def test_two_hundred_rollouts_are_there_at_once(page: Path, browser: Browser) -> None:
    assert page.stat().st_size < 15e6
    assert browser.run("document.querySelectorAll('.row').length") == GROUPS * ROWS
    assert browser.run("performance.timing.loadEventEnd - performance.timing.navigationStart") < 3000
    # Every picture is there, and drawn: that of a region too.
    assert browser.run("[...document.querySelectorAll('use')].every(u => u.getBBox().width > 0)")
    assert browser.run("document.querySelectorAll('.region').length") == 4 * GROUPS * ROWS
    assert browser.run("document.querySelectorAll('.p4').length") > 500


def shown(browser: Browser) -> int:
    count: int = browser.run("document.querySelectorAll('article:not([hidden])').length")
    return count


def choose(browser: Browser, script: str) -> None:
    browser.run(
        f"(() => {{ {script}; document.querySelector('.filters').dispatchEvent(new Event('change')) }})()"
    )


def test_filters(browser: Browser) -> None:
    assert shown(browser) == GROUPS
    flags = browser.run("[...document.querySelectorAll('.filters input')].map(x => x.value)")
    assert flags == ["wrong", "flipped", "equal"]
    for flag in flags:
        choose(browser, f"document.querySelector('[value={flag}]').checked = true")
        marked = browser.run(f"document.querySelectorAll('article[data-flags~={flag}]').length")
        assert 0 < marked == shown(browser) < GROUPS
        assert browser.run("document.querySelector('.filters output').value") == f"{marked} of {GROUPS}"
        choose(browser, "document.querySelector('.filters').reset()")
    choose(browser, "document.querySelector('.filters select').value = 'camera'")
    assert (
        shown(browser) == browser.run("document.querySelectorAll('article[data-type=camera]').length") == 13
    )
    # A link to a question that is filtered away shows it.
    hidden = browser.run("document.querySelector('article[hidden]').id")
    browser.run(f"location.hash = '#{hidden}'; new Promise(done => setTimeout(done, 50))")
    assert shown(browser) == GROUPS
    assert browser.run("document.activeElement.id") == hidden


def test_a_link_opens_the_page_at_its_question(page: Path, browser: Browser) -> None:
    last = browser.run("[...document.querySelectorAll('article')].at(-1).id")
    browser.open(page, f"#{last}")
    assert browser.run("document.activeElement.id") == last
    assert browser.run(f"document.getElementById('{last}').getBoundingClientRect().top") < 1000
    before = browser.run("document.querySelector('article .head a:not([title])').textContent")
    assert before.startswith("the same question at step")


@pytest.mark.parametrize("fragment", ["#nothing", "#%E0%A4%A", "#%22%3E", "#", "#picture-0", "#accuracy"])
def test_a_link_to_nothing_opens_the_page(page: Path, browser: Browser, fragment: str) -> None:
    browser.open(page, fragment)
    assert shown(browser) == GROUPS
    assert browser.errors == []
    browser.press("j")
    assert browser.run("document.activeElement.tagName") == "ARTICLE"


def test_keys(page: Path, browser: Browser) -> None:
    browser.open(page)
    ids = browser.run("[...document.querySelectorAll('article')].map(a => a.id)")
    seen = []
    for key in "jjk":
        browser.press(key)
        seen.append(browser.run("document.activeElement.id"))
    assert seen == [ids[0], ids[1], ids[0]]
    browser.run("document.querySelector('svg.chart').focus()")
    said = "document.querySelector('svg.chart .reading text').textContent"
    assert browser.run(said) == " 1.1 at 90 "
    browser.press("ArrowLeft", ARROW_LEFT)
    assert browser.run(said) == " 1.11 at 89 "
    reached = browser.run(
        "[...document.querySelectorAll('input, select, a, summary, .strip, .text')]"
        ".every(e => e.tabIndex >= 0)"
    )
    assert reached


def test_the_value_under_the_pointer(browser: Browser) -> None:
    box = browser.run(
        "(() => { const c = document.querySelector('svg.chart'); c.scrollIntoView(); c.blur();"
        "const r = c.getBoundingClientRect(); return [r.left + r.width * 46 / 320, r.top + r.height / 2] })()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    said = browser.run("document.querySelector('svg.chart .reading text').textContent")
    assert said == " 1.99 at 1 "


def test_dark_and_on_paper(page: Path, browser: Browser) -> None:
    colours = []
    for scheme in ("light", "dark"):
        browser.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        colours.append(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(245, 246, 248)", "rgb(16, 19, 22)"]
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert browser.run("getComputedStyle(document.querySelector('.filters')).display") == "none"
    browser.call("Emulation.setEmulatedMedia", media="")
    browser.open(write_report(page.parent, out=page.parent / "short.html", groups=1))
    paper = base64.b64decode(browser.call("Page.printToPDF")["data"])
    assert paper.startswith(b"%PDF")


def test_a_table_is_kept_as_csv(browser: Browser) -> None:
    link = "document.querySelector('a[download]')"
    assert browser.run(f"{link}.download") == "accuracy.csv"
    text = base64.b64decode(browser.run(f"{link}.href").partition("base64,")[2]).decode()
    assert text.splitlines()[0] == ",Accuracy,95 % interval,Adjusted,Greedy,Answer entropy,Questions,Failed"
