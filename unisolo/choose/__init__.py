"""What to train with, from the data and the machine: `unisolo train --data DIR` needs no more."""

from __future__ import annotations

from unisolo.choose.chosen import Choice, Chosen
from unisolo.choose.settings import choose, default_out
from unisolo.choose.splits import find_splits

__all__ = ["Choice", "Chosen", "choose", "default_out", "find_splits"]
