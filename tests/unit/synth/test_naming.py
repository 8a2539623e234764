"""Names of things: what a reply says, an endpoint with its faults, a checkpoint on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fourdthinker.errors import ConfigError
from fourdthinker.synth import naming
from fourdthinker.synth.clips import Clip, RejectError, write_jpeg
from fourdthinker.synth.context import Context
from fourdthinker.synth.functions import objects
from fourdthinker.synth.inputs import Source
from fourdthinker.synth.naming import Names, read_names
from fourdthinker.synth.narrate import BudgetError
from fourdthinker.synth.settings import SynthSettings, read_settings
from tests.tiny import tiny_checkpoint
from tests.unit.synth.narrate import fake_endpoint as fake


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"moving": "The red car", "still": null}', Names("red car", None)),
        ('Sure:\n```json\n{"moving": null, "still": "a  house"}\n```', Names(None, "house")),
    ],
)
def test_replies_that_are_names(text: str, found: Names) -> None:
    assert read_names(text) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a red car", "not one JSON object"),
        ('{"moving": "car"}', "not one JSON object"),
        ("{" * 5000, "not one JSON object"),
        ('{"moving": "<output_image>", "still": null}', '"moving" is no short noun phrase'),
        ('{"moving": "car\\n{x}", "still": null}', '"moving" is no short noun phrase'),
        ('{"moving": ["car"], "still": null}', '"moving" is no short noun phrase'),
        ('{"moving": "car", "still": "' + "x" * 41 + '"}', '"still" is no short noun phrase'),
        ('{"moving": "the car", "still": "Car"}', "both names are the same"),
    ],
)
def test_replies_that_are_none(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_names(text)


def context(out: Path, names: tuple[str, ...] = (), **settings: object) -> Context:
    frames = [f"media/c/{k}.jpg" for k in range(9)]
    (out / "media" / "c").mkdir(parents=True)
    for k, path in enumerate(frames):
        write_jpeg(out / path, np.full((56, 56, 3), 25 * k, np.uint8))
    clip = Clip("c", 0.0, 9.0, np.arange(9.0), np.zeros((9, 56, 56, 3), np.uint8), tuple(range(9)))
    source = Source("v", "", "d", "d", "v", objects=names)
    return Context(clip, source, SynthSettings(**settings), out, {"ingest": {"frames": frames}})  # type: ignore[arg-type]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.FakeEndpoint]:
    pytest.importorskip("openai", reason="the openai client is missing: pip install fourdthinker[synth]")
    with fake.running() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


GOOD = json.dumps({"moving": "a dog", "still": "the bench"})


def test_an_endpoint_names_things_once(server: fake.FakeEndpoint, tmp_path: Path) -> None:
    server.script = [fake.says("a dog"), fake.says(GOOD)]
    clip = context(tmp_path, namer_model="m")
    wanted = {"names": ["dog", "bench"], "moving": "dog", "from": "m"}
    assert objects(clip) == wanted
    first, second = (request["messages"][0]["content"] for request in server.requests)
    assert [part["type"] for part in first] == ["image_url"] * 6 + ["text"]
    assert "not one JSON object" in second[-1]["text"]
    assert objects(clip) == wanted
    assert len(server.requests) == 2  # replies are remembered


def test_an_endpoint_that_cannot_name_rejects_the_clip(server: fake.FakeEndpoint, tmp_path: Path) -> None:
    server.default = fake.says('{"moving": null, "still": null}')
    with pytest.raises(RejectError, match="names nothing"):
        objects(context(tmp_path / "a", namer_model="m"))
    server.default = fake.says("no idea")
    with pytest.raises(RejectError, match="the last of 3 replies"):
        objects(context(tmp_path / "b", namer_model="m"))
    server.default = fake.status(400)
    with pytest.raises(RejectError, match="refuses the pictures"):
        objects(context(tmp_path / "c", namer_model="m"))
    asked = len(server.requests)
    with pytest.raises(BudgetError):  # a failure: a run with more calls goes on
        objects(context(tmp_path / "d", namer_model="m", namer_max_calls=0))
    assert len(server.requests) == asked


def test_given_names_are_not_asked_for(server: fake.FakeEndpoint, tmp_path: Path) -> None:
    found = objects(context(tmp_path, ("cat",), namer_model="m"))
    assert found == {"names": ["cat"], "moving": "cat", "from": "given"}
    assert not server.requests


def test_a_checkpoint_names_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of random weights writes no JSON; that its text is read is what is tested."""
    from fourdthinker.backbones import save_checkpoint

    save_checkpoint(tmp_path / "weights", tiny_checkpoint())
    clip = context(tmp_path / "out", namer_weights=tmp_path / "weights")
    monkeypatch.setattr(naming, "_LONGEST", 3)
    with pytest.raises(RejectError, match="not one JSON object"):
        objects(clip)
    monkeypatch.setattr("fourdthinker.thinker.text_plain", lambda text: GOOD)
    assert objects(clip) == {"names": ["dog", "bench"], "moving": "dog", "from": "checkpoint"}


def test_one_of_both_names_things(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="namer_model and namer_weights are both given"):
        read_settings(None, namer_model="m", namer_weights=tmp_path)
