"""Alarms: what in a line of metrics says that a run goes wrong, and what to do about it.

A number that is NaN is alarming, and so comparisons ask for what is well.

A check takes a line and the lines before it, and says what is wrong, or nothing. Lines before it come from
the state of the run, so that one that goes on has them too.
"""

from __future__ import annotations

import itertools
import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fourdthinker.reward_runs import MOST_HANGING

logger = logging.getLogger(__name__)

Line = Mapping[str, float]
_REPEAT = 50  # lines after which an alarm that lasts is given once more


class Alarm(NamedTuple):
    """A check of a line of metrics.

    Attributes:
        name: of the alarm.
        metric: without it a line tells nothing of this alarm: updates that train on rollouts of an earlier
            one have no metrics of rollouts.
        check: what is wrong, from the line and those before it; None: nothing.
        remedy: what to do.
    """

    name: str
    metric: str
    check: Callable[[Line, Sequence[Line]], str | None]
    remedy: str


def _sampler_difference(line: Line, _: Sequence[Line]) -> str | None:
    difference = line["sampler_gap"]
    return f"sampler and trainer differ by {difference:.2g} nats a token" if not difference <= 0.05 else None


def _kl(line: Line, _: Sequence[Line]) -> str | None:
    kl = line["kl"]
    return f"the KL estimate to the reference model is {kl:.2g} nats a token" if not kl <= 0.5 else None


def _norm(line: Line, before: Sequence[Line]) -> str | None:
    # 0: nothing was trained, or the update was skipped.
    usual = [one["grad_norm"] for one in before[-50:] if one.get("grad_norm", 0.0) > 0]
    norm = line["grad_norm"]
    if len(usual) < 10 or norm <= 10 * statistics.median(usual):
        return None
    return f"the norm of the gradient is {norm:.3g}, and {statistics.median(usual):.3g} in the lines before"


def _length(line: Line, before: Sequence[Line]) -> str | None:
    known = (one["completion_length"] for one in before if "completion_length" in one)
    first = list(itertools.islice(filter(math.isfinite, known), 10))
    length = line["completion_length"]
    if len(first) < 10 or length >= 0.25 * statistics.fmean(first):
        return None
    return f"rollouts have {length:.0f} tokens, and had {statistics.fmean(first):.0f} at the beginning"


def _equal_groups(line: Line, _: Sequence[Line]) -> str | None:
    return "in every group all rewards are equal: nothing is learnt" if line["equal_groups"] == 1 else None


def _empty_blocks(line: Line, _: Sequence[Line]) -> str | None:
    share = line["empty_blocks"]
    return f"in {share:.0%} of the blocks END is right behind START" if not share <= 0 else None


def _no_blocks(line: Line, _: Sequence[Line]) -> str | None:
    return "no rollout opened a block" if line["latents"] == 0 and line.get("blocks_allowed") else None


def _one_direction(line: Line, _: Sequence[Line]) -> str | None:
    length = line["latent_direction"]
    return f"the mean of the latents' directions has length {length:.3f}" if not length <= 0.99 else None


def _failed_rewards(line: Line, _: Sequence[Line]) -> str | None:
    share = line["failed_rewards"]
    return f"the rewards of {share:.0%} of the rollouts failed" if not share <= 0.2 else None


def _hanging_rewards(line: Line, _: Sequence[Line]) -> str | None:
    number = line["hanging_rewards"]
    return f"{number:.2g} calls of rewards a process are given up and hang" if not number <= 0 else None


ALARMS = (
    Alarm(
        "sampler_gap",
        "sampler_gap",
        _sampler_difference,
        "set loss.sampler_cap=2, run sampler and trainer in the same precision, and look for options that "
        "change the model between them (lora.dropout, attention)",
    ),
    Alarm("kl", "kl", _kl, "raise loss.beta, or lower learning_rate"),
    Alarm(
        "grad_norm",
        "grad_norm",
        _norm,
        "lower learning_rate or max_grad_norm, and look at the records of this update",
    ),
    Alarm(
        "completion_length",
        "completion_length",
        _length,
        "look at rollouts.jsonl for answers without reasoning; raise loss.beta, or reward the format",
    ),
    Alarm(
        "equal_groups",
        "equal_groups",
        _equal_groups,
        "set refill_rounds=3 or higher, choose records that the model solves at times, or raise "
        "num_generations or temperature",
    ),
    Alarm(
        "empty_blocks",
        "empty_blocks",
        _empty_blocks,
        "blocks must hold latents: sample with this package's grammar, and check latent_start_id, "
        "latent_pad_id and latent_end_id of the checkpoint",
    ),
    Alarm(
        "no_blocks",
        "latents",
        _no_blocks,
        "begin with a checkpoint that DIFT has taught to open blocks, set train_start=true, or "
        "max_blocks=0 if text alone is wanted",
    ),
    Alarm(
        "latent_direction",
        "latent_direction",
        _one_direction,
        "the latents have collapsed to one direction and hold nothing: in 4DRL set latent_term=cosine or "
        "raise loss.beta, in DIFT raise sim_loss_weight; or go back to an earlier checkpoint",
    ),
    Alarm(
        "failed_rewards",
        "failed_rewards",
        _failed_rewards,
        "look at the warnings for the first failure of each reward; check the judge, or raise reward_timeout",
    ),
    Alarm(
        "hanging_rewards",
        "hanging_rewards",
        _hanging_rewards,
        f"a function of which {MOST_HANGING} hang on a process is not called until one comes back: give it "
        "a time-out of its own, or write it as async def, and let it end when it is cancelled",
    ),
)


@dataclass
class Alarms:
    """The alarms of a run."""

    _given: dict[str, int] = field(default_factory=dict)  # name -> lines until it is given once more

    def check(self, line: Line, before: Sequence[Line]) -> int:
        """Warn of what is wrong, at once and then now and then as long as it lasts.

        Args:
            line: of metrics.
            before: the lines before it.

        Returns:
            How many alarms hold, warned of or not.
        """
        told = [alarm for alarm in ALARMS if alarm.metric in line]
        holding = {alarm: said for alarm in told if (said := alarm.check(line, before)) is not None}
        for alarm, said in holding.items():
            left = self._given.get(alarm.name, 0)
            if not left:
                logger.warning("alarm %s: %s; %s", alarm.name, said, alarm.remedy)
            self._given[alarm.name] = (left or _REPEAT) - 1
        for alarm in told:
            if alarm not in holding:
                self._given.pop(alarm.name, None)
        return len(holding)
