"""Any way to index a list of instances, as positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Index", "to_positions"]

Index: TypeAlias = int | slice | Sequence[int] | Sequence[bool] | NDArray[Any] | Tensor


def to_positions(index: Index, count: int, device: torch.device) -> Tensor:
    """Bring an index to positions.

    Args:
        index: A position, a slice, positions ([M] integers) or a mask ([N] bool), each as a list,
            array or tensor. Order and repeats are kept.
        count: N, how many instances there are.
        device: Where the positions are wanted.

    Returns:
        [M] int64, from 0.

    Raises:
        IndexError: If a position is out of range or a bool mask is not N long.
        TypeError: If `index` is of another kind.
    """
    if isinstance(index, slice):  # by range: torch has no negative steps
        return torch.tensor(range(count)[index], dtype=torch.int64, device=device)
    chosen = torch.as_tensor(index, device=device)
    if chosen.numel() == 0 and chosen.dtype != torch.bool:
        chosen = chosen.long()  # torch reads [] as float
    if chosen.dtype == torch.bool and chosen.ndim == 1:
        if len(chosen) != count:
            raise IndexError(f"bool index of length {len(chosen)} for {count} instances")
        return chosen.nonzero().flatten()
    if chosen.dtype.is_floating_point or chosen.dtype == torch.bool or chosen.ndim > 1:
        raise TypeError(
            "index instances by a position, a slice, a list of positions or a bool mask; "
            f"got {chosen.dtype} of shape {tuple(chosen.shape)}"
        )
    chosen = chosen.long().reshape(-1)
    if bool(((chosen < -count) | (chosen >= count)).any()):
        raise IndexError(f"instance {chosen.tolist()} out of range for {count} instances")
    return chosen % max(count, 1)
