"""What the results say in words. The words follow from the intervals, whichever way they point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fourdthinker.evaluate.table import comparisons, models, number, percent, points


def verdict(results: Mapping[str, Any]) -> list[str]:
    """Where a model stands, in words, and what 4DRL did against DIFT and against the control.

    A comparison is called a gain or a loss only when its interval excludes zero.

    Args:
        results: the contents of a results.json.

    Returns:
        Sentences; none when the results hold neither a "dift" nor an "rl" entry.
    """
    entries = models(results)
    differences = {k: v for k, v in comparisons(results).items() if None not in (v["low"], v["high"])}
    out = []
    if "dift" in entries:
        out.append(_standing(entries))
    change, control = differences.get("rl_minus_dift"), differences.get("rl_minus_control")
    if change is not None:
        out.append(f"4DRL {_moved(change)} over the DIFT checkpoint it started from.")
    if control is not None:
        out.append(_against_control(control, change))
    elif change is not None:
        out.append("No control was run, so the change cannot be told from that of more training of any kind.")
    lows = [number(entries.get(key, {}).get("low")) for key in ("black_frames", "other_frames")]
    if None not in lows and "majority" in entries:
        out.append(_blind(entries))
    return out


def _interval(entry: Mapping[str, Any]) -> str:
    return f"95\u00a0% interval {points(entry['low'])} to {points(entry['high'])}"


def _standing(entries: Mapping[str, Mapping[str, Any]]) -> str:
    dift = entries["dift"]
    head = f"After DIFT the model answers {percent(dift['accuracy'])} of the questions right"
    if isinstance(dift.get("n"), int):
        head = head.replace("the questions", f"{dift['n']:,} held-out questions")
    baselines = [k for k in ("chance", "majority") if k in entries]
    if not baselines:
        return head + "."
    names = {"chance": "a blind guess", "majority": "always giving the most frequent answer"}
    told = " and ".join(f"{names[k]} {percent(entries[k]['accuracy'])}" for k in baselines)
    best = max(entries[k]["accuracy"] for k in baselines)
    low, high = number(dift.get("low")), number(dift.get("high"))
    if low is not None and low > best:
        return f"{head}, clearly more than what needs no eyes: {told}."
    if high is not None and high < best:
        return f"{head}, less than what needs no eyes: {told}."
    return f"{head}, which is not clearly more than what needs no eyes: {told}."


def _blind(entries: Mapping[str, Mapping[str, Any]]) -> str:
    black, other = entries["black_frames"], entries["other_frames"]
    head = f"With black frames it answers {percent(black['accuracy'])} right, with another clip's frames "
    head += (
        f"{percent(other['accuracy'])}, and the majority class is {percent(entries['majority']['accuracy'])}"
    )
    if max(black["low"], other["low"]) > entries["majority"]["accuracy"]:
        return f"{head}: some answers come from elsewhere than the clip's pixels."
    return f"{head}: no label reaches the model except through the clip's pixels."


def _moved(change: Mapping[str, Any]) -> str:
    size = f"by {points(change['mean'])} points ({_interval(change)})"
    if change["low"] > 0:
        return f"raised sampled accuracy {size}"
    if change["high"] < 0:
        return f"lowered sampled accuracy {size}"
    return (
        f"did not change sampled accuracy measurably: {points(change['mean'])} points ({_interval(change)})"
    )


def _against_control(control: Mapping[str, Any], change: Mapping[str, Any] | None) -> str:
    size = f"{points(control['mean'])} points ({_interval(control)})"
    what = "the control, which spent as many further DIFT steps on the same prompts"
    if control["low"] > 0:
        end = "so the gain is not merely that of more training" if change and change["low"] > 0 else ""
        return f"It ends above {what}: {size}{', ' + end if end else ''}."
    if control["high"] < 0:
        return f"It ends below {what}: {size}, so more DIFT is the better use of those steps here."
    return f"It cannot be told from {what}: {size}, so no advantage over more DIFT is shown here."
