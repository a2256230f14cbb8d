"""Fresh memory that is never zero by chance: what a kernel forgets to write shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        probe = torch.empty(4), torch.empty(4, dtype=torch.uint8)
        if not (probe[0].isnan().all() and (probe[1] == 255).all()):
            raise RuntimeError("this torch does not fill empty tensors any more")
        yield
    finally:
        torch.use_deterministic_algorithms(before)
