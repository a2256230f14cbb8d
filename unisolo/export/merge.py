"""The panoptic merge of `unisolo.ops.panoptic` for graphs: batches, plain booleans, no scatter.

The rules and the results are the same; the tests hold the two together. Running sums and lower
bounds are taken in float, where TensorRT has them; exact, as counts stay below 2**24.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MergedInstances", "MergedStuff", "merge_instances", "merge_stuff"]


class MergedInstances(NamedTuple):
    """Instances that do not overlap any more.

    Attributes:
        owner: [B, H, W] int64, k + 1 for a pixel of instance k, 0 where free.
        areas: [B, K] int64, pixels that each instance owns; 0 = not in the map.
    """

    owner: Tensor
    areas: Tensor


class MergedStuff(NamedTuple):
    """A panoptic map and what its ids stand for.

    Attributes:
        panoptic_seg: [B, H, W] int32; 0 = void.
        instance_ids: [B, K] int64; 0 = not in the map.
        stuff_ids: [B, S] int64; 0 = not in the map.
        stuff_areas: [B, S] int64, pixels in the map.
    """

    panoptic_seg: Tensor
    instance_ids: Tensor
    stuff_ids: Tensor
    stuff_areas: Tensor


def merge_instances(
    masks: Tensor, scores: Tensor, *, score_threshold: float, overlap_threshold: float
) -> MergedInstances:
    """Give every pixel its instance; see `unisolo.ops.panoptic.merge_panoptic`.

    Args:
        masks: [B, K, H, W] bool, by falling score.
        scores: [B, K] float32.
        score_threshold: Strict: a score equal to it is kept.
        overlap_threshold: Strict: a share equal to it is kept.
    """
    eligible = scores >= score_threshold
    areas = masks.sum((-2, -1))
    used = torch.zeros_like(masks[:, 0])
    owner = torch.zeros_like(used, dtype=torch.int64)
    owned = []
    for k in range(masks.shape[1]):
        mask = masks[:, k]
        hidden = (mask & used).sum((-2, -1))
        share = hidden.float() / areas[:, k].float().clamp_min(1)
        accept = eligible[:, k] & ~(share > overlap_threshold)
        visible = mask & ~used & accept[:, None, None]
        used = used | visible
        owner = torch.where(visible, k + 1, owner)
        owned.append(torch.where(accept, areas[:, k] - hidden, 0))
    return MergedInstances(owner, torch.stack(owned, dim=1))


def merge_stuff(
    things: MergedInstances, stuff_index: Tensor, *, num_stuff: int, area_threshold: float
) -> MergedStuff:
    """Give the free pixels to stuff and number all segments.

    Args:
        things: From `merge_instances`.
        stuff_index: [B, H, W] int64 in 0..S; S belongs to no stuff.
        num_stuff: S; may be 0.
        area_threshold: Least pixels of a stuff index; an area equal to it is kept.
    """
    accepted = things.areas > 0
    instance_ids = torch.where(accepted, accepted.float().cumsum(1).long(), 0)
    free = things.owner == 0
    seg = _look_up(instance_ids, things.owner)
    if num_stuff == 0:
        none = instance_ids[:, :0]
        return MergedStuff(seg.int(), instance_ids, none, none)
    # A mask and a sum per stuff index: a histogram would need a scatter, which few runtimes add in.
    counts = torch.stack(
        [(free & (stuff_index == index)).sum((-2, -1)) for index in range(num_stuff)], dim=1
    )
    present = (counts >= area_threshold) & (counts > 0)
    number = accepted.sum(1, keepdim=True) + present.float().cumsum(1).long()
    stuff_ids = torch.where(present, number, 0)
    # Slot 0 is no stuff, slot s + 1 stuff index s.
    slots = torch.where(free & (stuff_index < num_stuff), stuff_index + 1, 0)
    seg = seg + _look_up(stuff_ids, slots)
    return MergedStuff(seg.int(), instance_ids, stuff_ids, torch.where(present, counts, 0))


def _look_up(ids: Tensor, slots: Tensor) -> Tensor:
    """[B, H, W]: 0 for slot 0, else the id of slot - 1."""
    table = torch.cat([torch.zeros_like(ids[:, :1]), ids], dim=1)
    return table.gather(1, slots.flatten(1)).reshape(slots.shape)
