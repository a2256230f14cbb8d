"""Decoded training images and annotations, kept in memory that loader processes share.

Decoding a JPEG and painting the masks of a crowded image cost more than everything that happens to
a sample afterwards, and are the same in every epoch. What is kept is what a transform takes, so a
sample from memory is the sample from disk, bit for bit.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unisolo.data.coco_files import PackedRecords
from unisolo.data.memory import free_memory
from unisolo.data.raw import Int16Map, RawSample, RawTarget
from unisolo.structures import ImageMeta

__all__ = ["RawCache", "keep_in_memory"]

_BLOCK = 2**26
"""Bytes that are asked for at a time."""

_PROBES = 16
"""Samples that are read to learn whether all will fit."""

_AT_ONCE = 64
"""Samples that are read before the next are begun: bounds what waits to be packed."""

_SHARED = Path("/dev/shm")
"""Where Linux keeps memory that processes share by handle; containers may make it small."""

_SHARE = 0.8
"""Share of the free memory that may be taken, whatever the limit."""


class RawCache(Sequence[RawSample]):
    """Samples by their number in the data set, as copies that may be changed.

    All bytes lie in a few large blocks that are only read after they have been filled: forked
    loader processes go on using the same pages, others get a handle of shared memory.

    Args:
        blocks: [n] uint8 each.
        index: For every sample, what `_Packer.add` noted.
    """

    def __init__(self, blocks: Sequence[Tensor], index: Sequence[dict[str, Any]]) -> None:
        self._blocks = list(blocks)
        self._index = PackedRecords(index)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Any) -> Any:
        """Return the sample of one number (no slices)."""
        entry = self._index[index]
        image_id, file_name, orig_size, input_size = entry["meta"]
        target = None
        if "labels" in entry:
            target = RawTarget(
                np.array(entry["labels"], dtype=np.int64),
                self._map(entry["object_map"]),
                self._map(entry["crowd_map"]),
                None if entry["stuff_map"] is None else self._map(entry["stuff_map"]),
            )
        meta = ImageMeta(image_id, file_name, tuple(orig_size), tuple(input_size))
        return RawSample(self._array(entry["image"]), meta, target)

    def _array(self, place: Sequence[Any]) -> npt.NDArray[Any]:
        block, start, dtype, shape = place
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        values = self._blocks[block][start : start + size].numpy().copy()
        array: npt.NDArray[Any] = values.view(dtype).reshape(shape)
        return array

    def _map(self, place: Sequence[Any]) -> Int16Map:
        if len(place) == 1:
            return np.zeros(place[0], dtype=np.int16)
        values = self._array(place)
        return values if values.dtype == np.int16 else values.astype(np.int16) - np.int16(1)


class _Packer:
    """Fills blocks with samples."""

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []
        self.index: list[dict[str, Any]] = []
        self.size = 0
        self._end = _BLOCK

    def add(self, sample: RawSample) -> None:
        """Copy a sample into the blocks."""
        meta, target = sample.meta, sample.target
        entry: dict[str, Any] = {
            "meta": [meta.image_id, meta.file_name, meta.orig_size, meta.input_size],
            "image": self._put(sample.image),
        }
        if target is not None:
            entry["labels"] = target.labels.tolist()
            entry["object_map"] = self._put_map(target.object_map)
            entry["crowd_map"] = self._put_map(target.crowd_map)
            entry["stuff_map"] = (
                None if target.stuff_map is None else self._put_map(target.stuff_map)
            )
        self.index.append(entry)

    def _put_map(self, values: Int16Map) -> list[Any]:
        if not values.any():
            return [list(values.shape)]
        if values.min() >= -1 and values.max() <= 254:  # a byte is enough, -1 ("ignore") included
            return self._put((values + 1).astype(np.uint8))
        return self._put(values)

    def _put(self, values: npt.NDArray[Any]) -> list[Any]:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        if self._end + len(data) > (len(self.blocks[-1]) if self.blocks else 0):
            self.blocks.append(_new_block(max(_BLOCK, len(data))))
            self._end = 0
        start, self._end = self._end, self._end + -(-len(data) // 8) * 8
        self.blocks[-1][start : start + len(data)] = torch.from_numpy(data)
        self.size += len(data)
        return [len(self.blocks) - 1, start, values.dtype.str, list(values.shape)]


def _new_block(size: int) -> Tensor:
    block = torch.empty(size, dtype=torch.uint8)
    # Forked processes see these pages as they are; started ones are handed shared memory.
    if multiprocessing.get_start_method() != "fork":
        block.share_memory_()  # type: ignore[no-untyped-call]
    return block


def keep_in_memory(
    dataset: Any, limit_gib: float, say: Callable[[str], object], *, processes: int = 1
) -> None:
    """Read all samples of a data set once and let it serve them from memory from now on.

    Where they need more than the limit or the free memory, the data set is left as it is, and
    `say` is told.

    Args:
        dataset: Has `read(index) -> RawSample`, `cache` and a length.
        limit_gib: Most memory to take, GiB.
        say: Told in a sentence what was done.
        processes: How many processes of this machine do the same at this time, each for itself:
            they share what memory is free.

    Raises:
        ValueError: If an image or annotation cannot be used, or the data set has no `read`.
    """
    if not hasattr(dataset, "read"):
        raise ValueError(
            f"data.cache=ram needs a data set with a method read(index) -> RawSample, and "
            f"{type(dataset).__name__} has none; set data.cache=none"
        )
    begin = time.monotonic()
    limit = _Limit.of(limit_gib, processes)
    count = len(dataset)
    probes = sorted(set(np.linspace(0, count - 1, _PROBES).astype(int).tolist()))
    estimate = _fill(dataset, probes).size / len(probes) * count
    need = f"about {_gib(estimate)}"
    if estimate <= limit.size:
        packer = _fill(dataset, range(count), limit.size)
        if packer.size <= limit.size:
            dataset.cache = RawCache(packer.blocks, packer.index)
            say(
                f"data.cache=ram: {count} training images in {_gib(packer.size)} of memory, read "
                f"in {time.monotonic() - begin:.1f} s"
            )
            return
        need = f"more than {_gib(limit.size)}"
    say(
        f"data.cache=ram is left off: {count} training images need {need}, and {limit.reason}; "
        "images are read from disk"
    )


@dataclass(frozen=True)
class _Limit:
    """How much memory may be taken, in bytes, and why not more."""

    size: float
    reason: str

    @classmethod
    def of(cls, limit_gib: float, processes: int) -> _Limit:
        size, found = limit_gib * 2**30, _free(processes)
        if found is not None and _SHARE * found[0] < size:
            free, kind = found
            return cls(
                _SHARE * free,
                f"{_gib(free)} of {kind} are free, of which {_SHARE:.0%} may be taken",
            )
        return cls(size, f"data.cache_gib={limit_gib:g} allows no more")


def _fill(dataset: Any, numbers: Sequence[int], limit: float = math.inf) -> _Packer:
    """Read samples, several at a time, until they are larger than the limit, in bytes."""
    packer = _Packer()
    for sample in _read(dataset, numbers):
        packer.add(sample)
        if packer.size > limit:
            break
    return packer


def _read(dataset: Any, numbers: Sequence[int]) -> Iterator[RawSample]:
    """Read in threads: decoders let others run meanwhile."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        for start in range(0, len(numbers), _AT_ONCE):
            yield from threads.map(dataset.read, numbers[start : start + _AT_ONCE])


def _free(processes: int) -> tuple[float, str] | None:
    """The bytes that one of so many processes may count on, and what they are; None = not told."""
    free, kind = free_memory(), "memory"
    if multiprocessing.get_start_method() != "fork" and _SHARED.is_dir():
        shared = shutil.disk_usage(_SHARED).free
        free = shared if free is None else min(free, shared)
        kind = f"memory that processes can share ({_SHARED})"
    if free is None:
        return None
    return free / processes, kind if processes == 1 else f"{kind} for each of {processes} processes"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
