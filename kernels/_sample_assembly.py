"""Counting and listing in assembly, where Triton's own functions take 40 to 100 instructions a score.

`tl.histogram` votes once for every bit of a bin's number, and the sums along a tile that give each listed
score its index go through shared memory. Counters in shared memory take two instructions a score. A list
whose order does not matter takes an index a thread instead of one a score: a thread adds up how many it has,
a warp and then a program add up their threads, and each thread stores its own, one behind the other.

The interpreter knows no assembly; there both are what they replace.
tests/unit/kernels/test_sample_assembly.py carries the text out thread by thread.
"""

# Triton functions take no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import num_threads

from ._logits import INTERPRETED

PER_THREAD: tl.constexpr = tl.constexpr(
    32
)  # scores; other tiles, of small vocabularies, take Triton's functions


def counting(scores: int, bins: int) -> tuple[str, str]:
    """Assembly, and its operands, of a program that counts ``scores`` bin numbers a thread.

    Operands: results that nobody asks for, the numbers, and where [bins] int16 go (one address for all).
    Equal numbers of a warp are counted at once (ATOMS.POPC.INC).
    """
    lines = [
        ".reg .pred own;", ".reg .b16 count;", ".reg .b32 base, here, there, thread;", ".reg .b64 out;",
        f".shared .align 4 .b32 counters[{bins}];", "mov.u32 base, counters;", "mov.u32 thread, %tid.x;",
        f"setp.lt.u32 own, thread, {bins};", "mad.lo.u32 here, thread, 4, base;",
        "@own st.shared.b32 [here], 0;", "bar.sync 0;",
    ]  # fmt: skip
    for operand in range(scores, 2 * scores):
        lines += [f"mad.lo.u32 there, ${operand}, 4, base;", "red.shared.add.u32 [there], 1;"]
    lines += [
        "bar.sync 0;", "@own ld.shared.b32 there, [here];", "cvt.u16.u32 count, there;",
        f"mad.wide.u32 out, thread, 2, ${2 * scores};", "@own st.global.b16 [out], count;",
    ]  # fmt: skip
    operands = ["=r"] * scores + ["r"] * scores + ["l"] * scores
    return f"{{ {' '.join(lines)} }}", ",".join(operands)


def listing(scores: int) -> tuple[str, str]:
    """Assembly, and its operands, of a program that lists those of ``scores`` a thread that are near.

    Operands: results that nobody asks for, the bits of the scores, their distances (uint32), and three that
    are the same for all: the largest distance that is near, how many scores there is room for, and where they
    go. A thread for which there is no room stores nothing.
    """
    near, room, address = (f"${operand * scores}" for operand in (3, 4, 5))
    distances = [f"${operand}" for operand in range(2 * scores, 3 * scores)]
    lines = [
        ".reg .pred own, taken, fits;", ".reg .b32 base, count, sum, other, lane, warp, there;",
        ".reg .b64 out;", ".shared .align 4 .b32 totals[32];", "mov.u32 base, totals;", "mov.u32 count, 0;",
    ]  # fmt: skip
    for distance in distances:
        lines += [f"setp.le.u32 taken, {distance}, {near};", "@taken add.u32 count, count, 1;"]
    lines += ["mov.u32 sum, count;"]
    for step in (1, 2, 4, 8, 16):  # of this thread and those before it in the warp
        lines += [f"shfl.sync.up.b32 other|own, sum, {step}, 0, -1;", "@own add.u32 sum, sum, other;"]
    lines += [
        "mov.u32 lane, %laneid;", "mov.u32 warp, %tid.x;", "shr.u32 warp, warp, 5;",
        "mad.lo.u32 there, warp, 4, base;", "setp.eq.u32 own, lane, 31;", "@own st.shared.b32 [there], sum;",
        "bar.sync 0;", "mov.u32 other, 0;", "mad.lo.u32 there, lane, 4, base;",
        "setp.lt.u32 own, lane, warp;", "@own ld.shared.b32 other, [there];",
        "redux.sync.add.u32 other, other, -1;",  # of the warps before
        "add.u32 sum, sum, other;", f"setp.le.u32 fits, sum, {room};", "sub.u32 sum, sum, count;",
        f"mad.wide.u32 out, sum, 4, {address};",
    ]  # fmt: skip
    for score, distance in enumerate(distances, start=scores):
        lines += [
            f"setp.le.and.u32 taken, {distance}, {near}, fits;", f"@taken st.global.b32 [out], ${score};",
            "@taken add.u64 out, out, 4;",
        ]  # fmt: skip
    kinds = ("=r", "r", "r", "r", "r", "l")
    return f"{{ {' '.join(lines)} }}", ",".join(kind for kind in kinds for _ in range(scores))


BINS: tl.constexpr = tl.constexpr(128)  # the last holds all that is below the others
_COUNT, _COUNT_OPERANDS = (tl.constexpr(text) for text in counting(PER_THREAD.value, BINS.value))
_LIST, _LIST_OPERANDS = (tl.constexpr(text) for text in listing(PER_THREAD.value))


@triton.jit
def store_counts(bin, counts_ptr, BLOCK: tl.constexpr):
    """Store [BINS] int16 how many of BLOCK bins are each."""
    if INTERPRETED:
        tl.store(counts_ptr + tl.arange(0, BINS), tl.histogram(bin, BINS).to(tl.int16))
    elif num_threads() * PER_THREAD == BLOCK and num_threads() >= BINS:  # a thread a counter
        tl.inline_asm_elementwise(
            _COUNT, _COUNT_OPERANDS, [bin, counts_ptr], dtype=tl.int32, is_pure=False, pack=PER_THREAD
        )
    else:
        tl.store(counts_ptr + tl.arange(0, BINS), tl.histogram(bin, BINS).to(tl.int16))


@triton.jit
def _store_indexed(score, distance, near, room, listed_ptr):
    taken = distance <= near
    index = tl.cumsum(taken.to(tl.int32), axis=0) - 1
    tl.store(listed_ptr + index, score, mask=taken & (index < room))


@triton.jit
def store_near(score, distance, near, room, listed_ptr, BLOCK: tl.constexpr):
    """Store those of BLOCK scores whose ``distance`` is at most ``near`` one behind the other, in any order.

    uint32 both; what there is no ``room`` for is left out.
    """
    if INTERPRETED:
        _store_indexed(score, distance, near, room, listed_ptr)
    elif num_threads() * PER_THREAD == BLOCK:
        bits = score.to(tl.int32, bitcast=True)  # Triton takes no float beside a pointer
        tl.inline_asm_elementwise(
            _LIST, _LIST_OPERANDS, [bits, distance, near, room, listed_ptr], dtype=tl.int32, is_pure=False,
            pack=PER_THREAD,
        )  # fmt: skip
    else:
        _store_indexed(score, distance, near, room, listed_ptr)
