"""The order in which training sees the images: endless, shuffled, shared out, resumable."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

__all__ = ["TrainSampler"]


class TrainSampler(Sampler[int]):
    """An endless shuffled stream of indices; every process takes its own share of one order.

    Epoch e is a permutation drawn from (seed, e). The stream runs over epoch borders, so no image
    is dropped or seen twice to fill a batch, and a start position is all that resuming needs.

    Args:
        length: Number of images.
        seed: Seed of the order, the same on every process.
        rank: This process.
        world_size: Number of processes.
        start: Images of the whole stream (all processes) already seen.
    """

    def __init__(
        self, length: int, *, seed: int, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> None:
        if length < 1:
            raise ValueError("the training set is empty: check data.root and data.train_split")
        self.length = length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def __iter__(self) -> Iterator[int]:
        position = self.start + self.rank
        epoch, order = -1, torch.empty(0, dtype=torch.long)
        while True:
            if position // self.length != epoch:
                epoch = position // self.length
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(self.length, generator=generator)
            yield int(order[position % self.length])
            position += self.world_size
