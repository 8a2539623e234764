"""The client against an endpoint over HTTP: retries, limits, cache; named errors, and it never hangs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the openai client is missing: pip install fourdthinker[synth]")

from fourdthinker.errors import ConfigError
from fourdthinker.synth.narrate import (
    BudgetError,
    Endpoint,
    EndpointError,
    EndpointSettings,
    RefusedError,
)
from fourdthinker.synth.narrate.limits import RateLimit
from tests.unit.synth.narrate import fake_endpoint as fake

KEY = "sk-secret-of-the-test"
ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.FakeEndpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake.running() as server:
        yield server


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def connect(server: fake.FakeEndpoint, tmp_path: Path, waits: list[float]) -> Any:
    def make(**settings: Any) -> Endpoint:
        settings = {"model": "m", "attempts": 4, "timeout_s": 5.0, "per_minute": 1e6, **settings}
        return Endpoint(
            EndpointSettings(**settings), tmp_path / "cache", base_url=server.url, sleep=waits.append
        )

    return make


def test_a_reply_is_asked_for_once(server: fake.FakeEndpoint, connect: Any) -> None:
    server.script = [fake.says("hi there")]
    endpoint = connect()
    assert endpoint.complete(ASK).text == "hi there"
    assert not endpoint.complete(ASK, seed=1).cached
    known = connect().complete(ASK)
    assert (known.text, known.cached) == ("hi there", True)
    assert len(server.requests) == 2
    assert (endpoint.budget.calls, endpoint.budget.tokens_in, endpoint.budget.tokens_out) == (2, 2000, 200)


@pytest.mark.parametrize(
    "fault",
    [
        fake.status(429),
        fake.status(500),
        fake.status(503),
        fake.silent,
        fake.dripping,
        fake.dripping_headers,
        fake.status(429, Retry_After="²"),
        fake.endless,
        fake.broken_off,
        fake.raw(b"<html>busy</html>"),
        fake.raw(b"[]"),
        fake.raw(b'{"choices": []}'),
        fake.raw(b'{"choices": [{"message": {"content": null}}]}'),
        fake.raw(b'{"choices": [{"message": {"content": {"deep": 1}}}]}'),
        fake.raw(b"\xff\xfe\x00"),
        fake.says("   "),
        fake.raw(fake.completion("a\ud800b")),
    ],
    ids=[
        "429",
        "500",
        "503",
        "silent",
        "dripping",
        "headers",
        "when",
        "endless",
        "broken",
        "html",
        "list",
        "empty",
        "null",
        "object",
        "bytes",
        "blank",
        "half",
    ],
)
def test_what_may_pass_is_tried_once_more(
    server: fake.FakeEndpoint, connect: Any, waits: list[float], fault: fake.Behaviour
) -> None:
    server.script = [fault, fault, fake.says("at last")]
    started = time.monotonic()
    assert connect(timeout_s=0.5).complete(ASK).text == "at last"
    assert time.monotonic() - started < 8
    assert len(server.requests) == 3
    assert 0.5 <= waits[0] <= 1.5
    assert 1.0 <= waits[1] <= 3.0


def test_waiting_grows_and_jitters_up_to_a_bound(
    server: fake.FakeEndpoint, connect: Any, waits: list[float]
) -> None:
    server.default = fake.status(500)
    with pytest.raises(EndpointError, match=r"model 'm': 8 attempts failed, the last: status 500; check"):
        connect(attempts=8, longest_backoff_s=10).complete(ASK)
    assert len(waits) == 7
    assert all(0.5 <= wait / min(10, 2**i) <= 1.5 for i, wait in enumerate(waits))
    assert len({round(wait / min(10, 2**i), 3) for i, wait in enumerate(waits)}) > 3


def test_the_endpoint_says_when(server: fake.FakeEndpoint, connect: Any, waits: list[float]) -> None:
    server.script = [fake.status(429, Retry_After="7"), fake.says("ok")]
    assert connect().complete(ASK).text == "ok"
    assert any(6 < wait <= 7 for wait in waits)


def test_an_endpoint_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: list[float]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    settings = EndpointSettings(model="m", attempts=2, timeout_s=0.5)
    endpoint = Endpoint(settings, tmp_path, base_url="http://127.0.0.1:9/v1", sleep=waits.append)
    with pytest.raises(EndpointError, match="2 attempts failed, the last: no connection"):
        endpoint.complete(ASK)


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        (fake.status(401), ConfigError, "answers 401 for model 'm' .*OPENAI_API_KEY"),
        (fake.status(404), ConfigError, "answers 404 for model 'm' .*check the model's name"),
        (fake.status(400, "too many images"), RefusedError, "status 400 .*too many images"),
        (fake.status(429, "insufficient_quota"), ConfigError, "own quota is spent"),
    ],
)
def test_what_no_attempt_can_mend_is_not_tried_again(
    server: fake.FakeEndpoint, connect: Any, behaviour: fake.Behaviour, error: type[Exception], message: str
) -> None:
    server.default = behaviour
    with pytest.raises(error, match=message) as raised:
        connect().complete(ASK)
    assert len(server.requests) == 1
    assert KEY not in str(raised.value)


def test_a_cut_reply_says_so(server: fake.FakeEndpoint, connect: Any) -> None:
    server.default = fake.says("half a", finish="length")
    assert connect().complete(ASK).cut
    assert connect().complete(ASK).cut  # remembered too


def test_the_budget_is_kept(server: fake.FakeEndpoint, connect: Any) -> None:
    endpoint = connect(max_calls=2)
    endpoint.complete(ASK)
    endpoint.complete(ASK, seed=1)
    with pytest.raises(BudgetError, match="2 calls are made, as many as max_calls allows"):
        endpoint.complete(ASK, seed=2)
    assert endpoint.complete(ASK).cached  # what is known costs nothing
    # 1000 and 100 tokens are 0.003 a call, of which the 10 to read are not 0.001 and the 100 to write are.
    money = connect(budget=0.004, price_in=2.0, price_out=10.0, max_tokens=100)
    money.complete(ASK, seed=3)
    assert money.budget.spent == pytest.approx(0.003)
    with pytest.raises(
        BudgetError, match=r"0\.003 is spent of a budget of 0\.004, and a call may cost 0\.0010"
    ):
        money.complete(ASK, seed=4)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "usage",
    [
        [1],
        "none",
        {"prompt_tokens": -1000, "completion_tokens": 1},
        {"prompt_tokens": 1e9, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": 10**15, "completion_tokens": 1},
        {"completion_tokens": 1},
    ],
)
def test_a_reply_that_hides_its_cost_costs_the_most(
    server: fake.FakeEndpoint, connect: Any, usage: Any
) -> None:
    server.default = fake.raw(fake.completion("hi", usage=usage))
    endpoint = connect(budget=0.0025, price_out=10.0, max_tokens=100)
    assert endpoint.complete(ASK).text == "hi"
    assert endpoint.complete(ASK, seed=1).text == "hi"
    assert endpoint.budget.spent == pytest.approx(0.002)
    with pytest.raises(BudgetError):
        endpoint.complete(ASK, seed=2)


def left_by_the_budget(endpoint: Endpoint, calls: int, messages: Any = ASK) -> list[int]:
    """Seeds of so many calls at a time, of those that the budget did not allow."""
    left = []

    def ask(seed: int) -> None:
        try:
            endpoint.complete(messages, seed=seed)
        except BudgetError:
            left.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return left


def test_the_budget_is_a_bound_while_many_calls_are_under_way(
    server: fake.FakeEndpoint, connect: Any
) -> None:
    server.default = fake.says("hi", after=0.05)
    # A call costs 0.002 at most, 0.001 as it turns out.
    endpoint = connect(budget=0.01, price_out=10.0, max_tokens=200)
    left = left_by_the_budget(endpoint, 16)
    assert endpoint.budget.spent == pytest.approx(0.009)  # a tenth call might have cost 0.002
    assert len(left) == 7


def test_what_a_picture_costs_is_learnt_from_the_first_reply(server: fake.FakeEndpoint, connect: Any) -> None:
    """Some models count tens of thousands of tokens a picture: eight calls at a time cost 0.64 of 0.2."""
    usage = {"prompt_tokens": 80_000, "completion_tokens": 1}
    server.default = fake.raw(fake.completion("hi", usage=usage))
    pictures = [{"type": "image_url", "image_url": {"url": "data:,"}}] * 2
    endpoint = connect(budget=0.2, price_in=1.0)
    left = left_by_the_budget(endpoint, 8, [{"role": "user", "content": pictures}])
    assert (len(left), len(server.requests)) == (6, 2)
    assert endpoint.budget.spent == pytest.approx(0.16)


def test_calls_are_bounded_while_some_wait_for_money(server: fake.FakeEndpoint, connect: Any) -> None:
    server.default = fake.says("hi", after=0.05)
    endpoint = connect(max_calls=2, budget=0.0021, price_out=10.0, max_tokens=100)  # one at a time
    left = left_by_the_budget(endpoint, 6)
    assert (endpoint.budget.calls, len(left), len(server.requests)) == (2, 4, 2)


def test_a_key_that_no_header_can_hold_is_named(
    server: fake.FakeEndpoint, monkeypatch: pytest.MonkeyPatch, connect: Any
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "“sk-pasted”")
    with pytest.raises(ConfigError, match=r"the endpoint cannot be asked .*check OPENAI_API_KEY") as raised:
        connect().complete(ASK)
    assert "pasted" not in str(raised.value)


def test_what_is_free_is_not_counted(server: fake.FakeEndpoint, connect: Any) -> None:
    server.default = fake.status(503)
    endpoint = connect(budget=0.002, price_out=10.0, max_tokens=100)
    with pytest.raises(EndpointError):
        endpoint.complete(ASK)
    assert endpoint.budget.spent == 0
    server.default = fake.broken_off
    with pytest.raises(BudgetError):  # what was sent of it may be charged
        endpoint.complete(ASK)
    assert endpoint.budget.spent == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://localhost:abc/v1", "address is none .*OPENAI_BASE_URL"),
        ("localhost:8000", "begin OPENAI_BASE"),
    ],
)
def test_an_address_that_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, message: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ConfigError, match=message):
        Endpoint(EndpointSettings(model="m"), tmp_path / "cache", base_url=address)
    assert not (tmp_path / "cache").exists()  # nothing is left in the folder of a run that did not begin


def test_an_endpoint_that_never_answers_is_given_up(server: fake.FakeEndpoint, connect: Any) -> None:
    endpoint = connect(attempts=1)
    server.script = [*[fake.status(500)] * 15, fake.says("hi"), *[fake.status(500)] * 16]
    for seed in range(32):
        if seed == 15:
            assert endpoint.complete(ASK, seed=seed).text == "hi"
            continue
        with pytest.raises(EndpointError):
            endpoint.complete(ASK, seed=seed)
    with pytest.raises(BudgetError, match=r"'m': 16 calls in a row got no reply, so no more are made; check"):
        endpoint.complete(ASK, seed=32)
    assert len(server.requests) == 32


def test_the_rate_is_that_of_all_threads(server: fake.FakeEndpoint, tmp_path: Path) -> None:
    endpoint = Endpoint(
        EndpointSettings(model="m", per_minute=60 / 0.05), tmp_path / "cache", base_url=server.url
    )
    threads = [threading.Thread(target=endpoint.complete, args=(ASK,), kwargs={"seed": k}) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.times) == 8
    assert max(server.times) - min(server.times) > 0.05 * 7 * 0.8


def test_a_pause_holds_everyone() -> None:
    now, slept = [100.0], []
    rate = RateLimit(60, now=lambda: now[0], sleep=slept.append)
    rate.wait()
    rate.pause(30)
    rate.wait()
    rate.wait()
    assert slept == [30.0, 31.0]


def test_the_key_is_written_nowhere(
    server: fake.FakeEndpoint, connect: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = [fake.status(500), fake.says("fine")]
    with caplog.at_level("DEBUG"):
        connect().complete(ASK)
    stored = list((tmp_path / "cache").rglob("*.json"))
    assert len(stored) == 1
    assert KEY not in caplog.text
    assert KEY.encode() not in stored[0].read_bytes()


def test_a_damaged_memory_is_asked_for_once_more(
    server: fake.FakeEndpoint, connect: Any, tmp_path: Path
) -> None:
    connect().complete(ASK)
    (stored,) = (tmp_path / "cache").rglob("*.json")
    stored.write_bytes(b'{"text": "ha')
    assert not connect().complete(ASK).cached
    assert json.loads(stored.read_bytes())["text"] == "nothing to say"


def test_without_a_key_nothing_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"no key for the endpoint; set OPENAI_API_KEY"):
        Endpoint(EndpointSettings(model="m"), tmp_path)
