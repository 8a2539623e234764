"""The HTTP judge against a server that hangs, lies, breaks off and answers."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fourdthinker import judges
from fourdthinker.errors import ConfigError
from fourdthinker.judges import HttpJudge
from fourdthinker.reward_calls import RewardFailedError, call_reward, load_reward
from fourdthinker.rewards import Completion


def said(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def answer(status: int, body: bytes, *, chunked: bool = False) -> bytes:
    head = f"HTTP/1.1 {status} X\r\n".encode()
    if not chunked:
        return head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    parts = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]))
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"


class Server:
    """Answers by what the completion in the request says; counts requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1/"
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head.decode())
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        asked = json.loads(await reader.readexactly(length))
        self.requests.append(asked)
        kind = asked["messages"][0]["content"].rpartition("SAID ")[2].split()[0]
        before = sum(kind in one["messages"][0]["content"] for one in self.requests) - 1
        if kind == "hang":
            await asyncio.sleep(30)
        replies = {
            "good": answer(200, said("It is right.\nScore: 0.75")),
            "chunked": answer(200, said("**Score**: 0.5"), chunked=True),
            "bare": answer(200, said(" 1 ")),
            "lie": answer(200, said("Score: 100")),
            "nan": answer(200, said("Score: NaN")),
            "broken": answer(200, b"{"),
            "cut": answer(200, said("Score: 1"))[:-5],
            "statusless": b"HTTP/1.1\r\n\r\n",
            "wordy": b"HTTP/1.1 fine\r\n\r\n",
            "headed": b"HTTP/1.1 200 X\r\nX: " + b"x" * (70 << 10),
            "pieces": b"HTTP/1.1 200 X\r\n\r\n" + said("Score: 0.5 ")[:-9],
            "endless": b"HTTP/1.1 200 X\r\n\r\n" + said("Score: 1 " + "x" * 4000),
            "deep": answer(200, b"[" * 100_000),
            "500": answer(500, b"no"),
            "refused": answer(400, b"no"),
            "unauthorised": answer(401, b"no"),
            "once": answer(503, b"busy") if before == 0 else answer(200, said("score = 0.25")),
        }
        writer.write(replies.get(kind, b""))
        await writer.drain()
        if kind == "pieces":
            await asyncio.sleep(0.05)
            writer.write(said("Score: 0.5 ")[-9:])
        writer.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def completion(kind: str) -> Completion:
    record = SimpleNamespace(id=kind, where="f.jsonl:1", question="Where {completion}?", extra={})
    record.options, record.answer = {"A": "left"}, "A"
    return Completion(f"SAID {kind} ", record, 1, "eos", torch.zeros(1), torch.zeros(0, 4), 9)


def judge(server: Server, **arguments: Any) -> Any:
    given = {"url": server.url, "model": "m", "timeout": 0.5, "backoff": 0.001, "attempts": 2} | arguments
    return load_reward("fourdthinker.judges:HttpJudge", given)


def test_what_goes_wrong_costs_its_completion_and_nothing_else(server: Server) -> None:
    kinds = ["good", "hang", "lie", "chunked", "nan", "500", "refused", "bare", "broken", "cut", "once"]
    began = time.perf_counter()
    scores = call_reward(judge(server), [completion(kind) for kind in kinds], timeout=20.0, concurrency=4)
    assert time.perf_counter() - began < 15
    values = dict(zip(kinds, scores.values, strict=True))
    assert {kind: value for kind, value in values.items() if value is not None} == {
        "good": 0.75,
        "chunked": 0.5,
        "bare": 1.0,
        "once": 0.25,
    }
    assert all(isinstance(error, RewardFailedError) for error in scores.failures.values())
    reasons = {kinds[row]: str(error) for row, error in scores.failures.items()}
    assert "no reply within 0.5 s" in reasons["hang"]
    assert "score 100 is not within 0 and 1" in reasons["lie"]
    assert "holds no score" in reasons["nan"]
    assert "status 500" in reasons["500"]
    assert "status 400" in reasons["refused"]
    texts = [one["messages"][0]["content"] for one in server.requests]
    assert sum("SAID 500" in text for text in texts) == 2, "as many attempts as allowed"
    assert sum("SAID refused" in text for text in texts) == 1, "another attempt would be refused too"
    assert "Where {completion}?" in texts[0], "data fill no slots"
    assert "Right answer: left" in texts[0]


@pytest.mark.parametrize(("answer", "told"), [("4", "4"), (None, "not known")])
def test_the_right_answer_of_an_open_question_is_sent(server: Server, answer: str | None, told: str) -> None:
    one = completion("bare")
    one.record.options, one.record.answer = {}, answer
    assert call_reward(judge(server), [one]).values == [1.0]
    assert f"Right answer: {told}\n" in server.requests[-1]["messages"][0]["content"]


def test_without_a_server_there_is_no_score() -> None:
    reward = load_reward(
        "fourdthinker.judges:HttpJudge",
        {"url": "http://127.0.0.1:9", "model": "m", "attempts": 2, "backoff": 0.001},
    )
    (error,) = call_reward(reward, [completion("good")], timeout=20.0).failures.values()
    assert "no reply" in str(error)


@pytest.mark.parametrize(
    "arguments", [{"url": "localhost:80"}, {"low": 1.0}, {"timeout": 0}, {"attempts": 0}, {"backoff": -1}]
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"url is|must be below high"):
        HttpJudge(**{"url": "http://localhost", "model": "m"} | arguments)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("statusless", "'HTTP/1.1' is no status line"),
        ("wordy", "'HTTP/1.1 fine' is no status line"),
        ("headed", "no reply (LimitOverrunError"),
        ("endless", "more than 2000 bytes"),
        ("deep", "holds no score"),
    ],
)
def test_a_reply_that_is_none_costs_its_completion(
    server: Server, kind: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "_LARGEST", 200_000 if kind == "deep" else 2000)
    (error,) = call_reward(judge(server, attempts=1, timeout=20), [completion(kind)]).failures.values()
    assert isinstance(error, RewardFailedError)
    assert reason in str(error)


def test_a_reply_without_a_length_is_read_to_its_end(server: Server) -> None:
    assert call_reward(judge(server, timeout=20), [completion("pieces")]).values == [0.5]


def test_a_judge_that_hangs_longer_than_the_run_waits_is_given_up(server: Server) -> None:
    patient = judge(server, timeout=30.0, attempts=3)
    (error,) = call_reward(patient, [completion("hang")], timeout=0.1).failures.values()
    assert "no answer within 0.1 seconds" in str(error)


def test_the_score_is_looked_for_at_the_end_and_in_linear_time(server: Server) -> None:
    made = judge(server).function
    assert made._score(said("Score: 7\n" + "score: - " * 600 + '"score": ** 0.5 **')) == 0.5
    began = time.perf_counter()
    for text in ("Score: 1\n" + "x" * 5000, "score:" + " " * 40_000 + "x", "score" + " " * 4000):
        with pytest.raises(RewardFailedError, match="holds no score"):
            made._score(said(text))
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("text", "score"),
    [("Score: .5", 0.5), ("Score: 5e-1.", 0.5), ("Score: 0.5, as 3 of 6 hold", 0.5), (" 1e-1 ", 0.1)]
    + [
        (text, None)
        for text in ("Score: 1/10", "Score: 0,9", "Score: 1%", "Score: 0-1", "Score: 1e-3/10", "1 / 2")
    ],
)
def test_a_number_is_read_whole_or_not_at_all(server: Server, text: str, score: float | None) -> None:
    read = judge(server).function._score
    if score is not None:
        assert read(said(text)) == score
        return
    with pytest.raises(RewardFailedError, match="holds no score"):
        read(said(text))


def test_the_judge_sees_the_options_and_leaves_the_runs_random_numbers(server: Server) -> None:
    before, asked = random.getstate(), len(server.requests)
    assert call_reward(judge(server), [completion("500")]).values == [None]
    assert random.getstate() == before
    assert "Where {completion}?\n\nA. left\n" in server.requests[asked]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("url", "target", "host", "key"),
    [
        ("http://127.0.0.1:{}/v1/", "/v1/chat/completions", "127.0.0.1:{}", True),
        ("http://localhost:{}", "/chat/completions", "localhost:{}", True),
        ("http://[::1]:{}/v1/chat/completions/", "/v1/chat/completions", "[::1]:{}", True),
        ("http://judge.example:{}/v1?version=2", "/v1/chat/completions?version=2", "judge.example:{}", False),
        ("http://10.1.2.3:{}/v1", "/v1/chat/completions", "10.1.2.3:{}", False),
    ],
)
def test_where_requests_and_keys_go(
    server: Server, url: str, target: str, host: str, key: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, port = asyncio.open_connection, server.url.split(":")[2].split("/")[0]
    monkeypatch.setenv("JUDGE_KEY", " secret\n")
    monkeypatch.setattr(asyncio, "open_connection", lambda _, *others, **more: connect("127.0.0.1", port))
    made = judge(server, url=url.format(port), key_variable="JUDGE_KEY", timeout=20, attempts=1)
    (error,) = call_reward(made, [completion("unauthorised")]).failures.values()
    assert ("the key in JUDGE_KEY is sent over https" in str(error)) != key
    lines = server.heads[-1].split("\r\n")
    assert lines[:2] == [f"POST {target} HTTP/1.1", f"Host: {host.format(port)}"]
    assert ("Authorization: Bearer secret" in lines) == key
    assert ("secret" in server.heads[-1]) == key


def test_a_key_goes_over_https_and_never_into_headers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judges._address("https://judge.example").keeps_secrets
    monkeypatch.setenv("JUDGE_KEY", "a\r\nX-Other: b")
    with pytest.raises(ConfigError, match="the key in JUDGE_KEY holds characters"):
        HttpJudge(url="http://localhost", model="m", key_variable="JUDGE_KEY")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"url": 5}, "url is 5"),
        ({"url": "http://localhost:99999"}, "Port out of range"),
        ({"url": "http://local host/v1"}, "url is"),
        ({"url": "http://me:secret@localhost/v1"}, "holds a user, a password or a fragment"),
        ({"url": "http://localhost/v1#top"}, "holds a user, a password or a fragment"),
        ({"attempts": 2.5}, "attempts is 2.5; give a whole number"),
        ({"attempts": True}, "attempts is True; give a whole number"),
        ({"timeout": "30"}, "timeout is '30'; give a number"),
        ({"high": float("inf")}, "all finite"),
        ({"max_tokens": 0}, "max_tokens 1 or more"),
        ({"model": None}, "must be text"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        HttpJudge(**{"url": "http://localhost", "model": "m"} | arguments)
    assert "secret" not in str(raised.value)
