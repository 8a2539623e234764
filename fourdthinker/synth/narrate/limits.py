"""What a run may ask of an endpoint: so many requests a minute, so many calls, so much money."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fourdthinker.errors import FourdError

# Tokens of a picture until a reply tells. The largest of the usual rules: 85, and 170 for each tile of 512
# pixels once the shorter side is 768 and the longer at most 2048, so for 8 tiles. Qwen-VL's rule, a token for
# 28 x 28 pixels, gives 256 for the largest picture that is sent. Some models count many times as much.
PICTURE = 85 + 170 * 8


@dataclass(frozen=True)
class Size:
    """What of a call is known before it: most tokens of its text, pictures, most tokens of its reply."""

    text: int
    pictures: int
    written: int


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
    """Calls and money that a run may still spend, over all threads.

    A call is let out only where its most would still be within the budget, so that the budget is a bound
    also while many calls are under way. What a picture may cost is learnt from the replies, of which the
    first is waited for: only that call can cost more than was thought.
    """

    def __init__(self, *, calls: int | None, money: float | None, price_in: float, price_out: float) -> None:
        self.calls, self.tokens_in, self.tokens_out = 0, 0, 0
        self._most_calls, self._most_money = calls, money
        self._prices = (price_in / 1e6, price_out / 1e6)
        self._reserved = 0.0  # money, of calls under way
        self._picture = PICTURE  # tokens at most, as far as is known
        self._answered = False  # whether any call has cost something
        self._changed = threading.Condition()

    @property
    def spent(self) -> float:
        """Money, at the prices of a million tokens that were given."""
        return self._price(self.tokens_in, self.tokens_out)

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        return tokens_in * self._prices[0] + tokens_out * self._prices[1]

    def take(self, size: Size) -> tuple[int, int]:
        """Count a call that is about to be made, and hold back the money for it until `settle`.

        Waits for calls under way where it depends on what they cost.

        Args:
            size: of the call.

        Returns:
            The most tokens that it may read and write.

        Raises:
            BudgetError: no call, or not enough money, is left.
        """
        with self._changed:
            while True:
                tokens = size.text + size.pictures * self._picture, size.written
                most = self._price(*tokens)
                if self._most_money is None or not self._reserved:
                    break
                if self._answered and self.spent + self._reserved + most <= self._most_money:
                    break
                self._changed.wait()
            if self._most_calls is not None and self.calls >= self._most_calls:
                raise BudgetError(
                    f"{self.calls} calls are made, as many as max_calls allows; raise it to go on"
                )
            if self._most_money is not None and self.spent + most > self._most_money:
                raise BudgetError(
                    f"{self.spent:.4g} is spent of a budget of {self._most_money:g}, and a call may cost "
                    f"{most:.4g}; raise budget to go on"
                )
            self.calls += 1
            self._reserved += most
            return tokens

    def learn(self, read: int, pictures: int) -> None:
        """Take a picture for no less than it can have cost in a call that read so many tokens."""
        with self._changed:
            if pictures:
                self._picture = max(self._picture, -(-read // pictures))

    def settle(self, most: tuple[int, int], used: tuple[int, int]) -> None:
        """Count the tokens of a call that has ended.

        Args:
            most: as `take` returned them.
            used: tokens read and written.
        """
        with self._changed:
            # what calls under way hold back is a sum of floats; nothing of it may stay when none is
            self._reserved = max(0.0, self._reserved - self._price(*most))
            self._reserved = 0.0 if self._reserved < 1e-12 else self._reserved
            self._answered = self._answered or used != (0, 0)
            self.tokens_in += used[0]
            self.tokens_out += used[1]
            self._changed.notify_all()
