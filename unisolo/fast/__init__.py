"""Models made ready to run fast: folded norms, half-precision weights, compiled, captured."""

from __future__ import annotations

from unisolo.fast.fold import fold_batch_norms
from unisolo.fast.model import FastModel, optimize

__all__ = ["FastModel", "fold_batch_norms", "optimize"]
