"""What a run may ask of an endpoint: so many requests a minute, so many calls, so much money."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fourdthinker.errors import FourdError


class BudgetError(FourdError):
    """Nothing more is asked in this run: its budget is spent, or the endpoint answers nothing at all.

    What is left to do is done by a later run.
    """


class RateLimit:
    """Requests of all threads, evenly spaced."""

    def __init__(
        self,
        per_minute: float,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._interval_s = 60.0 / per_minute
        self._now, self._sleep = now, sleep
        self._next = -float("inf")
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next request may go out."""
        with self._lock:
            turn = max(self._next, self._now())
            self._next = turn + self._interval_s
        delay = turn - self._now()
        if delay > 0:
            self._sleep(delay)

    def pause(self, seconds: float) -> None:
        """Let no request out for so long: the endpoint has said so, to whichever thread."""
        with self._lock:
            self._next = max(self._next, self._now() + seconds)


class Budget:
    """Calls and money that a run may still spend, over all threads."""

    def __init__(self, *, calls: int | None, money: float | None, price_in: float, price_out: float) -> None:
        self.calls, self.tokens_in, self.tokens_out = 0, 0, 0
        self._most_calls, self._most_money = calls, money
        self._prices = (price_in / 1e6, price_out / 1e6)
        self._lock = threading.Lock()

    @property
    def spent(self) -> float:
        """Money, at the prices of a million tokens that were given."""
        return self.tokens_in * self._prices[0] + self.tokens_out * self._prices[1]

    def take(self) -> None:
        """Count a call that is about to be made.

        Raises:
            BudgetError: no call, or no money, is left.
        """
        with self._lock:
            if self._most_calls is not None and self.calls >= self._most_calls:
                raise BudgetError(
                    f"{self.calls} calls are made, as many as max_calls allows; raise it to go on"
                )
            if self._most_money is not None and self.spent >= self._most_money:
                raise BudgetError(
                    f"{self.spent:.2f} is spent of a budget of {self._most_money:.2f}; raise budget to go on"
                )
            self.calls += 1

    def spend(self, tokens_in: int, tokens_out: int) -> None:
        """Count the tokens of a reply."""
        with self._lock:
            self.tokens_in += tokens_in
            self.tokens_out += tokens_out
