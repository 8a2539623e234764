"""An OpenAI-compatible endpoint: a call that retries, keeps to limits, and remembers replies on the disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from fourdthinker.errors import ConfigError, FourdError, install
from fourdthinker.files import make_folder, parse_json, write_bytes
from fourdthinker.synth.narrate.limits import Budget, BudgetError, RateLimit
from fourdthinker.synth.narrate.reply import Reply, read_reply, size_of

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
            ConfigError: no key in the environment, or an address that cannot be.
            ImportError: the openai client is missing.
        """
        try:
            import httpx2  # what the client is made with
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
        self._cache = cache
        try:
            self._client = openai.OpenAI(base_url=base_url, timeout=settings.timeout_s, max_retries=0)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"the endpoint's address is none ({error}); check OPENAI_BASE_URL") from error
        if self._client.base_url.scheme not in ("http", "https"):
            raise ConfigError(
                f"the endpoint's address {str(self._client.base_url)!r} is none; "
                "begin OPENAI_BASE_URL with http:// or https://"
            )

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
            found = self._paid(request)
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

    def _paid(self, request: dict[str, Any]) -> Reply | str:
        """One attempt within the budget: what it may cost is held back, what it cost is counted."""
        size = size_of(request)
        most = self.budget.take(size)
        used = (0, 0)
        try:
            self._rate.wait()
            data, paid = self._once(request)
            if isinstance(data, str):
                used = most if paid else used
                return data
            used = most  # unless the reply tells
            reply, told = read_reply(data)
            used = told or most
            if told is not None:
                self.budget.learn(told[0], size.pictures)
            return reply
        finally:
            self.budget.settle(most, used)

    def _once(self, request: dict[str, Any]) -> tuple[bytes | str, bool]:
        """The bytes of a reply, or why there is none and another attempt may bring one; whether it costs."""
        import httpx2
        import openai

        late = threading.Event()
        try:
            return self._stream(request, late), True
        except openai.APIStatusError as error:
            return self._status(error), False
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError) as error:
            if late.is_set() or isinstance(error, openai.APITimeoutError):
                sent = not isinstance(error.__cause__, httpx2.ConnectTimeout)
                return f"no whole reply within {self.settings.timeout_s:g} s", sent
            if isinstance(error, openai.APIConnectionError):
                return f"no connection ({error.__cause__ or error})", False
            return f"the reply broke off ({error})", True
        except (ValueError, ImportError) as error:  # a key, host or proxy that HTTP cannot have
            raise ConfigError(
                f"the endpoint cannot be asked ({error}); check {_ENVIRONMENT}, and HTTPS_PROXY if it is set"
            ) from error

    def _stream(self, request: dict[str, Any], late: threading.Event) -> bytes | str:
        """The bytes of a reply, or why there is none.

        The connection is closed when the reply is not whole in time, and `late` set: the
        client's own time-out is of each read, so that a reply may drip in for ever, headers and all.
        """
        import openai

        data = bytearray()
        with openai.DefaultHttpxClient(timeout=self.settings.timeout_s) as http:

            def give_up() -> None:
                late.set()
                http.close()

            timer = threading.Timer(self.settings.timeout_s, give_up)
            timer.daemon = True
            timer.start()
            try:
                chat = self._client.with_options(http_client=http).chat.completions
                with chat.with_streaming_response.create(**request) as response:
                    for chunk in response.iter_bytes():
                        data += chunk
                        if len(data) > _LARGEST:
                            return f"the reply is longer than {_LARGEST >> 20} MiB"
            finally:
                timer.cancel()
        return bytes(data)

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
            if wait.isascii() and wait.isdigit():
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
