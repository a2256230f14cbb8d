"""Copies to a GPU that run beside its work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unisolo.engine.packing import PackedBatch
from unisolo.structures import Batch

__all__ = ["Copy", "start_copy"]

_STREAMS: dict[torch.device, torch.cuda.Stream] = {}
"""The copying stream of each device: memory that a stream has let go is reused on it only."""


@dataclass(frozen=True)
class Copy:
    """Batches that are on their way to a GPU."""

    batches: list[PackedBatch]
    arrived: torch.cuda.Event

    def finish(self) -> list[Batch]:
        """Return the batches; the current stream's coming work waits until they are there."""
        stream = torch.cuda.current_stream(self.batches[0].block.device)
        stream.wait_event(self.arrived)
        for batch in self.batches:
            # The memory is the copying stream's, which must not reuse it while this one reads.
            batch.block.record_stream(stream)
        return [batch.unpacked() for batch in self.batches]


def start_copy(batches: Sequence[PackedBatch], device: torch.device) -> Copy:
    """Begin to copy batches; returns at once where they lie in page-locked memory.

    Args:
        batches: At least one.
        device: A CUDA device.

    Raises:
        torch.OutOfMemoryError: If the device has no room for them.
    """
    stream = _STREAMS.get(device)
    if stream is None:
        stream = _STREAMS[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        moved = [batch.to(device, non_blocking=True) for batch in batches]
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(stream)
    return Copy(moved, arrived)
