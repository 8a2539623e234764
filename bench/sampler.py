"""The sampler against Hugging Face's ``generate`` and a plain latent loop, on the same model and prompts.

``python -m bench sampler --tiny`` is the case that a CPU can run: 2 prompts of 1,202 tokens, 8 rows each, 64
new tokens, two threads, float32, a narrow model with the real vocabulary; its last line is one line of JSON.
``python -m bench sampler --shape 3b --batch 1 8 64`` sweeps the batch with random weights at true shapes:
tokens a second, time per step, time to the first token, and what share of the copy bandwidth reading weights
and keys and values is. The time per step is the difference of two calls, of all new tokens and of five
eighths of them, which make the same captures of CUDA graphs, by the number of steps that it is: the median of
--repeats such differences, which are all in the row.
``--only ours`` leaves out the peers, whose prefill takes minutes there.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from bench import _measure as measure
from bench._sampler_cases import SHAPES, Call, build, eager_loop, generate, make_prompts, ours
from fourdthinker.backbones.common import Backbone
from fourdthinker.sampler import LatentSampler, Rollout
from fourdthinker.samples import Prompt

log = logging.getLogger(__name__)

CASES: dict[str, dict[str, Any]] = {
    "top_p": {"temperature": 1.0, "top_p": 0.9, "top_k": 0},
    "plain": {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
    "greedy": {"temperature": 0.0},
}
MUST_HOLD = {"top_p": 6.0, "plain": 2.5, "greedy": 1.8, "memory": 0.25}
BATCHES = (1, 8, 32, 64, 128)


def tiny(arguments: argparse.Namespace) -> int:
    """The CPU case, every side of it measured in this run; memory in processes of its own.

    In the JSON, `speedup_vs_hf` is that of temperature 1 with top-p 0.9, `speedup_vs_hf_plain` without
    truncation, `speedup_vs_hf_greedy` greedy; `memory_vs_hf` the largest of the three.
    """
    torch.set_num_threads(2)
    backbone = build("tiny", "cpu", torch.float32)
    prompts, sampler = make_prompts(backbone, 2, SHAPES["tiny"].grid), LatentSampler(backbone)
    new = arguments.new_tokens
    calls: dict[str, dict[str, Call]] = {
        name: {"hf": generate(backbone, prompts, 8, new, case), "ours": ours(sampler, prompts, 8, new, case)}
        for name, case in CASES.items()
    }
    if arguments.memory_of:
        name, who = arguments.memory_of.split(":")
        log.info("%d", measure.peak_rss(calls[name][who]))
        return 0
    result: dict[str, Any] = {"new_tokens": new}
    memory, rows = [], []
    for name in arguments.cases or CASES:
        taken = measure.interleaved(calls[name], repeats=arguments.repeats, warmup=int(arguments.warm))
        row: dict[str, Any] = {who: measure.summary(times) for who, times in taken.items()}
        speedup = row["hf"]["median"] / row["ours"]["median"]
        result["speedup_vs_hf" + ("" if name == "top_p" else f"_{name}")] = round(speedup, 2)
        shown: dict[str, object] = {
            "case": name,
            "generate s": f"{row['hf']['median']:.2f}",
            "ours s": f"{row['ours']['median']:.2f}",
            "speedup": f"{speedup:.2f}", "must be": MUST_HOLD[name],
        }  # fmt: skip
        if not arguments.no_memory:
            peaks = {who: _memory(name, who, new) for who in ("hf", "ours")}
            memory.append(round(peaks["ours"] / peaks["hf"], 3))
            row["peak_bytes"] = peaks
            shown |= {f"{who} MiB": peaks[who] >> 20 for who in peaks}
            shown |= {"memory": memory[-1], "at most": MUST_HOLD["memory"]}
        result[name] = row
        rows.append({"case": name} | row)
        measure.show(f"{name}: 16 rows, {new} new tokens", [shown])
    if arguments.save:
        measure.save("sampler --tiny", rows)
    if memory:
        result["memory_vs_hf"] = max(memory)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _memory(name: str, who: str, new: int) -> int:
    command = [sys.executable, "-m", "bench", "sampler", "--tiny", "--new-tokens", str(new),
               "--memory-of", f"{name}:{who}"]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int((done.stdout + done.stderr).split()[-1])


def sweep(arguments: argparse.Namespace) -> int:
    """Rows of one prompt, at temperature 1, for every size of the batch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    backbone = build(arguments.shape, device, dtype)
    prompts, sampler = make_prompts(backbone, 1, SHAPES[arguments.shape].grid), LatentSampler(backbone)
    copy, new, rows = _copy_rate(device), arguments.new_tokens, []
    failed = False
    for batch in arguments.batch:
        calls = _calls(backbone, sampler, prompts, batch, new, arguments.only == "ours")
        for name, three in calls.items():
            row: dict[str, Any] = {"batch": batch, "candidate": name}
            try:
                found = _timed(three, batch, new, arguments.repeats, device)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                found = {"error": "out of memory"}
            except RuntimeError as error:
                log.exception("%s, %d rows", name, batch)
                found, failed = {"error": str(error).partition("\n")[0][:120]}, True
            if "step" in found:
                steps = found.pop("step")
                step = statistics.median(steps)
                middle = (shorter(new) + new) // 2
                length = prompts[0].input_ids.numel()
                read = _bytes_read(backbone, length, batch, middle, shared=name == "ours")
                found |= {
                    "ms_per_step": round(1e3 * step, 3), "ms_of_each": [round(1e3 * s, 3) for s in steps],
                    "share_of_copy": round(read / step / copy, 3),
                }  # fmt: skip
            rows.append(row | found)
            log.info("%s", rows[-1])
            if arguments.save:
                measure.save(f"sampler {arguments.shape}", rows, device)
        measure.show(f"{arguments.shape} on {device}, {batch} rows", [r for r in rows if r["batch"] == batch])
    sys.stdout.write(json.dumps({"shape": arguments.shape, "device": device, "rows": rows}) + "\n")
    sys.stdout.flush()
    if arguments.profile:  # last: whatever becomes of it, the rows are there
        _profile(ours(sampler, prompts, arguments.batch[-1], 64, CASES["plain"]), device)
    return 1 if failed else 0


def shorter(new: int) -> int:
    """Five eighths of the new tokens: 320 of 512, for both of which the room grows once."""
    return max(1, new * 5 // 8)


def _timed(calls: tuple[Call, Call, Call], batch: int, new: int, repeats: int, device: str) -> dict[str, Any]:
    """Tokens a second, seconds of the first token and of a step, from calls of 1, some and all tokens.

    The share of eager steps and of captures is the same in the last two, so that their difference is replays
    alone.
    """
    first, some, all_ = calls
    once = min(measure.interleaved({"": first}, repeats=2, device=device, warm_seconds=0)[""])
    counts: dict[str, list[tuple[float, int]]] = {"some": [], "all": []}
    noting = {"some": _noting(some, counts["some"]), "all": _noting(all_, counts["all"])}
    taken = measure.interleaved(noting, repeats=repeats, device=device, warm_seconds=0)
    graphs = {name: noted[-1][0] for name, noted in counts.items()}
    if graphs["some"] != graphs["all"]:
        raise RuntimeError(
            f"{shorter(new)} tokens take {graphs['some']:.0f} captures and {new} take {graphs['all']:.0f}: "
            "their difference is no time of steps; give another --new-tokens"
        )
    tokens = counts["all"][-1][1] or batch * new
    return {
        "tokens_per_s": round(tokens / min(taken["all"]), 1), "first_token_s": round(once, 3),
        "step": [
            max(whole - part, 1e-9) / max(1, new - shorter(new))
            for whole, part in zip(taken["all"], taken["some"], strict=True)
        ],
    }  # fmt: skip


def _calls(
    backbone: Backbone, sampler: LatentSampler, prompts: list[Prompt], batch: int, new: int, alone: bool
) -> dict[str, tuple[Call, Call, Call]]:
    """Of every candidate the calls that emit one token, some, and all."""

    def both(make: Callable[[int], Call]) -> tuple[Call, Call, Call]:
        return make(1), make(shorter(new)), make(new)

    plain = CASES["plain"]
    calls = {"ours": both(lambda n: ours(sampler, prompts, batch, n, plain))}
    if alone:
        return calls
    calls["eager latent loop"] = both(lambda n: eager_loop(backbone, prompts, batch, n))
    for name, options in _generate_modes(backbone.device.type).items():
        calls[name] = both(
            lambda n, options=options: generate(backbone, prompts, batch, n, plain, options)  # type: ignore[misc]
        )
    return calls


def _profile(call: Call, device: str) -> None:
    """A table of what the device, or on a CPU the host, spends its time on in a call."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
    order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    sys.stdout.write(profile.key_averages().table(sort_by=order, row_limit=25) + "\n")


def _noting(call: Call, noted: list[tuple[float, int]]) -> Call:
    """The call, noting how many CUDA graphs it captured and how many tokens it emitted; 0 of a peer."""

    def noting() -> Any:
        result = call()
        if isinstance(result, Rollout):
            noted.append((result.timing.get("graphs", 0.0), int(result.lengths.sum())))
        else:
            noted.append((0.0, 0))
        return result

    return noting


def _generate_modes(device: str) -> dict[str, dict[str, Any]]:
    modes: dict[str, dict[str, Any]] = {"generate": {}}
    if device == "cuda":  # on a CPU transformers does not compile, and a static cache only reads more
        modes["generate, static cache"] = {"cache_implementation": "static", "disable_compile": True}
        modes["generate, static, compiled"] = {"cache_implementation": "static"}
    return modes


def _bytes_read(backbone: Backbone, prompt: int, batch: int, own: int, *, shared: bool) -> int:
    """What a step after `own` tokens has to read: the weights of language model and head, keys and values."""
    weights = sum(p.nbytes for p in backbone.hf.model.language_model.layers.parameters())
    weights += backbone.head_weight.nbytes
    token = 2 * backbone.num_layers * backbone.num_kv_heads * backbone.head_dim
    kept = prompt * (1 if shared else batch) + batch * own
    return weights + kept * token * backbone.head_weight.element_size()


def _copy_rate(device: str) -> float:
    source = torch.ones(1 << (28 if device == "cuda" else 25), device=device)
    sink = torch.empty_like(source)
    taken = measure.interleaved({"copy": lambda: sink.copy_(source)}, repeats=7, device=device)
    return 2 * source.nbytes / min(taken["copy"])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench sampler", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="the CPU case")
    parser.add_argument(
        "--shape", choices=list(SHAPES), default="3b" if torch.cuda.is_available() else "tiny"
    )
    parser.add_argument("--batch", type=measure.positive, nargs="+", default=list(BATCHES))
    parser.add_argument("--new-tokens", type=measure.positive, default=64)
    parser.add_argument("--repeats", type=measure.positive, default=1)
    parser.add_argument("--cases", nargs="+", choices=list(CASES))
    parser.add_argument("--warm", action="store_true", help="an unmeasured round first")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument(
        "--profile", action="store_true", help="with --shape: what 64 tokens of the last batch cost"
    )
    parser.add_argument("--only", choices=["ours"], help="with --shape: without the peers")
    measure.add_save(parser)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    return tiny(arguments) if arguments.tiny else sweep(arguments)
