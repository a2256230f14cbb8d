"""The little that training needs from torch.distributed; with one process everything is a no-op."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from unisolo.devices import resolve_device

__all__ = ["World", "join_world", "local_size", "restart_count"]

_PATIENCE = timedelta(minutes=60)
"""How long a process waits for the others: evaluation and saving take one longer than another."""


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

    def gather(self, value: Any) -> list[Any]:
        """Return every process's picklable value, in rank order, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """Return the main process's picklable value on every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def total(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the sum over processes of each scalar, on `device`; in float64 if several."""
        if self.size == 1:
            return list(values)
        packed = torch.stack([value.detach().to(self.device, torch.float64) for value in values])
        dist.all_reduce(packed)
        return list(packed)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return, for each flag, whether it is set on any process; the same answer on all."""
        if self.size == 1:
            return flags
        packed = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(packed, op=dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in packed.tolist())


def restart_count() -> int:
    """How often torchrun has restarted this job's processes (`--max-restarts`); 0 at first."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def local_size() -> int:
    """Return how many processes torchrun has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    store, _, _ = next(rendezvous("env://", timeout=_PATIENCE))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # torchrun keeps one store over its restarts, with the addresses of the processes that died
        # still in it. Nodes may count restarts differently, so only one node can tell them apart.
        store = PrefixStore(f"restart_{restart_count()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield World(rank=rank, size=size, device=chosen)
    finally:
        dist.destroy_process_group()
