"""The little that training needs from torch.distributed; with one process everything is a no-op."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from unisolo.devices import resolve_device

__all__ = ["World", "gather_objects", "join_world", "mean_over_world"]


@dataclass(frozen=True)
class World:
    """This process's place among the processes that torchrun started.

    Attributes:
        rank: 0 .. size - 1.
        size: Number of processes.
        device: Where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and files."""
        return self.rank == 0


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Join the process group that torchrun announces in the environment, and leave it at the end.

    Args:
        device: "auto" = this process's CUDA device, else MPS, else CPU; or any torch device.

    Raises:
        ValueError: If the device does not exist on this machine.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = resolve_device(device, local_rank)
    if size == 1:
        yield World(rank=0, size=1, device=chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank=rank, size=size, device=chosen)
    finally:
        dist.destroy_process_group()


def gather_objects(value: Any) -> list[Any]:
    """Return every process's picklable value, in rank order, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def mean_over_world(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return the mean over processes of each number; names must agree on all of them."""
    if not dist.is_initialized():
        return values
    packed = torch.tensor([values[name] for name in sorted(values)], device=device)
    dist.all_reduce(packed)
    packed /= dist.get_world_size()
    return dict(zip(sorted(values), packed.tolist(), strict=True))
