"""What a measurement was made on: processor, instruction sets, GPU, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["describe_gpu", "describe_machine", "usable_cores"]

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""Instruction sets that decide how fast fp32, bf16 and int8 are."""

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "triton",
    "transformers",
    "onnx",
    "onnxruntime",
    "openvino",
    "numpy",
    "hotcoco",
    "pycocotools",
    "panopticapi",
    "panopticapi-lite",
)


def describe_machine() -> dict[str, Any]:
    """Return facts about this machine, ready for JSON.

    `cpu` is what the system calls the processor ("unknown" where it does not tell), `cores` how
    many this process may use, `flags` which of `FLAGS` it has (Linux only), `gpu` the current CUDA
    device (see `describe_gpu`) or None, `versions` those of Python and of the packages that are
    installed.
    """
    entries = _cpu_entries()
    flags = entries.get("flags", "").split()
    return {
        "cpu": entries.get("model name") or platform.processor() or "unknown",
        "family": " ".join(
            f"{name} {entries[name]}" for name in ("cpu family", "model") if name in entries
        ),
        "cores": usable_cores(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "gpu": describe_gpu(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), **_versions()},
    }


def describe_gpu() -> dict[str, Any] | None:
    """Return facts about the current CUDA device, ready for JSON; None where there is none.

    `name`, `capability` ("9.0"), `multiprocessors`, `memory_gib`, `cuda` (the version torch was
    built for), and what `nvidia-smi` tells where it is installed: `driver`, `max_clock` (of the
    multiprocessors), `power_limit`.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    device = torch.cuda.current_device()
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        **_smi_facts(getattr(found, "uuid", None)),
    }


def _smi_facts(uuid: object) -> dict[str, str]:
    """Driver, clock and power limit; the device's number would be another one to nvidia-smi."""
    fields = {
        "driver": "driver_version",
        "max_clock": "clocks.max.sm",
        "power_limit": "power.limit",
    }
    command = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader"]
    if uuid is not None:
        command.append(f"--id=GPU-{uuid}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = done.stdout.strip().splitlines()
    if not lines:
        return {}
    return dict(zip(fields, (value.strip() for value in lines[0].split(",")), strict=False))


def _cpu_entries() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def usable_cores() -> int:
    """Return how many processors this process may use: a container's share, not its host's."""
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
