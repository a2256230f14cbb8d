"""The demo: a page in the browser that shows what a checkpoint sees in a picture."""

from __future__ import annotations

from unisolo.demo.find import find_checkpoint
from unisolo.demo.serve import serve

__all__ = ["find_checkpoint", "serve"]
