"""An OpenAI-compatible endpoint: a call that retries, keeps to limits, and remembers replies on the disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fourdthinker.errors import ConfigError, FourdError, install
from fourdthinker.files import make_folder, parse_json, write_bytes
from fourdthinker.synth.narrate.limits import Budget, BudgetError, RateLimit

log = logging.getLogger(__name__)

_LARGEST = 4 << 20  # bytes of a reply
_GIVES_UP = 16  # calls in a row without a reply, each of all its attempts, until no more are made
_ENVIRONMENT = "OPENAI_API_KEY and, unless it is OpenAI's own endpoint, OPENAI_BASE_URL"


class EndpointError(FourdError):
    """The endpoint gave no usable reply to any attempt. A later run may have more luck."""


class RefusedError(FourdError):
    """The endpoint will not answer this request: too long, a picture that it cannot read, its own rules."""


class EndpointSettings(BaseModel):
    """How an endpoint is used. Key and address come from the environment, and are written nowhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="name of the model")
    temperature: float = Field(0.7, ge=0, le=2, description="of sampling")
    max_tokens: int = Field(2048, ge=1, description="of a reply")
    timeout_s: float = Field(120.0, gt=0, description="for one attempt, however slowly its reply drips in")
    attempts: int = Field(6, ge=1, description="of a call; each waits about twice as long as the one before")
    backoff_s: float = Field(1.0, gt=0, description="before the second attempt, give or take a half")
    longest_backoff_s: float = Field(60.0, gt=0, description="before any attempt")
    per_minute: float = Field(300.0, gt=0, description="requests, over all threads")
    max_calls: int | None = Field(None, ge=0, description="requests of a run, attempts counted")
    budget: float | None = Field(None, ge=0, description="money of a run, in the unit of the prices")
    price_in: float = Field(0.0, ge=0, description="of a million tokens read")
    price_out: float = Field(0.0, ge=0, description="of a million tokens written")


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


class Endpoint:
    """Calls of one model. Threads share it."""

    def __init__(
        self,
        settings: EndpointSettings,
        cache: Path,
        *,
        base_url: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Connect to nothing yet.

        Args:
            settings: model, limits, patience.
            cache: folder of remembered replies.
            base_url: None: that of the environment.
            sleep: waits between attempts.

        Raises:
            ConfigError: no key in the environment.
            ImportError: the openai client is missing.
        """
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                f"narration by a model needs the openai client, which is not installed; {install('synth')}"
            ) from error
        if not os.environ.get("OPENAI_API_KEY"):
            raise ConfigError(f"no key for the endpoint; set {_ENVIRONMENT} in the environment")
        self.settings = settings
        self.budget = Budget(
            calls=settings.max_calls,
            money=settings.budget,
            price_in=settings.price_in,
            price_out=settings.price_out,
        )
        self._rate = RateLimit(settings.per_minute, sleep=sleep)
        self._sleep = sleep
        self._unanswered = 0  # calls in a row, over all threads
        self._cache = make_folder(cache)
        self._client = openai.OpenAI(base_url=base_url, timeout=settings.timeout_s, max_retries=0)

    def complete(self, messages: list[dict[str, Any]], *, seed: int = 0) -> Reply:
        """The reply to a conversation, from the cache if it was asked before.

        Args:
            messages: as the chat API has them.
            seed: of sampling, where the endpoint has one; another seed is another call.

        Returns:
            The reply.

        Raises:
            EndpointError: no attempt got a reply.
            RefusedError: the endpoint refuses this request.
            ConfigError: it refuses the key, or does not know the model.
            BudgetError: the budget is spent, or many calls in a row got no reply.
        """
        request = {
            "model": self.settings.model,
            "messages": messages,
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
            "seed": seed,
        }
        name = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        path = self._cache / name[:2] / f"{name}.json"
        known = _remembered(path)
        if known is not None:
            return known
        reply = self._attempts(request)
        make_folder(path.parent)
        write_bytes(path, json.dumps({"text": reply.text, "cut": reply.cut}).encode(), sync=False)
        return reply

    def _attempts(self, request: dict[str, Any]) -> Reply:
        reason = ""
        if self._unanswered >= _GIVES_UP:
            raise BudgetError(
                f"model {self.settings.model!r}: {self._unanswered} calls in a row got no reply, so no more "
                "are made; check the endpoint, and run the same command later"
            )
        for attempt in range(self.settings.attempts):
            if attempt:
                step = min(self.settings.longest_backoff_s, self.settings.backoff_s * 2 ** (attempt - 1))
                self._sleep(step * random.uniform(0.5, 1.5))
            self.budget.take()
            self._rate.wait()
            found = self._once(request)
            if isinstance(found, Reply):
                self._unanswered = 0
                return found
            reason = found
            log.debug("attempt %d of %d: %s", attempt + 1, self.settings.attempts, reason)
        self._unanswered += 1
        raise EndpointError(
            f"model {self.settings.model!r}: {self.settings.attempts} attempts failed, the last: {reason}; "
            "check the endpoint, or run the same command later"
        )

    def _once(self, request: dict[str, Any]) -> Reply | str:
        """One attempt: the reply, or why there is none and another attempt may bring one."""
        import httpx2
        import openai

        try:
            return self._read(self._stream(request))
        except openai.APITimeoutError:
            return f"no reply within {self.settings.timeout_s:g} s"
        except openai.APIStatusError as error:
            return self._status(error)
        except openai.APIConnectionError as error:
            return f"no connection ({error.__cause__ or error})"
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            return f"the reply broke off ({error})"
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return f"the reply is no chat completion ({type(error).__name__}: {error})"

    def _stream(self, request: dict[str, Any]) -> bytes:
        """The bytes of a reply; TimeoutError as ValueError when they drip in for too long."""
        deadline = time.monotonic() + self.settings.timeout_s
        data = bytearray()
        with self._client.chat.completions.with_streaming_response.create(**request) as response:
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > _LARGEST:
                    raise ValueError(f"longer than {_LARGEST >> 20} MiB")
                if time.monotonic() > deadline:
                    raise ValueError(f"not complete after {self.settings.timeout_s:g} s")
        return bytes(data)

    def _read(self, data: bytes) -> Reply:
        value = parse_json(data, finite=False)
        choice = value["choices"][0]
        text = choice["message"]["content"]
        usage = value.get("usage") or {}
        self.budget.spend(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        if not isinstance(text, str) or not text.strip():
            raise ValueError("it holds no text")
        return Reply(text, choice.get("finish_reason") == "length", cached=False)

    def _status(self, error: Any) -> str:
        """Why another attempt may help after an HTTP error status; raises where none will."""
        code, body = error.status_code, str(error.body or error)[:200]
        if code in (401, 403, 404):
            raise ConfigError(
                f"the endpoint answers {code} for model {self.settings.model!r} ({body}); check the model's "
                f"name, and {_ENVIRONMENT}"
            ) from error
        if code == 429 and "insufficient_quota" in body:
            raise ConfigError(f"the endpoint's own quota is spent ({body})") from error
        if code in (408, 409, 425, 429) or code >= 500:
            wait = error.response.headers.get("retry-after", "")
            if wait.isdigit():
                self._rate.pause(min(float(wait), self.settings.longest_backoff_s))
            return f"status {code}"
        raise RefusedError(f"the endpoint refuses the request with status {code} ({body})") from error


def _remembered(path: Path) -> Reply | None:
    try:
        value = parse_json(path.read_bytes())
        return Reply(str(value["text"]), bool(value["cut"]), cached=True)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged and is asked for once more", path)
        return None
