"""Panoptic merge: instances and stuff become one map in which every pixel has one owner.

The rules are those of COCO's panoptic tools for combining instance and stuff predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from unisolo.ops.backend import backend_for
from unisolo.ops.masks import (
    CHUNK_PIXELS,
    popcount,
    resize_to_original,
    row_chunks,
    unpack_bits,
)

__all__ = ["PanopticMerge", "check_merge", "merge_panoptic", "segment_stuff"]


class PanopticMerge(NamedTuple):
    """A panoptic map and what its ids stand for.

    Attributes:
        panoptic_seg: [H, W] int32; 0 = void, then ids from 1: instances by score, stuff by index.
        instance_ids: [K] int32, id of each instance; 0 = not in the map.
        instance_areas: [K] int64, pixels each instance owns in the map.
        stuff_ids: [S] int32, id of each stuff index; 0 = not in the map.
        stuff_areas: [S] int64, pixels each stuff index owns in the map.
        small_stuff_areas: [S] int64, free pixels of each stuff index that had too few to enter.
    """

    panoptic_seg: Tensor
    instance_ids: Tensor
    instance_areas: Tensor
    stuff_ids: Tensor
    stuff_areas: Tensor
    small_stuff_areas: Tensor


def segment_stuff(
    stuff_logits: Tensor,
    *,
    padded_size: tuple[int, int],
    input_size: tuple[int, int],
    orig_size: tuple[int, int],
    chunk_pixels: int = CHUNK_PIXELS // 4,
) -> Tensor:
    """Find the most likely stuff index of every pixel of the original image.

    Logits take the same two resizes as the masks, so both lie in the same frame. Channels are
    resized a few at a time with a running maximum: memory does not grow with their number. Those
    that can win nowhere (see `_contenders`) are left out, which changes the cost but no pixel.

    Args:
        stuff_logits: [S + 1, h, w] floating over the padded input; the last channel is "other"
            (any thing).
        padded_size: (H, W) of the model's input with padding.
        input_size: (H, W) of its valid part.
        orig_size: (H, W) of the original image.
        chunk_pixels: Pixels resized at a time (at least one channel); never changes the result.
            The default keeps a part below 32 MiB, which a CPU's allocator uses again.

    Returns:
        [H, W] int16 in 0..S; S = "other". Equal logits go to the smaller index.

    Raises:
        ValueError: If `stuff_logits` is not float of rank 3 with 1 to 32768 channels.
    """
    if stuff_logits.ndim != 3 or not 1 <= stuff_logits.shape[0] <= 2**15:
        raise ValueError(
            "segment_stuff needs stuff_logits [S + 1, h, w] with 1 to 32768 channels, "
            f"got {list(stuff_logits.shape)}"
        )
    if backend_for(stuff_logits.device) == "triton":
        from unisolo.ops.kernels.stuff import segment_stuff as twin

        return twin(
            stuff_logits,
            padded_size=padded_size,
            input_size=input_size,
            orig_size=orig_size,
            chunk_pixels=chunk_pixels,
        )
    stuff_logits = stuff_logits.detach()  # so that maxima can be written in place
    channels = _contenders(stuff_logits, padded_size)
    if len(channels) < len(stuff_logits):  # a list as index would be a sync on a GPU
        stuff_logits = stuff_logits[channels]
    device = stuff_logits.device
    best = torch.full(orig_size, -torch.inf, device=device)
    index = torch.zeros(orig_size, dtype=torch.int16, device=device)
    largest = max(orig_size[0] * orig_size[1], padded_size[0] * padded_size[1])
    for part in row_chunks(len(channels), largest, chunk_pixels):
        resized = resize_to_original(
            stuff_logits[part], padded_size=padded_size, input_size=input_size, orig_size=orig_size
        )
        for channel, logits in zip(channels[part], resized, strict=True):
            # Channels come in rising order, so the last that was better is the largest number. On a
            # CPU these maxima in place take a sixth of the time of `max(0)`, which writes int64.
            better = logits > best
            index = torch.maximum(index, better.to(torch.int16) * channel, out=index)
            best = torch.maximum(best, logits, out=best)
    return index


def merge_panoptic(
    packed_masks: Tensor,
    width: int,
    scores: Tensor,
    stuff_index: Tensor | None,
    *,
    num_stuff: int,
    score_threshold: float = 0.5,
    overlap_threshold: float = 0.5,
    stuff_area_threshold: int = 4096,
) -> PanopticMerge:
    """Merge instances and stuff by the COCO heuristics, on the device and without a sync.

    Instances come in order of score. One is skipped if its score is below `score_threshold`, if it
    is empty, or if the share of it covered by the accepted ones' full masks is above
    `overlap_threshold`; otherwise it owns its pixels that are still free. Then each stuff index
    owns its free pixels, unless they are fewer than `stuff_area_threshold`. The rest is void.

    The loop over K works on packed bits: its cost is that of a few passes over K * H * W / 8 bytes.

    Args:
        packed_masks: [K, H, ceil(W / 8)] uint8 by falling score; bits past the width are 0.
        width: W.
        scores: [K] floating, falling.
        stuff_index: [H, W] integer in 0..S; S, and any other value, belongs to no stuff. None
            where there is no stuff prediction.
        num_stuff: S.
        score_threshold: Strict: a score equal to it is kept.
        overlap_threshold: Strict: a share equal to it is kept.
        stuff_area_threshold: Pixels; strict: an area equal to it is kept.

    Returns:
        The map, and ids and areas of instances and stuff. Every id in the map has pixels.

    Raises:
        ValueError: If shapes or dtypes do not fit each other.
    """
    backend = backend_for(packed_masks.device)
    if backend == "triton":
        from unisolo.ops.kernels.merge import merge_panoptic as twin

        return twin(
            packed_masks,
            width,
            scores,
            stuff_index,
            num_stuff=num_stuff,
            score_threshold=score_threshold,
            overlap_threshold=overlap_threshold,
            stuff_area_threshold=stuff_area_threshold,
        )
    check_merge(packed_masks, width, scores, stuff_index, num_stuff)
    if backend == "cpu":
        from unisolo.ops.cpu.merge import merge_panoptic as cpu_twin

        return cpu_twin(
            packed_masks,
            width,
            scores,
            stuff_index,
            num_stuff=num_stuff,
            score_threshold=score_threshold,
            overlap_threshold=overlap_threshold,
            stuff_area_threshold=stuff_area_threshold,
        )
    owner, instance_areas = _paint_instances(
        packed_masks, width, scores >= score_threshold, overlap_threshold
    )
    accepted = instance_areas > 0
    instance_ids = torch.where(accepted, accepted.cumsum(0), 0).int()
    panoptic_seg = _with_zero(instance_ids)[owner]

    if stuff_index is None:
        stuff_areas = torch.zeros(num_stuff, dtype=torch.int64, device=packed_masks.device)
        stuff_ids, small_areas = stuff_areas.int(), stuff_areas
    else:
        # Slot 0 collects what is no stuff or not free, slot s + 1 is stuff index s.
        known = (owner == 0) & (stuff_index >= 0) & (stuff_index < num_stuff)
        slots = torch.where(known, stuff_index.long() + 1, 0)
        ones = slots.new_ones(1).expand(slots.numel())
        counts = slots.new_zeros(num_stuff + 1).scatter_add(0, slots.flatten(), ones)[1:]
        present = (counts >= stuff_area_threshold) & (counts > 0)
        stuff_areas = torch.where(present, counts, 0)
        small_areas = counts - stuff_areas
        stuff_ids = torch.where(present, accepted.sum() + present.cumsum(0), 0).int()
        panoptic_seg = panoptic_seg + _with_zero(stuff_ids)[slots]
    return PanopticMerge(
        panoptic_seg, instance_ids, instance_areas, stuff_ids, stuff_areas, small_areas
    )


def _paint_instances(
    packed_masks: Tensor, width: int, eligible: Tensor, overlap_threshold: float
) -> tuple[Tensor, Tensor]:
    """Give every pixel its instance.

    Returns owner [H, W] int32 (k + 1, or 0 where free) and the areas [K] int64 owned by each.
    """
    num_masks, height, num_bytes = packed_masks.shape
    used = packed_masks.new_zeros(height, num_bytes)
    # Bit b of the owner's number, packed: the masks' numbers are known before the loop, so
    # painting one touches its few bit planes instead of a full-size integer map.
    planes = [torch.zeros_like(used) for _ in range(num_masks.bit_length())]
    areas = popcount(packed_masks.flatten(1))
    visible_areas = []
    for k in range(num_masks):
        hidden = popcount((packed_masks[k] & used).flatten())
        accept = eligible[k] & ~(hidden / areas[k] > overlap_threshold)
        # All ones or all zeros: chooses without asking the host.
        visible = packed_masks[k] & ~used & (accept.to(torch.uint8) * 255)
        used = used | visible
        visible_areas.append(torch.where(accept, areas[k] - hidden, 0))
        for bit, plane in enumerate(planes):
            if (k + 1) >> bit & 1:
                plane |= visible
    owner = torch.zeros(height, width, dtype=torch.int32, device=packed_masks.device)
    for bit, plane in enumerate(planes):
        owner += unpack_bits(plane, width).int() << bit
    owned = torch.stack(visible_areas) if visible_areas else areas
    return owner, owned


def _contenders(stuff_logits: Tensor, padded_size: tuple[int, int]) -> list[int]:
    """List, rising, the channels of [S + 1, h, w] that may be the largest at some pixel.

    A pixel of the original is a mean of the few neighbouring logits that its two resizes read. A
    channel whose largest logit in such a window is below another's smallest cannot win there, and
    most categories lose in all windows of a picture.
    """
    if stuff_logits.device.type != "cpu" or torch.compiler.is_compiling():
        # The choice would be a sync, or a shape that depends on values.
        return list(range(len(stuff_logits)))
    # The second resize reads two neighbours of the padded frame, which lie size / padded logits
    # apart and read two each: at most ceil(size / padded) + 2, here with room for rounding.
    window = [
        min(size, 2 * size // max(padded, 1) + 3)
        for size, padded in zip(stuff_logits.shape[1:], padded_size, strict=True)
    ]
    stuff_logits = stuff_logits.float()
    surest = reduce(torch.maximum, (-_window_maxima(-logits, window) for logits in stuff_logits))
    # Far above the rounding of a resize: who is left out is strictly below at every pixel.
    surest = surest - 1e-5 * stuff_logits.abs().max()
    return [
        channel
        for channel, logits in enumerate(stuff_logits)
        if not (_window_maxima(logits, window) < surest).all()
    ]


def _window_maxima(values: Tensor, window: Sequence[int]) -> Tensor:
    """Take the maximum of every a x b window: [h - a + 1, w - b + 1].

    On a CPU `max_pool2d` takes 15 times as long, as it also looks for the places.
    """
    for dim, size in enumerate(window):
        windows = values.unfold(dim, size, 1).unbind(-1)  # views, one per place in the window
        values = reduce(torch.maximum, windows)
    return values


def _with_zero(ids: Tensor) -> Tensor:
    """Prepend id 0, the answer for "nobody"."""
    return torch.cat([ids.new_zeros(1), ids])


def check_merge(
    packed_masks: Tensor, width: int, scores: Tensor, stuff_index: Tensor | None, num_stuff: int
) -> None:
    """Refuse what `merge_panoptic` and its twins cannot merge.

    Raises:
        ValueError: If shapes or dtypes do not fit each other.
    """
    if (
        packed_masks.ndim != 3
        or packed_masks.dtype != torch.uint8
        or packed_masks.shape[2] != (width + 7) // 8
    ):
        raise ValueError(
            f"merge_panoptic needs uint8 packed masks [K, H, {(width + 7) // 8}] for a width of "
            f"{width}, got {packed_masks.dtype} {list(packed_masks.shape)}"
        )
    if scores.shape != packed_masks.shape[:1]:
        raise ValueError(
            f"merge_panoptic got {list(scores.shape)} scores for {len(packed_masks)} masks"
        )
    if num_stuff < 0:
        raise ValueError(f"num_stuff must be at least 0, got {num_stuff}")
    if stuff_index is None:
        return
    size = (packed_masks.shape[1], width)
    if tuple(stuff_index.shape) != size or stuff_index.is_floating_point():
        raise ValueError(
            f"stuff_index must be an integer map of the masks' size {list(size)}, "
            f"got {stuff_index.dtype} {list(stuff_index.shape)}"
        )
