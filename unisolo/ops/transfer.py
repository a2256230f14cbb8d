"""From the device to the host: many tensors, one copy, one wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["to_host"]


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Bring tensors to the CPU in one copy.

    On a GPU each copy costs a launch and a wait, and memory that is not page-locked is copied
    several times slower; so the tensors are joined to one buffer of bytes there and copied at once
    to page-locked memory, or to plain memory where the system has no more of that. What is returned
    shares that buffer: it is freed when all of it is.

    Args:
        tensors: Of any shapes and plain dtypes, on one device.

    Returns:
        The same on the CPU, in order; tensors that are there are returned as they are.

    Raises:
        ValueError: If the tensors are on several devices.
    """
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"to_host takes tensors of one device, got {sorted(map(str, devices))}")
    if not devices or devices == {torch.device("cpu")}:
        return list(tensors)
    joined = _joined(tensors)
    if joined.device.type != "cuda":
        return _parted(joined.cpu(), tensors)
    try:
        host = torch.empty(joined.shape, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:  # a caller holds so many results that no more can be page-locked
        return _parted(joined.cpu(), tensors)
    host.copy_(joined, non_blocking=True)
    torch.cuda.current_stream(joined.device).record_event().synchronize()
    return _parted(host, tensors)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """All bytes in one tensor, in the order of `_places`."""
    return torch.cat(
        [tensors[n].detach().contiguous().flatten().view(torch.uint8) for n in _places(tensors)]
    )


def _parted(joined: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Undo `_joined`: views with the dtypes and shapes of `like`."""
    parts: dict[int, Tensor] = {}
    start = 0
    for n in _places(like):
        end = start + like[n].numel() * like[n].element_size()
        parts[n] = joined[start:end].view(like[n].dtype).view(like[n].shape)
        start = end
    return [parts[n] for n in range(len(like))]


def _places(tensors: Sequence[Tensor]) -> list[int]:
    """The widest numbers first, so that each begins at a multiple of its own size."""
    return sorted(range(len(tensors)), key=lambda n: -tensors[n].element_size())
