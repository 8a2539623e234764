"""Arguments of the reading functions: what they are read as, or ConfigError with the value and the remedy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from numbers import Integral
from reprlib import repr as short
from typing import Any

import torch

from fourdthinker.errors import ConfigError
from fourdthinker.frames.policy import FASTEST, RESAMPLES, FramePolicy

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def whole(label: str, value: Any, least: int, remedy: str) -> int:
    """A whole number, not below the least.

    Args:
        label: the argument, in messages.
        value: what was given.
        least: the lowest that is taken.
        remedy: what to give instead, in messages.

    Raises:
        ConfigError: another value.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{label} is {short(value)}; {remedy}")
    return int(value)


def number(label: str, value: Any, remedy: str) -> float:
    """A number, which may be infinite; text that reads as one is none.

    Args:
        label: the argument, in messages.
        value: what was given.
        remedy: what to give instead, in messages.

    Raises:
        ConfigError: another value.
    """
    try:
        found = math.nan if isinstance(value, (str, bytes, bytearray)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor without data
        found = math.nan
    if math.isnan(found):
        raise ConfigError(f"{label} is {short(value)}; {remedy}")
    return found


def numbers(label: str, values: Any, remedy: str) -> list[float]:
    """A sequence of finite numbers."""
    if isinstance(values, (str, bytes, bytearray)) or not isinstance(values, Iterable):
        raise ConfigError(f"{label} is {short(values)}; {remedy}")
    try:
        found = list(values)
    except TypeError as error:  # an array without dimensions
        raise ConfigError(f"{label} is {short(values)}; {remedy}") from error
    for index, value in enumerate(found):
        found[index] = number(f"{label}[{index}]", value, remedy)
        if math.isinf(found[index]):
            raise ConfigError(f"{label}[{index}] is {short(value)}; {remedy}")
    return found


def normalisation_of(mean: Any, std: Any, dtype: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of the normalisation of patches in this dtype."""
    three = "give three finite numbers, one for each of red, green and blue"
    parts = tuple(numbers("mean", mean, three)), tuple(numbers("std", std, f"{three}, above 0"))
    for label, values, given in (("mean", parts[0], mean), ("std", parts[1], std)):
        if len(values) != 3:
            raise ConfigError(f"{label} is {short(given)}; {three}")
    if min(parts[1]) <= 0:
        raise ConfigError(f"std is {short(std)}; {three}, above 0")
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        names = ", ".join(str(known) for known in DTYPES)
        raise ConfigError(f"dtype is {short(dtype)}; choose one of {names}")
    return parts


def device_of(device: Any) -> torch.device:
    """The CPU, or a CUDA device that torch has."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"device is {short(device)}; use 'cpu', 'cuda' or 'cuda:N'") from error
    if found.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {str(found)!r}; use 'cpu' or 'cuda', and move what is read with .to()")
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"device is {str(found)!r}, and torch finds no CUDA device (fourdthinker doctor shows what "
                "there is); use 'cpu'"
            )
        count = torch.cuda.device_count()
        if found.index is not None and found.index >= count:
            raise ConfigError(f"device is {str(found)!r}; torch has {count}, from 'cuda:0' on")
    return found


def above_zero(label: str, value: Any, remedy: str, *, finite: bool = True) -> float:
    """A number above 0.

    Args:
        label: the argument, in messages.
        value: what was given.
        remedy: what to give instead, in messages.
        finite: refuse infinity too.

    Raises:
        ConfigError: another value.
    """
    found = number(label, value, remedy)
    if found <= 0 or (finite and math.isinf(found)):
        raise ConfigError(f"{label} is {short(value)}; {remedy}")
    return found


def frame_rate(value: Any, remedy: str) -> float:
    """The argument `fps`: above 0 and at most `FASTEST`.

    Args:
        value: what was given.
        remedy: what to give instead, in messages.

    Raises:
        ConfigError: another value.
    """
    found = above_zero("fps", value, remedy)
    if found > FASTEST:
        raise ConfigError(f"fps is {short(value)}; {remedy}")
    return found


def path_of(label: str, value: Any, remedy: str) -> str:
    """The text of a path."""
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(found, str):
        raise ConfigError(f"{label} is {short(value)}; {remedy}")
    return found


def out_of(out: Any) -> str:
    """ "uint8" or "patches"."""
    if out not in ("uint8", "patches"):
        raise ConfigError(f"out is {short(out)}; choose 'uint8' or 'patches'")
    return str(out)


def size_of(size: Any) -> tuple[int, int]:
    """(height, width) of a picture to be made."""
    remedy = "give (height, width), two whole numbers above 0"
    parts = tuple(size) if isinstance(size, Iterable) else ()
    if len(parts) != 2:
        raise ConfigError(f"size is {short(size)}; {remedy}")
    return whole("size[0]", parts[0], 1, remedy), whole("size[1]", parts[1], 1, remedy)


def resample_of(resample: Any) -> str:
    """The name of a known resampling filter."""
    if resample not in RESAMPLES:
        raise ConfigError(f"resample is {short(resample)}; choose one of {', '.join(RESAMPLES)}")
    return str(resample)


def policy_of(policy: Any) -> FramePolicy:
    """None: the default."""
    if policy is None:
        return FramePolicy()
    if not isinstance(policy, FramePolicy):
        raise ConfigError(f"policy is {short(policy)}; give a FramePolicy (FramePolicy.from_dict makes one)")
    return policy
