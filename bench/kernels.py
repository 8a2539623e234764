"""Every kernel against its peers, interleaved in one run: ``python -m bench kernels``.

On a CPU the ops are their PyTorch references at small sizes, so that the harness itself is tested; on a GPU
the Triton kernels at production sizes, in one run of a few minutes. ``--must-hold`` measures what the head
ops promise on a CPU: rows that are masked cost nothing, and without masked rows they keep up with eager.
``--errors`` compares bf16 log-probabilities of the head, ours and those of others, with float64.
"""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import _kernel_base, _kernel_errors, _kernel_tune
from bench import _measure as measure
from bench._kernel_cases import FAMILIES
from bench._kernel_data import SIZES, Case, Data, Sizes, trained
from bench._kernel_peers import BETA, eager_grpo, eager_logprobs
from fourdthinker.kernels import GrpoOptions, launch_settings, linear_cross_entropy, linear_grpo_loss

MUST_HOLD = {"rows": (8, 256), "width": 256, "vocabularies": (32_000, 151_668), "faster": 5.0, "slower": 1.1}
MISMATCH = 0.02  # losses further apart than this do not do the same work


def rates(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Bytes a second of a large copy (read and write counted), operations a second of a large matmul."""
    elements, side = (1 << 28, 8192) if device == "cuda" else (1 << 25, 1536)
    source = torch.ones(elements, device=device)
    sink = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {"copy": lambda: sink.copy_(source), "matmul": lambda: a @ b}
    taken = {k: min(v) for k, v in measure.interleaved(calls, repeats=7, device=device).items()}
    return {"copy": 2 * source.nbytes / taken["copy"], "matmul": 2 * side**3 / taken["matmul"]}


def run_case(
    case: Case, device: str, repeats: int, fastest: dict[str, float]
) -> Iterator[list[dict[str, Any]]]:
    """One row for each candidate: time, ratio to ours, peak memory, what part of the machine's rate it is.

    Yields them several times: those of the first candidates with the time of one run each, and in the end all
    with those of ``repeats`` rounds. So a cut costs what has not been measured yet.
    """
    calls, absent, values = {}, dict(case.absent), {}
    peaks: dict[str, int] = {}
    taken: dict[str, list[float]] = {}
    for name, call in case.calls.items():
        try:
            values[name] = call()
            taken |= measure.interleaved({name: call}, repeats=1, warmup=0, device=device, warm_seconds=0)
            if name not in case.without_peak:
                peaks[name] = measure.peak_allocated(call, device)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:80]}"
            if name == "ours":
                logging.exception("%s, %s", case.op, case.mode)
                yield [{"op": case.op, "size": case.size, "mode": case.mode, "candidate": name, "error": why}]
                return
            absent[name] = why
            continue
        calls[name] = call
        yield _rows(case, {name: taken[name] for name in calls}, peaks, values, absent, fastest)
    taken = measure.interleaved(calls, repeats=repeats, warmup=0, device=device)
    yield _rows(case, taken, peaks, values, absent, fastest)


def _rows(
    case: Case, taken: dict[str, list[float]], peaks: dict[str, int], values: dict[str, object],
    absent: dict[str, str], fastest: dict[str, float],
) -> list[dict[str, Any]]:  # fmt: skip
    ours = measure.summary(taken["ours"])["median"]
    rows = []
    for name, seconds in taken.items():
        summary = measure.summary(seconds)
        row: dict[str, Any] = {
            "op": case.op, "size": case.size, "mode": case.mode, "candidate": name, "seconds": summary,
            "time_over_ours": summary["median"] / ours,
        }  # fmt: skip
        if name in peaks:
            row |= {"peak_bytes": peaks[name], "dw_in_peak": case.dw}
            if case.given:
                row["peak_with_inputs_bytes"] = peaks[name] + case.given
        if case.moved:
            row["copy_fraction"] = case.moved / summary["median"] / fastest["copy"]
        if case.flops:
            row["matmul_fraction"] = case.flops / summary["median"] / fastest["matmul"]
        got, want = values[name], values["ours"]
        if case.alike and isinstance(got, Tensor) and isinstance(want, Tensor):
            row["same_loss"] = abs(float(got) - float(want)) <= MISMATCH * max(abs(float(want)), 1e-3)
        rows.append(row)
    rows += [
        {"op": case.op, "size": case.size, "mode": case.mode, "candidate": name, "absent": why}
        for name, why in absent.items()
    ]
    return rows


def table(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows as text: times with quartiles, ratios as time divided by the time of ours."""
    lines = []
    for row in rows:
        first = row["candidate"] == "ours"
        line = {"case": f"{row['op']}, {row['mode']}: {row['size']}" if first else "", "by": row["candidate"]}
        if "absent" in row or "error" in row:
            lines.append({**line, "ms (quartiles)": row.get("absent") or row["error"]})
            continue
        seconds = row["seconds"]
        middle, low, high = (seconds[k] * 1e3 for k in ("median", "lower_quartile", "upper_quartile"))
        peak, whole = (
            f"{row[key] / 2**20:.1f}" if key in row else ""
            for key in ("peak_bytes", "peak_with_inputs_bytes")
        )
        lines.append(line | {
            "ms (quartiles)": f"{middle:.3g} ({low:.3g} to {high:.3g})",
            "time / ours": f"{row['time_over_ours']:.2f}", "peak MiB": peak, "with inputs": whole,
            "dW in it": "yes" if row.get("dw_in_peak") else "",
            "of copy": f"{row['copy_fraction']:.0%}" if "copy_fraction" in row else "",
            "of matmul": f"{row['matmul_fraction']:.0%}" if "matmul_fraction" in row else "",
            "loss": "" if row.get("same_loss", True) else "differs",
        })  # fmt: skip
    return lines


def must_hold(repeats: int, sizes: dict[str, Any]) -> list[dict[str, Any]]:
    """The two promises of the head ops, every figure of one pair from the same interleaved run.

    Ratios are those of the fastest runs, since other work on the machine only ever adds time; medians are in
    the rows beside them. Forward and backward, float32, 90 % of the rows masked or none.
    """
    rows = []
    shape, width = sizes["rows"], sizes["width"]
    largest = max(sizes["vocabularies"])
    for vocabulary in sizes["vocabularies"]:
        rounds = repeats * largest // vocabulary  # as much time for a small one, whose runs are short
        for frozen in (False, True):
            taken = measure.interleaved(_promises(shape, width, vocabulary, frozen), repeats=rounds)
            gc.collect()
            for op in ("linear_cross_entropy", "linear_grpo_loss"):
                eager, ours, masked = (taken[f"{op} {k}"] for k in ("eager", "ours", "ours, 90 % masked"))
                best = [min(seconds) for seconds in (eager, ours, masked)]
                rows.append({
                    "op": op, "vocabulary": vocabulary, "head": "frozen" if frozen else "trained",
                    "eager": measure.summary(eager), "ours": measure.summary(ours),
                    "masked": measure.summary(masked), "over_eager": best[1] / best[0],
                    "masked_faster": best[1] / best[2],
                    "holds": best[1] <= sizes["slower"] * best[0] and best[1] >= sizes["faster"] * best[2],
                })  # fmt: skip
                logging.info("%s", ", ".join(f"{k} {v}" for k, v in must_hold_table(rows[-1:])[0].items()))
    return rows


def _promises(
    shape: tuple[int, int], width: int, vocabulary: int, frozen: bool
) -> dict[str, Callable[[], object]]:
    data = Data(SIZES["cpu"], "cpu")
    x = data.randn(*shape, width).requires_grad_()
    weight = data.randn(vocabulary, width, scale=width**-0.5).requires_grad_(not frozen)
    target = data.ids(*shape, below=vocabulary)
    every = torch.ones(shape, dtype=torch.bool)
    tenth = torch.rand(shape, generator=data.generator).argsort(dim=1) < round(shape[1] * 0.1)
    few = torch.where(tenth, target, -100)
    gains = data.randn(shape[0])
    old = -data.randn(*shape).abs() - 9
    ref = old + data.randn(*shape, scale=0.1)

    def ours_grpo(mask: Tensor) -> Tensor:
        return linear_grpo_loss(
            x,
            weight,
            target,
            advantages=gains,
            mask=mask,
            old_logprobs=old,
            ref_logprobs=ref,
            options=GrpoOptions(beta=BETA),
        )[0]

    def eager(op: str) -> Tensor:
        z = x @ weight.T
        if op == "ce":
            return torch.nn.functional.cross_entropy(z.flatten(0, 1), target.flatten())
        return eager_grpo(eager_logprobs(z, target), gains, every, old, ref)

    losses: dict[str, Callable[[], Tensor]] = {
        "linear_cross_entropy eager": lambda: eager("ce"),
        "linear_cross_entropy ours": lambda: linear_cross_entropy(x, weight, target),
        "linear_cross_entropy ours, 90 % masked": lambda: linear_cross_entropy(x, weight, few),
        "linear_grpo_loss eager": lambda: eager("grpo"),
        "linear_grpo_loss ours": lambda: ours_grpo(every),
        "linear_grpo_loss ours, 90 % masked": lambda: ours_grpo(tenth),
    }
    return {name: trained(loss, x, weight) for name, loss in losses.items()}


def must_hold_table(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    def time(summary: dict[str, float]) -> str:
        return f"{summary['low'] * 1e3:.0f} ({summary['median'] * 1e3:.0f})"

    return [
        {
            "op": row["op"], "V": f"{row['vocabulary']:,}", "head": row["head"],
            "eager ms, best (median)": time(row["eager"]), "ours": time(row["ours"]),
            "90 % masked": time(row["masked"]), "ours / eager": f"{row['over_eager']:.2f}",
            "masked faster": f"{row['masked_faster']:.1f}x", "holds": "yes" if row["holds"] else "NO",
        }
        for row in rows
    ]  # fmt: skip


def run_families(
    families: Iterable[tuple[str, Callable[[], Iterable[Case]]]], device: str, repeats: int,
    fastest: dict[str, float], keep: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of all cases; ``keep`` is given those that there are after each candidate."""
    rows: list[dict[str, Any]] = []
    for family, cases in families:
        try:
            for case in cases():
                before = len(rows)
                for measured in run_case(case, device, repeats, fastest):
                    rows[before:] = measured
                    keep(rows)
                logging.info("%s, %s, %s", case.op, case.mode, rows[-1].get("error", "done"))
        except Exception as error:
            logging.exception("cases of %s", family)
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:80]}"
            rows.append({"op": family, "size": "", "mode": "", "candidate": "ours", "error": why})
            keep(rows)
        gc.collect()
    return rows


def tune(families: list[str], repeats: int, device: str, out: Path) -> int:
    """Measure launch settings and write them for this GPU; 2 where there is none."""
    arch = launch_settings.architecture(torch.device(device))
    if arch is None:
        logging.error(
            "--tune measures launch settings, and this machine has no GPU that torch can use; run it on the "
            "one whose rows of kernels/tuned.json are to be written"
        )
        return 2
    cases = [case for family in families for case in FAMILIES[family](SIZES["cuda"], device, False)]
    rows = _kernel_tune.tune(
        cases, arch, lambda calls: measure.interleaved(calls, repeats=repeats, device=device),
        lambda found: _kernel_tune.write(out, arch, found),
    )  # fmt: skip
    logging.info("%d rows of sm_%d are in %s", len(rows), arch, out)
    return 0


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench kernels", description=__doc__)
    parser.add_argument("--must-hold", action="store_true", help="only the promises of the head ops on a CPU")
    parser.add_argument("--errors", action="store_true", help="only the errors of bf16 log-probabilities")
    parser.add_argument(
        "--vocabularies",
        nargs="+",
        type=measure.positive,
        default=MUST_HOLD["vocabularies"],
        help="of --must-hold",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats, no torch.compile")
    parser.add_argument("--size", choices=SIZES, help="default: that of the device")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="families of ops")
    parser.add_argument(
        "--repeats", type=measure.positive, help="rounds; default 5, on a GPU 20, with --quick 3"
    )
    parser.add_argument("--base", metavar="REV", help="compare with the kernels of this revision, not peers")
    parser.add_argument("--tune", action="store_true", help="measure launch settings on a GPU")
    parser.add_argument(
        "--out", type=Path, default=launch_settings.TUNED_FILE,
        help="of --tune (default: the file that the package reads)",
    )  # fmt: skip
    parser.add_argument(
        "--no-compile", action="store_true", help="without candidates of torch.compile (Liger's own stays)"
    )
    parser.add_argument("--threads", type=measure.positive, default=2, help="of torch on a CPU")
    measure.add_save(parser)
    chosen = parser.parse_args(argv)
    if chosen.errors and chosen.size not in (None, *_kernel_errors.ERROR_SIZES):
        parser.error(
            f"--errors has no size {chosen.size}; give one of {', '.join(_kernel_errors.ERROR_SIZES)}"
        )
    return chosen


def main(argv: list[str]) -> int:
    """Exit status 1 when a promise does not hold or an op of ours fails, else 0."""
    chosen = arguments(argv)
    device = "cuda" if torch.cuda.is_available() and not chosen.must_hold else "cpu"
    if device == "cpu":
        torch.set_num_threads(chosen.threads)
    repeats = chosen.repeats or (3 if chosen.quick else 20 if device == "cuda" else 5)
    if chosen.tune:
        return tune(chosen.only, repeats, device, chosen.out)
    if chosen.must_hold:
        rows = must_hold(repeats, MUST_HOLD | {"vocabularies": chosen.vocabularies})
        measure.show("Head ops on a CPU, forward and backward, 2,048 x 256", must_hold_table(rows))
        if chosen.save:
            name = " ".join(("kernels must hold", *map(str, chosen.vocabularies)))
            logging.info("written to %s", measure.save(name, rows, device))
        return 0 if all(row["holds"] for row in rows) else 1
    if chosen.errors:
        rows = _kernel_errors.logprob_errors(chosen.size or device, device)
        measure.show("Log-probabilities, bf16 inputs, against float64", _kernel_errors.errors_table(rows))
        if chosen.save:
            logging.info("written to %s", measure.save("kernels errors", rows, device))
        return 0 if rows[0]["holds"] else 1
    sizes: Sizes = SIZES[chosen.size or ("quick" if chosen.quick else device)]
    fastest = rates(device, sizes.dtype)
    logging.info(
        "%s: copy %.1f GB/s, matmul %.0f GFLOP/s",
        measure.device_name(device), fastest["copy"] / 1e9, fastest["matmul"] / 1e9,
    )  # fmt: skip
    size = chosen.size or ("quick" if chosen.quick else None)  # whose figures take no others' place
    name = " ".join(["kernels", *filter(None, (size, chosen.base and f"against {chosen.base}"))])
    compiled = not (chosen.quick or chosen.no_compile)

    def keep(rows: list[dict[str, Any]]) -> None:
        if chosen.save:
            measure.save(name, [{"rates": fastest}, *rows], device)

    def cases_of(family: str) -> Iterable[Case]:
        if chosen.base:
            return _kernel_base.compared(family, sizes, device)
        return FAMILIES[family](sizes, device, compiled)

    with tempfile.TemporaryDirectory() as folder:
        if chosen.base:
            try:
                _kernel_base.load(chosen.base, Path(folder))
            except ValueError as error:
                logging.error("%s", error)
                return 2
        families = [(family, functools.partial(cases_of, family)) for family in chosen.only]
        rows = run_families(families, device, repeats, fastest, keep)
    measure.show("Time divided by ours above 1: slower than ours", table(rows))
    return 1 if any("error" in row for row in rows) else 0
