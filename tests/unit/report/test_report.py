"""The report: one page, nothing from outside, nothing unescaped, and words that follow the intervals."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from fourdthinker import report
from fourdthinker.errors import ConfigError
from fourdthinker.report import verdict, write_report
from fourdthinker.report.curves import read_metrics
from fourdthinker.report.lines import parse
from fourdthinker.report.media import spread
from fourdthinker.report.page import DOCTYPE
from fourdthinker.report.results import make_results
from fourdthinker.report.rollouts import choose, read_groups
from fourdthinker.report.svg import line_chart, nice_ticks, short, smooth, thin
from fourdthinker.transcript import text_parts, text_plain

HOSTILE = '<script>alert("x")</script><img src=http://evil.example/x.png onerror=alert(1)>'
SCRIPT = Path(report.__file__).parent / "templates" / "report.js"
BLOCK = "<|latent_start|>" + "<|latent_pad|>" * 4 + "<|latent_end|>"


def interval(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def model(
    accuracy: float, half: float, greedy: float, entropy: float, camera: float, direction: float
) -> dict:
    bounds = {"accuracy": accuracy, "low": accuracy - half, "high": accuracy + half}
    by_type = {
        kind: {"accuracy": value, "low": value - 0.03, "high": value + 0.03, "greedy": value, "n": 600}
        for kind, value in (("camera motion", camera), ("object direction", direction))
    }
    return bounds | {"greedy": greedy, "n": 1200, "entropy": entropy, "failed": 0, "by_type": by_type}


def example_results() -> dict:
    return {
        "chance": {"accuracy": 0.208, "low": 0.208, "high": 0.208, "greedy": 0.208, "n": 1200},
        "majority": {"accuracy": 0.214, "low": 0.192, "high": 0.238, "greedy": 0.214, "n": 1200},
        "base": model(0.196, 0.018, 0.213, 1.31, 0.17, 0.22),
        "dift": model(0.684, 0.021, 0.745, 0.42, 0.68, 0.69),
        "dift_control": model(0.721, 0.02, 0.776, 0.37, 0.71, 0.73),
        "rl": model(0.739, 0.02, 0.766, 0.24, 0.73, 0.75),
        "rl_minus_dift": interval(0.055, 0.012),
        "rl_minus_control": interval(0.018, 0.021),
        "greedy_rl_minus_dift": interval(0.021, 0.019),
        "seeds": {"data": 0, "dift": 1, "rl": 2},
        "seconds": {"render": 61.2, "base": 118.0, "dift": 109.4, "rl": 151.0, "evaluate": 70.3},
    }


def example_run(folder: Path) -> Path:
    """A run folder as the trainers and the evaluation leave one, with made-up numbers."""
    rng = np.random.default_rng(0)
    run = folder / "demo"
    for phase, steps in (("base", 140), ("dift", 200), ("rl", 170)):
        lines = []
        for i in range(steps):
            t = i / steps
            noise = rng.standard_normal(6)
            entry = {
                "step": 5 * (i + 1),
                "loss": 2.2 * math.exp(-4 * t) + 0.4 + 0.05 * noise[0],
                "learning_rate": 1e-3 * (1 - t),
            }
            if phase == "dift":
                entry |= {
                    "ce": 3 * math.exp(-5 * t) + 0.3 + 0.05 * noise[1],
                    "cosine": 0.4 * math.exp(-3 * t) + 0.06 + 0.01 * noise[2],
                }
            if phase == "rl":
                entry |= {
                    "reward": 0.85 + 0.12 * t + 0.03 * noise[1],
                    "kl": 2e-3 * t + 2e-4 * abs(noise[2]),
                    "completion_length": 24 + 0.5 * noise[3],
                    "reward_accuracy_reward": 0.65 + 0.12 * t + 0.03 * noise[1],
                    "sampler_gap": 3e-6 + 1e-6 * abs(noise[4]),
                    "entropy": 0.4 - 0.2 * t + 0.02 * noise[5],
                    "grad_norm": abs(noise[0]),
                }
            lines.append(json.dumps(entry))
        (run / phase).mkdir(parents=True)
        (run / phase / "metrics.jsonl").write_text("\n".join(lines) + '\n{"cut', encoding="utf-8")
    frames = []
    for k in range(8):
        y, x = np.mgrid[0:84, 0:112]
        ball = (x - 20 - 10 * k) ** 2 + (y - 46) ** 2 < 180
        image = (
            np.where(y[..., None] > 38, [96, 124, 84], [150, 190, 232])
            + 9 * ((x // 14 + y // 14) % 2)[..., None]
        )
        image = np.where(ball[..., None], [206, 60, 52], image)
        frames.append(f"frames/{k}.png")
        (run / "frames").mkdir(exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(run / frames[-1])
    lines = []
    for step in (10, 850):
        for prompt in range(4):
            rewards = rng.uniform(size=8) < (0.5 if step == 10 else 0.8)
            std = float(np.std(rewards, ddof=1)) or 1.0
            for right in rewards:
                told = "right" if right else "left"
                text = f"<think>The red ball is left of the middle. {BLOCK} It moves {told}.</think>"
                text += f"\n<answer>{told}</answer>"
                lines.append(
                    json.dumps(
                        {
                            "step": step,
                            "id": f"clip-{prompt}/direction",
                            "question": "Which way does the red ball move?",
                            "options": {"A": "left", "B": "right", "C": "towards the camera", "D": "away"},
                            "answer": "B",
                            "media": [["frame", frame] for frame in frames],
                            "text": text,
                            "reward": float(right) + 0.2,
                            "advantage": float((right - rewards.mean()) / std),
                            "rewards": {"accuracy_reward": float(right), "format_reward": 1.0},
                            "length": 25,
                            "finish_reason": "eos",
                        }
                    )
                )
    (run / "rl" / "rollouts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (run / "results.json").write_text(json.dumps(example_results()), encoding="utf-8")
    return run


class Links(HTMLParser):
    """Checks that tags close, and collects them with everything that could load something."""

    VOID = frozenset({"meta", "line", "polyline", "circle", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        found = [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster")]
        self.targets += [url[1:] for url in found if url.startswith("#")]
        self.loads += [url for url in found if not url.startswith(("#", "data:text/csv;"))]
        self.ids += [v or "" for k, v in attrs if k == "id"]
        assert not [k for k, _ in attrs if k.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.script += data
        elif self.open and self.open[-1] != "style":
            self.text += data


def parsed(path: Path) -> Links:
    links = Links()
    links.feed(path.read_text(encoding="utf-8"))
    links.close()
    assert not links.open
    assert links.tags.count("script") == 1
    assert links.script == SCRIPT.read_text(encoding="utf-8")
    assert len(set(links.ids)) == len(links.ids)
    assert set(links.targets) <= set(links.ids)
    return links


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_report(example_run(tmp_path))
    assert path == tmp_path / "demo" / "report.html"
    page = parsed(path)
    assert page.loads
    assert all(url.startswith("data:image/") for url in page.loads)
    assert "link" not in page.tags
    source = path.read_text(encoding="utf-8")
    assert "default-src 'none'" in source
    assert not re.search(r"https?://|url\(|@import", source)
    for wanted in (
        "After 4DRL",
        "73.9\u00a0%",
        "71.9 – 75.9\u00a0%",
        "Reward",
        "KL to the reference",
        "Cross-entropy",
        "Completion length",
        "Sampler–trainer log-prob difference",
        "◆ imagery × 4",
        "Which way does the red ball move?",
        "accuracy 1 · format 1 · 25 tokens",
        "camera motion",
        "seeds",
        "118",
    ):
        assert wanted in page.text, wanted
    assert "<|latent" not in page.text
    assert source.count('<svg class="intervals"') == 1
    assert source.count('<svg class="chart"') == 2 + 4 + 9  # curves of the three phases, folded ones too
    assert "1 lines are no metrics" in caplog.text
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_pictures_are_the_frames(tmp_path: Path) -> None:
    run = example_run(tmp_path)
    urls = parsed(write_report(run, groups=1)).loads
    assert len(urls) == 8
    kind, data = urls[7].split(";base64,")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    assert kind == "data:image/png"  # small: lossless
    np.testing.assert_array_equal(shown, np.asarray(Image.open(run / "frames" / "7.png")))


def test_frames_of_a_video_and_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 320, 256, "yuv420p"
        for k in range(12):
            pixels = np.full((256, 320, 3), 20 * k, dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    Image.new("RGB", (300, 900), "red").save(tmp_path / "tall.png")

    def shown(**media: Any) -> list[Image.Image]:
        line = {"step": 1, "prompt": 0, "text": "t", **media}
        (tmp_path / "rollouts.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
        urls = parsed(write_report(tmp_path)).loads
        assert all(url.startswith("data:image/jpeg;base64,") for url in urls)
        return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L") for url in urls]

    clip = shown(media=[["video", "clip.mp4"]])
    levels = [int(np.asarray(image).mean()) for image in clip]
    assert len(clip) == 8
    assert levels == sorted(levels)
    assert levels[0] < 10
    assert levels[-1] > 190
    assert all(image.height <= 224 for image in clip)
    video = ["video", str(tmp_path / "clip.mp4")]
    assert len(shown(media=[video], start=1.0, end=1.5)) == 2  # four at 8 frames a second, two are the same
    assert (tmp_path / "report.html").read_text().count("<use ") == 4
    assert [image.size for image in shown(media=[["frame", "tall.png"]])] == [(75, 224)]
    sizes = [image.size for image in shown(media=[video, ["image", "tall.png"]])]
    assert sizes == [(274, 224)] * 4 + [(75, 224)]  # eight pictures are shared out
    (tmp_path / "tall.png").write_bytes(b"broken")
    assert shown(media=[["frame", "tall.png"]]) == []
    assert shown() == []
    assert spread(9, 4) == [0, 3, 5, 8]
    assert spread(9, 1) == [0]


def test_whatever_others_wrote_is_shown_as_text(tmp_path: Path) -> None:
    run = tmp_path / f"run & {HOSTILE[:8]}"
    run.mkdir()
    hostile = model(0.5, 0.1, 0.5, 0.1, 0.4, 0.6)
    hostile["by_type"][HOSTILE] = {"accuracy": 0.1}
    hostile["n"] = HOSTILE
    results = {
        HOSTILE: hostile,
        "dift": model(0.5, 0.1, 0.5, 0.1, 0.4, 0.6) | {"n": HOSTILE, "failed": HOSTILE},
    }
    results |= {"note": HOSTILE, "list": [HOSTILE], "inner": {HOSTILE: HOSTILE}}
    results[HOSTILE + "-"] = {"mean": 0.1, "low": 0.0, "high": 0.2}
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i, HOSTILE: i, "loss": 1.0}) + "\n" for i in range(4)), encoding="utf-8"
    )
    rollout = {
        "step": 1,
        "id": HOSTILE,
        "question": HOSTILE,
        "options": {HOSTILE: HOSTILE, "A": HOSTILE},
        "answer": "A",
        "type": HOSTILE,
        "media": [["video", HOSTILE]],
        "text": f"{HOSTILE}{BLOCK}<answer>{HOSTILE}",
        "reward": 1.0,
        "advantage": 0.0,
        "rewards": {HOSTILE: 1.0},
        "finish_reason": HOSTILE,
        "tokens": [f"{HOSTILE}{BLOCK}<answer>{HOSTILE}"],
        "logprobs": [-5.0],
        "blocks": [{"norms": [1.0], "nearest": [{"medium": 0, "share": 0.5, "box": [0, 0, 1, 1]}]}],
        "modes": {HOSTILE: {"right": 0.5}, "own": {"right": 0.5}},
    }
    (run / "rollouts.jsonl").write_text(json.dumps(rollout) + "\n", encoding="utf-8")
    page = parsed(write_report(run))
    assert "img" not in page.tags
    assert page.loads == []
    assert page.text.count(HOSTILE) >= 10
    assert "The frames cannot be read" in page.text or "The frames cannot be found" in page.text


REGION = {"medium": 0, "share": 0.5, "seconds": 0.5, "box": [0.0, 0.0, 0.5, 0.5], "cosine": 0.5}
NUMBERS = (
    "Infinity",
    "-Infinity",
    "NaN",
    "9" * 400,
    "-" + "9" * 400,
    "1e999",
    "1.7e308",
    "-1.7e308",
    "5e-324",
)
TEXTS = ('"\\u0000"', '"a\\u0000b"', '"\\ud800"', '""')
OTHERS = ("null", "true", "[]", "{}", '{"a": Infinity}', "9" * 5000, "[" * 5000)


@pytest.mark.parametrize("odd", NUMBERS + TEXTS + OTHERS, ids=lambda odd: odd[:12])
def test_odd_numbers_and_characters_end_no_report(odd: str, tmp_path: Path) -> None:
    """In every field, one at a time, among sound lines."""
    metric = {"step": 3, "loss": 1.5, "reward": 0.5}
    rollout = {
        "step": 3, "prompt": 0, "id": "clip", "question": "Which?", "options": {"A": "left"}, "answer": "A",
        "type": "side", "media": [["frame", "none.png"]], "start": 0.5, "end": 1.0,
        "text": "<answer>A</answer>",
        "reward": 1.0, "advantage": 0.5, "rewards": {"accuracy": 1.0}, "length": 4, "finish_reason": "eos",
        "tokens": ["<answer>", "A", "</answer>"], "logprobs": [None, -0.5, None],
        "modes": {"own": {"right": 0.5}},
        "blocks": [{"norms": [1.0], "cosines": [0.5], "nearest": [REGION]}],
    }  # fmt: skip
    entry = {
        "accuracy": 0.5, "low": 0.4, "high": 0.6, "greedy": 0.5, "entropy": 0.2, "n": 9, "failed": 0,
        "by_type": {"a": {"accuracy": 0.5}, "b": {}},
    }  # fmt: skip

    def spoilt(sound: dict[str, Any]) -> list[str]:
        """The sound line twice around one with each value replaced, and one with the odd text as a name."""
        texts = [json.dumps(sound)]
        texts += [json.dumps(sound | {key: "@"}).replace('"@"', odd) for key in sound]
        if odd.startswith('"'):
            texts.append(json.dumps(sound | {"@": 1.0}).replace('"@"', odd))
        return [*texts, json.dumps(sound | {"step": 4})]

    (tmp_path / "metrics.jsonl").write_text("\n".join(spoilt(metric)) + "\n")
    (tmp_path / "rollouts.jsonl").write_text("\n".join(spoilt(rollout)) + "\n")
    names = ("dift", "majority", "chance", "black_frames", "other_frames", "rl_minus_dift", "note")
    for spoilt_name in names:
        for text in spoilt(entry)[:-1] + spoilt({"mean": 0.1, "low": 0.0, "high": 0.2})[:-1]:
            values = dict.fromkeys(names, entry) | {"rl_minus_dift": interval(0.1, 0.1), spoilt_name: "@"}
            (tmp_path / "results.json").write_text(json.dumps(values).replace('"@"', text))
            if odd in ("9" * 5000, "[" * 5000) and odd in text:
                with pytest.raises(ConfigError, match=r"results\.json: not valid JSON"):
                    write_report(tmp_path)
                text = "null"
            make_results(parse(json.dumps(values).replace('"@"', text)))
    (tmp_path / "results.json").write_text(
        json.dumps(entry | {"dift": entry, "odd": "@"}).replace('"@"', text)
    )
    page = parsed(write_report(tmp_path))
    assert "Loss" in page.text
    assert "Which?" in page.text
    assert "\0" not in page.text


def test_a_folder_of_one_training_run_is_enough(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n', encoding="utf-8"
    )
    page = parsed(write_report(tmp_path, out=tmp_path / "page.html"))
    assert "Loss" in page.text
    assert "Results" not in page.text


def test_a_training_that_is_not_finished_says_so(tmp_path: Path) -> None:
    run = tmp_path / "grpo"
    (run / "checkpoint-20").mkdir(parents=True)
    (run / "metrics.jsonl").write_text(
        "".join(f'{{"step": {s}, "reward": {s / 99}}}\n' for s in range(1, 32))
    )
    told = "<b>Not finished:</b> grpo, step 31"
    assert f"{told}, no final checkpoint." in write_report(run).read_text()
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines.partition("\n")[0] + "\n")
    page = write_report(run).read_text()
    assert "grpo, step 1, no final checkpoint." in page  # and its first step is shown
    assert 'aria-label="Reward"' in page
    (run / "metrics.jsonl").write_text(lines)
    (run / "checkpoint-20" / "trainer_state.json").write_text('{"global_step": 20, "max_steps": 2000}')
    page = write_report(run).read_text()
    assert f"{told} of 2,000." in page
    assert "<h3>not finished: step 31 of 2,000</h3>" in page
    (run / "final").mkdir()
    assert "ot finished" not in write_report(run).read_text()


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ConfigError, match=r"results.json: not valid JSON"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"results.json: holds a list"):
        write_report(tmp_path)


def test_words_follow_the_intervals() -> None:
    def said(change: tuple[float, float], control: tuple[float, float] | None) -> str:
        results = example_results() | {"rl_minus_dift": interval(*change)}
        results.pop("rl_minus_control")
        if control:
            results["rl_minus_control"] = interval(*control)
        return " ".join(verdict(results)).replace("\u00a0", " ")

    better = said((0.05, 0.01), (0.03, 0.01))
    assert "4DRL raised sampled accuracy by +5.0 points (95 % interval +4.0 to +6.0)" in better
    assert "ends above the control" in better
    assert "not merely that of more training" in better
    assert "cannot be told from the control" in said((0.05, 0.01), (0.03, 0.03))
    assert "cannot be told from the control" in said((0.05, 0.01), (-0.02, 0.03))
    worse = said((0.05, 0.01), (-0.03, 0.01))
    assert "ends below the control" in worse
    assert "−3.0 points (95 % interval −4.0 to −2.0)" in worse
    assert "more DIFT is the better use" in worse
    assert "did not change sampled accuracy measurably: +0.0 points" in said((0.0, 0.01), None)
    assert "lowered sampled accuracy by −5.0 points" in said((-0.05, 0.01), None)
    assert "No control was run" in said((0.05, 0.01), None)
    blind = {"accuracy": 0.2, "low": 0.18, "high": 0.22}
    shown = example_results() | {"black_frames": blind, "other_frames": blind}
    assert "no label reaches the model except through the clip's pixels" in verdict(shown)[-1]
    shown["other_frames"] = {"accuracy": 0.3, "low": 0.28, "high": 0.32}
    assert "some answers come from elsewhere" in verdict(shown)[-1]
    # above the control without having gained: nothing is claimed about the reason
    assert "not merely" not in said((0.0, 0.01), (0.03, 0.01))

    results = example_results()
    assert "of 1,200 held-out questions right, clearly more than" in verdict(results)[0]
    results["dift"] |= {"low": 0.2, "accuracy": 0.22}
    assert "not clearly more than what needs no eyes" in verdict(results)[0]
    results["dift"] |= {"accuracy": 0.1, "low": 0.08, "high": 0.12}
    assert "less than what needs no eyes" in verdict(results)[0]
    assert verdict({"chance": results["chance"]}) == []
    assert verdict({"dift": results["dift"]}) == [
        "After DIFT the model answers 10.0\u00a0% of 1,200 held-out questions right."
    ]


def test_text_keeps_its_order_around_blocks_and_tags(tmp_path: Path) -> None:
    text = f"a < b <think>{BLOCK} c</think><|latent_start|><|latent_pad|> <|latent_pad|>"
    assert text_parts(text) == [
        ("text", "a < b "),
        ("tag", "<think>"),
        ("imagery", "4"),
        ("text", " c"),
        ("tag", "</think>"),
        ("imagery", "2"),
    ]
    line = {"step": 1, "prompt": 0, "text": text}
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert (
        '<p class="text" tabindex="0">a &lt; b <span class="tag">&lt;think&gt;</span>'
        '<span class="imagery" title="4 latents">◆ imagery × 4</span>'
        ' c<span class="tag">&lt;/think&gt;</span>'
        '<span class="imagery" title="2 latents">◆ imagery × 2</span></p>'
    ) in write_report(tmp_path).read_text(encoding="utf-8")
    assert text_plain(f"<think>a {BLOCK} b</think>") == "<think>a [imagery × 4] b</think>"


def test_groups_shown_are_of_the_first_and_the_last_step_and_taught_something(tmp_path: Path) -> None:
    lines = []
    for step in (1, 5, 9):
        for prompt in range(4):
            for sample in range(2):
                reward = float(sample) if prompt == 3 else 1.0
                lines.append(
                    json.dumps({"step": step, "id": None, "prompt": prompt, "text": "t", "reward": reward})
                )
    path = tmp_path / "rollouts.jsonl"
    path.write_text("\n".join([*lines, "{", "[]", '{"step": "x", "id": 1, "text": ""}']) + "\n")
    groups = read_groups(path)
    assert len(groups) == 12
    assert all(len(group.rows) == 2 for group in groups)
    chosen = [(g.step, g.id) for g in choose(groups, 3)]
    assert chosen == [(1, "3"), (9, "3"), (9, "0")]
    assert choose([], 3) == []
    assert [(g.step, g.id) for g in choose(groups[:4], 2)] == [(1, "3"), (1, "0")]


def test_metrics_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": NaN, "b": true, "c": "1", "d": 2}\n[1]\nnull\n{"step": 2, "d": 3}\n')
    assert read_metrics(path)["d"] == [(1.0, 2.0), (2.0, 3.0)]
    assert set(read_metrics(path)) == {"step", "d"}


def test_charts() -> None:
    curve = line_chart([(i, math.sin(i)) for i in range(1000)], "a < b")
    assert "a &lt; b" in curve
    assert len(re.findall(r"[\d.]+,[\d.]+", re.search(r'class="curve" points="([^"]*)"', curve)[1])) <= 300
    spiked = line_chart([(i, 1e6 if i == 50 else 1 + i / 100) for i in range(100)], "spike")
    assert "1e6" not in re.sub(r'data-points="[^"]*"', "", spiked)
    assert ",50,1e6 " in spiked  # what is read at it
    assert "no data" in line_chart([(0, math.nan)], "x")
    assert "<circle" in line_chart([(3, 1.0)], "x")
    for points in (
        [(0, 0.0), (1, 0.0)],
        [(0, -5.0), (1, -5.0)],
        [(1, 1e-9), (2, 3e-9)],
        [(1, 1e12), (2, 1.1e12)],
    ):
        numbers = [
            float(v) for v in re.findall(r'(?:x1|x2|y1|y2|cx|cy)="([-\d.]+)"', line_chart(points, "x"))
        ]
        assert all(0 <= v <= 320 for v in numbers)


@pytest.mark.parametrize(
    ("low", "high", "count", "ticks"),
    [
        (0.0, 1.0, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.13, 0.87, 3, [0, 0.5, 1.0]),
        (-3.0, 41.0, 4, [-20, 0, 20, 40, 60]),
        (7.0, 7.0, 3, [6, 6.5, 7, 7.5, 8]),
    ],
)
def test_ticks_are_round_and_cover(low: float, high: float, count: int, ticks: list[float]) -> None:
    assert nice_ticks(low, high, count) == pytest.approx(ticks)


def test_numbers_in_charts_are_short() -> None:
    assert [short(v) for v in (0, 0.25, -1.5, 1234, 123456, 1e-6, 2.5e-7)] == [
        "0",
        "0.25",
        "−1.5",
        "1234",
        "1.2e5",
        "1e−6",
        "2.5e−7",
    ]
    assert len(thin([(i, i) for i in range(1001)], 100)) <= 100
    assert thin([(0, 0), (1, 2)], 1) == [(0.5, 1.0)]
    assert smooth([(i, 3.0) for i in range(50)]) == [(i, 3.0) for i in range(50)]


@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl", "rollouts.jsonl"])
def test_what_is_no_regular_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=rf"{name} is a folder, not a regular file"):
        write_report(tmp_path)
    (tmp_path / name).rmdir()
    os.mkfifo(tmp_path / name)  # reading it would wait for a writer for ever
    with pytest.raises(ConfigError, match=rf"{name} is a named pipe, not a regular file"):
        write_report(tmp_path)


def test_a_file_that_is_no_report_is_not_replaced(tmp_path: Path) -> None:
    """A word left out on the command line names the run's own file."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is there and no report, so it is not replaced"):
        write_report(tmp_path, out=tmp_path / "metrics.jsonl")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    (tmp_path / "empty.html").touch()
    for name in ("empty.html", "empty.html", "new.html"):
        assert write_report(tmp_path, out=tmp_path / name).read_bytes().startswith(DOCTYPE)
