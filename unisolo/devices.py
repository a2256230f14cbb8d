"""Where and in which precision to compute: what training, evaluation and `Predictor` share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["autocast_for", "resolve_device", "resolve_precision"]

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str | torch.device, local_rank: int = 0) -> torch.device:
    """Return the torch device of a name; "auto" takes the best there is.

    Args:
        device: "auto" = CUDA, else MPS, else CPU; or any torch device.
        local_rank: The CUDA device that "auto" and "cuda" take.

    Raises:
        ValueError: If the name is unknown or the device is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if str(device) == "cuda":
        device = f"cuda:{local_rank}"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {str(device)!r} cannot be used here ({str(error).splitlines()[0]}); "
            "use 'auto' or 'cpu'"
        ) from None
    return chosen


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the compute dtype of a precision on a device.

    Args:
        precision: "auto" = bf16 on a GPU that has it, fp16 on an older GPU, fp32 elsewhere; or
            "fp32", "bf16", "fp16".
        device: Where to compute.

    Raises:
        ValueError: If there is no such precision.
    """
    if precision in _PRECISIONS:
        return _PRECISIONS[precision]
    if precision != "auto":
        raise ValueError(
            f"unknown precision {precision!r}; choose from auto, {', '.join(_PRECISIONS)}"
        )
    if device.type != "cuda":
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def autocast_for(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Return an autocast context for the dtype; fp32 means none."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)
