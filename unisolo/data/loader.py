"""Batches: padding, workers, and randomness that does not depend on the number of workers."""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler

from unisolo.structures import SIZE_DIVISOR, STUFF_IGNORE, Batch, Sample, Target

__all__ = [
    "build_loader",
    "collate",
    "padded_size",
    "padded_size_groups",
    "start_worker",
]

Item = TypeVar("Item")
_Key: TypeAlias = tuple[int, int, int, int]


def padded_size(size: tuple[int, int], divisor: int = SIZE_DIVISOR) -> tuple[int, int]:
    """Return the (H, W) that an image of `size` (H, W) is padded to when it is alone in a batch."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def collate(samples: Sequence[Sample], divisor: int = SIZE_DIVISOR) -> Batch:
    """Pad images and maps at the bottom and right to one size and stack them.

    Args:
        samples: At least one; all with a target or all without.
        divisor: Height and width become multiples of this.

    Returns:
        The batch. Padding is 0 in images, object and crowd maps, STUFF_IGNORE in stuff maps.

    Raises:
        ValueError: If there are no samples, or only some of them have a target.
    """
    if not samples:
        raise ValueError("cannot make a batch of no samples")
    sizes = torch.tensor([sample.image.shape[-2:] for sample in samples], dtype=torch.int64)
    largest_height, largest_width = sizes.amax(0).tolist()
    height, width = padded_size((largest_height, largest_width), divisor)
    images = samples[0].image.new_zeros((len(samples), 3, height, width))
    for image, sample in zip(images, samples, strict=True):
        image[:, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
    targets = [sample.target for sample in samples if sample.target is not None]
    if len(targets) not in (0, len(samples)):
        raise ValueError(
            f"{len(targets)} of {len(samples)} samples have a target; a batch needs all or none"
        )
    return Batch(
        images=images,
        image_sizes=sizes,
        metas=tuple(sample.meta for sample in samples),
        targets=tuple(_pad_target(target, height, width) for target in targets),
    )


def _pad_target(target: Target, height: int, width: int) -> Target:
    old_height, old_width = target.crowd_map.shape
    border = (0, width - old_width, 0, height - old_height)

    def padded(values: Tensor, value: int) -> Tensor:
        return pad(values, border, value=value)

    return Target(
        labels=target.labels,
        boxes=target.boxes,
        object_map=padded(target.object_map, 0),
        crowd_map=padded(target.crowd_map, 0),
        stuff_map=None if target.stuff_map is None else padded(target.stuff_map, STUFF_IGNORE),
    )


def padded_size_groups(
    items: Iterable[Item], batch_size: int, input_size: Callable[[Item], tuple[int, int]]
) -> Iterator[list[Item]]:
    """Group items of one padded size, so that batching changes no image's geometry.

    The grids span the padded image: in a batch padded to its largest image a smaller one would be
    seen with other cells than alone.

    Args:
        items: Samples, or anything that holds one.
        batch_size: Most items in a group; at most this many of each padded size are held back.
        input_size: Gives an item's (H, W) before padding.

    Yields:
        Groups of 1 to `batch_size` items; full ones as soon as they are full.

    Raises:
        ValueError: If `batch_size` is less than 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    waiting: dict[tuple[int, int], list[Item]] = {}
    for item in items:
        size = padded_size(input_size(item))
        waiting.setdefault(size, []).append(item)
        if len(waiting[size]) == batch_size:
            yield waiting.pop(size)
    yield from waiting.values()


def build_loader(
    dataset: Dataset[Sample],
    *,
    batch_size: int,
    workers: int = 0,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    sampler: Iterable[int] | None = None,
    first_position: int = 0,
    position_step: int = 1,
    pin_memory: bool = False,
    make_batch: Callable[[Sequence[Sample]], Any] = collate,
) -> DataLoader[Any]:
    """Make a loader of batches.

    Order and random transforms follow from `seed`, the pass over the data, the position in it and
    the image: two loaders with one seed give the same batches, with any number of workers, and
    every pass differs. The process's own random state is neither used nor changed. A run that
    resumes in the middle says so by `first_position`, and sees the crops that it would have seen
    uninterrupted; the processes of a distributed run, which take every n-th image of one order,
    say so by `position_step` and together see the crops that one process would have seen.

    Args:
        dataset: Maps an index to a `Sample`.
        batch_size: Images per batch.
        workers: Loader processes; 0 = load in this process. They stay alive between passes.
        shuffle: Draw a new order in every pass.
        seed: Any integer.
        drop_last: Leave out a last, smaller batch; a data set smaller than one batch is kept.
        sampler: Indices in the order wanted (e.g. a `DistributedSampler`), instead of `shuffle`.
        first_position: Position in the pass of the sampler's first index.
        position_step: Distance in the pass of the sampler's indices.
        pin_memory: Copy batches to page-locked memory (for a GPU).
        make_batch: Joins samples, in the loader's processes.

    Returns:
        An iterable of what `make_batch` gives: of `Batch`, unless told otherwise.

    Raises:
        ValueError: If both `shuffle` and `sampler` are given, or the data set is empty.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if count == 0:
        raise ValueError("the data set has no images")
    if sampler is not None and shuffle:
        raise ValueError("give shuffle=True or a sampler, not both: a sampler sets the order")
    if sampler is None:
        sampler = (
            RandomSampler(range(count), generator=torch.Generator().manual_seed(seed))
            if shuffle
            else SequentialSampler(range(count))
        )
    keyed = _KeyedSampler(sampler, seed, first_position, position_step)
    length = len(sampler) if isinstance(sampler, Sized) else batch_size
    return DataLoader(
        _KeyedDataset(dataset),
        batch_size=batch_size,
        sampler=keyed,
        num_workers=workers,
        collate_fn=make_batch,
        pin_memory=pin_memory,
        drop_last=drop_last and length >= batch_size,
        worker_init_fn=start_worker,
        persistent_workers=workers > 0,
        # Its own, so that what the loader draws for its workers does not touch the order.
        generator=torch.Generator().manual_seed(seed),
    )


class _KeyedSampler(Sampler[_Key]):
    """Gives each index with the numbers its randomness follows from."""

    def __init__(
        self, sampler: Iterable[int], seed: int, first_position: int, position_step: int
    ) -> None:
        self._sampler = sampler
        self._first_position = first_position
        self._position_step = position_step
        self._seed = seed % 2**64
        self._passes = 0

    def __iter__(self) -> Iterator[_Key]:
        number, self._passes = self._passes, self._passes + 1
        positions = itertools.count(self._first_position, self._position_step)
        for position, index in zip(positions, self._sampler, strict=False):
            yield self._seed, number, position, int(index)

    def __len__(self) -> int:
        return len(self._sampler)  # type: ignore[arg-type]


class _KeyedDataset(Dataset[Sample]):
    """Sets torch's CPU generator from the key while one sample is made."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self._dataset = dataset

    def __getitem__(self, key: _Key) -> Sample:
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        state = torch.get_rng_state()
        # Not torch.manual_seed: without workers that would reset the GPU's generator as well.
        torch.default_generator.manual_seed(seed)
        try:
            return self._dataset[key[-1]]
        finally:
            torch.set_rng_state(state)

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]


def start_worker(worker: int) -> None:
    """Leave signals to the parent, and keep OpenCV to one thread.

    A terminal sends Ctrl-C to workers too, and a scheduler its warning: the parent decides what
    they mean and still needs its workers for the step in hand. OpenCV's thread pool does not
    survive a fork.
    """
    for name in ("SIGINT", "SIGUSR1"):  # Windows has no SIGUSR1
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    cv2: Any = sys.modules.get("cv2")
    if cv2 is not None:
        cv2.setNumThreads(0)
