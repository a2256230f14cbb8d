"""Runs an operation as on a GPU that is not there: every launch is bound, specialised and compiled.

Compiling a kernel from a written signature (`compiling.py`) says nothing of the call: an argument
that is missing, of a type the launcher cannot bind, or a grid that is none. Here Triton's own
launcher takes the real arguments, and stops before the driver would start the kernel. What the
operation returns is therefore undefined.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

PRELUDE = """
import json, sys, torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Absent:
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", int(sys.argv[1]), 32)

driver.set_active(Absent())
launched, start = [], JITFunction.run

def run(self, *arguments, grid, warmup, **more):
    sizes = grid(more) if callable(grid) else grid
    assert all(isinstance(size, int) and 0 < size < 2**31 for size in sizes), grid
    assert all(size < 2**16 for size in sizes[1:]), grid  # CUDA's limits
    start(self, *arguments, grid=grid, warmup=True, **more)
    launched.append(self.__name__)

JITFunction.run = run
"""


def launches(program: str, capability: int = 90) -> list[str]:
    """Run a program whose launches are only compiled.

    Args:
        program: Python source; `torch` is there.
        capability: Of the GPU that is not there.

    Returns:
        Names of the kernels it launches, in order.

    Raises:
        RuntimeError: With the program's last words, if it fails.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{PRELUDE}\n{program}\nprint(json.dumps(launched))",
            str(capability),
        ],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names
