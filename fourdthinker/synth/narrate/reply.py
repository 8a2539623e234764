"""What a call of an endpoint may cost, and what its reply says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fourdthinker.files import parse_json
from fourdthinker.synth.narrate.limits import Size

_TOKENS = 1 << 40  # of a call; more is no count


@dataclass(frozen=True)
class Reply:
    """What the model wrote.

    Attributes:
        text: the reply.
        cut: whether it ended because of max_tokens.
        cached: whether it was remembered, and cost nothing.
    """

    text: str
    cut: bool
    cached: bool


def size_of(request: dict[str, Any]) -> Size:
    """How large a call is, as far as that can be told without its tokenizer.

    Args:
        request: as the chat API has it.

    Returns:
        Its size; of its text one token for two bytes, about twice what English needs.
    """
    text = pictures = 0
    for message in request["messages"]:
        content = message["content"]
        for part in [{"text": content}] if isinstance(content, str) else content:
            if "text" in part:
                text += len(part["text"].encode()) // 2 + 8
            else:
                pictures += 1
    return Size(text, pictures, int(request["max_tokens"]))


def read_reply(data: bytes) -> tuple[Reply | str, tuple[int, int] | None]:
    """A reply, of which nothing is trusted.

    Args:
        data: what the endpoint sent.

    Returns:
        The reply, or why it is none; and the tokens read and written, None where it does not say or says
        what cannot be.
    """
    try:
        value = parse_json(data, finite=False)
    except ValueError as error:
        return _none(error), None
    try:
        return _reply(value), _usage(value)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return _none(error), _usage(value)


def _none(error: Exception) -> str:
    return f"the reply is no chat completion ({type(error).__name__}: {error})"


def _reply(value: Any) -> Reply:
    choice = value["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError("it holds no text")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("it holds half a character")
    return Reply(text, "finish_reason" in choice and choice["finish_reason"] == "length", cached=False)


def _usage(value: Any) -> tuple[int, int] | None:
    usage = value.get("usage") if isinstance(value, dict) else None
    if not isinstance(usage, dict):
        return None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(read) is not int or type(written) is not int:
        return None
    return (read, written) if 0 <= read <= _TOKENS and 0 <= written <= _TOKENS else None
