"""A batch as one block of bytes, for its way from a loader process to the device.

A batch of 16 images is some 160 tensors. On their way between processes each would need file
descriptors (a process often has 1,024) and a connection, and then page-locked memory and a copy to
the GPU of its own; a block needs one of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from unisolo.structures import Batch, CellTargets, ImageMeta, Target

__all__ = ["PackedBatch", "pack"]

_ALIGNMENT = 64
"""Tensors begin at multiples of this many bytes: what torch's allocators give, and any dtype."""

_Place: TypeAlias = tuple[int, torch.dtype, tuple[int, ...]]
"""First byte, dtype and shape of a tensor."""


@dataclass(frozen=True)
class PackedBatch:
    """A training batch, its tensors one behind the other.

    Attributes:
        block: [n] uint8.
        metas: One per image.
        places: Where the tensors are (None = absent), in rows: images and image sizes; then for
            each target its fields and those of its cells.
    """

    block: Tensor
    metas: tuple[ImageMeta, ...]
    places: tuple[tuple[_Place | None, ...], ...]

    def pin_memory(self) -> PackedBatch:
        """Return a copy in page-locked memory (called by the data loader)."""
        return replace(self, block=self.block.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """Return a copy on `device`."""
        return replace(self, block=self.block.to(device, non_blocking=non_blocking))

    def unpacked(self) -> Batch:
        """Return the batch; its tensors are parts of the block."""
        (images, sizes), *targets = [[self.at(place) for place in row] for row in self.places]
        return Batch(
            images=images,
            image_sizes=sizes,
            metas=self.metas,
            targets=tuple(
                Target(labels, boxes, objects, crowd, stuff, CellTargets(*cells))
                for labels, boxes, objects, crowd, stuff, *cells in targets
            ),
        )

    def at(self, place: _Place | None) -> Any:
        """Return the tensor at a place, as a part of the block."""
        if place is None:
            return None
        start, dtype, shape = place
        count = torch.Size(shape).numel() * dtype.itemsize
        return self.block[start : start + count].view(dtype).view(shape)


def pack(batch: Batch) -> PackedBatch:
    """Copy a batch into one block.

    Args:
        batch: On the CPU, its targets with `cells`.

    Raises:
        ValueError: If a target has no `cells`.
    """
    rows: list[tuple[Tensor | None, ...]] = [(batch.images, batch.image_sizes)]
    for number, target in enumerate(batch.targets):
        if target.cells is None:
            raise ValueError(
                f"target {number} has no cells; fill them in first "
                "(unisolo.losses.targets.with_cell_targets)"
            )
        maps = (target.object_map, target.crowd_map, target.stuff_map)
        rows.append((target.labels, target.boxes, *maps, *target.cells))
    end = 0
    places: list[tuple[_Place | None, ...]] = []
    for row in rows:
        found: list[_Place | None] = []
        for tensor in row:
            if tensor is None:
                found.append(None)
                continue
            found.append((end, tensor.dtype, tuple(tensor.shape)))
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        places.append(tuple(found))
    packed = PackedBatch(torch.empty(end, dtype=torch.uint8), batch.metas, tuple(places))
    for row, at in zip(rows, packed.places, strict=True):
        for tensor, place in zip(row, at, strict=True):
            if tensor is not None:
                packed.at(place).copy_(tensor)
    return packed
