"""Compiles kernels for a GPU that is not there, and reads what the assembler says of them.

In a process of its own: this one may have chosen Triton's interpreter, which cannot compile.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Most bytes of shared memory one program may have, by compute capability."""


@dataclass(frozen=True)
class Kernel:
    """One compilation.

    Attributes:
        module: E.g. "unisolo.ops.kernels.packed".
        name: Of the kernel in it.
        arguments: By name: a type as Triton writes it ("*fp16", "i32", "fp32", ...) with ":16"
            where the launcher would find an address or number divisible by 16, or the value of a
            constexpr (a string constexpr is written "='text'"; "tl.<name>" is a Triton type).
        options: num_warps, num_stages.
    """

    module: str
    name: str
    arguments: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """What became of it.

    Attributes:
        name: Of the kernel.
        shared: Bytes of shared memory per program.
        registers: Per thread.
        spilled: Bytes of registers stored to memory and loaded again, per thread.
        ptx: The assembly.
    """

    name: str
    shared: int
    registers: int
    spilled: int
    ptx: str


def compile_kernels(kernels: list[Kernel], capability: int = 90) -> list[Compiled]:
    """Compile for one architecture; raises with the compiler's words where one does not."""
    done = subprocess.run(
        [sys.executable, __file__, str(capability)],
        input=json.dumps([asdict(kernel) for kernel in kernels]),
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return [Compiled(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def _compile(kernel: Kernel, capability: int) -> Compiled:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(kernel.module), kernel.name)
    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(function.arg_names):
        given = kernel.arguments[name]
        if isinstance(given, str) and not given.startswith(("=", "tl.")):
            kind, _, divisible = given.partition(":")
            signature[name] = kind
            if divisible:
                attributes[(place,)] = [["tt.divisibility", 16]]
            continue
        signature[name] = "constexpr"
        if isinstance(given, str):
            given = given[2:-1] if given.startswith("=") else getattr(tl, given[3:])
        constants[(place,)] = tuple(given) if isinstance(given, list) else given
    source = ASTSource(function, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    made = triton.compile(source, target=target, options=kernel.options)
    registers, spilled = _assembled(made.asm["ptx"])
    return Compiled(kernel.name, made.metadata.shared, registers, spilled, made.asm["ptx"])


def _assembled(ptx: str) -> tuple[int, int]:
    """Registers and spilled bytes of a kernel, as ptxas reports them."""
    import triton

    found = re.search(r"\.target (sm_(\d+)\w*)", ptx)
    if found is None:
        raise ValueError("the assembly names no architecture")
    tool = "ptxas-blackwell" if int(found[2]) >= 100 else "ptxas"
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        done = subprocess.run(
            [str(ptxas), "-v", f"-arch={found[1]}", "kernel.ptx", "-o", "kernel.cubin"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    said = done.stderr + done.stdout
    registers = re.search(r"Used (\d+) registers", said)
    if registers is None:
        raise ValueError(f"ptxas reports no registers: {said}")
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    return int(registers[1]), max(map(int, spills), default=0)


if __name__ == "__main__":
    rows = [asdict(_compile(Kernel(**row), int(sys.argv[1]))) for row in json.load(sys.stdin)]
    print(json.dumps(rows))
