"""What a measurement was made on: processor, cores, instruction sets, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["describe_machine"]

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""Instruction sets that decide how fast fp32, bf16 and int8 are."""

PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "openvino", "numpy")


def describe_machine() -> dict[str, Any]:
    """Return facts about this machine, ready for JSON.

    `cpu` is what the system calls the processor ("unknown" where it does not tell), `cores` how
    many this process may use, `flags` which of `FLAGS` it has (Linux only), `versions` those of
    Python and of the packages that are installed.
    """
    entries = _cpu_entries()
    flags = entries.get("flags", "").split()
    return {
        "cpu": entries.get("model name") or platform.processor() or "unknown",
        "family": " ".join(
            f"{name} {entries[name]}" for name in ("cpu family", "model") if name in entries
        ),
        "cores": _usable_cores(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _cpu_entries() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
