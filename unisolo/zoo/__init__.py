"""Models by path or by name."""

from __future__ import annotations

from unisolo.zoo.load import load_model

__all__ = ["load_model"]
