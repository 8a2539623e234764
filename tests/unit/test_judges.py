"""The HTTP judge against a server that hangs, lies, breaks off and answers."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

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
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1/"
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
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
            "500": answer(500, b"no"),
            "refused": answer(400, b"no"),
            "once": answer(503, b"busy") if before == 0 else answer(200, said("score = 0.25")),
        }
        writer.write(replies.get(kind, b""))
        await writer.drain()
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
