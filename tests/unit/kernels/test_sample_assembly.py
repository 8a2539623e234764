"""The assembly that counts bins and lists scores, carried out warp by warp: the interpreter knows none."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from fourdthinker.kernels._sample_assembly import counting, listing

SHARED = 0x400  # where shared variables may lie
WARP = 32
BINS = 128


class Program:
    """Memory of a program, and what each instruction of the assembly does in the threads of one warp."""

    def __init__(self, operands: list[list[int]]) -> None:
        """``operands`` [operand][thread]."""
        self.registers = [
            {"%tid.x": thread, "%laneid": thread % WARP, "counters": SHARED, "totals": SHARED}
            | {f"${k}": values[thread] for k, values in enumerate(operands)}
            for thread in range(len(operands[0]))
        ]
        self.shared = {SHARED + 4 * k: 999 for k in range(BINS)}  # whatever was there before
        self.out: dict[int, int] = {}

    def run(self, text: str) -> None:
        """From barrier to barrier each warp by itself, the last first, so that a missing one is seen."""
        lines = [line.strip() for line in text.strip("{} ").split(";")]
        lines = [line for line in lines if line and not line.startswith(".")]
        for phase in "\n".join(lines).split("bar.sync 0\n"):
            for first in reversed(range(0, len(self.registers), WARP)):
                for line in phase.strip().splitlines():
                    self.step(self.registers[first : first + WARP], line)

    def step(self, warp: list[dict[str, int]], line: str) -> None:
        guard, opcode, words = re.fullmatch(r"(@\w+ )?(\S+) (.*)", line).groups()  # type: ignore[union-attr]
        target, *names = (name.strip("[]") for name in words.split(", "))
        read = [[mine[name] if name in mine else int(name) for name in names] for mine in warp]
        if opcode == "redux.sync.add.u32":
            read = [[sum(values for values, _ in read)]] * WARP
        if opcode == "shfl.sync.up.b32":
            step = read[0][1]
            target, inside = target.split("|")
            moved = [
                (read[lane - step][0], 1) if lane >= step else (read[lane][0], 0) for lane in range(WARP)
            ]
            for mine, (value, whether) in zip(warp, moved, strict=True):
                mine[target], mine[inside] = value, whether
            return
        for mine, values in zip(warp, read, strict=True):
            if guard is None or mine[guard[1:-1]]:
                self.carry_out(mine, opcode, target, values)

    def carry_out(self, mine: dict[str, int], opcode: str, target: str, values: list[int]) -> None:
        operation, *kind = opcode.split(".")
        if operation in ("mov", "cvt", "redux"):
            mine[target] = values[0]
        elif operation == "setp":
            smaller = values[0] < values[1] or (kind[0] == "le" and values[0] == values[1])
            equal = values[0] == values[1]
            mine[target] = int((equal if kind[0] == "eq" else smaller) and bool(values[2:] != [0]))
        elif operation in ("add", "sub", "shr"):
            left, right = values
            mine[target] = {"add": left + right, "sub": left - right, "shr": left >> right}[operation]
        elif operation == "mad":
            mine[target] = values[0] * values[1] + values[2]
        elif operation == "ld":
            mine[target] = self.shared[values[0]]
        elif operation == "st" and kind[0] == "global":
            assert mine[target] not in self.out, "an address is stored twice"
            self.out[mine[target]] = values[0]
        elif operation == "st":
            self.shared[mine[target]] = values[0]
        else:
            assert opcode == "red.shared.add.u32"
            self.shared[mine[target]] += values[0]


@pytest.mark.parametrize("kind", ["any", "equal"])
def test_each_bin_is_counted_and_stored_once(kind: str) -> None:
    threads, each, address = 160, 5, 70_000
    bins = torch.randint(0, BINS, (each, threads), generator=torch.Generator().manual_seed(0))
    if kind == "equal":
        bins[:] = BINS - 1
    text, operands = counting(each, BINS)
    assert operands == ",".join(["=r"] * each + ["r"] * each + ["l"] * each)
    program = Program([[0] * threads] * each + bins.tolist() + [[address] * threads] * each)
    program.run(text)
    wanted = Counter(bins.flatten().tolist())
    assert program.out == {address + 2 * k: wanted[k] for k in range(BINS)}


def listed(distances: torch.Tensor, near: int, room: int) -> tuple[dict[int, int], list[int]]:
    """What ``listing`` stores at which index, and the numbers (which stand for scores) it should store."""
    each, threads = distances.shape
    scores = torch.arange(each * threads).view(each, threads)
    same = [[[value] * threads] * each for value in (near, room, 80_000)]
    text, operands = listing(each)
    assert operands == ",".join(letter for letter in ("=r", "r", "r", "r", "r", "l") for _ in range(each))
    program = Program(sum(same, [[0] * threads] * each + scores.tolist() + distances.tolist()))
    program.run(text)
    wanted = scores.T[distances.T.le(near)].tolist()
    return {(at - 80_000) // 4: value for at, value in program.out.items()}, wanted


@pytest.mark.parametrize("near", [0, 9, 2**32 - 1])
def test_what_is_near_is_listed_thread_by_thread_without_holes(near: int) -> None:
    draws = torch.Generator().manual_seed(1)
    distances = torch.randint(0, 30, (4, 160), generator=draws)
    distances[1, 5:40] = 2**32 - 7  # above the first, wrapped around
    stored, wanted = listed(distances, near, room=4 * 160)
    assert wanted
    assert stored == dict(enumerate(wanted))


def test_nothing_is_listed_behind_the_room_there_is() -> None:
    distances = torch.zeros(4, 64, dtype=torch.int64)
    stored, wanted = listed(distances, near=3, room=50)  # of 256
    assert stored == dict(enumerate(wanted[:48]))  # whole threads
