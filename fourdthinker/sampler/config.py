"""How to sample: the settings, checked when they are made, and the seed of a row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from fourdthinker.errors import ConfigError
from fourdthinker.kernels import SAMPLING_LIMITS

MODES = ("exact", "reference")
_FLOAT32_MAX = 3.4e38
_UNUSUAL = {
    "top_p": 0,
    "min_p": 1,
}  # only the likeliest id, which is temperature 0: meant as "off", if at all


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of one call of the sampler.

    Attributes:
        max_new_tokens: ids that a row may emit at most, latent pads, START and END included.
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        min_p: 0 is off.
        presence_penalty: subtracted once from the logits of ids that the row has emitted; 0 is off.
        repetition_penalty: divides the logits of ids of prompt and row (multiplies negative ones); 1 is off.
        mode: "exact": a block always has K latents. "reference": the model may end a block early, as in the
            published code; for parity and generation only.
        max_blocks: START is forbidden after this many blocks; 0 is text only.
        stop_strings: a row ends with the first id after which its decoded text contains one of these.
        eos_ids: ids that end a row; empty: the checkpoint's.
        train_start: whether START counts as chosen by the policy (`Rollout.policy_mask`).
        seed: rows without seeds of their own get one from this, the prompt's index and the sample's.

    Raises:
        ConfigError: a value out of range; names the value and the range.
    """

    max_new_tokens: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    mode: str = "exact"
    max_blocks: int = 8
    stop_strings: tuple[str, ...] = ()
    eos_ids: tuple[int, ...] = ()
    train_start: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("top_k", 0), ("max_blocks", 0)):
            value = getattr(self, name)
            self._require(name, _is_int(value) and least <= value < 2**31, f"an integer in [{least}, 2^31)")
        in_64_bits = _is_int(self.seed) and -(2**63) <= self.seed < 2**63
        self._require("seed", in_64_bits, "an integer in [-2^63, 2^63)")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"):
            value = getattr(self, name)
            off, low, high, wanted = SAMPLING_LIMITS[name]
            if name in _UNUSUAL:
                wanted = f"{wanted}, and not {_UNUSUAL[name]:g}"
            good = _finite(value) and (value == off or low <= value <= high) and value != _UNUSUAL.get(name)
            self._require(name, good, wanted)
        self._require("mode", self.mode in MODES, f"one of {', '.join(MODES)}")
        for name, good, wanted in (
            ("stop_strings", lambda x: isinstance(x, str) and x != "", "a tuple of texts that are not empty"),
            ("eos_ids", lambda x: _is_int(x) and 0 <= x < 2**31, "a tuple of token ids >= 0"),
        ):
            value = getattr(self, name)
            right = isinstance(value, (tuple, list)) and all(good(x) for x in value)
            self._require(name, right, f"{wanted}, also when there is only one")
            object.__setattr__(self, name, tuple(value))

    def _require(self, name: str, good: bool, wanted: str) -> None:
        if not good:
            raise ConfigError(f"sampling: {name} is {_shown(getattr(self, name))}; it must be {wanted}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """ConfigError for what is no integer in [least, 2^31).

    Args:
        name: of the argument, for the message.
        value: what was given.
        least: the lowest that is taken.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) < 2**31:
        raise ConfigError(f"{name} is {_shown(value)}; it must be an integer in [{least}, 2^31)")


def _shown(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no longer ones
        return "a number of more than 4,300 digits"


def seed_of(text: str) -> int:
    """A seed from a text; the same on every machine.

    Args:
        text: names what is drawn.

    Returns:
        A hash of it, in [0, 2^63).
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def row_seed(seed: int, prompt: int, sample: int) -> int:
    """The seed of one row that is given none of its own.

    Args:
        seed: of the call.
        prompt: index of the prompt.
        sample: number of the sample of that prompt.

    Returns:
        A hash of the three, in [0, 2^63).
    """
    return seed_of(f"{seed}/{prompt}/{sample}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -_FLOAT32_MAX <= value <= _FLOAT32_MAX  # type: ignore[operator]  # NaN is not
