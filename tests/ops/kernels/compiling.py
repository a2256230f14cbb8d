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
    return _in_another_process("kernels", json.dumps([asdict(k) for k in kernels]), capability)


def compile_calls(program: str, capability: int = 90) -> list[Compiled]:
    """Run a program whose kernels are compiled where they are launched, and not executed.

    A written signature says nothing of the call: an argument that is missing, of a type that the
    launcher cannot bind, or a grid that is none. Here Triton's own launcher takes the real
    arguments and stops before the driver would start the kernel; results are whatever memory held.

    Args:
        program: Python, with tensors of the CPU; `torch` is there.
        capability: Of the GPU that is not there.

    Returns:
        The kernel of every launch, in order; one that is launched again is there again.
    """
    return _in_another_process("calls", program, capability)


def _in_another_process(task: str, text: str, capability: int) -> list[Compiled]:
    done = subprocess.run(
        [sys.executable, __file__, task, str(capability)],
        input=text,
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
    return _read(kernel.name, triton.compile(source, target=target, options=kernel.options))


def _compile_calls(program: str, capability: int) -> list[Compiled]:
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class AbsentGpu:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    launched: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        sizes = grid(options) if callable(grid) else grid
        if not all(0 < size < (2**31, 2**16, 2**16)[axis] for axis, size in enumerate(sizes)):
            raise ValueError(f"{self.__name__} cannot be launched on a grid of {sizes}")
        made = run(self, *args, grid=grid, warmup=True, **options)
        launched.append((self.__name__, made))

    driver.set_active(AbsentGpu())
    JITFunction.run = compile_only
    exec(compile(program, "program", "exec"), {"torch": torch})
    different = {id(made): (name, made) for name, made in launched}
    read = {key: _read(name, made) for key, (name, made) in different.items()}
    return [read[id(made)] for _, made in launched]


def _read(name: str, made: Any) -> Compiled:
    registers, spilled = _assembled(made.asm["ptx"])
    return Compiled(name, made.metadata.shared, registers, spilled, made.asm["ptx"])


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
    _task, _capability = sys.argv[1], int(sys.argv[2])
    if _task == "kernels":
        _rows = [_compile(Kernel(**row), _capability) for row in json.load(sys.stdin)]
    else:
        _rows = _compile_calls(sys.stdin.read(), _capability)
    print(json.dumps([asdict(row) for row in _rows]))
