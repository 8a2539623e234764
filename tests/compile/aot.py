"""Compile a kernel for a GPU that is not there and read its resources from the assembler's report."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fourdthinker.kernels._gpu_architectures import ARCHITECTURES, SMALLER, Launch

REGISTERS = 65536  # per multiprocessor, on all of them
WARPS = 64
TABLE: list[str] = []


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str

    @property
    def target(self) -> int | None:
        """Where it may jump to."""
        found = re.search(r"\bBRA(?:\.\w+)*.* 0x([0-9a-f]+)$", self.text)
        return None if found is None else int(found[1], 16)

    @property
    def loaded(self) -> int:
        """Bytes per thread that it loads from global memory."""
        found = re.search(r"\bLDG\.E(?:\.(?!\d)\w+)*(?:\.(\d+))?", self.text)
        return 0 if found is None else int(found[1] or 32) // 8


@dataclass(frozen=True)
class Binary:
    ptx: str
    registers: int
    spills: int  # bytes spilled, stores and loads
    stack: int  # bytes of local memory
    shared: int
    blocks: int  # resident on a multiprocessor
    occupancy: float  # warps resident on a multiprocessor, as a fraction of 64

    sass: str

    def widths(self, operation: str) -> set[int]:
        """Bytes per thread of the global ``ld`` or ``st`` instructions of at least 4 elements or 16 bytes."""
        sizes = set()
        for match in re.finditer(rf"{operation}\.global[\w.:]*?(?:\.v(\d))?\.[busf](\d+)\s", self.ptx):
            sizes.add(int(match[1] or 1) * int(match[2]) // 8)
        return sizes

    @property
    def instructions(self) -> int:
        """Of one warp, all branches taken: without what fills up behind the last one."""
        lines = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(\S+).*? ;", self.sass)
        while lines and lines[-1] in ("NOP", "BRA"):
            lines.pop()
        return len(lines)

    def per_element(self, size: int) -> float:
        """Instructions of the loop that loads most, for each element of ``size`` bytes that it loads."""
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?) ;", self.sass)
        program = [Instruction(int(address, 16), text) for address, text in lines]
        loops = []
        for last in program:
            if last.target is not None and last.target < last.address:
                body = [one for one in program if last.target <= one.address <= last.address]
                loops.append((sum(one.loaded for one in body), -len(body)))
        loaded, length = max(loops)
        return -length / (loaded / size)


def compile_kernel(
    kernel: triton.runtime.JITFunction,
    arguments: Mapping[str, object],
    *,
    arch: int,
    launch: Launch,
    name: str = "",
    unaligned: tuple[str, ...] = (),
) -> Binary:
    """Compile for ``sm_<arch>`` with the settings of ``launch``.

    ``arguments`` maps every parameter to a Triton type (``"*bf16"``, ``"i32"``) or, for a constant, to its
    value. Pointers, and the integers whose name ends in ``stride``, are taken to be divisible by 16 as they
    are in production, unless they are in ``unaligned``.
    """
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(kernel.arg_names):
        value = arguments[parameter]
        is_constant = kernel.params[position].is_constexpr
        signature[parameter] = "constexpr" if is_constant or value is None else value
        if signature[parameter] == "constexpr":
            constants[parameter] = value
        elif (str(value).startswith("*") or parameter.endswith("stride")) and parameter not in unaligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    missing = set(arguments) - set(kernel.arg_names)
    assert not missing, f"no such parameters: {missing}"
    compiled = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", arch, 32),
        options=launch.options,
    )
    ptx = compiled.asm["ptx"]
    target = re.search(r"\.target (sm_\w+)", ptx)
    assert target is not None
    nvidia = triton.knobs.nvidia
    assembler = nvidia.ptxas_blackwell if arch >= 100 else nvidia.ptxas
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "k.ptx"
        source.write_text(ptx)
        report = subprocess.run(
            [assembler.path, "-v", "--gpu-name", target[1], str(source), "-o", str(Path(folder) / "k.cubin")],
            capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
        sass = subprocess.run(
            [nvidia.cuobjdump.path, "-sass", str(Path(folder) / "k.cubin")],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", report))
    stack = int(re.search(r"(\d+) bytes stack frame", report)[1])
    shared = compiled.metadata.shared
    threads = launch.num_warps * 32
    blocks = min(REGISTERS // (threads * (registers + 7 & ~7)), WARPS // launch.num_warps, 32)
    if shared:
        blocks = min(blocks, (ARCHITECTURES | SMALLER)[arch].shared // (shared + 1024))
    binary = Binary(ptx, registers, spills, stack, shared, blocks, blocks * launch.num_warps / WARPS, sass)
    label = name or kernel.__name__
    line = f"{label:<34}{arch:>6}{registers:>11}{shared:>10}{spills:>9}{stack:>9}{launch.num_warps:>7}"
    TABLE.append(line + f"{binary.occupancy:>11.2f}")
    return binary
