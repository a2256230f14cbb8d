"""How much memory a call takes on a CPU: the system's own high-water mark of the process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["peak_resident_bytes"]

_PROCESS = Path("/proc/self")


def peak_resident_bytes(call: Callable[[], object]) -> int:
    """Return what a call makes this process hold at most, beyond what it held before.

    Everything counts that is in memory: tensors, scratch of libraries, what the allocator has not
    given back. A library that is loaded inside counts too: load it before.

    Args:
        call: Run once.

    Raises:
        OSError: If the system has no /proc (it is Linux's).
    """
    if not (_PROCESS / "clear_refs").exists():
        raise OSError(f"the memory of a process is read from /proc, which {sys.platform} lacks")
    (_PROCESS / "clear_refs").write_text("5")  # the mark starts again from what is held now
    before = _entry(_PROCESS / "status", "VmRSS")
    call()
    return _entry(_PROCESS / "status", "VmHWM") - before


def _entry(path: Path, name: str) -> int:
    """Read a line like `VmRSS:   123 kB`, in bytes."""
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} has no entry {name}")
