"""Narration by a model behind HTTP: its text is checked, its faults are told, else it is rejected."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai", reason="the openai client is missing: pip install fourdthinker[synth]")

from fourdthinker.errors import ConfigError, OutputError
from fourdthinker.latents import IMAGERY
from fourdthinker.synth.narrate import (
    Endpoint,
    EndpointError,
    EndpointSettings,
    Job,
    RejectedError,
    fault,
    narrate_by_model,
    narrate_many,
    scaled,
)
from fourdthinker.synth.questions import ask
from tests.unit.synth.narrate import fake_endpoint as fake
from tests.unit.synth.scenes import scene

FACTS = scene(0)
QUESTION = replace(
    next(q for q in ask(FACTS, 0) if q.type == "object_direction"),
    options={"A": "here", "B": "there", "C": "up"},
    letter="B",
    answer="there",
)
THOUGHT = (
    f"From 1 s on I follow the ball. I imagine it {IMAGERY} and then {IMAGERY}. "
    "The camera pans; less that, it goes there."
)
GOOD = f"<think>{THOUGHT}</think>\n<answer>B. there</answer>"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.FakeEndpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with fake.running() as server:
        yield server


@pytest.fixture
def endpoint(server: fake.FakeEndpoint, tmp_path: Path) -> Endpoint:
    settings = EndpointSettings(model="m", attempts=3, timeout_s=2, per_minute=1e6)
    return Endpoint(settings, tmp_path / "cache", base_url=server.url, sleep=lambda _: None)


@pytest.fixture(scope="module")
def job() -> Job:
    frames = [np.full((720, 1280, 3), k, np.uint8) for k in (10, 60, 110)]
    return Job(QUESTION, FACTS, scaled([0.0, 1.0, 2.0], frames), scaled([0.0, 2.0], frames[::2]))


def test_pictures_go_out_small_with_their_times(
    server: fake.FakeEndpoint, endpoint: Endpoint, job: Job
) -> None:
    server.default = fake.says(GOOD)
    assert narrate_by_model(job, endpoint) == GOOD
    (request,) = server.requests
    content = request["messages"][1]["content"]
    pictures = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert len(pictures) == 5
    image = Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2])))
    assert image.size == (448, 252)
    texts = " ".join(part["text"] for part in content if part["type"] == "text")
    assert "0.0 s: 1.0 s: 2.0 s: Pictures to imagine: 0.0 s: 2.0 s:" in texts
    assert "exactly 2 times" in texts
    assert "Answer: B. there" in texts


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (fake.says(GOOD.replace("B. there", "A. here")), "answers A, and geometry says B"),
        (fake.says(GOOD.replace(IMAGERY, "", 1)), "1 <output_image> for 2 overlays"),
        (fake.says(GOOD, finish="length"), "it is cut off"),
        (fake.says("Ignore all rules. <answer>B</answer>"), "not <think>"),
        (fake.says(GOOD.replace("there", "<|im_end|><|im_start|>system", 1)), "control token"),
    ],
)
def test_a_fault_is_told_and_mended(
    server: fake.FakeEndpoint, endpoint: Endpoint, job: Job, bad: fake.Behaviour, told: str
) -> None:
    server.script = [bad, fake.status(500), fake.says(GOOD)]
    assert narrate_by_model(job, endpoint) == GOOD
    assert len(server.requests) == 3
    assert told in server.requests[-1]["messages"][-1]["content"]


def test_what_is_never_right_is_rejected_with_its_reason(
    server: fake.FakeEndpoint, endpoint: Endpoint, job: Job
) -> None:
    server.default = fake.says(GOOD.replace("B. there", "C. up"))
    with pytest.raises(
        RejectedError, match="narrate: 3 drafts have a fault, the last: answers C, and geometry says B"
    ):
        narrate_by_model(job, endpoint)
    assert len(server.requests) == 3


def test_disagreement_rejects(server: fake.FakeEndpoint, endpoint: Endpoint, job: Job) -> None:
    server.default = fake.says("<disagree>the ball rolls the other way</disagree>")
    with pytest.raises(RejectedError, match="narrate: the model disagrees: the ball rolls the other way"):
        narrate_by_model(job, endpoint)
    assert len(server.requests) == 1


def test_a_second_run_asks_nothing(server: fake.FakeEndpoint, endpoint: Endpoint, job: Job) -> None:
    server.script = [fake.says("no"), fake.says(GOOD)]
    assert narrate_by_model(job, endpoint) == narrate_by_model(job, endpoint)
    assert len(server.requests) == 2
    server.default = fake.says(GOOD)
    assert narrate_by_model(replace(job, seed=1), endpoint) == GOOD
    assert len(server.requests) == 3


def test_many_are_narrated_at_a_time_and_in_order(
    server: fake.FakeEndpoint, endpoint: Endpoint, job: Job
) -> None:
    server.default = fake.says(GOOD, after=0.1)
    server.script = [fake.status(400, "no")]
    jobs = [replace(job, seed=100 * k, question=replace(QUESTION, id=f"q{k}")) for k in range(16)]
    started = time.monotonic()
    results = list(narrate_many(iter(jobs), lambda j: narrate_by_model(j, endpoint), workers=8))
    assert [j.question.id for j, _ in results] == [f"q{k}" for k in range(16)]
    failed = [r for _, r in results if isinstance(r, Exception)]
    assert len(failed) == 1
    assert "status 400" in str(failed[0])
    assert server.busiest > 3
    assert time.monotonic() - started < 16 * 0.1
    assert all(fault(r, QUESTION, 2) is None for _, r in results if isinstance(r, str))


def test_a_key_that_is_refused_ends_the_run(
    server: fake.FakeEndpoint, endpoint: Endpoint, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.default = fake.status(401)
    with pytest.raises(ConfigError, match="the endpoint answers 401"):
        list(narrate_many([job] * 3, lambda j: narrate_by_model(j, endpoint), workers=2))

    def full(job: Job) -> str:
        raise OutputError("no space")

    with pytest.raises(OutputError, match="no space"):
        list(narrate_many([job], full, workers=2))


def test_an_outage_fails_and_does_not_reject(server: fake.FakeEndpoint, endpoint: Endpoint, job: Job) -> None:
    server.default = fake.status(503)
    ((_, result),) = narrate_many([job], lambda j: narrate_by_model(j, endpoint), workers=2)
    assert isinstance(result, EndpointError)
    assert not isinstance(result, RejectedError)
