"""Which twin of an operation runs: the torch definition, the Triton kernels or the CPU's own.

The functions of `unisolo.ops` in plain torch are the definition. Some have twins with the same
signature and the same results: `unisolo.ops.kernels` (Triton) and `unisolo.ops.cpu`. Each such
function asks `backend_for` first.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal, get_args

import torch

__all__ = ["Backend", "Kernels", "KernelsError", "backend_for", "use_kernels"]

Backend = Literal["torch", "triton", "cpu"]
Kernels = Literal["auto", "torch", "triton"]

VARIABLE = "UNISOLO_KERNELS"
LEAST_CAPABILITY = (8, 0)
LEAST_TRITON = (3, 5)
"""Triton 3.4 gives the largest kernel more shared memory than an H100 has, and 3.3 does not know
tuples of constants."""

_chosen: ContextVar[str | None] = ContextVar("unisolo_kernels", default=None)


class KernelsError(RuntimeError):
    """Triton kernels were demanded where they cannot run; the message says why."""


def backend_for(device: torch.device) -> Backend:
    """Say which twin serves tensors of a device.

    The environment variable UNISOLO_KERNELS decides, or `use_kernels`: "torch" is the definition
    everywhere; "triton" the Triton kernels or an error; "auto" (the default) Triton on a GPU that
    it serves, the CPU's own twins on a CPU, else the definition. A program that is being exported
    or compiled always gets the definition.

    Args:
        device: Of the tensors.

    Returns:
        "torch", "triton" or "cpu".

    Raises:
        KernelsError: If Triton is demanded and cannot serve the device.
        ValueError: If the variable has an unknown value.
    """
    if torch.compiler.is_compiling():
        return "torch"
    kernels = _choice()
    if kernels == "torch":
        return "torch"
    if kernels == "auto" and device.type == "cpu":
        return "cpu"
    reason = _obstacle(device.type, device.index)
    if reason is None:
        return "triton"
    if kernels == "triton":
        raise KernelsError(
            f"{VARIABLE}=triton, but Triton cannot serve {device}: {reason}; use auto or torch"
        )
    if device.type == "cuda":
        _warn_once(f"unisolo's Triton kernels are not used on {device}: {reason}")
    return "torch"


@contextmanager
def use_kernels(kernels: Kernels) -> Iterator[None]:
    """Choose as UNISOLO_KERNELS does, for what runs inside.

    Args:
        kernels: "auto", "torch" or "triton".

    Raises:
        ValueError: If it is none of these.
    """
    token = _chosen.set(_known(kernels, "use_kernels"))
    try:
        yield
    finally:
        _chosen.reset(token)


def _choice() -> str:
    chosen = _chosen.get()
    return chosen if chosen is not None else _known(os.environ.get(VARIABLE) or "auto", VARIABLE)


def _known(kernels: str, source: str) -> str:
    if kernels not in get_args(Kernels):
        raise ValueError(f"{source} is auto, torch or triton, got {kernels!r}")
    return kernels


@cache
def _obstacle(device_type: str, index: int | None) -> str | None:
    """Why Triton cannot serve a device; None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None  # Triton's own emulator, which takes tensors of the CPU
    if device_type != "cuda":
        return "its kernels run on NVIDIA GPUs"
    if torch.version.hip is not None:
        return "its kernels are written for NVIDIA GPUs, this is ROCm"
    found = torch.cuda.get_device_capability(index)
    if found < LEAST_CAPABILITY:
        needed, has = (".".join(map(str, pair)) for pair in (LEAST_CAPABILITY, found))
        return f"it has compute capability {has}, the kernels need {needed}"
    return _old_triton() or _broken_driver()


def _old_triton() -> str | None:
    """Why the Triton that is installed is too old; None where it is not."""
    import triton

    found = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if found >= LEAST_TRITON:
        return None
    needed = ".".join(map(str, LEAST_TRITON))
    return f"triton {triton.__version__} is installed, the kernels need {needed} (as torch 2.9 has)"


def _broken_driver() -> str | None:
    """Why Triton cannot start kernels on this machine's GPU; None where it can.

    At its first use on a machine it compiles a small module in C, which images without a compiler
    or without Python's headers cannot: better known here than in the middle of a prediction.
    """
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # of the compiler, of the linker, of the driver
        return (
            "it cannot start kernels here (it needs a C compiler and Python's headers; "
            f"{type(error).__name__}: {error})"
        )
    return None


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
