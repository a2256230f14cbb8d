"""How much memory this process may still take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_memory"]

_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Of a control group: the file with its limit, the file with its use, and what of that is cache of
files, which the kernel gives up first."""


def free_memory(*, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that the system can give without swapping, or None where it does not tell.

    In a container that is less than the machine has free: its control group has a limit of its own,
    beyond which processes are killed.

    Args:
        proc: Where Linux tells about processes and memory.
        groups: Where it tells about control groups, of either version.
    """
    found = [_of_machine(proc), *_of_groups(proc, groups)]
    return min((size for size in found if size is not None), default=None)


def _of_machine(proc: Path) -> int | None:
    rows = dict(line.split(":", 1) for line in _text(proc / "meminfo").splitlines() if ":" in line)
    available = rows.get("MemAvailable", "").split()
    return int(available[0]) * 1024 if available else None


def _of_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What each control group leaves that this process is in."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, names = groups, _VERSION_2
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", _VERSION_1
        else:
            continue
        # A container may see its own group as the root and still be told the path outside.
        folder = root / path.lstrip("/")
        while folder.is_relative_to(root):
            yield from _left(folder, *names)
            folder = folder.parent


def _left(folder: Path, limit_name: str, used_name: str, cache_name: str) -> Iterator[int]:
    limit, used = (_text(folder / name).strip() for name in (limit_name, used_name))
    if not limit.isdigit() or not used.isdigit():  # "max", or the group has no limits to set
        return
    rows = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines())
    yield max(0, int(limit) - int(used) + int(rows.get(cache_name, "0")))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
