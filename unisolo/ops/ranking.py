"""The largest values in order, and taking rows by index: sorting as graphs can do it too."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pick", "rank"]

PART = 2**22
"""Values sorted at a time: a sort takes some 30 bytes a value (SOLOv2 on LVIS has 5 million pairs,
larger grids 100 million)."""


def rank(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest values along the last dimension, falling, and where they were.

    Exact ties go to the earlier index. ONNX has no sort, only TopK, whose specification orders ties
    the same way (a runtime may not keep to it). It must not be asked for more than is needed
    (TensorRT: at most 3,840 values).

    Args:
        values: [..., n].
        count: Upper bound of the number returned.

    Returns:
        Values and int64 indices, [..., min(n, count)].
    """
    count = min(count, values.shape[-1])
    # In this order: torch before 2.7 has no `is_exporting`, and is never asked.
    if torch.onnx.is_in_onnx_export() and torch.compiler.is_exporting():
        return torch.topk(values, count)
    if values.shape[-1] > PART > count:
        return _rank_in_parts(values, count)
    # Not torch's `topk`, which promises no order among ties.
    ordered, index = values.sort(descending=True, stable=True)
    return ordered[..., :count], index[..., :count]


def _rank_in_parts(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `rank`: the best of the best of each part, whose earlier values come first as before."""
    found = [rank(part, count) for part in torch.split(values, PART, dim=-1)]
    best = torch.cat([ordered for ordered, _ in found], dim=-1)
    places = torch.cat([index + PART * part for part, (_, index) in enumerate(found)], dim=-1)
    ordered, index = best.sort(descending=True, stable=True)
    return ordered[..., :count], places.gather(-1, index[..., :count])


def pick(rows: Tensor, index: Tensor) -> Tensor:
    """Take rows by index, for one image or for each of a batch.

    Unlike `take_along_dim` it makes no index of the size of the result.

    Args:
        rows: [n, ...] or [B, n, ...].
        index: [m] or [B, m] int64.

    Returns:
        [m, ...] or [B, m, ...].
    """
    if index.ndim == 1:
        return rows.index_select(0, index)
    starts = torch.arange(index.shape[0], device=index.device) * rows.shape[1]
    flat = (index + starts.unsqueeze(1)).flatten()
    return rows.flatten(0, 1).index_select(0, flat).reshape(*index.shape, *rows.shape[2:])
